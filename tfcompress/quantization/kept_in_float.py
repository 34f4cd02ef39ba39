"""What must not be quantized: the operations from products to roots, logarithms and reciprocals.

Near zero these are steep. With 255 quantization steps, a small sum of squares under a root is
quantized to zero, and so is the epsilon beside it. So operations that lead only to such a function
stay in float, in the model and in the file. Their first inputs are still quantized, and may cancel
to exactly zero, which floats hardly do: `AwayFromZero` keeps gradients finite there.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfcompress.graph.layers import is_float
from tfcompress.graph.read import Call, Graph, is_graph, read_graphs
from tfcompress.integer.roles import LINEAR, PRECISE, role

_LEADING = frozenset(
    (
        "Add Subtract Multiply Divide TrueDivide Square Abs Absolute Sum Mean Var Maximum Clip "
        "Power Negative Reshape Squeeze ExpandDims Transpose GetItem"
    ).split()
)


def precise_calls(graph: Graph) -> set[int]:
    """Returns the `id` of each call that is steep near zero, or leads only to such calls.

    Its inputs must not be quantized where they are outputs of such a call.
    """
    precise: set[int] = set()
    for call in reversed(graph.calls):
        if is_graph(call.operation):
            continue
        readers = [r for t in call.outputs for r in graph.consumers.get(id(t), [])]
        leads = bool(readers) and all(
            id(reader) in precise
            and any(t is output for t in steep_inputs(reader) for output in call.outputs)
            for reader in readers
        )
        leaves = any(id(t) in graph.outputs for t in call.outputs)
        named = type(call.operation).__name__ in _LEADING and role(call.operation) != LINEAR
        if role(call.operation) == PRECISE or (named and leads and not leaves):
            precise.add(id(call))
    return precise


def steep_inputs(call: Call) -> list[Any]:
    """Returns the inputs of a call of `precise_calls` that must stay in float: no numerators."""
    if role(call.operation) == PRECISE and type(call.operation).__name__ in _DIVISIONS:
        return [call.inputs[-1]]
    return call.inputs


_DIVISIONS = ("Divide", "TrueDivide")


@keras.saving.register_keras_serializable("tfcompress")
class AwayFromZero(keras.layers.Layer):
    """Returns the input of a root, logarithm or reciprocal; in training without exact zeros.

    Zeros become a thousandth of the mean magnitude, without a gradient: at zero it is infinite.
    """

    is_compression_helper = True

    def __init__(self, **kwargs: Any) -> None:
        kwargs["dtype"] = "float32"
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the inputs."""
        if not training:
            return inputs
        small = 1e-3 * ops.mean(ops.abs(ops.cast(inputs, "float32"))) + 1e-12
        small = ops.cast(ops.stop_gradient(small), inputs.dtype)
        return ops.where(inputs == 0, small, inputs)

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the shape and dtype of the input."""
        return keras.KerasTensor(inputs.shape, dtype=inputs.dtype)


def kept_in_float(model: keras.Model) -> tuple[str, ...]:
    """Returns the paths of operations that a quantized model keeps in float for that reason."""
    paths = []
    for graph in reversed(read_graphs(model).values()):
        precise = precise_calls(graph)
        paths += [c.path for c in graph.calls if id(c) in precise and any(map(is_float, c.outputs))]
    return tuple(paths)
