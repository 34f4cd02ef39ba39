"""Fixed-point arithmetic on int64 tensors, beside Python's integers and floats."""

import math

import keras
import numpy as np
import pytest

from tfcompress.integer import int64_fixed_point as fixed


def integers(values):
    return keras.ops.convert_to_tensor(np.asarray(values), "int64")


def doubles(values):
    return keras.ops.convert_to_tensor(np.asarray(values, "float64"), "float64")


def nearest(numerator, denominator, up_from_half):
    """The nearest integer to a quotient; halves away from zero, or up."""
    doubled = 2 * numerator + denominator
    if up_from_half or numerator >= 0:
        return doubled // (2 * denominator)
    return -((-2 * numerator + denominator) // (2 * denominator))


def test_multipliers():
    real = np.exp(np.random.default_rng(0).uniform(-25, 12, 500))
    real = np.concatenate([real, 2.0 ** np.arange(-30, 12), [1 - 2**-40, 1e-12]])
    integer, exponent = map(np.asarray, fixed.multiplier_of(doubles(real)))
    for value, i, e in zip(real, integer, exponent, strict=True):
        fraction, power = math.frexp(value)
        wanted = math.floor(fraction * 2**31 + 0.5)
        if power < -31:
            wanted, power = 0, 0
        elif wanted == 2**31:
            wanted, power = 2**30, power + 1
        assert (i, e) == (wanted, power)


@pytest.mark.parametrize("exponent", [-20, -9, -1, 0, 3])
def test_products_are_rounded_twice(exponent):
    generator = np.random.default_rng(1)
    x = generator.integers(-(2**24), 2**24, 2000)
    factor = int(generator.integers(2**30, 2**31))
    out = fixed.multiply(integers(x), (integers(factor), integers(exponent)))
    for value, result in zip(x.tolist(), np.asarray(out).tolist(), strict=True):
        high = nearest((value << max(exponent, 0)) * factor, 2**31, up_from_half=True)
        assert result == nearest(high, 2 ** max(-exponent, 0), up_from_half=False)


def test_functions_of_fixed_point_numbers():
    x = np.linspace(-(2**31) + 1, 2**31 - 1, 4001).astype(np.int64)
    four = x / 2**27  # as numbers of four integer bits
    logistic = np.asarray(fixed.logistic(integers(x))) / 2**31
    tangent = np.asarray(fixed.hyperbolic_tangent(integers(x))) / 2**31
    np.testing.assert_allclose(logistic, 1 / (1 + np.exp(-four)), atol=2e-7)
    np.testing.assert_allclose(tangent, np.tanh(four), atol=4e-7)
    below = x[x <= 0]
    for bits in (4, 5):
        power = np.asarray(fixed.exponential(integers(below), bits)) / 2**31
        np.testing.assert_allclose(power, np.exp(below / 2 ** (31 - bits)), atol=2e-7)
    above = x[x >= 0]
    inverse = np.asarray(fixed.inverse_of_one_plus(integers(above))) / 2**31
    np.testing.assert_allclose(inverse, 1 / (1 + above / 2**31), atol=2e-8)
