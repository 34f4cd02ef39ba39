"""The fixed-point arithmetic of the runtime, computed in floats, bit-exact."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from keras import ops

SIGMOID_RANGE = (0.0, 255 / 256)
"""The output range that the runtime fixes for a sigmoid."""


TANH_RANGE = (-1.0, 127 / 128)
"""The output range that the runtime fixes for a tanh."""


@dataclasses.dataclass(frozen=True)
class Accumulator:
    """An int32 accumulator of products.

    Args:
        scale: The scale of the accumulator, float32: the product of those of the factors.
        factors: The scales of the factors.
        offset: The bias that the accumulator contains, in floats.
        one_scale: Whether a dense layer has one scale for its weights.
    """

    scale: Any
    factors: tuple[Any, Any]
    offset: Any = 0.0
    one_scale: bool = False

    def requantize(self, x: Any, output_scale: Any, kernels: Any) -> Any:
        """Returns the quantized output.

        Args:
            x: The accumulator, in floats.
            output_scale: The scale of the output.
            kernels: The `Kernels` that round.
        """
        # The runtime quantizes the bias separately. It may be a tie, so it is rounded separately
        # here as well.
        accumulator = ops.round((x - self.offset) / self.scale) + ops.round(
            self.offset / self.scale
        )
        if self.one_scale:
            return kernels.requantize_dense(accumulator, self.scale, self.factors, output_scale)
        return kernels.requantize_sum(accumulator, self.scale, self.factors, output_scale)


def requantize_by_ratio(x: Any, input_scale: Any, output_scale: Any) -> Any:
    """Requantizes values to another scale, with a multiplier of 8 fractional bits.

    Args:
        x: The values, float32.
        input_scale: Their scale.
        output_scale: The scale of the result.
    """
    return ops.floor(
        (ops.round(x / input_scale) * ops.round(input_scale / output_scale * 256) + 128) * 2**-8
    )


def round_averages(quantized: Any, middle: Any) -> Any:
    """Returns averages of quantized values, rounded as the runtime does.

    An average of four integers is a tie every fourth time. AVERAGE_POOL_2D rounds ties away from
    the quantized value 0, the middle of the range. RESIZE_BILINEAR rounds them up.

    Args:
        quantized: Averages of quantized values, before rounding. The zero point is subtracted.
        middle: The value away from which ties are rounded; 0.0 to round them up.
    """
    if isinstance(middle, float):
        return ops.floor(quantized + (0.5 + 1e-4))
    quantized = quantized - middle
    return ops.sign(quantized) * ops.floor(ops.abs(quantized) + (0.5 + 1e-4)) + middle


def mean_of(averages: Any, count: int, zero_point: Any) -> Any:
    """Returns means of quantized values, as XNNPACK's MEAN with equal scales rounds them.

    It sums quantized values with their zero point, so that ties go to the even one of these.

    Args:
        averages: Means of quantized values, before rounding. The zero point is subtracted.
        count: The number of values of each.
        zero_point: The zero point.
    """
    total = ops.round(averages * count) + count * zero_point
    return ops.round(total * np.float32(1 / count)) - zero_point


def multiply_by_quantized_multiplier(quantized: Any, multiplier: Any, power: float = 1.0) -> Any:
    """Returns integers times a multiplier, rounded twice as in the runtime's built-in kernels.

    The multiplier is a significand times a power of two. The product with the significand is
    rounded first, then the product with the power of two. A power above one is a left shift, which
    comes before the significand.

    Args:
        quantized: The integers.
        multiplier: A positive scalar.
        power: A further power of two by which the multiplier is scaled.
    """
    shift = power_below(multiplier) * 2
    left_shift = ops.maximum(shift * power, 1.0)
    product = ops.floor(quantized * left_shift * (multiplier / shift) + 0.5)
    return ops.sign(product) * ops.floor(ops.abs(product) * (shift * power / left_shift) + 0.5)


def without_ties(scale: Any, factor_scale: Any) -> Any:
    """Returns the scale of a product, a little smaller if quantized products could be ties.

    XNNPACK rounds ties of a product to even on x86, and up on ARM. A multiplier of few bits has
    ties: a half, for a gate that is a half everywhere.

    Args:
        scale: The scale.
        factor_scale: The product of the scales of the factors.
    """
    multiplier = factor_scale / scale
    bits = multiplier / power_below(multiplier) * 2.0**10
    return ops.where(ops.abs(bits - ops.round(bits)) < 2.0**-10, scale * (1 - 2.0**-21), scale)


def add_quantized(inputs: list[Any], input_scales: list[Any], output_scale: Any) -> Any:
    """Returns the quantized sum of two quantized tensors with different scales.

    The kernel uses integer multipliers of 21 bits. Here each multiplier is split into two halves,
    so that no product needs more than the 24 bits that a float32 represents exactly.

    Args:
        inputs: The quantized values.
        input_scales: Their scales.
        output_scale: The scale of the sum.
    """
    ratios = [input_scale / output_scale for input_scale in input_scales]
    power = power_below(ops.maximum(*ratios))
    upper, lower = [], []
    for x, ratio in zip(inputs, ratios, strict=True):
        multiplier = ops.round(ratio * (2.0**20 / power))
        high_bits = ops.floor(multiplier * 2**-10)
        upper.append(x * high_bits)
        lower.append(x * (multiplier - high_bits * 2**10))
    accumulator = ops.floor((lower[0] + lower[1]) * 2**-10) + (upper[0] + upper[1])
    return ops.floor(accumulator * (power * 2**-10) + 0.5)


def power_below(x: Any) -> Any:
    """Returns the largest power of two that is not above `x`, a scalar from 2**-30 to 2**30."""
    powers = ops.convert_to_tensor(2.0 ** np.arange(-30, 31, dtype=np.float32))
    return ops.max(ops.where(powers <= x, powers, powers[0]))


def accumulator_scale(input_scale: Any, weight_max: Any, qmax: int, offset: Any) -> Any:
    """Returns the scale of the accumulator of each channel: input scale times weight scale.

    Args:
        input_scale: The scale of the input.
        weight_max: The maximum of the weights of each channel.
        qmax: The quantized value of this maximum.
        offset: The bias.
    """
    scale = input_scale * weight_scale(weight_max, qmax)
    # If all weights of a channel are zero, only its bias counts, which the file stores in 30 bits.
    bias_scale = ops.maximum(ops.abs(offset), 1e-30) * 2**-20
    return ops.where(scale > 0, scale, bias_scale)


def weight_scale(weight_max: Any, qmax: int) -> Any:
    """Returns the scale of each channel of a weight in the file, rounded as there.

    The converter stores 8 bits; scales for 4 bits are computed from the ones it has rounded.
    """
    scale = divide(ops.abs(weight_max), 127)
    return scale if qmax == 127 else divide(scale * 127, qmax)


def scale_of_constant(largest: float, qmax: int) -> np.float32:
    """Returns the scale that the converter gives a constant, rounded as it does.

    Args:
        largest: Its largest value.
        qmax: The quantized value of this; 255 where the smallest is 0, with the zero point -128.
    """
    return np.float32(np.float64(np.float32(largest)) / qmax)


def divide(x: Any, divisor: float) -> Any:
    """Returns `x / divisor` rounded once, as the converter does.

    Compilers replace a division by a constant with a multiplication by its inverse, which rounds
    differently. `where` prevents this: they do not see a constant.
    """
    return x / ops.where(ops.isfinite(x), divisor, 1.0)


def inverse_root(x: Any) -> Any:
    """Returns `1 / sqrt(x)`, each step rounded to the nearest float32.

    TensorFlow approximates `rsqrt` and the reciprocal, and makes them of divisions by a plain root
    and of a constant one. Here it sees neither.
    """
    one = ops.where(ops.isfinite(x), ops.ones_like(x), x)
    return one / ops.maximum(ops.sqrt(x), 1e-30)


def range_of_qparams(scale: float, qmin: float) -> tuple[float, float]:
    """Returns a range from which the converter computes exactly the given scale.

    Args:
        scale: The scale.
        qmin: The smallest quantized value of 8 bits, minus the zero point.
    """
    low, high = np.float32(qmin * scale), np.float32((qmin + 255) * scale)
    up, down = np.float32(np.inf), np.float32(-np.inf)
    lows = [low] if qmin == 0 else [low, np.nextafter(low, up), np.nextafter(low, down)]
    highs = [high, np.nextafter(high, up), np.nextafter(high, down)]
    matches = [
        (float(a), float(b))
        for a in lows
        for b in highs
        if np.float32((float(b) - float(a)) / 255) == np.float32(scale)
    ]
    return matches[0] if matches else (float(low), float(high))
