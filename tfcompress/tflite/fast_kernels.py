"""Replaces operations that XNNPACK does not take, or computes slowly, by equal ones that are fast.

What each costs is in docs/operations.md. The replacements compute the same integers as the
quantization-aware model; where the arithmetic of an operation changes, the model has that of the
replacement.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from tfcompress.quantization.layers.normalization import FEWEST_ROOTS
from tfcompress.quantization.layers.pooling import EXACT_FACTORS, FACTOR_SCALE, MOST_TAPS
from tfcompress.tensorflow_internals import flatbuffer_schema
from tfcompress.tflite.flatbuffer_edits import (
    add_buffer,
    drop_unused_codes,
    drop_unused_tensors,
)

_FEWEST_PROBABILITIES = 4096  # of a sample; the softmax of a classifier stays in integers
_GROUP, _LARGEST_GROUP = 16, 48  # channels: computed at once; still faster than one at a time


class FastFile:
    """A file as objects, with what replacements need.

    Args:
        content: An integer `.tflite` file.
    """

    def __init__(self, content: bytes) -> None:
        from tensorflow.lite.tools import flatbuffer_utils

        self.schema = flatbuffer_schema()
        self.kinds = self.schema.BuiltinOperator
        self.model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
        self.graph: Any = self.model.subgraphs[0]

    def kind(self, operator: Any) -> int:
        """Returns the kind of an operator."""
        return self.model.operatorCodes[operator.opcodeIndex].builtinCode

    def tensor(self, index: int) -> Any:
        """Returns a tensor of the graph."""
        return self.graph.tensors[int(index)]

    def data(self, index: int) -> bytes:
        """Returns the bytes of a constant, empty if a tensor is none."""
        data = self.model.buffers[self.tensor(index).buffer].data
        return b"" if data is None else bytes(data)

    def is_int8(self, *indices: int) -> bool:
        """Returns whether tensors are int8."""
        return all(self.tensor(i).type == self.schema.TensorType.INT8 for i in indices)

    def new_tensor(self, like: int, data: np.ndarray | None = None, **fields: Any) -> int:
        """Adds a copy of a tensor with other fields and, if it is a constant, with its data."""
        tensor = copy.copy(self.tensor(like))
        tensor.quantization = copy.copy(tensor.quantization)
        tensor.shapeSignature = None
        for field, value in fields.items():
            setattr(tensor, field, value)
        tensor.buffer = 0 if data is None else add_buffer(self.model, data.view(np.uint8).ravel())
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def operator(
        self, kind: str, inputs: list[int], outputs: list[int], version: int, **fields: Any
    ) -> Any:
        """Returns an operator with options of the same name, such as `AddOptions`."""
        code = next(
            (c for c in self.model.operatorCodes if c.builtinCode == getattr(self.kinds, kind)),
            None,
        )
        if code is None:
            code = self.schema.OperatorCodeT()
            code.builtinCode = getattr(self.kinds, kind)
            code.deprecatedBuiltinCode, code.version = code.builtinCode, version
            self.model.operatorCodes.append(code)
        code.version = max(code.version, version)
        operator = self.schema.OperatorT()
        operator.opcodeIndex = self.model.operatorCodes.index(code)
        operator.inputs, operator.outputs = inputs, outputs
        name = _OPTIONS[kind]
        operator.builtinOptions = getattr(self.schema, f"{name}T")()
        operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, name)
        for field, value in fields.items():
            setattr(operator.builtinOptions, field, value)
        return operator


_OPTIONS = {
    "ADD": "AddOptions",
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "DEQUANTIZE": "DequantizeOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "QUANTIZE": "QuantizeOptions",
}

Replacement = Callable[[FastFile, Any], list[Any] | None]
_REPLACEMENTS: dict[str, tuple[Replacement, bool]] = {}


def _replaces(*kinds: str, costs_bytes: bool = False) -> Callable[[Replacement], Replacement]:
    """Registers what replaces some operations; it returns None where they stay."""

    def register(replacement: Replacement) -> Replacement:
        _REPLACEMENTS.update(dict.fromkeys(kinds, (replacement, costs_bytes)))
        return replacement

    return register


def use_fast_kernels(content: bytes, prefer: str = "latency") -> bytes:
    """Returns an integer file with fast operations in place of equal slow ones.

    Args:
        content: A `.tflite` file.
        prefer: The `prefer` of the scheme. Replacements that need more bytes, or that only some
            runtimes compute fast, are for "latency".
    """
    file = FastFile(content)
    replacements = {
        getattr(file.kinds, kind): replacement
        for kind, (replacement, costs_bytes) in _REPLACEMENTS.items()
        if prefer == "latency" or not costs_bytes
    }
    changed = False
    for graph in file.model.subgraphs:
        file.graph = graph
        operators: list[Any] = []
        for operator in graph.operators:
            rule = replacements.get(file.kind(operator))
            new = rule(file, operator) if rule else None
            changed |= new is not None
            operators += [operator] if new is None else new
        graph.operators = operators
    if not changed:
        return content
    drop_unused_codes(file.model)
    drop_unused_tensors(file.model)
    from tensorflow.lite.tools import flatbuffer_utils

    return bytes(flatbuffer_utils.convert_object_to_bytearray(file.model))


@_replaces("RELU", "RELU6")
def _add_zero(file: FastFile, operator: Any) -> list[Any] | None:
    """A ReLU that nothing fuses with becomes a sum with zero, fused with a ReLU."""
    (source,), (output,) = operator.inputs, operator.outputs
    if not file.is_int8(source, output):
        return None
    quantization = copy.copy(file.tensor(source).quantization)
    ratio = quantization.scale[0] / file.tensor(output).quantization.scale[0]
    if not 2**-10 <= ratio < 2**8:  # what XNNPACK computes
        return None
    quantization.zeroPoint = np.zeros(1, np.int64)
    zero = file.new_tensor(
        int(source), np.zeros(1, np.int8), name=b"zero", shape=[], quantization=quantization
    )
    functions = file.schema.ActivationFunctionType
    six = file.kind(operator) == file.kinds.RELU6
    return [
        file.operator(
            "ADD",
            [int(source), zero],
            [int(output)],
            2,
            fusedActivationFunction=functions.RELU6 if six else functions.RELU,
        )
    ]


@_replaces("MUL")
def _store_exact_factors(file: FastFile, operator: Any) -> list[Any] | None:
    """Factors that are multiples of a scale are stored with it; the converter chooses another."""
    for position, index in enumerate(operator.inputs):
        name = (file.tensor(index).name or b"").decode()
        if not (EXACT_FACTORS in name and file.is_int8(index) and file.data(index)):
            continue
        tensor = file.tensor(index)
        old = tensor.quantization
        values = np.frombuffer(file.data(index), np.int8).astype(np.float64)
        values = (values - old.zeroPoint[0]) * old.scale[0]
        quantization = copy.copy(old)
        quantization.scale = np.array([FACTOR_SCALE], np.float32)
        quantization.zeroPoint = np.zeros(1, np.int64)
        exact = np.round(values / FACTOR_SCALE).astype(np.int8)
        operator.inputs = [int(t) for t in operator.inputs]
        operator.inputs[position] = file.new_tensor(int(index), exact, quantization=quantization)
        return [operator]
    return None


@_replaces("DEPTHWISE_CONV_2D", costs_bytes=True)
def _group_channels(file: FastFile, operator: Any) -> list[Any] | None:
    """A depthwise convolution with a large kernel becomes one of groups of channels.

    The kernel of a group has zeros outside of its diagonal, so that the sums are the same.
    """
    source, index = (int(t) for t in operator.inputs[:2])
    _, height, width, channels = (int(n) for n in file.tensor(index).shape)
    if height * width <= MOST_TAPS or not file.is_int8(source, index) or not file.data(index):
        return None
    if operator.builtinOptions.depthMultiplier not in (0, 1):
        return None
    if int(file.tensor(source).shape[3]) != channels:
        return None
    kernel = np.frombuffer(file.data(index), np.int8).reshape(height, width, channels)
    return _as_groups(file, operator, kernel.transpose(2, 0, 1)[..., None], channels)


@_replaces("CONV_2D", costs_bytes=True)
def _by_group_or_row(file: FastFile, operator: Any) -> list[Any] | None:
    """Small groups of channels are merged; products with 4-bit weights are computed by rows."""
    source, index = (int(t) for t in operator.inputs[:2])
    kernel = file.tensor(index)
    if not file.is_int8(source) or not file.data(index):
        return None
    outputs, height, width, inputs = (int(n) for n in kernel.shape)
    if kernel.type == file.schema.TensorType.INT4:
        return _by_row(file, operator) if height == width == 1 else None
    groups = int(file.tensor(source).shape[3]) // inputs
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
    if merged == 1:
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
    weights = file.tensor(index)
    weights.shape, weights.shapeSignature = [outputs, inputs], None
    return [
        *before,
        file.operator(
            "FULLY_CONNECTED",
            [source, index, *bias],
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


@_replaces("MAXIMUM", "MINIMUM", costs_bytes=True)
def _with_number(file: FastFile, operator: Any) -> list[Any] | None:
    """An extreme of a tensor and one number is computed in float: this keeps XNNPACK's part whole.

    Of two tensors it stays: its kernel is fast.
    """
    counts = [np.prod(file.tensor(t).shape) for t in operator.inputs if file.data(t)]
    return _in_float(file, operator) if counts == [1] else None


@_replaces("EXP", "GELU", "PRELU", "RSQRT", "SOFTMAX", costs_bytes=True)
def _in_float(file: FastFile, operator: Any) -> list[Any] | None:
    """Functions without int8 kernel in XNNPACK are computed in float, between two conversions.

    Of functions of one number, XNNPACK makes a table when it opens the file, conversions included.
    """
    output = int(operator.outputs[0])
    if not file.is_int8(*operator.inputs, output):
        return None
    fewest = {file.kinds.RSQRT: FEWEST_ROOTS, file.kinds.SOFTMAX: _FEWEST_PROBABILITIES}
    if np.prod(file.tensor(output).shape[1:]) < fewest.get(file.kind(operator), 0):
        return None
    before, inputs = [], []
    for index in map(int, operator.inputs):
        values = None
        if file.data(index):
            quantization = file.tensor(index).quantization
            zero_point, scale = int(quantization.zeroPoint[0]), np.float32(quantization.scale[0])
            values = np.frombuffer(file.data(index), np.int8).astype(np.float32)
            values = (values - np.float32(zero_point)) * scale
        inputs.append(_float_copy(file, index, values))
        if values is None:
            before.append(file.operator("DEQUANTIZE", [index], [inputs[-1]], 2))
    result = _float_copy(file, output, None)
    operator.inputs, operator.outputs = inputs, [result]
    return [*before, operator, file.operator("QUANTIZE", [result], [output], 1)]


def _float_copy(file: FastFile, index: int, values: np.ndarray | None) -> int:
    name = (file.tensor(index).name or b"") + b"/float"
    kind = file.schema.TensorType.FLOAT32
    return file.new_tensor(index, values, name=name, type=kind, quantization=None)
