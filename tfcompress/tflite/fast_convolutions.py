"""Convolutions in forms that XNNPACK computes fast (see `fast_kernels.py`)."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from tfcompress.quantization.layers.pooling import MOST_TAPS
from tfcompress.tflite.fast_file import FastFile, replaces

_SCALED_CHANNELS = 64  # from which on a scaling of channels is fast
_GROUP, _LARGEST_GROUP = 16, 48  # channels: computed at once; still faster than one at a time


@replaces("DEPTHWISE_CONV_2D", preferences=("latency",))
def _group_channels(file: FastFile, operator: Any) -> list[Any] | None:
    """A depthwise convolution with a large kernel becomes one of groups of channels.

    The kernel of a group has zeros outside of its diagonal, so that the sums are the same. One
    without neighbours, of few channels, takes several pixels as one.
    """
    source, index = (int(t) for t in operator.inputs[:2])
    _, height, width, channels = (int(n) for n in file.tensor(index).shape)
    if height == width == 1:
        return _scale_rows(file, operator)
    if height * width <= MOST_TAPS or not file.is_int8(source, index) or not file.data(index):
        return None
    if operator.builtinOptions.depthMultiplier not in (0, 1):
        return None
    if int(file.tensor(source).shape[3]) != channels:
        return None
    kernel = np.frombuffer(file.data(index), np.int8).reshape(height, width, channels)
    return _as_groups(file, operator, kernel.transpose(2, 0, 1)[..., None], channels)


@replaces("CONV_2D")
def _by_group_or_row(file: FastFile, operator: Any) -> list[Any] | None:
    """Small groups of channels are merged; products with 4-bit weights are computed by rows."""
    source, index = (int(t) for t in operator.inputs[:2])
    kernel = file.tensor(index)
    if not file.is_int8(source) or not file.data(index):
        return None
    outputs, height, width, inputs = (int(n) for n in kernel.shape)
    groups = int(file.tensor(source).shape[3]) // inputs
    if kernel.type == file.schema.TensorType.INT4:
        return _by_row(file, operator) if groups == height == width == 1 else None
    if groups < 2 or inputs >= _GROUP // 2 or not file.is_int8(index):
        return None
    values = np.frombuffer(file.data(index), np.int8).reshape(outputs, height, width, inputs)
    if inputs == 1 and outputs == groups and height * width <= MOST_TAPS:
        return _as_depthwise(file, operator, values)
    return _as_groups(file, operator, values, groups)


def _as_groups(file: FastFile, operator: Any, kernel: np.ndarray, groups: int) -> list[Any] | None:
    """Returns a convolution with fewer, larger groups; `kernel` has the output channels first."""
    outputs, height, width, inputs = kernel.shape
    merged = _merged_groups(groups, inputs)
    if merged == 1 or file.prefer != "latency":  # the larger kernels cost bytes
        return None
    larger = np.zeros((outputs, height, width, merged * inputs), np.int8)
    for channel in range(outputs):
        position = channel // (outputs // groups) % merged * inputs
        larger[channel, ..., position : position + inputs] = kernel[channel]
    return [_with_kernel(file, operator, "CONV_2D", larger, 0)]


def _merged_groups(groups: int, inputs: int) -> int:
    """Returns how many groups to merge, so that one has about as many channels as fit at once."""
    divisors = [n for n in range(1, groups + 1) if groups % n == 0]
    fitting = max(n for n in divisors if n * inputs <= _GROUP)
    if fitting * inputs >= _GROUP // 2:
        return fitting
    return next((n for n in divisors if _GROUP < n * inputs <= _LARGEST_GROUP), fitting)


def _as_depthwise(file: FastFile, operator: Any, kernel: np.ndarray) -> list[Any]:
    """Returns a convolution of groups of one channel as a depthwise one."""
    depthwise = np.ascontiguousarray(kernel[..., 0].transpose(1, 2, 0)[None])
    return [_with_kernel(file, operator, "DEPTHWISE_CONV_2D", depthwise, 3, depthMultiplier=1)]


def _with_kernel(
    file: FastFile, operator: Any, kind: str, kernel: np.ndarray, axis: int, **fields: Any
) -> Any:
    """Returns a convolution with another kernel, whose scales are those of the old one."""
    index = int(operator.inputs[1])
    quantization = copy.copy(file.tensor(index).quantization)
    quantization.quantizedDimension = axis
    new = file.new_tensor(index, kernel, shape=[*kernel.shape], quantization=quantization)
    names = "padding strideW strideH fusedActivationFunction dilationWFactor dilationHFactor"
    options = {name: getattr(operator.builtinOptions, name) for name in names.split()}
    inputs = [int(operator.inputs[0]), new, *map(int, operator.inputs[2:])]
    version = file.model.operatorCodes[operator.opcodeIndex].version
    return file.operator(kind, inputs, [*operator.outputs], version, **options, **fields)


def _by_row(file: FastFile, operator: Any) -> list[Any]:
    """Returns a 1x1 convolution as a dense layer of every pixel, which has a kernel for 4 bits."""
    source, index, *bias = (int(t) for t in operator.inputs)
    options, before = operator.builtinOptions, []
    if max(options.strideH, options.strideW) > 1:
        before = [_with_every_other_pixel(file, operator)]
        source = before[0].outputs[0]
    outputs, _, _, inputs = (int(n) for n in file.tensor(index).shape)
    weights = file.reshaped(index, [outputs, inputs])  # another call may read it as it is
    return [
        *before,
        file.operator(
            "FULLY_CONNECTED",
            [source, weights, *bias],
            [*operator.outputs],
            10,
            fusedActivationFunction=options.fusedActivationFunction,
            keepNumDims=True,
        ),
    ]


def _with_every_other_pixel(file: FastFile, operator: Any) -> Any:
    """Returns the operation that picks the pixels which a strided convolution reads.

    A depthwise convolution that multiplies by one; the runtime has no other fast one.
    """
    source, output = int(operator.inputs[0]), int(operator.outputs[0])
    channels = int(file.tensor(source).shape[3])
    quantization = copy.copy(file.tensor(source).quantization)
    of_bias = copy.copy(quantization)
    of_bias.scale = np.full(channels, quantization.scale[0] * np.float32(1 / 127), np.float32)
    of_bias.zeroPoint, of_bias.quantizedDimension = np.zeros(channels, np.int64), 0
    quantization.scale = np.full(channels, 1 / 127, np.float32)
    quantization.zeroPoint = np.zeros(channels, np.int64)
    quantization.quantizedDimension = 3
    ones = file.new_tensor(
        source,
        np.full(channels, 127, np.int8),
        name=b"ones",
        shape=[1, 1, 1, channels],
        quantization=quantization,
    )
    bias = file.new_tensor(
        source,
        np.zeros(channels, np.int32),
        name=b"zeros",
        shape=[channels],
        type=file.schema.TensorType.INT32,
        quantization=of_bias,
    )
    shape = [*file.tensor(output).shape[:3], channels]
    picked = file.new_tensor(source, name=file.tensor(output).name + b"/picked", shape=shape)
    return file.operator(
        "DEPTHWISE_CONV_2D",
        [source, ones, bias],
        [picked],
        3,
        padding=file.schema.Padding.VALID,
        strideH=operator.builtinOptions.strideH,
        strideW=operator.builtinOptions.strideW,
        dilationHFactor=1,
        dilationWFactor=1,
        depthMultiplier=1,
    )


def _scale_rows(file: FastFile, operator: Any) -> list[Any] | None:
    """A scaling of few channels is computed on several pixels at once, as if each had more."""
    source, output = int(operator.inputs[0]), int(operator.outputs[0])
    batch, height, width, channels = (int(n) for n in file.tensor(source).shape)
    options = operator.builtinOptions
    multiplier = options.depthMultiplier not in (0, 1)
    if channels >= _GROUP or max(options.strideH, options.strideW) > 1 or multiplier:
        return None
    if len(operator.inputs) < 3 or not file.is_int8(source, output) or width < 2:
        return None
    if not file.is_sized(source, output):
        return None
    divisors = [n for n in range(1, width + 1) if width % n == 0]
    pixels = next((n for n in divisors if n * channels >= _SCALED_CHANNELS), width)
    shape = [batch, height, width // pixels, pixels * channels]
    new = copy.copy(operator)
    new.inputs = [file.new_tensor(source, name=file.tensor(source).name + b"/rows", shape=shape)]
    for index, axis in zip(map(int, operator.inputs[1:]), (3, 0), strict=True):
        tensor = file.tensor(index)
        quantization = copy.copy(tensor.quantization)
        if len(quantization.scale) > 1:  # one for each channel
            quantization.scale = np.tile(quantization.scale, pixels).astype(np.float32)
            quantization.zeroPoint = np.zeros(len(quantization.scale), np.int64)
        quantization.quantizedDimension = axis
        kind = np.int8 if axis else np.int32
        values = np.tile(np.frombuffer(file.data(index), kind), pixels)
        tiled = [*tensor.shape[:-1], int(tensor.shape[-1]) * pixels]
        new.inputs.append(file.new_tensor(index, values, shape=tiled, quantization=quantization))
    new.outputs = [file.new_tensor(output, name=file.tensor(output).name + b"/rows", shape=shape)]
    return [
        file.reshape(source, new.inputs[0]),
        new,
        file.reshape(new.outputs[0], output),
    ]
