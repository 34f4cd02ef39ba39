"""Lowers 3D convolutions and pooling to 2D ones, which have integer kernels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from keras import layers, ops

from tfcompress.lowering.affine_conv import ImageForm


def convolution_3d(layer: Any, tensor: Any, kernel: Any, bias: Any) -> ImageForm | None:
    """Returns the result of a 3D convolution by a 2D one, or None.

    Args:
        layer: A linear Conv3D or Conv3DTranspose.
        tensor: Its input.
        kernel: Its kernel, pruned and fake-quantized.
        bias: Its bias, or None.
    """
    if type(layer) not in (layers.Conv3D, layers.Conv3DTranspose):
        return None
    depth, *image = tensor.shape[1:]
    if layer.data_format != "channels_last" or None in tensor.shape[1:]:
        return None
    if getattr(layer, "groups", 1) != 1 or getattr(layer, "output_padding", None) is not None:
        return None
    size, stride, dilation = layer.kernel_size[0], layer.strides[0], layer.dilation_rate[0]
    transposed = isinstance(layer, layers.Conv3DTranspose)
    reach = (size - 1) * dilation + 1
    same = layer.padding == "same"
    if transposed:
        # Zeros between the slices turn the transposed convolution into an ordinary one.
        x = ops.reshape(tensor, (-1, depth, 1, math.prod(image)))
        x = ops.pad(x, ((0, 0), (0, 0), (0, stride - 1), (0, 0)))
        x = ops.reshape(x, (-1, depth * stride, *image))
        length = depth * stride + (0 if same else max(reach - stride, 0))
        before = reach - 1 - (max(reach - stride, 0) // 2 if same else 0)
        after = max(0, length + reach - 1 - before - depth * stride)
        starts = [(size - 1 - k) * dilation for k in range(size)]
        hop = 1
    else:
        x, hop = tensor, stride
        length = -(-depth // stride) if same else (depth - reach) // stride + 1
        missing = max(0, (length - 1) * stride + reach - depth) if same else 0
        before, after = missing // 2, missing - missing // 2
        starts = [k * dilation for k in range(size)]
    if before or after:
        x = ops.pad(x, ((0, 0), (before, after), (0, 0), (0, 0), (0, 0)))
    slices = [x[:, start : start + (length - 1) * hop + 1 : hop] for start in starts]
    x = ops.concatenate(slices, axis=-1) if size > 1 else slices[0]
    x = ops.reshape(x, (-1, *image[:-1], size * image[-1]))
    kind = layers.Conv2DTranspose if transposed else layers.Conv2D
    core = kind(
        layer.filters,
        layer.kernel_size[1:],
        strides=layer.strides[1:],
        padding=layer.padding,
        dilation_rate=layer.dilation_rate[1:],
        use_bias=bias is not None,
        name=layer.name,
        dtype="float32",
    )
    outputs = core(x)
    kernel = np.asarray(ops.convert_to_numpy(kernel))
    # (depth, height, width, in, out), transposed (depth, height, width, out, in)
    if transposed:
        kernel = kernel.transpose(1, 2, 3, 0, 4).reshape(*core.kernel.shape)
    else:
        kernel = kernel.transpose(1, 2, 0, 3, 4).reshape(*core.kernel.shape)
    core.set_weights([kernel] + ([] if bias is None else [ops.convert_to_numpy(bias)]))
    shape = (-1, length, *outputs.shape[1:])
    return ImageForm(outputs, lambda image: ops.reshape(image, shape))


def pooling_3d(layer: Any, tensor: Any) -> Any:
    """Returns the result of 3D pooling by 2D pooling and then 1D pooling, or None."""
    if type(layer) not in (layers.MaxPooling3D, layers.AveragePooling3D):
        return None
    if layer.data_format != "channels_last" or None in tensor.shape[1:]:
        return None
    (size, *window), (stride, *strides) = layer.pool_size, layer.strides
    depth, height, width, channels = tensor.shape[1:]
    if isinstance(layer, layers.MaxPooling3D):
        image = ops.reshape(tensor, (-1, height, width, channels))
        image = ops.max_pool(image, window, strides, layer.padding)
        plane = image.shape[1:]
        lines = ops.reshape(image, (-1, depth, plane[0] * plane[1], channels))
        lines = ops.max_pool(lines, (size, 1), (stride, 1), layer.padding)
        return ops.reshape(lines, (-1, lines.shape[1], *plane))
    if layer.padding == "same":
        return None  # averages do not count the padding
    # In one pooling, so that the average is rounded once: its window covers the slices of two
    # axes, stacked.
    tall = [
        (n - k) // s + 1 for n, k, s in ((depth, size, stride), (height, window[0], strides[0]))
    ]
    slices = [
        tensor[
            :,
            d : d + (tall[0] - 1) * stride + 1 : stride,
            h : h + (tall[1] - 1) * strides[0] + 1 : strides[0],
        ]
        for d in range(size)
        for h in range(window[0])
    ]
    images = [ops.reshape(x, (-1, 1, width, channels)) for x in slices]
    image = ops.concatenate(images, axis=1)
    image = ops.average_pool(image, (len(images), window[1]), (1, strides[1]), "valid")
    return ops.reshape(image, (-1, *tall, image.shape[2], channels))
