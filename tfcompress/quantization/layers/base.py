"""Layers that compute what the runtime computes inside one Keras layer, rounding included.

Where the runtime takes several operations for what Keras does in one, each of them rounds. Training
has to see that, so `quantize` puts such a layer in the place of the one from Keras (the rules are
in `canonicalize.py`), with quantizers inside, and `strip` puts the original back.
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
    """Quantizers around a layer, by `id` of the one behind it.

    In a class of its own, so that Keras does not count them to the layer.
    """

    grids: dict[int, tuple[Any, ...]] = dataclasses.field(default_factory=dict)


class RuntimeLayer(layers.Layer):
    """A layer that computes in the steps of the runtime, and keeps a range for each.

    Attributes:
        rounding: The quantizers of the steps, by name; `fixed` are the ranges that are known.
    """

    steps: tuple[str, ...] = ()
    non_negative: tuple[str, ...] = ()
    fixed: Mapping[str, tuple[float, float]] = types.MappingProxyType({})
    hands_masks_on = True
    passes = False  # whether it computes as the Keras layer does

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        self.rounding: dict[str, Any] = {}
        self._links = _Links()
        self._kernels: list[ElementwiseKernel] = []

    def link(self, read: Sequence[Any], result: Any) -> Any:
        """Tells the layer which quantizers its inputs come from, and which one its output goes to.

        Args:
            read: A quantizer for each input; None where it is not known.
            result: The quantizer.

        Returns:
            The source of the output, if what the layer returns says all about its integers.
        """
        known = None not in read and self.compute_dtype == "float32"
        self._links.grids[id(result)] = (*read, result) if known else ()
        self._kernels = self.kernels_for(read, result) if self.linked_quantizers() else []
        return self.producer_for(read) if self.linked_quantizers() else None

    # Methods, no properties: Keras takes what attributes hold for parts of the layer, and saves it.

    def linked_quantizers(self) -> tuple[Any, ...]:
        """Returns the quantizers around the layer, inputs first; none if it follows no kernels."""
        found = list(self._links.grids.values())
        return found[0] if len(found) == 1 else ()  # called on other grids elsewhere, none

    def linked_variables(self) -> list[Any]:
        """Returns the variables of these quantizers, which its kernels read."""
        return [variable for grid in self.linked_quantizers() for variable in grid.variables]

    def output_quantizers(self) -> list[Any]:
        """Returns the quantizers that its outputs have passed already, one for each; or none."""
        return []

    def kernels_for(self, read: Sequence[Any], result: Any) -> list[ElementwiseKernel]:
        """Returns the kernels that the layer has to follow at inference, by these quantizers."""
        return []

    def producer_for(self, read: Sequence[Any]) -> Any:
        """Returns the source of the output, if there is one, and sets those of the steps."""
        return None

    def build(self, input_shape: Any) -> None:
        """Creates the ranges."""
        if self.rounding:  # those of `frozen`
            return
        self.rounding = {
            step: ActivationQuantizer(
                self.fixed.get(step), non_negative=step in self.non_negative, name=step
            )
            for step in self.steps
        }
        for quantizer in self.rounding.values():
            quantizer.build(())
            quantizer.built = True

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape of the input."""
        return input_shape

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        """Returns the mask that the Keras layer hands on; of several inputs, if all carry one."""
        masks = previous_mask if isinstance(previous_mask, (list, tuple)) else [previous_mask]
        if not self.hands_masks_on or any(mask is None for mask in masks):
            return None
        return functools.reduce(ops.logical_or, masks)

    def skip_compression(self, kinds: tuple[type, ...] | None) -> None:
        """Computes as the Keras layer does from now on, unless `kinds` is None."""
        self.passes = kinds is not None

    def original_variables(self) -> list[Any]:
        """Returns the variables that the Keras layer has as well, in its order."""
        return []

    def bias_parts(self) -> dict[int, int]:
        """Returns how many vectors each bias is put together from, by `id` of the variable."""
        return {}

    def frozen(self) -> RuntimeLayer:
        """Returns a copy in which the ranges are constants, for conversion."""
        copy = clone_layer(self, dtype="float32")
        copy.rounding = {
            name: FixedFakeQuant(*quantizer.min_max(), name=name)
            for name, quantizer in self.rounding.items()
        }
        return copy

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments, under any dtype policy."""
        return super().get_config()

    def _rounded(self, step: str, x: Any, training: bool | None) -> Any:
        quantizer = self.rounding[step]
        if isinstance(quantizer, FixedFakeQuant):
            return quantizer.call(x)
        return quantizer(x, training=training)


def runtime_layer(kind: Any, layer: Any, **kwargs: Any) -> Any:
    """Returns the layer of the runtime that takes the place, and the name, of one of Keras."""
    return kind(name=layer.name, dtype=layer.dtype_policy, trainable=layer.trainable, **kwargs)
