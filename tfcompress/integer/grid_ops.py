"""What stands for quantizers while a model is converted, and what keeps two of them apart."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfcompress.graph.keras_internals import get_keras_mask, set_keras_mask
from tfcompress.integer.fake_quant import fake_quant_op
from tfcompress.integer.fixed_point import range_of_qparams
from tfcompress.integer.producers import Table


class FixedFakeQuant(keras.Operation):
    """Rounds onto a constant grid; stands for a trained quantizer while a model is exported.

    Args:
        minimum: Lower end of the range.
        maximum: Upper end of the range.
        bits: 8 or 16.
        name: Name of the tensor that it makes.
    """

    is_compression_helper = True

    def __init__(self, minimum: float, maximum: float, bits: int = 8, *, name: str) -> None:
        super().__init__(name=name)
        self.minimum = minimum
        self.maximum = maximum
        self.bits = bits

    def __call__(self, inputs: Any, averaged: bool | str = False) -> Any:
        """Returns the inputs, rounded onto the grid, with the mask that they carry."""
        # An operation takes half the time of a layer, which would hand the mask on.
        outputs = super().__call__(inputs, averaged=averaged)
        mask = get_keras_mask(inputs)
        if mask is not None:
            set_keras_mask(outputs, mask)
        return outputs

    def call(self, inputs: Any, averaged: bool | str = False) -> Any:
        """Returns the inputs, rounded onto the grid."""
        # The file averages on integers by itself: only the grid has to be told to the converter.
        with keras.name_scope(self.name):
            x = ops.cast(inputs, "float32")
            return fake_quant_op(x, self.minimum, self.maximum, self.bits)

    def compute_output_spec(self, inputs: Any, averaged: bool | str = False) -> Any:
        """Returns the shape of the input."""
        return keras.KerasTensor(inputs.shape, dtype="float32")


def fake_quant_of_table(wrapper: Any) -> FixedFakeQuant:
    """Returns what tells the converter the grid of the rows of a table."""
    scale, lowest = (float(value) for value in Table(wrapper).qparams())
    return FixedFakeQuant(*range_of_qparams(scale, lowest), name=f"{wrapper.name}_grid")


@keras.saving.register_keras_serializable("tfcompress", name="GridCrossing")
class Requantize(keras.layers.Layer):
    """Hands on, unchanged, what leaves a grid of 8 bits for one of 16, or the other way round.

    The converter makes one of two roundings that follow each other. `barrier` keeps them apart.
    """

    is_compression_helper = True

    def __init__(self, **kwargs: Any) -> None:
        kwargs["dtype"] = "float32"
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True

    def call(self, inputs: Any) -> Any:
        """Returns the inputs."""
        return inputs

    def compute_output_spec(self, inputs: Any) -> Any:
        """Returns the shape and dtype of the input."""
        return keras.KerasTensor(inputs.shape, dtype=inputs.dtype)

    @staticmethod
    def barrier(value: Any) -> Any:
        """Returns a value behind two casts, which `merge_requantizations` takes out of the file."""
        return ops.cast(ops.cast(value, "float64"), "float32")
