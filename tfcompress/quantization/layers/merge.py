"""Operations on several tensors: sums, products, selections, concatenation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers, ops

from tfcompress.graph.keras_internals import inbound_nodes
from tfcompress.integer.elementwise import Addition, ElementwiseKernel
from tfcompress.integer.producers import Concatenated, MatrixProduct, Product, Requantized, Table
from tfcompress.integer.roles import JOIN, OUTPUT, PAIR, SUM, integer_layer
from tfcompress.integer.trace import producer_of, quantizer_of
from tfcompress.quantization.canonicalize import Rule, canonical_form
from tfcompress.quantization.layers.base import RuntimeLayer, runtime_layer


def _product(layer: Any, inputs: Sequence[Any], result: Any) -> Product | None:
    return _of_two(Product, inputs)


def _matrix_product(layer: Any, inputs: Sequence[Any], result: Any) -> Product | None:
    second = quantizer_of(inputs[-1])
    fixed = getattr(second, "fixed_range", None)
    centered = fixed is not None and round(-255 * fixed[0] / (fixed[1] - fixed[0])) == 128
    symmetric = isinstance(second, Table) or getattr(second, "symmetric", False) or centered
    # Only a second factor with the zero point 0 is XNNPACK's.
    return _of_two(Product if symmetric else MatrixProduct, inputs)


def _of_two(kind: type[Product], inputs: Sequence[Any]) -> Product | None:
    read = [quantizer_of(tensor) for tensor in inputs]
    return None if len(read) != 2 or None in read else kind((read[0], read[1]))


def _concatenated(layer: Any, inputs: Sequence[Any], result: Any) -> Concatenated | None:
    sizes = [tensor.shape[layer.axis] for tensor in inputs]
    if None in sizes:
        return None
    producers = [producer_of(tensor, result) for tensor in inputs]
    return Concatenated(tuple(zip(producers, sizes, strict=True)), layer.axis)


def _stacked(layer: Any, inputs: Sequence[Any], result: Any) -> Concatenated | None:
    producers = [producer_of(tensor, result) for tensor in inputs]
    last = layer.axis in (-1, len(inputs[0].shape))
    if last and not all(isinstance(producer, (Product, Requantized)) for producer in producers):
        return None
    return Concatenated(tuple((producer, 1) for producer in producers), layer.axis)


integer_layer("Add", role=SUM, int16=True)
integer_layer("Subtract", role=PAIR, int16=True)
integer_layer("Multiply", role=PAIR, int16=True, producer=_product)
integer_layer("Matmul", int16=True, producer=_matrix_product)
integer_layer("Dot", producer=_matrix_product)
integer_layer("Concatenate", role=JOIN, producer=_concatenated)
integer_layer("Stack", role=JOIN, producer=_stacked)
integer_layer("Maximum Minimum Where", role=JOIN)
integer_layer(
    "MaskScores",  # masked scores lie outside the range and are clipped in any case
    role=JOIN,
    producer=lambda layer, inputs, result: producer_of(inputs[0], result),
)
integer_layer(
    "RuntimeMerge",
    role=lambda layer: SUM if layer.how == "add" else OUTPUT,
    int16=lambda layer: not layer.result_names,  # results in between have 8 bits
)


@keras.saving.register_keras_serializable("tfcompress")
class RuntimeMerge(RuntimeLayer):
    """A sum, mean or product of several tensors, computed pairwise as the runtime does.

    Args:
        how: "add", "average" or "multiply".
        count: How many tensors.
        operation: The name of the replaced operation of `keras.ops`; None for a layer.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    def __init__(
        self, how: str, count: int, *, operation: str | None = None, **kwargs: Any
    ) -> None:
        self.how, self.count, self.operation = how, count, operation
        self.propagates_mask = operation is None
        rounded = count - 1 if how == "average" else count - 2
        self.result_names = tuple(f"first_{number + 2}" for number in range(rounded))
        super().__init__(**kwargs)

    def kernels_for(self, read: Sequence[Any], result: Any) -> list[ElementwiseKernel]:
        """Returns the additions of a sum."""
        between = [self.rounding[name] for name in self.result_names]
        sums = zip([read[0], *between], read[1:], [*between, result], strict=True)
        return [Addition((a, b), output) for a, b, output in sums] if self.how == "add" else []

    def producer_for(self, read: Sequence[Any]) -> Product | None:
        """Returns the last product, and sets those of the products before."""
        if self.how != "multiply":
            return None
        between = [self.rounding[name] for name in self.result_names]
        products = [Product(pair) for pair in zip([read[0], *between], read[1:], strict=True)]
        for quantizer, product in zip(between, products, strict=False):
            quantizer.producer = product
        return products[-1]

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the merged tensor."""
        merge = ops.multiply if self.how == "multiply" else ops.add
        merged, *rest = inputs
        for number, other in enumerate(rest):
            before, merged = merged, merge(merged, other)
            if self._kernels and not training:
                merged = self._kernels[number]([before, other], merged)
            if number < len(self.result_names):
                merged = self._quantize_result(self.result_names[number], merged, training)
        return merged * (1 / self.count) if self.how == "average" else merged

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape to which all inputs are broadcast."""
        return sum(keras.KerasTensor(shape) for shape in input_shape).shape

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        own = {"how": self.how, "count": self.count, "operation": self.operation}
        return {**super().get_config(), **own}


@canonical_form
class MergePairwise(Rule):
    """A merge of several tensors, pairwise; and sums, which the runtime rounds in its own way."""

    def matches(self, layer: Any) -> bool:
        """Returns whether the runtime needs several operations, or rounds unlike floats."""
        counts = {len(node.input_tensors) for node in inbound_nodes(layer)}
        if type(layer) not in _MERGES or len(counts) != 1:
            return False
        return min(counts) > (2 if type(layer) is layers.Multiply else 1)

    def parts(self, layer: Any) -> list[Any]:
        """Returns the merge of the runtime."""
        count = len(inbound_nodes(layer)[0].input_tensors)
        return [runtime_layer(RuntimeMerge, layer, how=_MERGES[type(layer)], count=count)]


_MERGES = {layers.Add: "add", layers.Average: "average", layers.Multiply: "multiply"}
