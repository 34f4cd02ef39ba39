"""The fixed-point arithmetic of the runtime in floats, to the bit."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from keras import ops

SIGMOID_RANGE = (0.0, 255 / 256)
"""What the runtime prescribes for the result of a sigmoid."""


TANH_RANGE = (-1.0, 127 / 128)
"""What the runtime prescribes for the result of a tanh."""


@dataclasses.dataclass(frozen=True)
class Accumulator:
    """Integers of 32 bits, scaled by a float32.

    Args:
        unit: The step of the integers.
        offset: What was added to them, in floats.
    """

    unit: Any
    offset: Any = 0.0

    def requantize(self, x: Any, scale: Any) -> Any:
        """Returns the values as integers of the result."""
        # The offset apart: it is rounded by itself, and may lie in the middle of two integers.
        total = ops.round((x - self.offset) / self.unit) + ops.round(self.offset / self.unit)
        return ops.round(total * (self.unit / scale))


def moved(x: Any, unit: Any, scale: Any) -> Any:
    """Returns values of one grid as integers of another, by a ratio of 8 binary digits.

    Args:
        x: The values, float32.
        unit: The step of their grid.
        scale: The step of the other.
    """
    return ops.floor((ops.round(x / unit) * ops.round(unit / scale * 256) + 128) * 2**-8)


def averages(places: Any, middle: Any) -> Any:
    """Returns averages of integers, rounded as the runtime does.

    Averages of four integers end in 1/2 every fourth time. AVERAGE_POOL_2D rounds these away from
    its integer 0, which stands for the middle of the range, RESIZE_BILINEAR up.

    Args:
        places: Averages in steps of the grid, the real zero being 0.
        middle: The integer away from which ties are rounded; 0.0 to round them up.
    """
    if isinstance(middle, float):
        return ops.floor(places + (0.5 + 1e-4))
    places = places - middle
    return ops.sign(places) * ops.floor(ops.abs(places) + (0.5 + 1e-4)) + middle


def in_two_roundings(places: Any, ratio: Any, power: float = 1.0) -> Any:
    """Returns integers times a ratio, as the runtime's own kernels scale them.

    Once by the binary digits of the ratio, then by its power of two; if that is above one, first.

    Args:
        places: The integers.
        ratio: A positive scalar.
        power: A power of two that the ratio is times.
    """
    digits = power_below(ratio) * 2
    first = ops.maximum(digits * power, 1.0)
    total = ops.floor(places * first * (ratio / digits) + 0.5)
    return ops.sign(total) * ops.floor(ops.abs(total) * (digits * power / first) + 0.5)


def power_below(x: Any) -> Any:
    """Returns the largest power of two that is not above `x`, a scalar from 2**-30 to 2**30."""
    powers = ops.convert_to_tensor(2.0 ** np.arange(-30, 31, dtype=np.float32))
    return ops.max(ops.where(powers <= x, powers, powers[0]))


def accumulator_scale(step: Any, ends: Any, largest: int, offset: Any) -> Any:
    """Returns the step of sums of products, of each channel.

    Args:
        step: That of what is multiplied by the weights.
        ends: The largest weight of each channel.
        largest: The integer that stands for it.
        offset: What is added to the sums.
    """
    unit = step * divided(ops.abs(ends), largest)
    # A channel without weights is an offset alone, which the file stores in 30 bits.
    spare = ops.maximum(ops.abs(offset), 1e-30) * 2**-20
    return ops.where(unit > 0, unit, spare)


def divided(x: Any, count: float) -> Any:
    """Returns `x / count` rounded once, as the converter does.

    A compiler would make of a division by a constant a product with its inverse, so it is not told
    that there is one.
    """
    return x / ops.where(ops.isfinite(x), count, 1.0)


def range_of_qparams(scale: float, lowest: float) -> tuple[float, float]:
    """Returns ends of a range from which the converter finds a step again, to the last digit."""
    low, high = np.float32(lowest * scale), np.float32((lowest + 255) * scale)
    up, down = np.float32(np.inf), np.float32(-np.inf)
    lows = [low] if lowest == 0 else [low, np.nextafter(low, up), np.nextafter(low, down)]
    highs = [high, np.nextafter(high, up), np.nextafter(high, down)]
    found = [
        (float(a), float(b))
        for a in lows
        for b in highs
        if np.float32((float(b) - float(a)) / 255) == np.float32(scale)
    ]
    return found[0] if found else (float(low), float(high))
