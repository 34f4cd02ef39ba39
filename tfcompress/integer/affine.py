"""Layers and operations that multiply each channel by a scale and add an offset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from tfcompress.graph.keras_internals import inbound_nodes
from tfcompress.graph.plain_layers import ChannelScale


def scale_and_offset(layer: Any) -> tuple[Any, Any]:
    """Returns scale and offset of each channel, rounded alike by all compilers.

    Args:
        layer: A BatchNormalization, Normalization, Rescaling, another layer with `gamma` and
            `beta`, or an operation whose other operand is a constant.
    """
    operand = constant_operand(layer)
    if operand is not None:
        return tuple(ops.convert_to_tensor(value, "float32") for value in operand)
    if isinstance(layer, layers.Rescaling):
        scale, offset = layer.scale, layer.offset
        return ops.convert_to_tensor(scale, "float32"), ops.convert_to_tensor(offset, "float32")
    if isinstance(layer, layers.Normalization):
        mean, variance = (ops.reshape(v, (-1,)) for v in (layer.mean, layer.variance))
        scale = 1 / ops.maximum(ops.sqrt(variance), keras.backend.epsilon())
        return scale, -mean * scale
    gamma = ops.ones(()) if layer.gamma is None else ops.convert_to_tensor(layer.gamma)
    beta = ops.zeros(()) if layer.beta is None else ops.convert_to_tensor(layer.beta)
    if not isinstance(layer, layers.BatchNormalization):
        return gamma, beta
    # No `rsqrt`: compilers approximate it in different ways.
    variance = ops.convert_to_tensor(layer.moving_variance) + layer.epsilon
    scale = gamma / ops.maximum(ops.sqrt(variance), 1e-30)
    return scale, beta - ops.convert_to_tensor(layer.moving_mean) * scale


def operand_of(args: Any, kwargs: Any) -> Any:
    """Returns the first argument of an operation that is not a number."""
    return next(v for v in (*args, *kwargs.values()) if not isinstance(v, (int, float)))


def constant_operand(operation: Any) -> tuple[float, float] | None:
    """Returns scale and offset of an operation on a float tensor and a number.

    None for any other operation, for the identity, and for vectors.
    """
    name = type(operation).__name__
    if isinstance(operation, keras.layers.Layer) or name not in _ARITHMETIC:
        return None
    first, second = (*inbound_nodes(operation)[0].arguments.args, None, None)[:2]
    tensor, number = (second, first) if isinstance(first, (int, float)) else (first, second)
    if not isinstance(tensor, keras.KerasTensor) or not isinstance(number, (int, float)):
        return None
    if not keras.backend.is_float_dtype(tensor.dtype) or isinstance(number, bool):
        return None
    if len(tensor.shape) < 3:
        return None  # the reshape to an image, which it needs, fails in the converter
    scale_offset = _ARITHMETIC[name](float(number), tensor is second)
    return None if scale_offset == (1.0, 0.0) else scale_offset


_ARITHMETIC: dict[str, Callable[[float, bool], tuple[float, float] | None]] = {
    "Add": lambda number, _: (1.0, number),
    "Multiply": lambda number, _: (number, 0.0),
    "Subtract": lambda number, reverse: (-1.0, number) if reverse else (1.0, -number),
    "Divide": lambda number, reverse: None if reverse or not number else (1 / number, 0.0),
    "TrueDivide": lambda number, reverse: None if reverse or not number else (1 / number, 0.0),
}


def is_affine(layer: Any) -> bool:
    """Returns whether an operation only scales and offsets each channel of its last axis."""
    if isinstance(layer, ChannelScale) or constant_operand(layer) is not None:
        return True
    if type(layer) is layers.Rescaling:
        return max(np.ndim(layer.scale), np.ndim(layer.offset)) <= 1
    if type(layer) is layers.Normalization:
        return not layer.invert and all(axis in (-1, _last_axis(layer)) for axis in layer.axis)
    return type(layer) is layers.BatchNormalization and layer.axis in (-1, _last_axis(layer))


def _last_axis(layer: Any) -> int:
    return len(layer.get_build_config()["input_shape"]) - 1


def affine_of(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns scale and offset, per channel or scalar, of a built layer that `is_affine`."""
    scale, offset = (ops.convert_to_numpy(value) for value in scale_and_offset(layer))
    return scale.astype(np.float64), offset.astype(np.float64)
