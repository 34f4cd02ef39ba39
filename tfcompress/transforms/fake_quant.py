"""Fake-quantization of weights, as the runtime will store them."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfcompress.scheme import WEIGHT_GRANULARITIES, WEIGHT_RANGES, check_choice
from tfcompress.transforms.base import WeightTransform

_CLIPS = [1 - 0.025 * n for n in range(28)]  # shares of the largest weight that "mse" tries


@keras.saving.register_keras_serializable("tfcompress")
class FakeQuant(WeightTransform):
    """Rounds a weight onto a symmetric narrow-range grid (Jacob et al. 2018, arXiv:1712.05877).

    Each output channel has the scale `clip * max|w| / (2 ** (bits - 1) - 1)` and the integers
    `-(2 ** (bits - 1) - 1) .. 2 ** (bits - 1) - 1`, which is what TFLite stores for convolutions,
    depthwise convolutions and dense layers. Zero is exact, so pruned weights stay zero. The
    gradient passes straight through (Bengio et al. 2013, arXiv:1308.3432), but for weights that are
    clipped where the clipping is learned.

    Pays in: bytes (a quarter of float32, an eighth with 4 bits) and, with 8 bits, milliseconds, on
    every TFLite runtime.

    Args:
        bits: Bits per weight, 8 or 4.
        range: Where the grid ends: "min_max" at the largest weight (clip is 1); "mse" where the
            squared error is least when the model is wrapped; "learned" starts there and follows
            its gradient (LSQ, Esser et al. 2020, arXiv:1902.08153).
        granularity: "channel", or "tensor" for one scale for all of the weight.
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
        """Creates the clipping of each channel, where there is one."""
        if self.range != "min_max":
            kept = self._channels(len(shape))
            self.clip = self.add_weight(
                name="clip",
                shape=[size if axis in kept else 1 for axis, size in enumerate(shape)],
                initializer="ones",
                trainable=self.range == "learned",
            )

    def start(self, weight: Any) -> None:
        """Sets the clipping to where the squared error of rounding `weight` is least."""
        if self.range == "min_max":
            return
        axes, largest = self._largest(weight)
        best, least = ops.ones_like(largest), None
        for clip in _CLIPS:
            error = ops.mean(ops.square(self._rounded(weight, largest * clip) - weight), axes, True)
            if least is None:
                least = error
            best = ops.where(error < least, clip, best)
            least = ops.minimum(error, least)
        self.clip.assign(best)

    def call(self, weight: Any) -> Any:
        """Returns the weight rounded onto its grid, with a straight-through gradient."""
        _, largest = self._largest(weight)
        if self.range == "min_max":
            return weight + ops.stop_gradient(self._rounded(weight, largest) - weight)
        # Never wider than the largest weight, so that one weight always lies at the end of the
        # grid: from there the converter finds the scale again.
        clip = ops.clip(ops.convert_to_tensor(self.clip), 0.05, 1.0)
        if self.range == "mse":
            rounded = self._rounded(weight, largest * clip)
            return weight + ops.stop_gradient(rounded - weight)
        count = weight.shape[0] * self.steps  # LSQ's scale of the gradient
        factor = (float(count) if count else 1.0) ** -0.5
        clip = ops.stop_gradient(clip * (1 - factor)) + clip * factor
        return self._rounded(weight, ops.stop_gradient(largest) * clip, learned=True)

    def scale(self, weight: Any) -> Any:
        """Returns the step of each channel's grid, shaped to be broadcast over the weight."""
        return self.step(self.end(weight))

    def step(self, end: Any) -> Any:
        """Returns the step of a grid that ends there.

        Args:
            end: The largest value of each channel.
        """
        scale = end * (1 / self.steps)
        # An all-zero channel has no scale of its own; any positive one keeps it at zero.
        return ops.where(scale > 0, scale, 1.0)

    def integers(self, weight: Any, scale: Any) -> Any:
        """Returns the integers of the grid that the weight is rounded to.

        Args:
            weight: The weight before it is rounded.
            scale: What `scale` returned for it.
        """
        return ops.round(self._places(weight, scale))

    def end(self, weight: Any) -> Any:
        """Returns where each channel's grid ends, shaped likewise; 0 where all weights are."""
        _, end = self._largest(weight)
        if self.range != "min_max":
            end = end * ops.clip(ops.convert_to_tensor(self.clip), 0.05, 1.0)
        return end

    def settle(self) -> None:
        """Ends the grid at the largest weight, where the stored weights lie on it already."""
        if self.range != "min_max":
            self.clip.assign(ops.ones_like(self.clip))

    @property
    def steps(self) -> int:
        """The largest integer of the grid."""
        return 2 ** (self.bits - 1) - 1

    def _largest(self, weight: Any) -> tuple[list[int], Any]:
        kept = self._channels(len(weight.shape))
        axes = [axis for axis, _ in enumerate(weight.shape) if axis not in kept]
        # Without `initial`, Keras checks for weights without numbers, which takes most of the time.
        return axes, ops.max(ops.abs(weight), axis=axes, keepdims=True, initial=0.0)

    def _rounded(self, weight: Any, end: Any, learned: bool = False) -> Any:
        scale = self.step(end)
        if not learned:  # no name holds what is done with: weights may be half a gigabyte
            return ops.round(self._places(weight, scale)) * scale
        places = self._places(weight, scale)
        return (places + ops.stop_gradient(ops.round(places) - places)) * scale

    def _places(self, weight: Any, scale: Any) -> Any:
        places = weight / scale
        # A grid that ends at the largest weight clips nothing.
        return places if self.range == "min_max" else ops.clip(places, -self.steps, self.steps)

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
