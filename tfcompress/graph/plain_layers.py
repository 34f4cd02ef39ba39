"""Plain layers that canonical forms are made of, beside those of Keras."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import layers, ops


@keras.saving.register_keras_serializable("tfcompress")
class ChannelScale(layers.Layer):
    """The scale and offset per channel that follow a normalization.

    Args:
        center: Whether there is a `beta`.
        scale: Whether there is a `gamma`.
        options: Initializers and regularizers of the two, by the names that Keras gives them.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    def __init__(self, center: bool, scale: bool, options: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        self.center, self.scale, self.options = center, scale, options

    def build(self, input_shape: Any) -> None:
        """Creates scale and offset."""
        self.gamma = self._weight("gamma", input_shape[-1:]) if self.scale else None
        self.beta = self._weight("beta", input_shape[-1:]) if self.center else None

    def _weight(self, name: str, shape: Any) -> Any:
        options = {
            key.removeprefix(f"{name}_"): value
            for key, value in self.options.items()
            if key.startswith(f"{name}_")
        }
        return self.add_weight(name=name, shape=shape, **options)

    def call(self, inputs: Any) -> Any:
        """Returns the scaled inputs."""
        x = inputs if self.gamma is None else inputs * self.gamma
        return x if self.beta is None else x + self.beta

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape of the input; without this, Keras would trace the call."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        own = {"center": self.center, "scale": self.scale, "options": self.options}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("tfcompress")
class RootMeanSquare(layers.Layer):
    """Divides by the root of the mean square of the last axis, as RMS normalization without scale.

    Args:
        epsilon: A constant added to the mean.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    def __init__(self, epsilon: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon, self.axis = epsilon, -1

    def call(self, inputs: Any) -> Any:
        """Returns the normalized inputs."""
        mean = ops.mean(ops.square(inputs), axis=-1, keepdims=True)
        return inputs * ops.rsqrt(mean + self.epsilon)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape of the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "epsilon": self.epsilon}


@keras.saving.register_keras_serializable("tfcompress")
class FoldSteps(layers.Layer):
    """Folds the time steps of all sequences into the batch axis."""

    def call(self, inputs: Any) -> Any:
        """Returns a batch of all time steps."""
        return ops.reshape(inputs, (-1, *inputs.shape[2:]))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments, under any dtype policy."""
        return super().get_config()


@keras.saving.register_keras_serializable("tfcompress")
class UnfoldSteps(layers.Layer):
    """Unfolds a batch of time steps into sequences.

    Args:
        steps: Time steps of each sequence.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    def __init__(self, steps: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.steps = steps

    def call(self, inputs: Any) -> Any:
        """Returns the sequences."""
        return ops.reshape(inputs, (-1, self.steps, *inputs.shape[1:]))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "steps": self.steps}


@keras.saving.register_keras_serializable("tfcompress")
class MaskScores(layers.Layer):
    """Replaces the scores of masked keys by a very low score.

    The integer runtime cannot represent a score below the minimum of the quantized range. In
    training, and while ranges are measured, masked scores are therefore a margin below the minimum
    of the batch, so that the quantizer behind this layer includes them in its range, and all masked
    keys together weigh at most 1/3000 of one that is not masked. At inference masked scores are far
    below any range, and saturate at its minimum. A query whose keys are all masked attends to all
    of them equally.
    """

    margin = 8.0  # exp(-8) is 1/3000
    measured = False  # whether ranges are measured, which needs the same scores as training

    def call(self, scores: Any, mask: Any, training: bool | None = None) -> Any:
        """Returns the scores where `mask` is true, and low ones elsewhere."""
        low = ops.convert_to_tensor(-3e4, scores.dtype)
        if training or self.measured:
            keys = scores.shape[-1]
            low = ops.stop_gradient(ops.min(scores)) - self.margin - math.log(keys)
        return ops.where(mask, scores, low)

    def compute_output_shape(self, scores_shape: Any, mask_shape: Any = None) -> Any:
        """Returns the shape of the scores."""
        return scores_shape

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments, under any dtype policy."""
        return super().get_config()
