"""Tensors and kernels inside a recurrent layer, with their scales."""

from __future__ import annotations

import dataclasses
from typing import Any

from keras import ops

from tfcompress.integer.fixed_point import divide


@dataclasses.dataclass(frozen=True)
class Value:
    """A tensor of one pass.

    Args:
        x: The tensor.
        scale: Its scale, where the pass computes in integers (see `integer/producers.py`).
        quantizer: Its quantizer, unless the runtime prescribes its range.
    """

    x: Any
    scale: Any = None
    quantizer: Any = None

    def quantized(self) -> Any:
        """Returns the quantized values, as floats."""
        return straight_through(self.x / self.scale, ops.round(self.x / self.scale))


@dataclasses.dataclass(frozen=True)
class Mask:
    """The time steps that are not masked; masked ones leave the recurrent states unchanged.

    Args:
        valid: Booleans of shape (samples, time steps); false where a time step is masked.
        zeros: Whether the output of a masked time step is zero instead of the previous output.
    """

    valid: Any
    zeros: bool


class RecurrentKernel:
    """A quantized kernel, with one symmetric scale per output channel.

    Args:
        value: Of shape (inputs, outputs).
        bias: Of shape (outputs,), if there is one.
        exact: Whether the pass computes in integers, so that quantized weights are needed.
    """

    def __init__(self, value: Any, bias: Any, exact: bool) -> None:
        self.value, self.bias = value, bias
        if exact:
            self.max_abs = ops.max(ops.abs(value), axis=0)
            self.scale = ops.where(self.max_abs > 0, divide(self.max_abs, 127), 1.0)
            self.quantized = straight_through(value / self.scale, ops.round(value / self.scale))
            self.offset = ops.zeros(value.shape[-1:]) if bias is None else bias


def with_tensor(value: Value, x: Any) -> Value:
    """Returns a value with another tensor."""
    return dataclasses.replace(value, x=x)


def straight_through(x: Any, rounded: Any) -> Any:
    """Returns a rounded tensor with the gradient of `x` (a straight-through estimator).

    Not as a custom gradient: unrolled layers would contain thousands of those functions.
    """
    return x + ops.stop_gradient(rounded - x)
