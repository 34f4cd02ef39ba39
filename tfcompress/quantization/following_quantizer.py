"""Averages on the grid of a tensor that another model rounds, inside this one or around it."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from tfcompress.graph.keras_internals import inbound_nodes
from tfcompress.integer.trace import quantizer_of
from tfcompress.quantization.activation_quantizer import ActivationQuantizer


@dataclasses.dataclass
class _Link:
    """A quantizer in a class of its own, so that Keras does not count it to the layer."""

    quantizer: Any = None


@keras.saving.register_keras_serializable("tfcompress")
class FollowingQuantizer(ActivationQuantizer):
    """Rounds averages onto the grid of what is averaged, which a quantizer of another model made.

    A layer belongs to one model: Keras cannot save one that is called inside of a nested model and
    outside of it. So this one has no range, and finds the quantizer that has. It is called on what
    is averaged, which it hands through, and on the average.

    Args:
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    follows = True

    def __init__(self, **kwargs: Any) -> None:
        self._link = _Link()
        super().__init__(**kwargs)

    def leader(self) -> Any:
        """Returns the quantizer that this one follows; None in a model that stands alone."""
        if self._link.quantizer is None and inbound_nodes(self):
            self._link.quantizer = quantizer_of(inbound_nodes(self)[0].input_tensors[0])
        return self._link.quantizer

    def build(self, input_shape: Any) -> None:
        """Creates nothing."""

    def call(self, inputs: Any, training: bool | None = None, averaged: bool | str = False) -> Any:
        """Returns averages, rounded onto the grid, and anything else as it is."""
        if not averaged or self.leader() is None:
            return inputs
        return self.leader().rounded_average(inputs, training, averaged)

    def compute_output_spec(
        self, inputs: Any, training: bool | None = None, averaged: bool | str = False
    ) -> Any:
        """Returns the shape and dtype of the input."""
        return keras.KerasTensor(inputs.shape, dtype=inputs.dtype)

    def min_max(self) -> tuple[float, float]:
        """Returns the range from which the converter makes the grid of the model."""
        return self.leader().min_max()

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return keras.layers.Layer.get_config(self)
