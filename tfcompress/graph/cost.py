"""What a model costs: parameters and multiply-accumulates."""

from __future__ import annotations

import math
from typing import Any

import keras

from tfcompress.graph.keras_internals import attention_parts
from tfcompress.graph.layers import DEPTHWISE, TRANSPOSED, einsum_letters, plain
from tfcompress.graph.read import Call, is_graph, read_graph

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)


_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)


_RECURRENT = (keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN)


def parameters(model: keras.Model) -> int:
    """Counts the weights of a model, without the state that compression adds to it.

    Args:
        model: A built Keras model, wrapped or not.

    Returns:
        The number of scalars in all weights, BatchNormalization statistics included.
    """
    return sum(math.prod(weight.shape) for weight in own_weights(model))


def own_weights(layer: Any) -> list[Any]:
    """Returns the weights of a layer or model without the state that compression adds."""
    if getattr(layer, "is_compression_helper", False):
        return []
    if getattr(layer, "is_compression_wrapper", False):
        return list(layer.layer.weights)
    if is_graph(layer):
        weights = {id(w): w for inner in layer.layers for w in own_weights(inner)}
        return list(weights.values())
    return list(layer.weights)


def macs(model: keras.Model) -> int:
    """Counts the multiply-accumulates of one inference on one sample.

    Convolutions (also depthwise, separable, transposed), Dense, EinsumDense, recurrent layers,
    attention and matrix products count; element-wise work does not. `summary` marks layers that it
    cannot count.

    Args:
        model: A built Sequential or Functional model with a fixed input size, wrapped or not.
    """
    count = 0
    for call in read_graph(model).calls:
        operation = call.operation
        count += macs(operation) if is_graph(operation) else call_macs(call) or 0
    return count


def call_macs(call: Call) -> int | None:
    """Counts the multiply-accumulates of one call; None if they are not known."""
    layer = plain(call.operation)
    if not isinstance(layer, keras.layers.Layer):
        return _product_macs(call) if type(layer).__name__ == "Matmul" else 0
    weights = {w.path.split("/")[-1]: math.prod(w.shape) for w in layer.weights}
    input_shape, output_shape = call.inputs[0].shape[1:], call.outputs[0].shape[1:]
    try:
        if isinstance(layer, _SEPARABLE):
            size = weights["depthwise_kernel"] + weights["pointwise_kernel"]
            return size * _positions(layer, output_shape)
        if isinstance(layer, TRANSPOSED):
            return weights["kernel"] * _positions(layer, input_shape)
        if isinstance(layer, (*_CONVOLUTIONS, *DEPTHWISE)):
            return weights["kernel"] * _positions(layer, output_shape)
        if isinstance(layer, keras.layers.Dense):
            return weights["kernel"] * math.prod(output_shape[:-1])
        if isinstance(layer, keras.layers.EinsumDense):
            return _einsum_macs(layer, call.inputs[0].shape, call.outputs[0].shape)
        if type(layer) is keras.layers.MultiHeadAttention and len(input_shape) == 2:
            return _attention_macs(layer, call)
        if isinstance(layer, _RECURRENT):
            return (weights["kernel"] + weights["recurrent_kernel"]) * input_shape[0]
    except TypeError:  # a dimension is None
        return None
    matrices = any(len(w.shape) >= 2 for w in layer.trainable_weights)
    return None if matrices and not isinstance(layer, keras.layers.Embedding) else 0


def _product_macs(call: Call) -> int | None:
    sizes = [*call.outputs[0].shape[1:], call.inputs[0].shape[-1]]
    return None if None in sizes else math.prod(sizes)


def _attention_macs(layer: Any, call: Call) -> int:
    queries, values = call.inputs[0].shape[1], call.inputs[1].shape[1]
    count = queries * values * layer.num_heads * (layer.key_dim + layer.value_dim)
    lengths = {"query": queries, "key": values, "value": values, "attention_output": queries}
    for name, dense in attention_parts(layer).items():
        count += math.prod(dense.kernel.shape) * lengths[name]
    return count


def _positions(layer: Any, shape: tuple[int, ...]) -> int:
    spatial = shape[1:] if layer.data_format == "channels_first" else shape[:-1]
    return math.prod(spatial)


def _einsum_macs(
    layer: Any, input_shape: tuple[int, ...], output_shape: tuple[int, ...]
) -> int | None:
    if "." in layer.equation:
        return None
    first, second, result = einsum_letters(layer)
    size = dict(zip(second, layer.kernel.shape, strict=True))
    size.update(zip(result, output_shape, strict=True))
    size.update(zip(first, input_shape, strict=True))
    size[first[0]] = 1  # the batch
    return math.prod(size.values())
