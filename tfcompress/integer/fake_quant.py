"""Fake-quantization of activations, with straight-through gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops


def fake_quant(x: Any, minimum: Any, maximum: Any, bits: int = 8) -> Any:
    """Fake-quantizes `x` asymmetrically to `2 ** bits` values over [minimum, maximum].

    The gradient passes straight through, also for clipped values. These are few, as the range
    follows the observed values. The fused gradient of Keras also computes gradients of the range,
    which costs twice the fake-quantization itself.
    """

    @ops.custom_gradient
    def rounded(x: Any, minimum: Any, maximum: Any) -> Any:
        def gradient(*args: Any, upstream: Any = None) -> Any:
            upstream = args[0] if upstream is None else upstream
            return upstream, ops.zeros_like(minimum), ops.zeros_like(maximum)

        return fake_quant_op(x, minimum, maximum, bits), gradient

    return rounded(x, *(ops.convert_to_tensor(bound, "float32") for bound in (minimum, maximum)))


def fake_quant_op(x: Any, minimum: Any, maximum: Any, bits: int = 8) -> Any:
    """Is `fake_quant` as the operation that the converter knows.

    With 16 bits, quantization is symmetric as in the runtime, so the range must be symmetric.
    """
    return _roundings[-1](x, minimum, maximum, num_bits=bits, narrow_range=bits == 16)


@contextlib.contextmanager
def replaced_fake_quant(function: Callable[..., Any]) -> Iterator[None]:
    """Replaces the function that `fake_quant_op` calls; the arguments are those of Keras."""
    _roundings.append(function)
    try:
        yield
    finally:
        _roundings.pop()


_roundings: list[Callable[..., Any]] = [keras.quantizers.fake_quant_with_min_max_vars]


def fake_quant_learning(x: Any, minimum: Any, maximum: Any) -> Any:
    """Is `fake_quant` with the LSQ gradient for the range, and none for clipped values."""
    # LSQ scales the gradient of the range by the number of values that contribute to it.
    factor = ops.rsqrt(ops.cast(ops.size(x), "float32") * 255)
    low, high = (
        ops.stop_gradient(bound * (1 - factor)) + bound * factor for bound in (minimum, maximum)
    )
    scale = (high - low) / 255
    quantized = (ops.clip(ops.cast(x, "float32"), low, high) - low) / scale
    quantized = quantized + ops.stop_gradient(ops.round(quantized) - quantized)
    differentiable = ops.cast(low + quantized * scale, x.dtype)
    exact = fake_quant_op(x, minimum, maximum)
    return differentiable + ops.stop_gradient(exact - differentiable)


def round_average(x: Any, minimum: Any, maximum: Any, bits: int = 8) -> Any:
    """Fake-quantizes averages of quantized values with their range; ties as in the runtime.

    An average of four integers is a tie every fourth time. AVERAGE_POOL_2D rounds ties away from
    the quantized value 0 (the middle of the range, not the real 0); fake-quantization rounds them
    up. Shifting by a thousandth of the scale decides the ties and nothing else. With 16 bits it is
    a hundredth: a smaller shift would be lost in float32.
    """
    levels = 2**bits - (2 if bits == 16 else 1)  # qmax - qmin
    scale = (maximum - minimum) / levels
    zero_point = ops.round(-minimum / scale)
    middle = ((levels + 1) // 2 - zero_point) * scale
    size = scale / (100 if bits == 16 else 1000)
    shift = ops.sign(x - ops.cast(middle, x.dtype)) * ops.cast(size, x.dtype)
    return fake_quant(x + ops.stop_gradient(shift), minimum, maximum, bits)


def straight_through(x: Any, replaced: Any) -> Any:
    """Returns `replaced`, with the gradient of `x`."""

    @ops.custom_gradient
    def passed(x: Any, replaced: Any) -> Any:
        def gradient(*args: Any, upstream: Any = None) -> Any:
            upstream = args[0] if upstream is None else upstream
            return upstream, ops.zeros_like(replaced)

        return replaced, gradient

    return passed(x, replaced)
