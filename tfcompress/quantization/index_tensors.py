"""Float tensors that hold indices of rows or categories, which quantization would change.

The inputs of a Keras model are float32 by default, also those that an embedding reads.
"""

from __future__ import annotations

from itertools import chain

import keras
from keras import layers

from tfcompress.graph.keras_internals import flatten_layers
from tfcompress.graph.layers import plain
from tfcompress.graph.read import Call, is_graph, read_graphs
from tfcompress.integer.roles import MOVE, role

_LOOKUPS = (
    layers.Embedding,
    layers.CategoryEncoding,
    layers.Discretization,
    layers.HashedCrossing,
    layers.Hashing,
    layers.IntegerLookup,
)


_COMPARISONS = "Equal NotEqual Greater GreaterEqual Less LessEqual".split()


def index_tensors(model: keras.Model) -> set[int]:
    """Returns the `id` of each tensor that is converted to indices, such as the words of a text.

    Such a tensor may hold measured values as well, if only a part of it becomes indices.
    """
    indices: set[int] = set()
    for graph in read_graphs(model).values():  # nested models first
        for call in reversed(graph.calls):
            if is_graph(call.operation):
                pairs = zip(call.operation.inputs, call.inputs, strict=False)
                indices.update(id(outer) for inner, outer in pairs if id(inner) in indices)
            elif _looks_up(call) or makes_indices(call, indices):
                indices.update(map(id, call.inputs))
    return indices


def makes_indices(call: Call, indices: set[int]) -> bool:
    """Returns whether a call moves indices, or computes indices from others.

    Args:
        call: A call of an operation that is not a model.
        indices: The result of `index_tensors`.
    """
    layer = isinstance(call.operation, layers.Layer) and role(call.operation) != MOVE
    return not layer and any(id(tensor) in indices for tensor in call.outputs)


def reads_indices(call: Call, indices: set[int]) -> bool:
    """Returns whether a call reads indices, alone or in a tensor with other values."""
    shares = role(call.operation) == MOVE or type(call.operation).__name__ in _COMPARISONS
    return (
        _looks_up(call)
        or makes_indices(call, indices)
        or (shares and any(id(tensor) in indices for tensor in call.inputs))
    )


def _looks_up(call: Call) -> bool:
    layer = plain(call.operation)
    if isinstance(layer, layers.Layer):
        return any(isinstance(part, _LOOKUPS) for part in flatten_layers(layer))
    kinds = [keras.backend.is_float_dtype(t.dtype) for t in chain(call.inputs, call.outputs)]
    return type(layer).__name__ == "Cast" and kinds == [True, False]
