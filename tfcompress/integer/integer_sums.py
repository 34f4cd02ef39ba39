"""Weighted sums of integers at inference, exact in floats."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfcompress.integer.fake_quant import straight_through
from tfcompress.integer.producers import Int8Quantizer, rounded_weight


def accumulate_in_integers(wrapper: Any, read: Int8Quantizer, x: Any) -> Any:
    """Returns what the layer returns, from integers of the grid that `x` is on.

    A sum of products of integers is exact in floats, in whatever order it is added up.

    Args:
        wrapper: The wrapped layer, whose weights are rounded.
        read: The quantizer of its input.
        x: The input, float32.
    """
    ((weight, _),) = wrapper.pipelines()
    value, rounding = rounded_weight(wrapper)
    step = rounding.scale(value)
    values = [(weight, straight_through(value / step, rounding.integers(value, step)))]
    bias = wrapper.layer.bias
    if bias is not None:
        values.append((bias, ops.zeros(bias.shape)))
    unit = read.qparams()[0]
    places = x / unit
    steps = straight_through(places, ops.where(read.rounds(), ops.round(places), places))
    with keras.StatelessScope(values):
        sums = wrapper.layer(steps)
    sums = sums * (unit * ops.reshape(step, (-1,)))
    return sums if bias is None else sums + ops.convert_to_tensor(bias)
