"""The layers that stand for what custom code reads beside its inputs: weights and constants."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np


@keras.saving.register_keras_serializable("tfcompress")
class Constant(keras.layers.Layer):
    """Returns a constant that custom code creates, such as position indices; ignores its input.

    Args:
        value: The constant, as a list.
        number_type: Its dtype.
        shape: Its shape; None for that of the list, which does not tell it where a size is 0.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    def __init__(self, value: Any, number_type: str, shape: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.value, self.number_type = value, number_type
        self.shape = tuple(np.shape(value) if shape is None else shape)

    @classmethod
    def of(cls, array: Any) -> Constant:
        """Returns the layer for an array."""
        return cls(array.tolist(), str(array.dtype), array.shape)

    def call(self, inputs: Any) -> Any:
        """Returns the constant."""
        return keras.ops.reshape(
            keras.ops.convert_to_tensor(self.value, self.number_type), self.shape
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        own = {"value": self.value, "number_type": self.number_type, "shape": self.shape}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("tfcompress")
class OwnWeight(keras.layers.Layer):
    """Returns a weight that custom code computes with; ignores its input.

    Args:
        shape: The shape of the weight.
        weight_name: Its name.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    def __init__(self, shape: Any, weight_name: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shape, self.weight_name = tuple(shape), weight_name

    def build(self, input_shape: Any = None) -> None:
        """Creates the weight."""
        self.weight = self.add_weight(
            shape=self.shape, initializer="zeros", name=self.weight_name, trainable=self.trainable
        )

    def call(self, inputs: Any) -> Any:
        """Returns the weight."""
        return keras.ops.copy(self.weight)  # a tensor, not the variable

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        own = {"shape": self.shape, "weight_name": self.weight_name}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("tfcompress")
class RepeatForBatch(keras.layers.Layer):
    """Repeats a tensor of one sample for each sample of the batch of a second one.

    Args:
        axis: The axis of the first tensor that has the size 1, and becomes the batch.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    def __init__(self, axis: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.axis = axis

    def call(self, inputs: Any) -> Any:
        """Returns the first tensor, with the batch of the second."""
        one, other = inputs
        shape = [*one.shape]
        shape[self.axis] = keras.ops.shape(other)[0]
        return keras.ops.broadcast_to(one, shape)

    def compute_output_spec(self, inputs: Any) -> Any:
        """Returns shape and dtype of the first tensor, with the batch of the second."""
        one, other = inputs
        shape = [*one.shape]
        shape[self.axis] = other.shape[0]
        return keras.KerasTensor(shape, one.dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "axis": self.axis}
