"""Elementwise kernels of the runtime, computed from quantized inputs (see `producers.py`)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from keras import ops

from tfcompress.integer.fake_quant import straight_through
from tfcompress.integer.fixed_point import (
    divide,
    power_below,
    scale_of_constant,
)
from tfcompress.integer.kernels import KERNELS, XNNPACK
from tfcompress.integer.producers import Int8Quantizer


@dataclasses.dataclass(frozen=True)
class ElementwiseKernel:
    """Computes the quantized output of a layer from its quantized inputs.

    Args:
        input_quantizers: The quantizers of the inputs.
        output_quantizer: The quantizer of the output.
    """

    input_quantizers: tuple[Int8Quantizer, ...]
    output_quantizer: Int8Quantizer

    def __call__(self, inputs: Sequence[Any], float_output: Any) -> Any:
        """Returns the fake-quantized output, not clipped; `float_output` until ranges are trained.

        Args:
            inputs: The inputs of the layer.
            float_output: What the layer computes from them in floats.
        """
        quantizers = (*self.input_quantizers, self.output_quantizer)
        if not all(quantizer.exact for quantizer in quantizers):
            return float_output

        kernels = KERNELS[self.output_quantizer.kernels]

        def exact() -> Any:
            scales = [quantizer.qparams()[0] for quantizer in self.input_quantizers]
            quantized = [ops.round(x / scale) for x, scale in zip(inputs, scales, strict=True)]
            output_scale = self.output_quantizer.qparams()[0]
            computed = self.compute(quantized, scales, output_scale, kernels)
            return computed * output_scale

        trained = functools.reduce(
            ops.logical_and, (quantizer.rounds() for quantizer in quantizers)
        )
        return straight_through(float_output, ops.cond(trained, exact, lambda: float_output))

    def compute(
        self, inputs: list[Any], input_scales: list[Any], output_scale: Any, kernels: Any = XNNPACK
    ) -> Any:
        """Returns the quantized output, before clipping.

        Args:
            inputs: The quantized inputs.
            input_scales: Their scales.
            output_scale: The scale of the output.
            kernels: The kernels that round.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class ParametricReLU(ElementwiseKernel):
    """A PReLU with slopes of 8 bits.

    Args:
        slopes: Returns the slopes, as floats.
    """

    slopes: Callable[[], Any]

    def compute(
        self, inputs: list[Any], input_scales: list[Any], output_scale: Any, kernels: Any = XNNPACK
    ) -> Any:
        """Returns the quantized activation."""
        (x,), (input_scale,) = inputs, input_scales
        slopes, slope_scale = quantized_slopes(self.slopes())
        return kernels.prelu(x, slopes, slope_scale, input_scale, output_scale)


def quantized_slopes(slopes: Any) -> tuple[Any, Any]:
    """Returns slopes, quantized symmetrically to 8 bits, and their scale (one per tensor)."""
    scale = divide(ops.max(ops.abs(slopes)), 127)
    return ops.round(slopes / ops.where(scale > 0, scale, 1.0)), scale


class Addition(ElementwiseKernel):
    """A sum of two tensors with different scales."""

    def compute(
        self, inputs: list[Any], input_scales: list[Any], output_scale: Any, kernels: Any = XNNPACK
    ) -> Any:
        """Returns the quantized sum."""
        return kernels.add(inputs, input_scales, output_scale)


@dataclasses.dataclass(frozen=True)
class ConstantAddition(ElementwiseKernel):
    """A sum with one number.

    Args:
        number: The number, positive. The file stores it as the largest quantized value.
    """

    number: float

    def compute(
        self, inputs: list[Any], input_scales: list[Any], output_scale: Any, kernels: Any = XNNPACK
    ) -> Any:
        """Returns the quantized sum."""
        number_scale = scale_of_constant(self.number, 255)
        scales = [*input_scales, number_scale]
        return kernels.add([inputs[0], ops.full((), 255.0)], scales, output_scale)


class Subtraction(ElementwiseKernel):
    """A difference of two tensors with different scales, computed like a sum."""

    def compute(
        self, inputs: list[Any], input_scales: list[Any], output_scale: Any, kernels: Any = XNNPACK
    ) -> Any:
        """Returns the quantized difference."""
        return kernels.subtract(inputs, input_scales, output_scale)


class HardSwish(ElementwiseKernel):
    """`x * min(max(x + 3, 0), 6) / 6` as the runtime's int16 kernel (Howard et al. 2019).

    Variables have the names of the kernel in TFLite: reluish is `min(max(x + 3, 0), 6) / 6`.
    """

    def compute(
        self, inputs: list[Any], input_scales: list[Any], output_scale: Any, kernels: Any = XNNPACK
    ) -> Any:
        """Returns the quantized activation."""
        (x,) = inputs
        hires_input_scale = input_scales[0] * 2**-7  # the kernel shifts inputs left by 7 bits
        output_multiplier, output_power = _quantized_multiplier(hires_input_scale / output_scale)
        value = ops.floor(x * output_multiplier * 2**-8 + 0.5)
        # The scale of reluish maps 3 to 2 ** 15: inputs outside of [-3, 3] saturate.
        reluish_multiplier, reluish_power = _quantized_multiplier(hires_input_scale / (3 / 2**15))
        int16_max = 2**15 - 1
        left_shift = ops.maximum(reluish_power / 2, 1.0)
        shifted = x * 2**7 * left_shift
        reluish = ops.floor(x * reluish_multiplier * (left_shift * 2**-8) + 0.5)
        saturated = reluish_multiplier - ops.cast(
            reluish_multiplier > 2**14, reluish_multiplier.dtype
        )
        reluish = ops.where(
            shifted > int16_max,
            saturated,
            ops.where(shifted < -(2**15), -reluish_multiplier, reluish),
        )
        doubled = ops.clip(reluish * 2, -(2**15), int16_max)
        right_shifted = ops.sign(reluish) * ops.floor(ops.abs(reluish) * reluish_power + 0.5)
        reluish = ops.where(
            reluish_power > 1, doubled, ops.where(reluish_power < 1, right_shifted, reluish)
        )
        reluish = ops.floor((reluish + 2**15) * 0.5)
        # In two halves, so that float32 represents the products exactly.
        high_bits = ops.floor(reluish * 2**-8)
        magnitude = ops.abs(value)
        low_product = ops.floor((reluish - high_bits * 2**8) * magnitude * 2**-8)
        product = high_bits * magnitude + low_product
        product = ops.floor(product * 2**-7)
        return ops.sign(value) * ops.floor(product * output_power + 0.5)


def _quantized_multiplier(x: Any) -> tuple[Any, Any]:
    """Returns an integer of 15 bits and a power of two: `x` is `integer / 2**15 * power`."""
    power = power_below(x) * 2
    return ops.minimum(ops.floor(x / power * 2**15 + 0.5), 2.0**15 - 1), power
