"""The two sets of kernels that a quantized model can compute like.

`Kernels` are XNNPACK's, the default on x86 and on phones: int32 accumulators times a float32,
rounded to nearest, ties to even. `ReferenceKernels` are those of tflite-micro, the runtime of
microcontrollers: integers throughout, ties mostly away from zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from tfcompress.integer import int64_fixed_point as fixed
from tfcompress.integer.fixed_point import (
    add_quantized,
    multiply_by_quantized_multiplier,
    requantize_by_ratio,
    round_averages,
)


class Kernels:
    """How XNNPACK rounds. Quantized values are floats, their zero point subtracted."""

    def quantize(self, x: Any, scale: Any) -> Any:
        """Returns the quantized values of floats."""
        return ops.round(x * (1 / scale))

    def requantize_sum(
        self, total: Any, scale: Any, factors: tuple[Any, Any], output_scale: Any
    ) -> Any:
        """Returns sums of products, requantized.

        Args:
            total: The sums, of integers.
            scale: Their scale, float32, the product of the scales of the factors.
            factors: The scales of the factors.
            output_scale: The scale of the result.
        """
        return ops.round(total * (scale / output_scale))

    def requantize_dense(
        self, total: Any, scale: Any, factors: tuple[Any, Any], output_scale: Any
    ) -> Any:
        """Returns the sums of a dense layer with one scale for its weights, requantized."""
        return self.requantize_sum(total, scale, factors, output_scale)

    def requantize_matrix_product(
        self, total: Any, factors: tuple[Any, Any], output_scale: Any
    ) -> Any:
        """Returns the sums of a product of two tensors, by a built-in kernel."""
        a, b = factors
        return multiply_by_quantized_multiplier(total, a * b / output_scale)

    def requantize(self, x: Any, input_scale: Any, output_scale: Any) -> Any:
        """Returns values of one scale with another."""
        return requantize_by_ratio(x, input_scale, output_scale)

    def add(self, inputs: list[Any], input_scales: list[Any], output_scale: Any) -> Any:
        """Returns the sum of two quantized tensors."""
        return add_quantized(inputs, input_scales, output_scale)

    def subtract(self, inputs: list[Any], input_scales: list[Any], output_scale: Any) -> Any:
        """Returns the difference of two quantized tensors."""
        return add_quantized([inputs[0], -inputs[1]], input_scales, output_scale)

    def leaky_relu(self, x: Any, slope: float, input_scale: Any, output_scale: Any) -> Any:
        """Returns a leaky ReLU from its real results; the multipliers have 8 fractional bits."""
        ratio = input_scale / output_scale
        positive = ops.round(x / input_scale) * ops.round(ratio * 256)
        negative = ops.round(x / (input_scale * slope)) * ops.round(ratio * slope * 256)
        return ops.floor((ops.where(x < 0, negative, positive) + 128) * 2**-8)

    def prelu(
        self, x: Any, slopes: Any, slope_scale: Any, input_scale: Any, output_scale: Any
    ) -> Any:
        """Returns a PReLU of quantized values and slopes."""
        ratio = input_scale / output_scale
        negative = multiply_by_quantized_multiplier(
            x * slopes, ops.maximum(ratio * slope_scale, 2.0**-29)
        )
        return ops.where(x < 0, negative, multiply_by_quantized_multiplier(x, ratio))

    def inverse_root(self, x: Any, input_scale: Any, output_scale: Any) -> Any:
        """Returns the inverse roots of quantized values, with 20 fractional bits between."""
        root = ops.round(2.0**20 / ops.sqrt(x))
        return multiply_by_quantized_multiplier(
            root, 1 / (ops.sqrt(input_scale) * output_scale), 2**-20
        )

    def resize(self, averages: Any, middle: Any) -> Any:
        """Returns averages of neighbours, rounded.

        Args:
            averages: Averages of quantized values.
            middle: What the quantized value 0 of the file is here.
        """
        return round_averages(averages, 0.0)

    def activate(
        self, function: str, x: Any, input_scale: Any, output_scale: Any, axis: int = -1
    ) -> Any:
        """Returns an activation from its real results.

        Args:
            function: "sigmoid", "tanh" or "softmax".
            x: What the function returns of real values.
            input_scale: The scale of the quantized values that it read.
            output_scale: The scale of the result, which the runtime prescribes.
            axis: The axis of a softmax.
        """
        return self.quantize(x, output_scale)


class ReferenceKernels(Kernels):
    """How the kernels of tflite-micro round."""

    def quantize(self, x: Any, scale: Any) -> Any:
        """Returns the quantized values of floats."""
        x = x / scale
        return ops.sign(x) * ops.floor(ops.abs(x) + 0.5)

    def requantize_sum(
        self, total: Any, scale: Any, factors: tuple[Any, Any], output_scale: Any
    ) -> Any:
        """Returns sums of products, requantized."""
        a, b = map(fixed.double, factors)
        return self._times(total, a * b / fixed.double(output_scale))

    def requantize_dense(
        self, total: Any, scale: Any, factors: tuple[Any, Any], output_scale: Any
    ) -> Any:
        """Returns the sums of a dense layer, whose two scales are multiplied as float32."""
        return self.requantize_matrix_product(total, factors, output_scale)

    def requantize_matrix_product(
        self, total: Any, factors: tuple[Any, Any], output_scale: Any
    ) -> Any:
        """Returns the sums of a product of two tensors, likewise."""
        a, b = factors
        return self._times(total, fixed.double(a * b) / fixed.double(output_scale))

    def requantize(self, x: Any, input_scale: Any, output_scale: Any) -> Any:
        """Returns values of one scale with another."""
        ratio = fixed.double(input_scale) / fixed.double(output_scale)
        return self._times(x / input_scale, ratio)

    def add(self, inputs: list[Any], input_scales: list[Any], output_scale: Any) -> Any:
        """Returns the sum of two quantized tensors."""
        scales = [*map(fixed.double, input_scales)]
        twice = 2 * ops.maximum(*scales)
        ratios = [scale / twice for scale in scales]
        return self._sum(inputs, ratios, twice / (2.0**20 * fixed.double(output_scale)))

    def subtract(self, inputs: list[Any], input_scales: list[Any], output_scale: Any) -> Any:
        """Returns the difference of two quantized tensors; its multipliers are float32."""
        twice = 2 * ops.maximum(*input_scales)
        ratios = [fixed.double(scale / twice) for scale in input_scales]
        output_ratio = fixed.double(twice / (2.0**20 * output_scale))
        return self._sum([inputs[0], -inputs[1]], ratios, output_ratio)

    def leaky_relu(self, x: Any, slope: float, input_scale: Any, output_scale: Any) -> Any:
        """Returns a leaky ReLU from its real results."""
        positive = fixed.double(input_scale / output_scale)
        negative = fixed.double(input_scale * np.float32(slope) / output_scale)
        return ops.where(
            x < 0,
            self._times(x / (input_scale * slope), negative),
            self._times(x / input_scale, positive),
        )

    def prelu(
        self, x: Any, slopes: Any, slope_scale: Any, input_scale: Any, output_scale: Any
    ) -> Any:
        """Returns a PReLU of quantized values and slopes."""
        scale, alpha, output = map(fixed.double, (input_scale, slope_scale, output_scale))
        negative = self._times(x * slopes, ops.maximum(scale * alpha / output, 2.0**-62))
        return ops.where(x < 0, negative, self._times(x, scale / output))

    def inverse_root(self, x: Any, input_scale: Any, output_scale: Any) -> Any:
        """Returns the inverse roots of quantized values, with 20 fractional bits between."""
        roots = ops.convert_to_tensor(_INVERSE_ROOTS, "int64")
        root = ops.take(roots, ops.cast(ops.clip(ops.round(x), 0, 255), "int32"))
        real = 1 / fixed.double(ops.sqrt(input_scale) * output_scale)
        integer, exponent = fixed.multiplier_of(real)
        return fixed.floats(fixed.multiply(root, (integer, exponent - 20)))

    def resize(self, averages: Any, middle: Any) -> Any:
        """Returns averages of neighbours, ties away from the quantized value 0 of the file."""
        return round_averages(averages, middle)

    def activate(
        self, function: str, x: Any, input_scale: Any, output_scale: Any, axis: int = -1
    ) -> Any:
        """Returns an activation in fixed point. The values that it read follow from its results."""
        return _ACTIVATIONS[function](x, input_scale, axis)

    def _times(self, quantized: Any, real: Any) -> Any:
        """Returns integers times a multiplier."""
        return fixed.floats(fixed.multiply(fixed.integers(quantized), fixed.multiplier_of(real)))

    def _sum(self, inputs: list[Any], ratios: list[Any], output_ratio: Any) -> Any:
        """Returns the sum of two tensors, each shifted left by 20 bits and times its ratio."""
        parts = [
            fixed.multiply(fixed.integers(x) * 2**20, fixed.multiplier_of(ratio))
            for x, ratio in zip(inputs, ratios, strict=True)
        ]
        return fixed.floats(fixed.multiply(parts[0] + parts[1], fixed.multiplier_of(output_ratio)))


def _read(x: Any, input_scale: Any, integer_bits: int) -> tuple[Any, Any]:
    """Returns real values in fixed point, and whether they lie outside of what it can hold.

    Args:
        x: The values.
        input_scale: Their scale.
        integer_bits: Of the result.
    """
    quantized = fixed.integers(x / input_scale)
    real = fixed.double(input_scale) * 2.0 ** (31 - integer_bits)
    multiplier = fixed.multiplier_of(ops.minimum(real, 2.0**31 - 1))
    largest = (2.0**integer_bits - 1) * 2.0 ** (31 - integer_bits)
    radius = ops.floor(largest / 2.0 ** fixed.double(multiplier[1]))
    return fixed.multiply(quantized, multiplier), fixed.double(quantized) / radius


def _sigmoid(x: Any, input_scale: Any, axis: int) -> Any:
    x = ops.clip(x, 1e-7, 1 - 1e-7)
    raw, outside = _read(ops.log(x / (1 - x)), input_scale, 4)
    result = ops.clip(fixed.divide_by_power(fixed.logistic(raw), 23), 0, 255)
    result = fixed.where(outside >= 1, 255, fixed.where(outside <= -1, 0, result))
    return fixed.floats(result)


def _tanh(x: Any, input_scale: Any, axis: int) -> Any:
    raw, outside = _read(ops.arctanh(ops.clip(x, -1 + 1e-7, 1 - 1e-7)), input_scale, 4)
    result = ops.clip(fixed.divide_by_power(fixed.hyperbolic_tangent(raw), 24), -128, 127)
    result = fixed.where(outside >= 1, 127, fixed.where(outside <= -1, -128, result))
    return fixed.floats(result)


def _softmax(x: Any, input_scale: Any, axis: int) -> Any:
    largest = ops.max(x, axis=axis, keepdims=True)
    raw, outside = _read(ops.log(ops.maximum(x / largest, 1e-37)), input_scale, 5)
    raw = ops.maximum(raw, -(2**31))
    powers = fixed.where(outside < -1, 0, fixed.exponential(raw, 5))
    total = ops.sum(fixed.divide_by_power(powers, 12), axis=axis, keepdims=True)
    # Its inverse, of a number from 1 to 2 that is a power of two smaller.
    bits = ops.cast(ops.floor(ops.log2(fixed.double(total) + 0.5)), "int64")
    inverse = fixed.inverse_of_one_plus(ops.left_shift(total, 31 - bits) - 2**31)
    result = fixed.divide_by_power(fixed.high_product(inverse, powers), bits - 19 + 23)
    return fixed.floats(ops.clip(result, 0, 255))


_ACTIVATIONS = {"sigmoid": _sigmoid, "tanh": _tanh, "softmax": _softmax}


def _inverse_roots() -> np.ndarray:
    """Returns the inverse roots of 0 to 255 with 20 fractional bits, as the kernel finds them."""
    roots = [2**20] * 2
    for value in range(2, 256):
        pairs = (32 - value.bit_length() - 1) // 2 - 1
        x, half, shift = 2**28, _halved(value << (2 * pairs) >> 1), 11 - pairs
        for _ in range(5):
            cube = _high(_high(x, x), x) << 6
            x = (_high(2**28 + 2**27, x) - _high(half, cube)) << 3
        x = _high(x, 1518500250)
        x, shift = (x << -shift, 0) if shift < 0 else (x, shift)
        roots.append(_halved(_high(1 << (20 - shift), x), 0))
    return np.array(roots)


def _high(a: int, b: int) -> int:
    product = a * b + (2**30 if a * b >= 0 else 1 - 2**30)
    return abs(product) // 2**31 * (1 if product >= 0 else -1)


def _halved(x: int, exponent: int = 1) -> int:
    return (x + (1 << exponent >> 1)) >> exponent


_INVERSE_ROOTS = _inverse_roots()

XNNPACK = Kernels()

KERNELS = {"xnnpack": XNNPACK, "reference": ReferenceKernels()}
"""The kernels by the names of `QuantizationScheme`."""
