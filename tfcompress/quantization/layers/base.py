"""Layers that compute what the runtime computes inside one Keras layer, rounding included.

Where the runtime needs several operations for one Keras layer, it requantizes each result. Training
has to see that, so `quantize` replaces the Keras layer by such a layer with quantizers inside (the
rules are in `canonicalize.py`), and `strip` restores the original.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Mapping, Sequence
from typing import Any

from keras import layers, ops

from tfcompress.graph.copies import clone_layer
from tfcompress.integer.elementwise import (
    ElementwiseKernel,
)
from tfcompress.integer.grid_ops import FixedFakeQuant
from tfcompress.quantization.activation_quantizer import ActivationQuantizer


@dataclasses.dataclass
class _Links:
    """Quantizers of the inputs and of the output of a layer, by `id` of that of the output.

    They are in a separate class, so that Keras does not track them as sublayers.
    """

    quantizers: dict[int, tuple[Any, ...]] = dataclasses.field(default_factory=dict)


class RuntimeLayer(layers.Layer):
    """A layer that computes with the operations of the runtime, and has a range for each result.

    Args:
        kernels: Whose rounding inference has: a key of `integer.kernels.KERNELS`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Attributes:
        rounding: The quantizers of the intermediate results, by name of the result.
        result_names: The names of these results.
        non_negative: Those that cannot be negative.
        fixed_ranges: The ranges that the runtime prescribes, by name of the result.
        passes: Whether the layer computes as the Keras layer does, without quantizers.
        lowered: Whether this copy is for the converter.
    """

    result_names: tuple[str, ...] = ()
    non_negative: tuple[str, ...] = ()
    fixed_ranges: Mapping[str, tuple[float, float]] = types.MappingProxyType({})
    propagates_mask = True
    passes = False
    lowered = False

    def __init__(self, *, kernels: str = "xnnpack", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        self.kernels = kernels
        self.rounding: dict[str, Any] = {}
        self._links = _Links()
        self._kernels: list[ElementwiseKernel] = []

    def link(self, read: Sequence[Any], result: Any) -> Any:
        """Sets the quantizers of the inputs and of the output.

        Args:
            read: The quantizer of each input; None where it is not known.
            result: The quantizer of the output.

        Returns:
            The producer of the output, if its quantized values follow from the output alone.
        """
        known = None not in read and self.compute_dtype == "float32"
        self._links.quantizers[id(result)] = (*read, result) if known else ()
        self._kernels = self.kernels_for(read, result) if self.linked_quantizers() else []
        return self.producer_for(read) if self.linked_quantizers() else None

    # Methods, not properties: Keras tracks and saves the layers that attributes hold.

    def linked_quantizers(self) -> tuple[Any, ...]:
        """Returns the quantizers of inputs and output; empty if unknown or several."""
        calls = list(self._links.quantizers.values())
        return calls[0] if len(calls) == 1 else ()  # kernels need one set of scales for all calls

    def linked_variables(self) -> list[Any]:
        """Returns the variables of the linked quantizers, which the kernels read."""
        return [variable for q in self.linked_quantizers() for variable in q.variables]

    def output_quantizers(self) -> list[Any]:
        """Returns the quantizers of outputs that are already quantized, one for each; or none."""
        return []

    def kernels_for(self, read: Sequence[Any], result: Any) -> list[ElementwiseKernel]:
        """Returns the kernels that the layer must reproduce at inference with these quantizers."""
        return []

    def producer_for(self, read: Sequence[Any]) -> Any:
        """Returns the producer of the output, if known, and sets those of the results inside."""
        return None

    def build(self, input_shape: Any) -> None:
        """Creates the ranges."""
        if self.rounding:  # set by `frozen`
            return
        self.rounding = {
            name: ActivationQuantizer(
                self.fixed_ranges.get(name),
                non_negative=name in self.non_negative,
                kernels=self.kernels,
                name=name,
            )
            for name in self.result_names
        }
        for quantizer in self.rounding.values():
            quantizer.build(())
            quantizer.built = True

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape of the input."""
        return input_shape

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        """Returns the mask as the Keras layer does; for several inputs, only if all have one."""
        masks = previous_mask if isinstance(previous_mask, (list, tuple)) else [previous_mask]
        if not self.propagates_mask or any(mask is None for mask in masks):
            return None
        return functools.reduce(ops.logical_or, masks)

    def skip_compression(self, kinds: tuple[type, ...] | None) -> None:
        """Computes as the Keras layer does from now on, unless `kinds` is None."""
        self.passes = kinds is not None

    def original_variables(self) -> list[Any]:
        """Returns the variables that the Keras layer also has, in the order of that layer."""
        return []

    def bias_parts(self) -> dict[int, int]:
        """Returns how many vectors each bias concatenates, by `id` of the variable."""
        return {}

    def frozen(self) -> RuntimeLayer:
        """Returns a copy in which the ranges are constants, for conversion."""
        copy = clone_layer(self, dtype="float32")
        copy.lowered = True
        copy.rounding = {
            name: FixedFakeQuant(*quantizer.min_max(), name=name)
            for name, quantizer in self.rounding.items()
        }
        return copy

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments, under any dtype policy."""
        return {**super().get_config(), "kernels": self.kernels}

    def _quantize_result(self, name: str, x: Any, training: bool | None) -> Any:
        quantizer = self.rounding[name]
        if isinstance(quantizer, FixedFakeQuant):
            return quantizer.call(x)
        return quantizer(x, training=training)


def runtime_layer(kind: Any, layer: Any, **kwargs: Any) -> Any:
    """Returns a `RuntimeLayer` with the name, dtype policy and `trainable` of a Keras layer."""
    return kind(name=layer.name, dtype=layer.dtype_policy, trainable=layer.trainable, **kwargs)
