"""The kernels, computed in floats, against the same kernels in Python integers."""

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
def test_sums_of_two_scales(kind, ratios):
    generator = np.random.default_rng(0)
    a, b = generator.integers(-255, 256, (2, 20_000))
    scale = np.float32(0.037)
    input_scales = [np.float32(ratio) * scale for ratio in ratios]
    inputs = [a.astype("float32"), b.astype("float32")]
    quantized = kernel_of(kind).compute(inputs, input_scales, scale)
    exact = [np.float32(input_scale / scale) for input_scale in input_scales]
    shift = 20 - int(np.floor(np.log2(max(exact))))
    m, n = (int(np.rint(float(ratio) * 2**shift)) for ratio in exact)
    n = -n if kind is Subtraction else n
    wanted = (a.astype(np.int64) * m + b.astype(np.int64) * n + (1 << (shift - 1))) >> shift
    np.testing.assert_array_equal(quantized, wanted)


def high_product(a, b):
    """The product of two int16 values over 2 ** 15, rounded to nearest (DoublingHighMul)."""
    return (a * b + (1 << 14)) >> 15


def shifted_right(x, by):
    sign = -1 if x < 0 else 1
    return sign * ((abs(x) + (1 << by >> 1)) >> by)


def quantized_multiplier(x):
    digits, power = np.frexp(x)
    return min(int(np.floor(digits * 2**15 + 0.5)), 2**15 - 1), int(power)


def saturated(x):
    return max(-(2**15), min(2**15 - 1, x))


def hard_swish(x, input_scale, scale):
    """The kernel as the runtime documents it, in integers."""
    fine = np.float32(input_scale / 128)
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


@pytest.mark.parametrize("input_scale", [0.004, 0.0234, 0.047, 0.19, 1.7])
def test_hard_swish(input_scale):
    x = np.arange(-255, 256)
    for ratio in (1.1, 2.7, 11.0):
        input_scale, scale = np.float32(input_scale), np.float32(input_scale * ratio)
        quantized = kernel_of(HardSwish).compute([x.astype("float32")], [input_scale], scale)
        expected = [hard_swish(int(v), input_scale, scale) for v in x]
        np.testing.assert_array_equal(quantized, expected)


def test_hard_swish_is_near_the_function():
    x = np.arange(-128, 128)
    input_scale, scale = np.float32(0.05), np.float32(0.051)
    kernel = kernel_of(HardSwish)
    quantized = np.asarray(kernel.compute([x.astype("float32")], [input_scale], scale))
    values = x * input_scale
    wanted = values * np.clip(values + 3, 0, 6) / 6
    assert np.abs(quantized * scale - wanted).max() < 0.6 * scale


def multiplied(x, ratio):
    """The runtime's `MultiplyByQuantizedMultiplier`: 31 bits, then a power of two."""
    digits, power = np.frexp(ratio)
    multiplier, right = round(float(digits) * 2**31), max(-int(power), 0)
    high = (x * 2 ** max(int(power), 0) * multiplier + (1 << 30)) >> 31
    return (high + (1 << right >> 1)) >> right


@pytest.mark.parametrize("scale", [0.0198, 0.031, 0.0007])
@pytest.mark.parametrize("input_scale", [0.000508, 0.0031, 0.02])
def test_inverse_roots_are_scaled_in_two_roundings(input_scale, scale):
    input_scale, scale = np.float32(input_scale), np.float32(scale)
    quantizer = type("Int8Quantizer", (), {"qparams": lambda self: (input_scale, 0.0)})()
    inputs = np.arange(1, 256)
    x = (1 / np.sqrt(inputs * np.float64(input_scale))).astype("float32")
    quantized = InverseRoot(quantizer).requantize(x, scale)
    roots = np.rint(2**20 / np.sqrt(inputs)).astype(int)
    ratio = 2.0**-20 / (np.sqrt(np.float64(input_scale)) * scale)
    wanted = [multiplied(int(root), ratio) for root in roots]
    np.testing.assert_array_equal(quantized, wanted)
