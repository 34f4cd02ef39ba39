"""Cross-layer equalization: even scales for the channels between two layers."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

from tfcompress.graph.clone import Rewriter
from tfcompress.graph.kernel_axes import (
    WEIGHTED,
    array,
    input_first,
    output_first,
    scale_inputs,
    scale_outputs,
)
from tfcompress.graph.read import Call, Graph, called_once, is_graph, read_graph

_HOMOGENEOUS = (
    layers.LeakyReLU,
    layers.Dropout,
    layers.SpatialDropout2D,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
)


def equalize(model: keras.Model, *, rounds: int = 20) -> keras.Model:
    """Returns an equivalent model whose channels have similar ranges between consecutive layers.

    A channel may be divided by any positive factor behind one layer and multiplied by it before the
    next, if all operations between them are positively homogeneous (ReLU, LeakyReLU, pooling,
    padding, dropout; not ReLU6). The factors are chosen so that the largest weights of the channel
    in both layers are the same. Fold BatchNormalization first (`fold_batch_norm`).

    Args:
        model: A built Sequential or Functional model, not wrapped. It is not changed.
        rounds: How often all pairs are visited; chains of layers need several.

    References:
        Nagel et al. 2019, arXiv:1906.04721.
    """
    pairs = _pairs(model, called_once(model))
    weights = {id(layer): [array(w) for w in layer.weights] for pair in pairs for layer in pair}
    for _ in range(rounds):
        for first, second in pairs:
            before, after = weights[id(first)], weights[id(second)]
            ranges = [
                np.abs(output_first(first, before[0])).max(1),
                np.abs(input_first(second, after[0])).max(1),
            ]
            usable = (ranges[0] > 0) & (ranges[1] > 0)
            factors = np.ones_like(ranges[0])
            factors[usable] = np.sqrt(ranges[1][usable] / ranges[0][usable])
            before[0] = scale_outputs(first, before[0], factors)
            before[1:] = [bias * factors for bias in before[1:]]
            after[0] = scale_inputs(second, after[0], 1 / factors)
    return _WithWeights(weights).run(model)


class _WithWeights(Rewriter):
    def __init__(self, weights: dict[int, list[np.ndarray]]) -> None:
        super().__init__()
        self._weights = weights

    def match(self, old: Any, new: Any) -> Any:
        if id(old) not in self._weights:
            return super().match(old, new)
        arrays = (value.astype(np.float32) for value in self._weights[id(old)])
        return zip(arrays, new.weights, strict=True)


def _pairs(model: keras.Model, once: set[int]) -> list[tuple[Any, Any]]:
    """Returns (layer, next layer) wherever channels may be rescaled between the two."""
    graph = read_graph(model)
    pairs = []
    for call in graph.calls:
        if is_graph(call.operation):
            pairs += _pairs(call.operation, once)
        elif _scalable(call, once) and _is_homogeneous(call.operation.activation):
            second = _next_weighted(graph, call, once)
            if second is not None:
                pairs.append((call.operation, second))
    return pairs


def _scalable(call: Call, once: set[int]) -> bool:
    layer = call.operation
    known = type(layer) in WEIGHTED and id(layer) in once
    return known and getattr(layer, "groups", 1) == 1


def _next_weighted(graph: Graph, call: Call, once: set[int]) -> Any:
    tensor = call.outputs[0]
    while True:
        readers = graph.consumers.get(id(tensor), [])
        if len(readers) != 1 or id(tensor) in graph.outputs:
            return None
        reader = readers[0]
        if _scalable(reader, once):
            return reader.operation
        layer = reader.operation
        if type(layer) is layers.Activation:
            if not _is_homogeneous(layer.activation):
                return None
        elif type(layer) is layers.ReLU:
            if layer.max_value is not None or layer.threshold:
                return None
        elif type(layer) not in _HOMOGENEOUS:
            return None
        tensor = reader.outputs[0]


def _is_homogeneous(activation: Any) -> bool:
    known = (keras.activations.linear, keras.activations.relu, keras.activations.leaky_relu)
    return any(activation is other for other in known)
