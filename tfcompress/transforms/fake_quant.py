"""Fake-quantization of weights, with the values that the runtime will store."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfcompress.scheme import WEIGHT_GRANULARITIES, WEIGHT_RANGES, check_choice
from tfcompress.transforms.base import WeightTransform

_CLIPS = [1 - 0.025 * n for n in range(28)]  # fractions of max|w| that "mse" tries as the range


@keras.saving.register_keras_serializable("tfcompress")
class FakeQuant(WeightTransform):
    """Fake-quantizes a weight: symmetric, narrow range (Jacob et al. 2018, arXiv:1712.05877).

    Each output channel has `qmax = 2 ** (bits - 1) - 1`, `qmin = -qmax` and the scale
    `clip * max|w| / qmax`, which is what TFLite stores for convolutions, depthwise convolutions
    and dense layers. Zero is exact, so pruned weights stay zero. The gradient passes straight
    through (Bengio et al. 2013, arXiv:1308.3432). The only exception: where the clipping is
    learned, clipped weights have none.

    Pays in: bytes (a quarter of float32, an eighth with 4 bits) and, with 8 bits, milliseconds, on
    every TFLite runtime.

    Args:
        bits: Bits per weight, 8 or 4.
        range: The maximum of the range: "min_max" for the largest weight (clip is 1); "mse" for the
            maximum with the least squared error when the model is wrapped; "learned" starts there
            and follows its gradient (LSQ, Esser et al. 2020, arXiv:1902.08153).
        granularity: "channel", or "tensor" for one scale for the whole weight.
    """

    order = 20
    keeps_zeros = True

    def __init__(
        self,
        bits: int = 8,
        range: str = "min_max",
        granularity: str = "channel",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if bits not in (4, 8):
            raise ValueError(f"bits must be 8 or 4. Received: bits={bits!r}")
        check_choice(range, "range", WEIGHT_RANGES)
        self.bits = bits
        self.range = range
        self.granularity = check_choice(granularity, "granularity", WEIGHT_GRANULARITIES)

    def build(self, shape: tuple[int, ...]) -> None:
        """Creates the clipping factor of each channel, unless the range is "min_max"."""
        if self.range != "min_max":
            kept = self._channels(len(shape))
            self.clip = self.add_weight(
                name="clip",
                shape=[size if axis in kept else 1 for axis, size in enumerate(shape)],
                initializer="ones",
                trainable=self.range == "learned",
            )

    def start(self, weight: Any) -> None:
        """Sets the clipping that quantizes `weight` with the least squared error."""
        if self.range == "min_max":
            return
        axes, maximum = self._abs_max(weight)
        best, least = ops.ones_like(maximum), None
        for clip in _CLIPS:
            error = ops.mean(
                ops.square(self._fake_quantized(weight, maximum * clip) - weight), axes, True
            )
            if least is None:
                least = error
            best = ops.where(error < least, clip, best)
            least = ops.minimum(error, least)
        self.clip.assign(best)

    def call(self, weight: Any) -> Any:
        """Returns the fake-quantized weight, with a straight-through gradient."""
        _, maximum = self._abs_max(weight)
        if self.range == "min_max":
            return weight + ops.stop_gradient(self._fake_quantized(weight, maximum) - weight)
        # The range never exceeds the largest weight, so one weight always has the value qmax: the
        # converter computes the scale from it.
        clip = ops.clip(ops.convert_to_tensor(self.clip), 0.05, 1.0)
        if self.range == "mse":
            quantized = self._fake_quantized(weight, maximum * clip)
            return weight + ops.stop_gradient(quantized - weight)
        count = weight.shape[0] * self.qmax  # LSQ's scale of the gradient
        factor = (float(count) if count else 1.0) ** -0.5
        clip = ops.stop_gradient(clip * (1 - factor)) + clip * factor
        return self._fake_quantized(weight, ops.stop_gradient(maximum) * clip, learned=True)

    def scale(self, weight: Any) -> Any:
        """Returns the scale of each channel, shaped to be broadcast over the weight."""
        return self.scale_from_max(self.channel_max(weight))

    def scale_from_max(self, maximum: Any) -> Any:
        """Returns the scale of each channel.

        Args:
            maximum: The maximum of each channel's range.
        """
        scale = maximum * (1 / self.qmax)
        # An all-zero channel has no scale of its own; any positive one keeps it at zero.
        return ops.where(scale > 0, scale, 1.0)

    def quantized_values(self, weight: Any, scale: Any) -> Any:
        """Returns the quantized weight: integers, as floats.

        Args:
            weight: The weight before it is quantized.
            scale: What `scale` returned for it.
        """
        return ops.round(self._divided(weight, scale))

    def channel_max(self, weight: Any) -> Any:
        """Returns the maximum of each channel's range, shaped like the scale; 0 if all are 0."""
        _, maximum = self._abs_max(weight)
        if self.range != "min_max":
            maximum = maximum * ops.clip(ops.convert_to_tensor(self.clip), 0.05, 1.0)
        return maximum

    def settle(self) -> None:
        """Sets the range to the largest weight, once the stored weights are fake-quantized."""
        if self.range != "min_max":
            self.clip.assign(ops.ones_like(self.clip))

    @property
    def qmax(self) -> int:
        """The largest quantized value, qmax; qmin is its negative."""
        return 2 ** (self.bits - 1) - 1

    def _abs_max(self, weight: Any) -> tuple[list[int], Any]:
        kept = self._channels(len(weight.shape))
        axes = [axis for axis, _ in enumerate(weight.shape) if axis not in kept]
        # Without `initial`, Keras checks for empty weights, which takes most of the time.
        return axes, ops.max(ops.abs(weight), axis=axes, keepdims=True, initial=0.0)

    def _fake_quantized(self, weight: Any, maximum: Any, learned: bool = False) -> Any:
        scale = self.scale_from_max(maximum)
        if not learned:  # without names for intermediate tensors, which may hold half a gigabyte
            return ops.round(self._divided(weight, scale)) * scale
        divided = self._divided(weight, scale)
        return (divided + ops.stop_gradient(ops.round(divided) - divided)) * scale

    def _divided(self, weight: Any, scale: Any) -> Any:
        divided = weight / scale
        # With "min_max" no weight exceeds the range, so there is nothing to clip.
        return divided if self.range == "min_max" else ops.clip(divided, -self.qmax, self.qmax)

    def _channels(self, rank: int) -> set[int]:
        axes = self.channel_axes if self.granularity == "channel" else ()
        return {axis % rank for axis in axes}

    def report(self) -> dict[str, Any]:
        """Returns the bits per weight."""
        return {"bits": self.bits}

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        own = {"bits": self.bits, "range": self.range, "granularity": self.granularity}
        return {**super().get_config(), **own}
