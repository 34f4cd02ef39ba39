"""The integer arithmetic of the runtime's kernels, bit-exact, for inference.

A quantization-aware model computes in floats. A value halfway between two quantized values may be
rounded down here and up in the file. The difference of one LSB changes the layers that follow, and
in a deep network every value differs in the end. Therefore, at inference,

- layers accumulate products of integers, which floats represent exactly, and multiply the
  accumulator by its scale (`integer_sums.py`);
- a quantizer divides its input by this scale, which restores the accumulator, and requantizes the
  accumulator as the kernel does. Each `Producer` does this for one kind of operation; `trace.py`
  finds the producer of a tensor. If there is none, values are quantized as floats.

`kernels.py` has how kernels round: those of XNNPACK, the default, or the reference kernels. What
XNNPACK lacks follows the built-in kernels. Scales must be the floats of the file: see `divide`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import keras
import numpy as np
from keras import ops

from tfcompress.graph.layers import plain
from tfcompress.integer.affine import scale_and_offset
from tfcompress.integer.fixed_point import (
    Accumulator,
    accumulator_scale,
    divide,
    scale_of_constant,
    weight_scale,
    without_ties,
)
from tfcompress.integer.kernels import XNNPACK, Kernels
from tfcompress.transforms.fake_quant import FakeQuant

_DENSE = (keras.layers.Dense, keras.layers.EinsumDense)


class Int8Quantizer(Protocol):
    """An int8 quantizer of activations."""

    exact: bool
    kernels: str  # a key of `KERNELS`

    def qparams(self) -> tuple[Any, Any]:
        """Returns (scale, qmin).

        Quantized values have the zero point subtracted here: qmin is `-128 - zero_point`.
        """

    def rounds(self) -> Any:
        """Returns whether values are quantized, which they are once the range is trained."""


class Producer(Protocol):
    """The integer operation that computed a tensor."""

    def requantize(self, x: Any, output_scale: Any, kernels: Kernels = XNNPACK) -> Any:
        """Returns the quantized values that the runtime computes, before clipping.

        Args:
            x: Values of the tensor, float32.
            output_scale: The scale of the quantizer that follows.
            kernels: The kernels that round.
        """


@dataclasses.dataclass(frozen=True)
class Accumulation:
    """An int32 accumulation (a convolution, a dense layer), with what is folded into it.

    Args:
        wrapper: The layer with quantized weights; None if there are only normalizations.
        scalings: The normalizations that follow it and are folded into it, wrapped or not.
        input_quantizer: The quantizer of its input.
    """

    wrapper: Any
    scalings: tuple[Any, ...]
    input_quantizer: Int8Quantizer

    def requantize(self, x: Any, output_scale: Any, kernels: Kernels = XNNPACK) -> Any:
        """Returns the requantized accumulators."""
        weight_quantizer = channel_max = None
        if self.wrapper is not None:
            weight, weight_quantizer = weight_and_quantizer(self.wrapper)
            channel_max = weight_quantizer.channel_max(weight)
        folded_max, scale, offset = self._folded(weight_quantizer, channel_max)
        qmax = 127 if weight_quantizer is None else weight_quantizer.qmax
        input_scale = self.input_quantizer.qparams()[0]
        scales = weight_scale(folded_max, qmax)
        factors = (input_scale, ops.where(scales > 0, scales, scale / input_scale))
        dense = self.wrapper is not None and isinstance(plain(self.wrapper), _DENSE)
        one = dense and scales.shape in ((), (1,))
        return Accumulator(scale, factors, offset, one).requantize(x, output_scale, kernels)

    def constants(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the folded weights, from which the converter computes the scales of the model.

        Returns:
            The kernel with all scalings folded in (without a layer, the factor of each channel);
            the bias of each channel; and the scale of each channel's accumulator.
        """
        if self.wrapper is None:
            factors, scale, offset = map(ops.convert_to_numpy, self._folded())
            return factors, (np.round(offset / scale) * scale).astype(np.float32), scale
        weight, weight_quantizer = weight_and_quantizer(self.wrapper)
        channel_max = weight_quantizer.channel_max(weight)
        folded_max, scale, offset = map(
            ops.convert_to_numpy, self._folded(weight_quantizer, channel_max)
        )
        offset = (np.round(offset / scale) * scale).astype(np.float32)
        quantized_by = weight_quantizer.scale_from_max(channel_max)
        weight = ops.convert_to_numpy(weight)
        folded_max = np.reshape(folded_max, quantized_by.shape)
        qmax = np.float32(weight_quantizer.qmax)
        kernel = np.empty(weight.shape, np.float32)
        chunks = max(kernel.size >> 24, 1)  # to save memory: the kernel may be large
        for kernel_chunk, weight_chunk in zip(
            np.array_split(kernel, chunks), np.array_split(weight, chunks), strict=True
        ):
            quantized = ops.convert_to_numpy(
                weight_quantizer.quantized_values(ops.convert_to_tensor(weight_chunk), quantized_by)
            )
            np.multiply(quantized, folded_max / qmax, out=kernel_chunk)
            # The converter computes the scale from the largest weight, so this must be exact.
            for sign in (1, -1):
                np.copyto(kernel_chunk, sign * folded_max, where=quantized == sign * qmax)
        return kernel, offset, scale

    def _folded(
        self, weight_quantizer: FakeQuant | None = None, channel_max: Any = None
    ) -> tuple[Any, Any, Any]:
        """Returns maximum weight, accumulator scale and bias of each channel, with folded scalings.

        Args:
            weight_quantizer: The transform that quantizes the weights, if there are any.
            channel_max: The maximum of the weights of each channel.
        """
        folded_max, qmax, offset = ops.ones(()), 127, ops.zeros(())
        if weight_quantizer is not None:
            qmax = weight_quantizer.qmax
            folded_max = weight_quantizer.scale_from_max(channel_max) * qmax
            folded_max = ops.reshape(ops.where(channel_max > 0, folded_max, 0.0), (-1,))
            if self.wrapper.layer.bias is not None:
                offset = ops.convert_to_tensor(self.wrapper.layer.bias)
        for layer in self.scalings:
            factor, shift = scale_and_offset(plain(layer))
            folded_max, offset = folded_max * factor, offset * factor + shift
        input_scale = self.input_quantizer.qparams()[0]
        return folded_max, accumulator_scale(input_scale, folded_max, qmax, offset), offset


@dataclasses.dataclass(frozen=True)
class Table:
    """The quantization parameters of rows that are looked up in a quantized table.

    Args:
        wrapper: The embedding.
    """

    wrapper: Any
    exact = True
    kernels = "xnnpack"  # a table rounds nothing

    def qparams(self) -> tuple[Any, Any]:
        """Returns (scale, qmin); weights have the zero point 0."""
        weight, weight_quantizer = weight_and_quantizer(self.wrapper)
        qmax = weight_quantizer.qmax
        channel_max = weight_quantizer.scale_from_max(weight_quantizer.channel_max(weight)) * qmax
        return divide(ops.max(channel_max), qmax), -128.0

    def rounds(self) -> bool:
        """Returns True: all rows are quantized."""
        return True

    @property
    def variables(self) -> list[Any]:
        """The variables that the quantization parameters depend on."""
        return self.wrapper.variables


@dataclasses.dataclass(frozen=True)
class Product:
    """A product of two quantized tensors.

    Args:
        factors: For each its quantizer, or its scale if that is fixed.
    """

    factors: tuple[Any, Any]

    def requantize(self, x: Any, output_scale: Any, kernels: Kernels = XNNPACK) -> Any:
        """Returns the requantized products."""
        a, b = self._scales()
        return Accumulator(a * b, (a, b)).requantize(x, output_scale, kernels)

    def adjusted(self, scale: Any) -> Any:
        """Returns the scale of the output, such that no product is a tie."""
        a, b = self._scales()
        return without_ties(scale, a * b)

    def _scales(self) -> tuple[Any, Any]:
        a, b = (
            ops.convert_to_tensor(f, "float32") if isinstance(f, float) else f.qparams()[0]
            for f in self.factors
        )
        return a, b


class MatrixProduct(Product):
    """A product of two quantized matrices, which the runtime's built-in kernel computes."""

    def requantize(self, x: Any, output_scale: Any, kernels: Kernels = XNNPACK) -> Any:
        """Returns the requantized accumulators."""
        a, b = self._scales()
        total = ops.round(x / (a * b))
        return kernels.requantize_matrix_product(total, (a, b), output_scale)


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean of quantized values, computed as a dense layer with equal weights.

    Args:
        input_quantizer: The quantizer of its input.
        count: The number of values in each mean.
        offset: The bias.
    """

    input_quantizer: Int8Quantizer
    count: int
    offset: float = 0.0

    def requantize(self, x: Any, output_scale: Any, kernels: Kernels = XNNPACK) -> Any:
        """Returns the requantized means."""
        weight_scale = scale_of_constant(1 / self.count, 127)
        input_scale = self.input_quantizer.qparams()[0]
        factors = (input_scale, weight_scale)
        accumulator = Accumulator(input_scale * weight_scale, factors, self.offset, True)
        return accumulator.requantize(x, output_scale, kernels)


@dataclasses.dataclass(frozen=True)
class GlobalMean:
    """A mean of quantized values by MEAN: their sum, times one float32.

    Args:
        input_quantizer: The quantizer of its input.
        count: The number of values in each mean.
    """

    input_quantizer: Int8Quantizer
    count: int

    def requantize(self, x: Any, output_scale: Any, kernels: Kernels = XNNPACK) -> Any:
        """Returns the requantized means."""
        scale = self.input_quantizer.qparams()[0]
        total = ops.round(x / scale * self.count)
        return ops.round(total * (divide(scale, output_scale) * np.float32(1 / self.count)))


@dataclasses.dataclass(frozen=True)
class InverseRoot:
    """The inverse square root of quantized values, with 20 fractional bits in the runtime."""

    input_quantizer: Int8Quantizer

    def requantize(self, x: Any, output_scale: Any, kernels: Kernels = XNNPACK) -> Any:
        """Returns the requantized inverse roots."""
        input_scale = self.input_quantizer.qparams()[0]
        return kernels.inverse_root(ops.round(1 / (x * x * input_scale)), input_scale, output_scale)


@dataclasses.dataclass(frozen=True)
class Requantized:
    """A quantized tensor that is requantized to another scale."""

    input_quantizer: Int8Quantizer

    def requantize(self, x: Any, output_scale: Any, kernels: Kernels = XNNPACK) -> Any:
        """Returns the requantized values."""
        return kernels.requantize(x, self.input_quantizer.qparams()[0], output_scale)


@dataclasses.dataclass(frozen=True)
class Rectified:
    """A ReLU of a quantized tensor, computed as a sum with zero."""

    input_quantizer: Int8Quantizer

    def requantize(self, x: Any, output_scale: Any, kernels: Kernels = XNNPACK) -> Any:
        """Returns the requantized values."""
        scale = self.input_quantizer.qparams()[0]
        quantized = ops.round(x / scale)
        return kernels.add([quantized, ops.zeros(())], [scale, scale], output_scale)


@dataclasses.dataclass(frozen=True)
class Clipped:
    """An accumulation that a fused ReLU clips from above, once it is requantized.

    The limit need not be a multiple of the accumulator's scale, which 4-bit weights make large.

    Args:
        producer: The accumulation.
        high: The limit.
    """

    producer: Producer
    high: float

    def requantize(self, x: Any, output_scale: Any, kernels: Kernels = XNNPACK) -> Any:
        """Returns the requantized values, and that of the limit where it is reached."""
        within = self.producer.requantize(x, output_scale, kernels)
        return ops.where(x >= self.high, ops.round(self.high / output_scale), within)


@dataclasses.dataclass(frozen=True)
class LeakyRelu:
    """A leaky ReLU: a requantization with one multiplier for each sign.

    Args:
        input_quantizer: The quantizer of the input.
        slope: The factor of negative values.
    """

    input_quantizer: Int8Quantizer
    slope: float

    def requantize(self, x: Any, output_scale: Any, kernels: Kernels = XNNPACK) -> Any:
        """Returns the requantized activations."""
        input_scale = self.input_quantizer.qparams()[0]
        return kernels.leaky_relu(x, self.slope, input_scale, output_scale)


@dataclasses.dataclass(frozen=True)
class Activated:
    """An activation whose range the runtime prescribes.

    Args:
        function: A function that `Kernels.activate` knows.
        input_quantizer: The quantizer of the input.
        axis: The axis of a softmax.
    """

    function: str
    input_quantizer: Int8Quantizer
    axis: int = -1

    def requantize(self, x: Any, output_scale: Any, kernels: Kernels = XNNPACK) -> Any:
        """Returns the quantized activations."""
        input_scale = self.input_quantizer.qparams()[0]
        return kernels.activate(self.function, x, input_scale, output_scale, self.axis)


@dataclasses.dataclass(frozen=True)
class Concatenated:
    """A concatenation: each part of the output has its own producer.

    Args:
        parts: Producer and size of each part.
        axis: The axis of the concatenation.
    """

    parts: tuple[tuple[Producer | None, int], ...]
    axis: int

    def requantize(self, x: Any, output_scale: Any, kernels: Kernels = XNNPACK) -> Any:
        """Returns the requantized parts, concatenated."""
        splits = np.cumsum([size for _, size in self.parts])[:-1]
        parts = ops.split(x, [int(split) for split in splits], axis=self.axis)
        quantized = [
            rounded(part, producer, output_scale, kernels)
            for part, (producer, _) in zip(parts, self.parts, strict=True)
        ]
        return ops.concatenate(quantized, axis=self.axis)


def rounded(x: Any, producer: Producer | None, scale: Any, kernels: Kernels = XNNPACK) -> Any:
    """Returns quantized values before clipping, requantized by the producer if there is one."""
    if producer is None:
        return kernels.quantize(x, scale)
    return producer.requantize(x, scale, kernels)


def weight_quantizer_of(transforms: Any) -> FakeQuant | None:
    """Returns the transform that quantizes a weight, if there is one."""
    return next((t for t in transforms if isinstance(t, FakeQuant)), None)


def weight_and_quantizer(wrapper: Any) -> tuple[Any, FakeQuant]:
    """Returns the weight of a layer before quantization, and the transform that quantizes it."""
    ((weight, transforms),) = wrapper.pipelines()
    weight_quantizer = next(t for t in transforms if isinstance(t, FakeQuant))
    before = transforms[: transforms.index(weight_quantizer)]
    return wrapper.effective_value(weight, before), weight_quantizer
