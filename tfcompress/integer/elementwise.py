"""Kernels of the runtime that a layer has to follow from its inputs on (see `integers.py`)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from keras import ops

from tfcompress.integer.fake_quant import straight_through
from tfcompress.integer.fixed_point import divided, in_two_roundings, power_below
from tfcompress.integer.producers import Int8Quantizer


@dataclasses.dataclass(frozen=True)
class ElementwiseKernel:
    """What computes the integers of a layer's output from those of its inputs.

    Args:
        read: The quantizers of the inputs.
        result: The quantizer of the output.
    """

    read: tuple[Int8Quantizer, ...]
    result: Int8Quantizer

    def __call__(self, inputs: Sequence[Any], otherwise: Any) -> Any:
        """Returns the output, rounded and not clipped; `otherwise` before ranges were trained.

        Args:
            inputs: What the layer is called on.
            otherwise: What it computes in floats.
        """
        grids = (*self.read, self.result)
        if not all(grid.exact for grid in grids):
            return otherwise

        def exact() -> Any:
            units = [grid.qparams()[0] for grid in self.read]
            steps = [ops.round(x / unit) for x, unit in zip(inputs, units, strict=True)]
            scale = self.result.qparams()[0]
            return self.compute(steps, units, scale) * scale

        trained = functools.reduce(ops.logical_and, (grid.rounds() for grid in grids))
        return straight_through(otherwise, ops.cond(trained, exact, lambda: otherwise))

    def compute(self, inputs: list[Any], units: list[Any], scale: Any) -> Any:
        """Returns the integers of the output.

        Args:
            inputs: Integers of the inputs.
            units: Their steps.
            scale: The step of the output.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class ParametricReLU(ElementwiseKernel):
    """What is negative times a slope of its own, of 8 bits.

    Args:
        slopes: Returns the slopes, as floats.
    """

    slopes: Callable[[], Any]

    def compute(self, inputs: list[Any], units: list[Any], scale: Any) -> Any:
        """Returns the integers of the activation."""
        (x,), (unit,) = inputs, units
        slopes, step = rounded_slopes(self.slopes())
        below = in_two_roundings(x * slopes, ops.maximum(unit * step / scale, 2.0**-29))
        return ops.where(x < 0, below, in_two_roundings(x, unit / scale))


def rounded_slopes(slopes: Any) -> tuple[Any, Any]:
    """Returns slopes as integers of 8 bits, and their step: that of the largest."""
    step = divided(ops.max(ops.abs(slopes)), 127)
    return ops.round(slopes / ops.where(step > 0, step, 1.0)), step


class Addition(ElementwiseKernel):
    """A sum of two tensors on different grids."""

    def compute(self, inputs: list[Any], units: list[Any], scale: Any) -> Any:
        """Returns the integers of the sum."""
        return added(inputs, units, scale)


class Subtraction(ElementwiseKernel):
    """A difference of two tensors on different grids, added up like a sum."""

    def compute(self, inputs: list[Any], units: list[Any], scale: Any) -> Any:
        """Returns the integers of the difference."""
        return added([inputs[0], -inputs[1]], units, scale)


def added(inputs: list[Any], units: list[Any], scale: Any) -> Any:
    """Returns the sum of two tensors of integers on different grids.

    The kernel multiplies by ratios of the steps, of 21 binary digits. Here these are taken in two
    halves, so that no float has to hold more than 24.

    Args:
        inputs: The integers.
        units: The steps of their grids.
        scale: The step of the result.
    """
    ratios = [unit / scale for unit in units]
    power = power_below(ops.maximum(*ratios))
    upper, lower = [], []
    for x, ratio in zip(inputs, ratios, strict=True):
        multiplier = ops.round(ratio * (2.0**20 / power))
        half = ops.floor(multiplier * 2**-10)
        upper.append(x * half)
        lower.append(x * (multiplier - half * 2**10))
    total = ops.floor((lower[0] + lower[1]) * 2**-10) + (upper[0] + upper[1])
    return ops.floor(total * (power * 2**-10) + 0.5)


class HardSwish(ElementwiseKernel):
    """`x * min(max(x + 3, 0), 6) / 6` in the 16 bits of the runtime (Howard et al. 2019)."""

    def compute(self, inputs: list[Any], units: list[Any], scale: Any) -> Any:
        """Returns the integers of the activation."""
        (x,) = inputs
        fine = units[0] * 2**-7  # the kernel computes with 128ths of the input's step
        factor, power = _multiplier(fine / scale)
        value = ops.floor(x * factor * 2**-8 + 0.5)
        # The gate, of which 3 is 2 ** 15: what is out of reach saturates.
        slope, gain = _multiplier(fine / (3 / 2**15))
        largest = 2**15 - 1
        shifted = x * 2**7 * ops.maximum(gain / 2, 1.0)
        gate = ops.floor(x * slope * (ops.maximum(gain / 2, 1.0) * 2**-8) + 0.5)
        over = slope - ops.cast(slope > 2**14, slope.dtype)
        gate = ops.where(shifted > largest, over, ops.where(shifted < -(2**15), -slope, gate))
        doubled = ops.clip(gate * 2, -(2**15), largest)
        halved = ops.sign(gate) * ops.floor(ops.abs(gate) * gain + 0.5)
        gate = ops.where(gain > 1, doubled, ops.where(gain < 1, halved, gate))
        gate = ops.floor((gate + 2**15) * 0.5)
        upper = ops.floor(gate * 2**-8)
        size = ops.abs(value)
        product = upper * size + ops.floor((gate - upper * 2**8) * size * 2**-8)
        product = ops.floor(product * 2**-7)
        return ops.sign(value) * ops.floor(product * power + 0.5)


def _multiplier(x: Any) -> tuple[Any, Any]:
    """Returns a positive scalar as an integer of 15 bits, over 2**15, times a power of two."""
    power = power_below(x) * 2
    return ops.minimum(ops.floor(x / power * 2**15 + 0.5), 2.0**15 - 1), power
