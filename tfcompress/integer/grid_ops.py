"""Operations that replace quantizers in a model for the converter."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfcompress.graph.keras_internals import get_keras_mask, set_keras_mask
from tfcompress.integer.fake_quant import fake_quant_op
from tfcompress.integer.fixed_point import range_of_qparams
from tfcompress.integer.producers import Table


class FixedFakeQuant(keras.Operation):
    """Fake-quantizes with a constant range; replaces a trained quantizer for export.

    Args:
        minimum: Minimum of the range.
        maximum: Maximum of the range.
        bits: 8 or 16.
        name: Name of the output tensor.
    """

    is_compression_helper = True

    def __init__(self, minimum: float, maximum: float, bits: int = 8, *, name: str) -> None:
        super().__init__(name=name)
        self.minimum = minimum
        self.maximum = maximum
        self.bits = bits

    def __call__(self, inputs: Any, averaged: bool | str | float = False) -> Any:
        """Returns the fake-quantized inputs, with their Keras mask."""
        # A layer would propagate the mask by itself, but takes twice the time of an operation.
        outputs = super().__call__(inputs, averaged=averaged)
        mask = get_keras_mask(inputs)
        if mask is not None:
            set_keras_mask(outputs, mask)
        return outputs

    def call(self, inputs: Any, averaged: bool | str | float = False) -> Any:
        """Returns the fake-quantized inputs."""
        # `averaged` changes nothing: the kernel in the file rounds averages by itself, and the
        # converter needs only the range.
        with keras.name_scope(self.name):
            x = ops.cast(inputs, "float32")
            return fake_quant_op(x, self.minimum, self.maximum, self.bits)

    def compute_output_spec(self, inputs: Any, averaged: bool | str | float = False) -> Any:
        """Returns the shape of the input."""
        return keras.KerasTensor(inputs.shape, dtype="float32")


def fake_quant_of_table(wrapper: Any) -> FixedFakeQuant:
    """Returns the operation that gives the converter the range of the rows of an embedding."""
    scale, qmin = (float(value) for value in Table(wrapper).qparams())
    return FixedFakeQuant(*range_of_qparams(scale, qmin), name=f"{wrapper.name}_grid")


@keras.saving.register_keras_serializable("tfcompress", name="GridCrossing")
class Requantize(keras.layers.Layer):
    """Marks a requantization from int8 to int16 activations, or back; returns its inputs.

    The converter merges two consecutive quantizations into one. `barrier` prevents this.
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
        """Returns a value after two casts, which `merge_requantizations` removes from the file."""
        return ops.cast(ops.cast(value, "float64"), "float32")
