"""Operations on several tensors: sums, products, selections, concatenation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers, ops

from tfcompress.graph.keras_internals import inbound_nodes
from tfcompress.integer.elementwise import Addition, ElementwiseKernel
from tfcompress.integer.producers import Concatenated, MatrixProduct, Product, Requantized
from tfcompress.integer.roles import JOIN, OUTPUT, PAIR, SUM, integer_layer
from tfcompress.integer.trace import producer_of, quantizer_of
from tfcompress.quantization.canonicalize import Rule, canonical_form
from tfcompress.quantization.layers.base import RuntimeLayer, runtime_layer


def _product(layer: Any, inputs: Sequence[Any], result: Any) -> Product | None:
    return _of_two(Product, inputs)


def _matrix_product(layer: Any, inputs: Sequence[Any], result: Any) -> Product | None:
    return _of_two(MatrixProduct, inputs)


def _of_two(kind: type[Product], inputs: Sequence[Any]) -> Product | None:
    grids = [quantizer_of(tensor) for tensor in inputs]
    return None if len(grids) != 2 or None in grids else kind((grids[0], grids[1]))


def _concatenated(layer: Any, inputs: Sequence[Any], result: Any) -> Concatenated | None:
    sizes = [tensor.shape[layer.axis] for tensor in inputs]
    if None in sizes:
        return None
    sources = [producer_of(tensor, result) for tensor in inputs]
    return Concatenated(tuple(zip(sources, sizes, strict=True)), layer.axis)


def _stacked(layer: Any, inputs: Sequence[Any], result: Any) -> Concatenated | None:
    sources = [producer_of(tensor, result) for tensor in inputs]
    last = layer.axis in (-1, len(inputs[0].shape))
    if last and not all(isinstance(source, (Product, Requantized)) for source in sources):
        return None
    return Concatenated(tuple((source, 1) for source in sources), layer.axis)


integer_layer("Add", role=SUM, int16=True)
integer_layer("Subtract", role=PAIR, int16=True)
integer_layer("Multiply", role=PAIR, int16=True, producer=_product)
integer_layer("Matmul", int16=True, producer=_matrix_product)
integer_layer("Dot", producer=_matrix_product)
integer_layer("Concatenate", role=JOIN, producer=_concatenated)
integer_layer("Stack", role=JOIN, producer=_stacked)
integer_layer("Maximum Minimum Where", role=JOIN)
integer_layer(
    "MaskScores",  # what is masked is off the grid by any rule
    role=JOIN,
    producer=lambda layer, inputs, result: producer_of(inputs[0], result),
)
integer_layer(
    "RuntimeMerge",
    role=lambda layer: SUM if layer.how == "add" else OUTPUT,
    int16=lambda layer: not layer.steps,  # these are of 8 bits
)


@keras.saving.register_keras_serializable("tfcompress")
class RuntimeMerge(RuntimeLayer):
    """A sum, mean or product of several tensors: the runtime takes two at a time.

    Args:
        how: "add", "average" or "multiply".
        count: How many tensors.
        operation: The name of the operation of `keras.ops` that this stands for; None for a layer.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    def __init__(
        self, how: str, count: int, *, operation: str | None = None, **kwargs: Any
    ) -> None:
        self.how, self.count, self.operation = how, count, operation
        self.hands_masks_on = operation is None
        rounded = count - 1 if how == "average" else count - 2
        self.steps = tuple(f"first_{number + 2}" for number in range(rounded))
        super().__init__(**kwargs)

    def kernels_for(self, read: Sequence[Any], result: Any) -> list[ElementwiseKernel]:
        """Returns the additions of a sum."""
        between = [self.rounding[step] for step in self.steps]
        grids = zip([read[0], *between], read[1:], [*between, result], strict=True)
        return [Addition((a, b), to) for a, b, to in grids] if self.how == "add" else []

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the merged tensor."""
        merge = ops.multiply if self.how == "multiply" else ops.add
        merged, *rest = inputs
        for number, other in enumerate(rest):
            before, merged = merged, merge(merged, other)
            if self._kernels and not training:
                merged = self._kernels[number]([before, other], merged)
            if number < len(self.steps):
                merged = self._rounded(self.steps[number], merged, training)
        return merged * (1 / self.count) if self.how == "average" else merged

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape that all inputs are broadcast to."""
        return sum(keras.KerasTensor(shape) for shape in input_shape).shape

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        own = {"how": self.how, "count": self.count, "operation": self.operation}
        return {**super().get_config(), **own}


@canonical_form
class MergePairwise(Rule):
    """A merge of several tensors, two at a time; and sums, which the runtime rounds its own way."""

    def matches(self, layer: Any) -> bool:
        """Returns whether the runtime takes several steps, or rounds as no float would."""
        counts = {len(node.input_tensors) for node in inbound_nodes(layer)}
        if type(layer) not in _MERGES or len(counts) != 1:
            return False
        return min(counts) > (2 if type(layer) is layers.Multiply else 1)

    def parts(self, layer: Any) -> list[Any]:
        """Returns the merge of the runtime."""
        count = len(inbound_nodes(layer)[0].input_tensors)
        return [runtime_layer(RuntimeMerge, layer, how=_MERGES[type(layer)], count=count)]


_MERGES = {layers.Add: "add", layers.Average: "average", layers.Multiply: "multiply"}
