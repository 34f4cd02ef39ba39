"""Fake-quantization of weights, as the runtime will store them."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfcompress.transforms.base import WeightTransform


@keras.saving.register_keras_serializable("tfcompress")
class FakeQuant(WeightTransform):
    """Rounds a weight onto a symmetric narrow-range grid (Jacob et al. 2018, arXiv:1712.05877).

    Each output channel has the scale `max|w| / (2 ** (bits - 1) - 1)` and the integers
    `-(2 ** (bits - 1) - 1) .. 2 ** (bits - 1) - 1`, which is what TFLite stores for convolutions,
    depthwise convolutions and dense layers. Zero is exact, so pruned weights stay zero. The
    gradient passes straight through (Bengio et al. 2013, arXiv:1308.3432).

    Pays in: bytes (a quarter of float32) and milliseconds, on every TFLite runtime.

    Args:
        bits: Bits per weight; 8.
    """

    order = 20
    keeps_zeros = True

    def __init__(self, bits: int = 8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if bits != 8:
            raise ValueError(f"bits must be 8. Received: bits={bits!r}")
        self.bits = bits

    def call(self, weight: Any) -> Any:
        """Returns the weight rounded onto its grid, with a straight-through gradient."""
        axes = [a for a in range(len(weight.shape)) if a not in self._channels(len(weight.shape))]
        largest = ops.max(ops.abs(weight), axis=axes, keepdims=True)
        scale = largest / (2 ** (self.bits - 1) - 1)
        # An all-zero channel has no scale of its own; any positive one keeps it at zero.
        scale = ops.where(scale > 0, scale, ops.ones_like(scale))
        rounded = ops.round(weight / scale) * scale
        return weight + ops.stop_gradient(rounded - weight)

    def _channels(self, rank: int) -> set[int]:
        return {axis % rank for axis in self.channel_axes}

    def report(self) -> dict[str, Any]:
        """Returns the bits per weight."""
        return {"bits": self.bits}

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "bits": self.bits}
