"""Rounding onto a grid, with gradients that pass straight through."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops


def fake_quant(x: Any, minimum: Any, maximum: Any, bits: int = 8) -> Any:
    """Rounds `x` onto the asymmetric grid of `2 ** bits` steps over [minimum, maximum].

    The gradient passes straight through, clipped values included: the range follows what it sees,
    so these are few, and the fused gradient, which computes gradients of the range as well, costs
    twice the rounding itself.
    """

    @ops.custom_gradient
    def rounded(x: Any, minimum: Any, maximum: Any) -> Any:
        def gradient(*args: Any, upstream: Any = None) -> Any:
            upstream = args[0] if upstream is None else upstream
            return upstream, ops.zeros_like(minimum), ops.zeros_like(maximum)

        return fake_quant_op(x, minimum, maximum, bits), gradient

    return rounded(x, *(ops.convert_to_tensor(end, "float32") for end in (minimum, maximum)))


def fake_quant_op(x: Any, minimum: Any, maximum: Any, bits: int = 8) -> Any:
    """Is `fake_quant` in the form that a converter knows.

    With 16 bits the grid is symmetric, as the runtime has it: the range must be.
    """
    return _roundings[-1](x, minimum, maximum, num_bits=bits, narrow_range=bits == 16)


@contextlib.contextmanager
def rounding_by(function: Callable[..., Any]) -> Iterator[None]:
    """Has `fake_quant_op` call another function of the arguments of Keras' own."""
    _roundings.append(function)
    try:
        yield
    finally:
        _roundings.pop()


_roundings: list[Callable[..., Any]] = [keras.quantizers.fake_quant_with_min_max_vars]


def fake_quant_learning(x: Any, minimum: Any, maximum: Any) -> Any:
    """Is `fake_quant` with the gradient of LSQ for the range, and none for what is clipped."""
    # LSQ scales the gradient of the range by the number of values that it is a sum over.
    factor = ops.rsqrt(ops.cast(ops.size(x), "float32") * 255)
    low, high = (ops.stop_gradient(end * (1 - factor)) + end * factor for end in (minimum, maximum))
    scale = (high - low) / 255
    places = (ops.clip(ops.cast(x, "float32"), low, high) - low) / scale
    places = places + ops.stop_gradient(ops.round(places) - places)
    smooth = ops.cast(low + places * scale, x.dtype)
    return smooth + ops.stop_gradient(fake_quant_op(x, minimum, maximum) - smooth)


def round_average(x: Any, minimum: Any, maximum: Any, bits: int = 8) -> Any:
    """Rounds averages of values on a grid back onto it, ties as the runtime rounds them.

    Averages of four integers end in 1/2 every fourth time. AVERAGE_POOL_2D rounds these away from
    the integer 0 (which stands for the middle of the range, not for the real 0), fake-quantization
    rounds them up. A push of a thousandth of a step (a hundredth with 16 bits, less being lost in
    float32) decides the ties and nothing else.
    """
    steps = 2**bits - (2 if bits == 16 else 1)
    scale = (maximum - minimum) / steps
    zero_point = ops.round(-minimum / scale)
    middle = ((steps + 1) // 2 - zero_point) * scale
    share = scale / (100 if bits == 16 else 1000)
    push = ops.sign(x - ops.cast(middle, x.dtype)) * ops.cast(share, x.dtype)
    return fake_quant(x + ops.stop_gradient(push), minimum, maximum, bits)


def straight_through(x: Any, replaced: Any) -> Any:
    """Returns `replaced`, with the gradient of `x`."""

    @ops.custom_gradient
    def passed(x: Any, replaced: Any) -> Any:
        def gradient(*args: Any, upstream: Any = None) -> Any:
            upstream = args[0] if upstream is None else upstream
            return upstream, ops.zeros_like(replaced)

        return replaced, gradient

    return passed(x, replaced)
