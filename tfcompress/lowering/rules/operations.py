"""Operations whose Keras form the converter handles badly."""

from __future__ import annotations

import itertools
import types
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from tfcompress.lowering.context import Lowering
from tfcompress.lowering.lowering_rules import Site, Stage, form_of, lowered_form, lowering_rule
from tfcompress.quantization.layers.normalization import has_unit_length


@lowering_rule(Stage.OPERATION, 85)
def use_lowered_form(lowering: Lowering, site: Site) -> Any:
    """Lowers an operation to the form that is registered for its class."""
    form = form_of(site.layer, integers=lowering.rounds or lowering.int16)
    if form is None or not all(isinstance(arg, keras.KerasTensor) for arg in site.args):
        return None
    return form(site.layer, *site.args, **site.kwargs)


@lowered_form("Negative", integers_only=True)
def _negative(operation: Any, x: Any) -> Any:
    return x * -1.0


@lowered_form("Square", integers_only=True)
def _square(operation: Any, x: Any) -> Any:
    return x * x


@lowered_form("Split", "ArraySplit", "Unstack", integers_only=True)
def _slices(operation: Any, x: Any) -> Any:
    # The converter leaves some results of a split in float, depending on their values.
    axis = operation.axis % len(x.shape)
    if x.shape[axis] is None:
        return operation(x)
    before = (slice(None),) * axis
    parts = operation.compute_output_spec(x)
    if len(parts[0].shape) < len(x.shape):  # unstacked
        return [x[(*before, index)] for index in range(len(parts))]
    offsets = itertools.accumulate((part.shape[axis] for part in parts), initial=0)
    return [x[(*before, slice(a, b))] for a, b in itertools.pairwise(offsets)]


@lowered_form("Divide", "TrueDivide", integers_only=True)
def _quotient(operation: Any, x: Any, y: Any) -> Any:
    # The integer kernel of division is wrong, and the converter would quantize a float division.
    return x * (y * ops.square(ops.rsqrt(ops.square(y))))


@lowered_form("Cast", integers_only=True)
def _flags(operation: Any, x: Any) -> Any:
    """Lowers a cast of booleans to a selection between two quantized values."""
    if x.dtype != "bool" or not keras.backend.is_float_dtype(operation.dtype):
        return ops.cast(x, operation.dtype)
    return ops.where(x, 1.0, 0.0)


@lowered_form("OneHot", integers_only=True)
def _one_hot(operation: Any, x: Any) -> Any:
    axis = operation.axis % (len(x.shape) + 1)
    return ops.where(_are_equal(x, operation.num_classes, axis), 1.0, 0.0)


@lowered_form("CategoryEncoding")
def _categories(layer: Any, x: Any, count_weights: Any = None) -> Any:
    if layer.output_mode == "int":
        return ops.cast(x, "float32")
    matches = _are_equal(ops.cast(x, "int32"), layer.num_tokens, len(x.shape))
    if layer.output_mode == "multi_hot" and len(x.shape) > 1:
        matches = ops.any(matches, -2)
    elif layer.output_mode == "one_hot" and len(x.shape) > 1 and x.shape[-1] == 1:
        matches = ops.squeeze(matches, -2)
    encoded = ops.where(matches, 1.0, 0.0)
    if layer.output_mode != "count":
        return encoded
    if count_weights is not None:
        encoded = encoded * ops.expand_dims(count_weights, -1)
    return ops.sum(encoded, 1)


@lowered_form("Discretization")
def _bins(layer: Any, x: Any) -> Any:
    bins = keras.layers.Discretization(layer.bin_boundaries)(x)
    if layer.output_mode == "int":
        return bins
    count = len(layer.bin_boundaries) + 1
    config = types.SimpleNamespace(output_mode=layer.output_mode, num_tokens=count)
    return _categories(config, bins)


def _are_equal(x: Any, count: int, axis: int) -> Any:
    """Returns the comparisons of an integer with all integers below `count`, along a new axis."""
    shape = [count if index == axis else 1 for index in range(len(x.shape) + 1)]
    numbers = np.reshape(np.arange(count, dtype=x.dtype), shape)
    return ops.equal(ops.expand_dims(x, axis), numbers)


@lowered_form("Normalize", "UnitNormalization")
def _of_unit_length(operation: Any, x: Any) -> Any:
    # The Keras form limits the root, not the sum. The converter does not recognize that, and
    # vectors of zeros become NaN.
    if getattr(operation, "order", 2) != 2:
        return operation(x)
    least = getattr(operation, "epsilon", 1e-12) or keras.config.epsilon()
    if not has_unit_length(operation):
        return _scaled(x, operation.axis, least)
    shape, axis = x.shape, tree.flatten(operation.axis)[0] % len(x.shape)
    moved = axis != len(shape) - 1
    x = ops.swapaxes(x, axis, -1) if moved else x
    if len(shape) > 4 and None not in x.shape[1:]:  # more axes than the kernel supports
        x = ops.reshape(_scaled(ops.reshape(x, (-1, x.shape[-1])), -1, least), (-1, *x.shape[1:]))
    else:
        x = _scaled(x, -1, least)
    return ops.swapaxes(x, axis, -1) if moved else x


def _scaled(x: Any, axis: Any, least: float) -> Any:
    squares = ops.sum(ops.square(x), axis=axis, keepdims=True)
    return x * ops.rsqrt(ops.maximum(squares, least**2))
