"""Fixed-point numbers of 32 bits, as the runtime's reference kernels compute with them.

Tensors are int64, which hold every product of two such numbers; JAX has no int64 by default. A
number of `k` integer bits stands for its integer over `2 ** (31 - k)`. Products, exponentials and
quotients are rounded as in gemmlowp, the library that these kernels are built on.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

ONE = 2**31 - 1
"""The number one with no integer bits, which is a little less."""


def integers(x: Any) -> Any:
    """Returns floats that hold integers, as int64."""
    return ops.cast(ops.round(x), "int64")


def floats(x: Any) -> Any:
    """Returns integers as float32."""
    return ops.cast(x, "float32")


def double(x: Any) -> Any:
    """Returns a scale as float64, in which the runtime computes multipliers.

    Raises:
        RuntimeError: On JAX.
    """
    if keras.backend.backend() == "jax":
        raise RuntimeError(
            "This model computes like the reference kernels (kernels='reference'), in 64-bit "
            "integers, which JAX lacks: predict and evaluate it on TensorFlow or PyTorch."
        )
    return ops.cast(x, "float64")


def where(condition: Any, a: Any, b: Any) -> Any:
    """Returns `a` or `b`, integers."""
    return ops.where(condition, *(ops.convert_to_tensor(x, "int64") for x in (a, b)))


def multiplier_of(real: Any) -> tuple[Any, Any]:
    """Returns a positive float64 as an integer of 31 bits and a power of two.

    Returns:
        The integer, and the exponent: `real` is `integer / 2 ** 31 * 2 ** exponent`, rounded half
        away from zero.
    """
    powers = ops.convert_to_tensor(2.0 ** np.arange(-_POWERS, _POWERS), "float64")
    above = ops.cast(powers <= ops.expand_dims(real, -1), "int64")
    exponent = ops.sum(above, axis=-1) - _POWERS
    fraction = real / 2.0 ** ops.cast(exponent, "float64")
    integer = ops.cast(ops.floor(fraction * 2.0**31 + 0.5), "int64")
    full = integer == 2**31
    integer, exponent = where(full, 2**30, integer), exponent + ops.cast(full, "int64")
    tiny = exponent < -31
    return where(tiny, 0, integer), where(tiny, 0, exponent)


_POWERS = 64


def multiply(x: Any, multiplier: tuple[Any, Any]) -> Any:
    """Returns integers times a multiplier, rounded twice.

    Args:
        x: int64.
        multiplier: What `multiplier_of` returns.
    """
    integer, exponent = multiplier
    shifted = ops.left_shift(x, ops.maximum(exponent, 0))
    return divide_by_power(high_product(shifted, integer), ops.maximum(-exponent, 0))


def high_product(a: Any, b: Any) -> Any:
    """Returns `a * b / 2 ** 31`, rounded to nearest, half up in the end towards zero."""
    product = a * b
    nudged = product + where(product >= 0, 2**30, 1 - 2**30)
    return ops.sign(nudged) * ops.right_shift(ops.abs(nudged), 31)


def divide_by_power(x: Any, exponent: Any) -> Any:
    """Returns `x / 2 ** exponent`, rounded half away from zero."""
    exponent = ops.convert_to_tensor(exponent, "int64")
    mask = ops.left_shift(ops.ones_like(exponent), exponent) - 1
    remainder = ops.bitwise_and(x, mask)
    threshold = ops.right_shift(mask, 1) + ops.cast(x < 0, "int64")
    return ops.right_shift(x, exponent) + ops.cast(remainder > threshold, "int64")


def times_power(x: Any, exponent: int) -> Any:
    """Returns `x * 2 ** exponent`, at most what 32 bits hold."""
    return ops.clip(x * 2**exponent, -(2**31), ONE)


def exponential(x: Any, integer_bits: int) -> Any:
    """Returns `exp(x)` of numbers that are not positive, with no integer bits.

    Args:
        x: Numbers of so many integer bits.
        integer_bits: At most 5.
    """
    fractional = 31 - integer_bits
    quarter = 2 ** (fractional - 2)
    fourth = ops.bitwise_and(x, quarter - 1) - quarter
    remainder = fourth - x
    # A Taylor series around -1/8, of what is left of quarters.
    near = times_power(fourth, integer_bits) + 2**28
    square = high_product(near, near)
    cube, fourth_power = high_product(square, near), high_product(square, square)
    thirds = high_product(divide_by_power(fourth_power, 2) + cube, 715827883)
    series = near + divide_by_power(thirds + square, 1)
    result = 1895147668 + high_product(series, 1895147668)
    for exponent, factor in _EXPONENTIALS.items():
        if exponent < integer_bits:
            bit = ops.bitwise_and(remainder, 2 ** (fractional + exponent))
            result = where(bit != 0, high_product(result, factor), result)
    return where(x == 0, ONE, result)


_EXPONENTIALS = {
    -2: 1672461947,
    -1: 1302514674,
    0: 790015084,
    1: 290630308,
    2: 39332535,
    3: 720401,
    4: 242,
}
"""`exp(-2 ** key)` with no integer bits."""


def _inverse_of_half(x: Any) -> Any:
    """Returns `2 / (1 + x)` of numbers from 0 to 1, with two integer bits (Newton, Raphson)."""
    half = ops.right_shift(x + ONE + 1, 1)
    result = 1515870810 + high_product(half, -1010580540)
    for _ in range(3):
        result = result + times_power(high_product(result, 2**29 - high_product(half, result)), 2)
    return result


def inverse_of_one_plus(x: Any) -> Any:
    """Returns `1 / (1 + x)` of numbers from 0 to 1, no integer bits in both."""
    return times_power(_inverse_of_half(x), 1)


def logistic(x: Any) -> Any:
    """Returns the logistic function, with no integer bits, of numbers of four integer bits."""
    positive = inverse_of_one_plus(exponential(-ops.abs(x), 4))
    return where(x == 0, 2**30, where(x > 0, positive, ONE - positive))


def hyperbolic_tangent(x: Any) -> Any:
    """Returns the hyperbolic tangent, with no integer bits, of numbers of four integer bits."""
    inverse = _inverse_of_half(exponential(-ops.abs(x), 5))
    magnitude = times_power(inverse - 2**29, 2)
    return where(x == 0, 0, where(x < 0, -magnitude, magnitude))
