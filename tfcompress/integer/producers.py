"""The arithmetic of the runtime's kernels at inference, to the bit.

A quantization-aware model computes in floats. A value that lies near the middle between two steps
may then fall to one side here and to the other in the file; each such step goes on through the
layers behind it, and in a deep network no value stays the same. So at inference

- layers add up products of integers, which floats hold exactly, and scale the sum (`wrapper.py`);
- a quantizer takes what it is given for what it is, an integer times the step of the sum, and
  rounds that integer as the kernel does. Each `Producer` knows one kind of operation; `sources.py`
  says which one a tensor comes from. Where none is known, values are rounded as floats.

The kernels are those of XNNPACK, the default on x86 and on phones: integers of 32 bits, scaled by a
float32 and rounded to the nearest, ties to even. Where it has none, they are the runtime's own.
Steps must be those of the file to the last digit, whatever compiles the model: see `divided`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np
from keras import ops

from tfcompress.graph.layers import plain
from tfcompress.integer.affine import scale_and_offset
from tfcompress.integer.fixed_point import (
    Accumulator,
    accumulator_scale,
    divided,
    in_two_roundings,
    moved,
)
from tfcompress.transforms import FakeQuant


class Int8Quantizer(Protocol):
    """A quantizer of activations of 8 bits."""

    exact: bool

    def qparams(self) -> tuple[Any, Any]:
        """Returns the step and the lowest integer, the real zero being the integer 0."""

    def rounds(self) -> Any:
        """Returns whether values are rounded: the range was trained."""


class Producer(Protocol):
    """What computed a tensor: it knows the integers behind the floats."""

    def requantize(self, x: Any, scale: Any) -> Any:
        """Returns `x` as the integers that the runtime makes of it, not clipped.

        Args:
            x: Values of the tensor, float32.
            scale: The step of the grid of the result.
        """


@dataclasses.dataclass(frozen=True)
class Accumulation:
    """Products of integers, added up (a convolution, a dense layer), and scaled by channel.

    Args:
        wrapper: The layer with rounded weights; None for a scaling of each channel alone.
        scalings: The normalizations behind it, wrapped or not.
        read: The quantizer of its input.
    """

    wrapper: Any
    scalings: tuple[Any, ...]
    read: Int8Quantizer

    def requantize(self, x: Any, scale: Any) -> Any:
        """Returns the sums as integers of the result."""
        rounding = end = None
        if self.wrapper is not None:
            value, rounding = rounded_weight(self.wrapper)
            end = rounding.end(value)
        _, unit, offset = self._channels(rounding, end)
        return Accumulator(unit, offset).requantize(x, scale)

    def constants(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns from what the converter finds the steps of the model, and its offsets.

        Returns:
            The kernel with all scalings in it, or what each channel is multiplied by where there
            is none; what is added to each channel; and the step of each sum.
        """
        if self.wrapper is None:
            ends, unit, offset = map(ops.convert_to_numpy, self._channels())
            return ends, (np.round(offset / unit) * unit).astype(np.float32), unit
        value, rounding = rounded_weight(self.wrapper)
        end = rounding.end(value)
        ends, unit, offset = map(ops.convert_to_numpy, self._channels(rounding, end))
        offset = (np.round(offset / unit) * unit).astype(np.float32)
        scale, value = rounding.step(end), ops.convert_to_numpy(value)
        ends, steps = np.reshape(ends, scale.shape), np.float32(rounding.steps)
        kernel = np.empty(value.shape, np.float32)
        pieces = max(kernel.size >> 24, 1)  # the kernel may be large
        for made, given in zip(
            np.array_split(kernel, pieces), np.array_split(value, pieces), strict=True
        ):
            places = ops.convert_to_numpy(rounding.integers(ops.convert_to_tensor(given), scale))
            np.multiply(places, ends / steps, out=made)
            # From the largest weight the converter finds the step.
            for sign in (1, -1):
                np.copyto(made, sign * ends, where=places == sign * steps)
        return kernel, offset, unit

    def _channels(self, rounding: FakeQuant | None = None, end: Any = None) -> tuple[Any, Any, Any]:
        """Returns the end of the weights of each channel, the step of its sum and its offset.

        All behind the scalings.

        Args:
            rounding: What rounds the weights, if there are any.
            end: Where their grids end.
        """
        ends, largest, offset = ops.ones(()), 127, ops.zeros(())
        if rounding is not None:
            largest = rounding.steps
            ends = ops.reshape(ops.where(end > 0, rounding.step(end) * largest, 0.0), (-1,))
            if self.wrapper.layer.bias is not None:
                offset = ops.convert_to_tensor(self.wrapper.layer.bias)
        for layer in self.scalings:
            scale, shift = scale_and_offset(plain(layer))
            ends, offset = ends * scale, offset * scale + shift
        return ends, accumulator_scale(self.read.qparams()[0], ends, largest, offset), offset


@dataclasses.dataclass(frozen=True)
class Table:
    """The grid of rows that are looked up in a table of rounded weights.

    Args:
        wrapper: The embedding.
    """

    wrapper: Any
    exact = True

    def qparams(self) -> tuple[Any, Any]:
        """Returns the step, and the lowest integer of all."""
        value, rounding = rounded_weight(self.wrapper)
        largest = rounding.step(rounding.end(value)) * rounding.steps
        return divided(ops.max(largest), rounding.steps), -128.0

    def rounds(self) -> bool:
        """Returns that all rows are rounded."""
        return True

    @property
    def variables(self) -> list[Any]:
        """What the grid is computed from."""
        return self.wrapper.variables


@dataclasses.dataclass(frozen=True)
class Product:
    """A product of two tensors of integers.

    Args:
        factors: Their quantizers, or the step of the grid where that is fixed.
    """

    factors: tuple[Any, Any]

    def requantize(self, x: Any, scale: Any) -> Any:
        """Returns the products as integers of the result."""
        a, b = (f if isinstance(f, float) else f.qparams()[0] for f in self.factors)
        return Accumulator(a * b).requantize(x, scale)


class MatrixProduct(Product):
    """A product of two matrices of integers, for which the runtime has kernels of its own."""

    def requantize(self, x: Any, scale: Any) -> Any:
        """Returns the sums of products as integers of the result."""
        a, b = (factor.qparams()[0] for factor in self.factors)
        return in_two_roundings(ops.round(x / (a * b)), a * b / scale)


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean of integers, as a product with a column of equal weights.

    Args:
        read: The quantizer of its input.
        count: How many.
        offset: What is added.
    """

    read: Int8Quantizer
    count: int
    offset: float = 0.0

    def requantize(self, x: Any, scale: Any) -> Any:
        """Returns the means as integers of the result."""
        weight = np.float32(np.float64(np.float32(1 / self.count)) / 127)
        return Accumulator(self.read.qparams()[0] * weight, self.offset).requantize(x, scale)


@dataclasses.dataclass(frozen=True)
class InverseRoot:
    """The inverse square root of integers, of which the runtime keeps 20 binary digits."""

    read: Int8Quantizer

    def requantize(self, x: Any, scale: Any) -> Any:
        """Returns the inverse roots as integers of the result."""
        unit = self.read.qparams()[0]
        root = ops.round(2.0**20 / ops.sqrt(ops.round(1 / (x * x * unit))))
        return in_two_roundings(root, 1 / (ops.sqrt(unit) * scale), 2**-20)


@dataclasses.dataclass(frozen=True)
class Requantized:
    """Integers of one grid that are put on another."""

    read: Int8Quantizer

    def requantize(self, x: Any, scale: Any) -> Any:
        """Returns the values as integers of the result, by a ratio of 8 binary digits."""
        return moved(x, self.read.qparams()[0], scale)


@dataclasses.dataclass(frozen=True)
class LeakyRelu:
    """Integers of one grid put on another, by a ratio for each sign (leaky ReLU).

    Args:
        read: The quantizer of the input.
        slope: What negative values are multiplied by.
    """

    read: Int8Quantizer
    slope: float

    def requantize(self, x: Any, scale: Any) -> Any:
        """Returns the activations as integers of the result, by ratios of 8 binary digits."""
        unit = self.read.qparams()[0]
        ratio = unit / scale
        above = ops.round(x / unit) * ops.round(ratio * 256)
        below = ops.round(x / (unit * self.slope)) * ops.round(ratio * self.slope * 256)
        return ops.floor((ops.where(x < 0, below, above) + 128) * 2**-8)


@dataclasses.dataclass(frozen=True)
class Concatenated:
    """A concatenation: each part of the result comes from elsewhere.

    Args:
        parts: Producer and size of each part.
        axis: Where they are joined.
    """

    parts: tuple[tuple[Producer | None, int], ...]
    axis: int

    def requantize(self, x: Any, scale: Any) -> Any:
        """Returns each part as integers of the result."""
        ends = np.cumsum([size for _, size in self.parts])[:-1]
        parts = ops.split(x, [int(end) for end in ends], axis=self.axis)
        made = [rounded(p, s, scale) for p, (s, _) in zip(parts, self.parts, strict=True)]
        return ops.concatenate(made, axis=self.axis)


def rounded(x: Any, source: Producer | None, scale: Any) -> Any:
    """Returns values as integers on a grid, not clipped, rounded as their source says."""
    return ops.round(x * (1 / scale)) if source is None else source.requantize(x, scale)


def rounding_of(transforms: Any) -> FakeQuant | None:
    """Returns that one of a weight's transforms that rounds it, if there is one."""
    return next((t for t in transforms if isinstance(t, FakeQuant)), None)


def rounded_weight(wrapper: Any) -> tuple[Any, FakeQuant]:
    """Returns the weight of a layer as what comes before rounding leaves it, and the rounding."""
    ((weight, transforms),) = wrapper.pipelines()
    rounding = next(t for t in transforms if isinstance(t, FakeQuant))
    return wrapper.effective_value(weight, transforms[: transforms.index(rounding)]), rounding
