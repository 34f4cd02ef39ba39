"""Which floats are numbers of rows or of categories: rounded onto a grid, they would be others.

Keras makes inputs of float32 unless told otherwise, and looks up in tables what they hold.
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
    """Returns the `id` of each tensor that becomes indices, such as the words of a text.

    Of a tensor that holds measured values as well, a part may be taken for them.
    """
    found: set[int] = set()
    for graph in read_graphs(model).values():  # nested models first
        for call in reversed(graph.calls):
            if is_graph(call.operation):
                pairs = zip(call.operation.inputs, call.inputs, strict=False)
                found.update(id(given) for inside, given in pairs if id(inside) in found)
            elif _looks_up(call) or makes_indices(call, found):
                found.update(map(id, call.inputs))
    return found


def makes_indices(call: Call, indices: set[int]) -> bool:
    """Returns whether a call moves indices about, or computes some from others.

    Args:
        call: A call of an operation that is no model.
        indices: What `index_tensors` returned.
    """
    layer = isinstance(call.operation, layers.Layer) and role(call.operation) != MOVE
    return not layer and any(id(tensor) in indices for tensor in call.outputs)


def reads_indices(call: Call, indices: set[int]) -> bool:
    """Returns whether a call reads indices, as such or with what else is in their tensor."""
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
