"""Simpler operations in place of calls that custom code makes, where these hide several.

Code writes a normalization as products and a root, attention as one operation of `keras.ops`, an
activation as a function. Each is replaced by what can be quantized: `strip` puts the code back.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.graph.clone import Rewriter
from tfcompress.graph.code import einsum_shape
from tfcompress.graph.code_layers import OwnWeight
from tfcompress.graph.keras_internals import (
    producing_arguments,
    producing_inputs,
    producing_operation,
)
from tfcompress.graph.layers import activation_name
from tfcompress.graph.plain_layers import ChannelScale, MaskScores, RootMeanSquare
from tfcompress.graph.read import Call


def in_operations(call: Call, args: Any, kwargs: Any, rewriter: Rewriter) -> Any:
    """Emits a call as simpler operations; None if it stays.

    Args:
        call: The call in the graph of the code.
        args: Its arguments in the new graph.
        kwargs: Its arguments by name in the new graph.
        rewriter: What builds the new graph.
    """
    layer = call.operation
    name = type(layer).__name__
    if isinstance(layer, keras.layers.EinsumDense):
        # Keras takes over the sizes that the layer was created with, of which some are open.
        options = {"output_shape": einsum_shape(layer, args[0].shape)[1:]}
        return _activated(layer, options, args, kwargs, rewriter)
    if type(layer) is keras.layers.Softmax and (len(args) > 1 or kwargs.get("mask") is not None):
        scores, mask = (*args, kwargs.get("mask"))[:2]
        dtype = keras.backend.standardize_dtype(mask.dtype)
        if dtype != "bool":
            mask = ops.greater(mask, 0.5 if keras.backend.is_float_dtype(dtype) else 0)
        return rewriter.clone(layer)(MaskScores()(scores, mask))
    if isinstance(layer, keras.layers.Layer):
        return _activated(layer, {}, args, kwargs, rewriter)
    if name in ("Multiply", "Divide", "TrueDivide") and len(args) == 2:
        normalized = _normalized(call, args)
        return _scaled(call, args, rewriter) if normalized is None else normalized
    if name in ("Cast", "ConvertToTensor") and call.outputs[0].dtype == args[0].dtype:
        return args[0]
    if name == "FFT2":
        return _fourier(call, args[0])
    if name == "DotProductAttention":
        return attention(layer, *args, **kwargs)
    return None


def _fourier(call: Call, parts: Any) -> Any:
    """Emits a Fourier transform of real matrices as products with cosines and sines.

    TFLite has no operation for it. None for complex matrices, or an open size.
    """
    real, _ = parts
    zero = call.args[0][1]
    if isinstance(zero, keras.KerasTensor):
        vanishes = _is(zero, "ZerosLike")
    else:
        vanishes = not np.any(ops.convert_to_numpy(zero))
    if not vanishes or None in real.shape[-2:]:
        return None

    def waves(size: int) -> tuple[Any, Any]:
        angles = 2 * np.pi * np.outer(np.arange(size), np.arange(size)) / size
        return np.cos(angles).astype("float32"), np.sin(angles).astype("float32")

    rows, columns = waves(real.shape[-2]), waves(real.shape[-1])
    swapped = ops.swapaxes(real, -1, -2)
    cosines, sines = (ops.swapaxes(ops.matmul(swapped, rows[index]), -1, -2) for index in (0, 1))
    products = [ops.matmul(part, wave) for part in (cosines, sines) for wave in columns]
    return products[0] - products[3], -(products[1] + products[2])


def _activated(layer: Any, options: Any, args: Any, kwargs: Any, rewriter: Rewriter) -> Any:
    """Emits a layer whose activation is a function of the user's own, and what this calls."""
    own = getattr(layer, "activation", None)
    if own is not None and activation_name(layer) is None and not isinstance(own, keras.Layer):
        options = {**options, "activation": "linear"}
        return own(rewriter.clone(layer, **options)(*args, **kwargs))
    return rewriter.clone(layer, **options)(*args, **kwargs) if options else None


def _scaled(call: Call, args: Any, rewriter: Rewriter) -> Any:
    """Emits a product with a weight of the code's own, one value a channel, as a layer."""
    for index in (0, 1):
        x, weight = call.args[index], call.args[1 - index]
        if not all(isinstance(t, keras.KerasTensor) for t in (x, weight)):
            return None
        own = producing_operation(weight)
        fits = isinstance(own, OwnWeight) and len(x.shape) > 1
        channels = x.shape[-1] if fits else None
        if channels and own.shape[-1:] == (channels,) and np.prod(own.shape) == channels:
            scale = ChannelScale(False, True, {}, name=own.name, dtype=own.dtype_policy)
            scale.trainable = own.trainable
            rewriter.carry(own, scale)
            return scale(args[index])
    return None


def _normalized(call: Call, args: Any) -> Any:
    """Emits `x * rsqrt(mean(square(x)) + epsilon)` as one layer."""
    for index in (0, 1):
        x, factor = call.args[index], call.args[1 - index]
        if not all(isinstance(t, keras.KerasTensor) for t in (x, factor)):
            return None
        divides = type(call.operation).__name__ != "Multiply"
        if divides and index:
            return None
        epsilon = _epsilon(x, factor, divides)
        if epsilon is not None:
            return RootMeanSquare(epsilon)(args[index])
    return None


def _epsilon(x: Any, factor: Any, divides: bool) -> float | None:
    """Returns the epsilon if a tensor is the (inverse) root of the mean square of another."""
    root = "Sqrt" if divides else "Rsqrt"
    if not divides and _is(factor, "Reciprocal"):
        root, factor = "Sqrt", _only(factor)
    if not _is(factor, root) or not _is(total := _only(factor), "Add"):
        return None
    means, constants = _split(total)
    if len(means) != 1 or len(constants) != 1 or not _is(mean := means[0], "Mean"):
        return None
    operation = producing_operation(mean)
    last = operation.axis in (-1, [-1], (-1,), len(x.shape) - 1, [len(x.shape) - 1])
    square = _only(mean)
    squared = _is(square, "Square") or (
        _is(square, "Power") and np.all(np.equal(_split(square)[1], 2))
    )
    squared = squared or (_is(square, "Multiply") and len(producing_inputs(square)) == 2)
    same = all(t is x for t in producing_inputs(square))
    return float(constants[0]) if last and operation.keepdims and squared and same else None


def _is(tensor: Any, name: str) -> bool:
    return type(producing_operation(tensor)).__name__ == name


def _only(tensor: Any) -> Any:
    return producing_inputs(tensor)[0]


def _split(tensor: Any) -> tuple[list[Any], list[Any]]:
    """Returns the tensors and the constants that an operation was called on."""
    values = producing_arguments(tensor)
    tensors = [v for v in values if isinstance(v, keras.KerasTensor)]
    return tensors, [v for v in values if not isinstance(v, keras.KerasTensor)]


def attention(
    operation: Any,
    query: Any,
    key: Any,
    value: Any,
    bias: Any = None,
    mask: Any = None,
    scale: Any = None,
) -> Any:
    """Emits `ops.dot_product_attention`; None if it caps the logits.

    Args:
        operation: The operation.
        query: Of shape (batch, queries, heads, size).
        key: Of shape (batch, keys, heads or fewer, size).
        value: As `key`.
        bias: Added to the scores, (batch, heads, queries, keys) or what broadcasts to it.
        mask: True where a query attends to a key.
        scale: Factor of the scores; 1/sqrt(size) by default.

    References:
        Vaswani et al. 2017, arXiv:1706.03762.
    """
    if operation.attn_logits_soft_cap is not None:
        return None
    heads, fewer = query.shape[2], key.shape[2]
    if heads != fewer:
        key, value = (ops.repeat(t, heads // fewer, axis=2) for t in (key, value))
    query = ops.transpose(query, (0, 2, 1, 3))
    query = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = ops.matmul(query, ops.transpose(key, (0, 2, 3, 1)))
    if bias is not None:
        scores = scores + bias
    if operation.is_causal:
        past = np.tril(np.ones((1, 1, *scores.shape[2:]), bool))
        mask = past if mask is None else ops.logical_and(mask, past)
    if mask is not None:
        scores = MaskScores()(scores, mask)
    weights = keras.layers.Softmax()(scores)
    return ops.transpose(ops.matmul(weights, ops.transpose(value, (0, 2, 1, 3))), (0, 2, 1, 3))
