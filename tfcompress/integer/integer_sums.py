"""Layers with integer accumulators at inference, computed exactly in floats."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfcompress.integer.fake_quant import straight_through
from tfcompress.integer.producers import Int8Quantizer, weight_and_quantizer


def accumulate_in_integers(wrapper: Any, input_quantizer: Int8Quantizer, x: Any) -> Any:
    """Returns the output of a layer, computed from quantized inputs and quantized weights.

    Floats accumulate products of integers exactly, in any order.

    Args:
        wrapper: The wrapped layer, whose weights are quantized.
        input_quantizer: The quantizer of its input.
        x: The input, float32.
    """
    ((variable, _),) = wrapper.pipelines()
    weight, weight_quantizer = weight_and_quantizer(wrapper)
    weight_scale = weight_quantizer.scale(weight)
    quantized_weight = weight_quantizer.quantized_values(weight, weight_scale)
    values = [(variable, straight_through(weight / weight_scale, quantized_weight))]
    bias = wrapper.layer.bias
    if bias is not None:
        values.append((bias, ops.zeros(bias.shape)))
    input_scale = input_quantizer.qparams()[0]
    divided = x / input_scale
    quantized = straight_through(
        divided, ops.where(input_quantizer.rounds(), ops.round(divided), divided)
    )
    with keras.StatelessScope(values):
        accumulator = wrapper.layer(quantized)
    outputs = accumulator * (input_scale * ops.reshape(weight_scale, (-1,)))
    return outputs if bias is None else outputs + ops.convert_to_tensor(bias)
