"""Averages with the scale of a tensor that is quantized in a nested or an outer model."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from tfcompress.graph.keras_internals import inbound_nodes
from tfcompress.integer.trace import quantizer_of
from tfcompress.quantization.activation_quantizer import ActivationQuantizer


@dataclasses.dataclass
class _Link:
    """A quantizer, in a separate class so that Keras does not track it as a sublayer."""

    quantizer: Any = None


@keras.saving.register_keras_serializable("tfcompress")
class FollowingQuantizer(ActivationQuantizer):
    """Quantizes averages with the quantizer of the averaged values, which is in another model.

    Keras cannot save a layer that is called both inside and outside of a nested model. So this
    layer has no range of its own, and looks up the quantizer that has. It is called on the values
    to average, which it returns unchanged, and on the average.

    Args:
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    follows = True

    def __init__(self, **kwargs: Any) -> None:
        self._link = _Link()
        super().__init__(**kwargs)

    def leader(self) -> Any:
        """Returns the quantizer that this one follows; None if its model is used alone."""
        if self._link.quantizer is None and inbound_nodes(self):
            self._link.quantizer = quantizer_of(inbound_nodes(self)[0].input_tensors[0])
        return self._link.quantizer

    def build(self, input_shape: Any) -> None:
        """Creates nothing."""

    def call(
        self, inputs: Any, training: bool | None = None, averaged: bool | str | float = False
    ) -> Any:
        """Returns averages quantized, and other inputs unchanged."""
        if not averaged or self.leader() is None:
            return inputs
        return self.leader().rounded_average(inputs, training, averaged)

    def compute_output_spec(
        self, inputs: Any, training: bool | None = None, averaged: bool | str | float = False
    ) -> Any:
        """Returns the shape and dtype of the input."""
        return keras.KerasTensor(inputs.shape, dtype=inputs.dtype)

    def min_max(self) -> tuple[float, float]:
        """Returns the range from which the converter computes the scale of this model."""
        return self.leader().min_max()

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return keras.layers.Layer.get_config(self)
