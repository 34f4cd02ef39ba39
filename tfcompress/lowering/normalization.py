"""Layer normalization in forms that the converter can quantize."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

NORMALIZED = (keras.layers.LayerNormalization, keras.layers.RMSNormalization)


def normalized(layer: Any, x: Any) -> Any:
    """Returns a normalization of each sample as multiplications, which have int16 kernels."""
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    axes = [axis % len(x.shape) for axis in axes]
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    subtracts = isinstance(layer, keras.layers.LayerNormalization) and not getattr(
        layer, "rms_scaling", False
    )
    if subtracts:
        x = x - ops.mean(x, axes, keepdims=True)
    x = x * ops.rsqrt(ops.mean(x * x, axes, keepdims=True) + layer.epsilon)
    scale, offset = (getattr(layer, name, None) for name in ("gamma", "beta"))
    if isinstance(layer, keras.layers.RMSNormalization):
        scale, offset = layer.scale, None
    if scale is not None:
        x = x * ops.convert_to_numpy(scale).reshape(shape)
    return x if offset is None else x + ops.convert_to_numpy(offset).reshape(shape)


class SummingLayerNormalization(keras.layers.LayerNormalization):
    """Layer normalization whose mean is a sum over a count.

    The converter keeps this sum in float, so the result is that of the Keras layer.
    """

    is_compression_helper = True

    def call(self, inputs: Any) -> Any:
        """Returns the normalized inputs."""
        axes = [self.axis] if isinstance(self.axis, int) else self.axis
        axes = [axis % len(inputs.shape) for axis in axes]
        shape = [size if i in axes else 1 for i, size in enumerate(inputs.shape)]
        factor = 1.0 / math.prod(shape)
        centered = inputs - factor * ops.sum(inputs, axes, keepdims=True)
        variance = factor * ops.sum(ops.square(centered), axes, keepdims=True)
        outputs = centered * ops.rsqrt(variance + self.epsilon)
        if self.gamma is not None:
            outputs *= ops.reshape(self.gamma, shape)
        return outputs if self.beta is None else outputs + ops.reshape(self.beta, shape)
