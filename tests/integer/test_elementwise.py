"""The kernels in floats against the same in Python's integers."""

import numpy as np
import pytest

from tfcompress.integer.elementwise import Addition, HardSwish, Subtraction
from tfcompress.integer.producers import InverseRoot


def kernel_of(kind):
    return kind((), None)


@pytest.mark.parametrize(
    "ratios", [(0.9, 1.1), (0.02, 0.7), (3.3, 0.0011), (1.0, 1.0), (40.0, 5.0)]
)
@pytest.mark.parametrize("kind", [Addition, Subtraction])
def test_sums_of_two_grids(kind, ratios):
    generator = np.random.default_rng(0)
    a, b = generator.integers(-255, 256, (2, 20_000))
    scale = np.float32(0.037)
    units = [np.float32(ratio) * scale for ratio in ratios]
    steps = kernel_of(kind).compute([a.astype("float32"), b.astype("float32")], units, scale)
    exact = [np.float32(unit / scale) for unit in units]
    shift = 20 - int(np.floor(np.log2(max(exact))))
    m, n = (int(np.rint(float(ratio) * 2**shift)) for ratio in exact)
    n = -n if kind is Subtraction else n
    wanted = (a.astype(np.int64) * m + b.astype(np.int64) * n + (1 << (shift - 1))) >> shift
    np.testing.assert_array_equal(steps, wanted)


def high_product(a, b):
    """Half of the product of two integers of 16 bits over 2 ** 14, to the nearest."""
    return (a * b + (1 << 14)) >> 15


def shifted_right(x, by):
    sign = -1 if x < 0 else 1
    return sign * ((abs(x) + (1 << by >> 1)) >> by)


def quantized_multiplier(x):
    digits, power = np.frexp(x)
    return min(int(np.floor(digits * 2**15 + 0.5)), 2**15 - 1), int(power)


def saturated(x):
    return max(-(2**15), min(2**15 - 1, x))


def hard_swish(x, unit, scale):
    """The kernel as the runtime documents it, in integers."""
    fine = np.float32(unit / 128)
    factor, exponent = quantized_multiplier(float(np.float32(fine / scale)))
    slope, reach = quantized_multiplier(float(np.float32(fine / np.float32(3 / 2**15))))
    value = high_product(x * 128, factor)
    gate = x * 128
    if reach > 0:
        gate = saturated(gate << (reach - 1))
    gate = high_product(gate, slope)
    if reach > 0:
        gate = saturated(gate << 1)
    elif reach < 0:
        gate = shifted_right(gate, -reach)
    gate = (gate + 2**15) >> 1
    product = abs(gate * value) >> 15
    return shifted_right(product if value > 0 else -product, -exponent)


@pytest.mark.parametrize("unit", [0.004, 0.0234, 0.047, 0.19, 1.7])
def test_hard_swish(unit):
    x = np.arange(-255, 256)
    for grow in (1.1, 2.7, 11.0):
        unit, scale = np.float32(unit), np.float32(unit * grow)
        steps = kernel_of(HardSwish).compute([x.astype("float32")], [unit], scale)
        np.testing.assert_array_equal(steps, [hard_swish(int(v), unit, scale) for v in x])


def test_hard_swish_is_near_the_function():
    x = np.arange(-128, 128)
    unit, scale = np.float32(0.05), np.float32(0.051)
    steps = np.asarray(kernel_of(HardSwish).compute([x.astype("float32")], [unit], scale))
    values = x * unit
    wanted = values * np.clip(values + 3, 0, 6) / 6
    assert np.abs(steps * scale - wanted).max() < 0.6 * scale


def multiplied(x, ratio):
    """The runtime's `MultiplyByQuantizedMultiplier`: 31 binary digits, then a power of two."""
    digits, power = np.frexp(ratio)
    multiplier, right = round(float(digits) * 2**31), max(-int(power), 0)
    high = (x * 2 ** max(int(power), 0) * multiplier + (1 << 30)) >> 31
    return (high + (1 << right >> 1)) >> right


@pytest.mark.parametrize("scale", [0.0198, 0.031, 0.0007])
@pytest.mark.parametrize("unit", [0.000508, 0.0031, 0.02])
def test_inverse_roots_are_scaled_in_two_roundings(unit, scale):
    unit, scale = np.float32(unit), np.float32(scale)
    quantizer = type("Int8Quantizer", (), {"qparams": lambda self: (unit, 0.0)})()
    places = np.arange(1, 256)
    x = (1 / np.sqrt(places * np.float64(unit))).astype("float32")
    found = InverseRoot(quantizer).requantize(x, scale)
    roots = np.rint(2**20 / np.sqrt(places)).astype(int)
    ratio = 2.0**-20 / (np.sqrt(np.float64(unit)) * scale)
    wanted = [multiplied(int(root), ratio) for root in roots]
    np.testing.assert_array_equal(found, wanted)
