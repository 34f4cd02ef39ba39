"""Weighted sums: dense layers and convolutions."""

from __future__ import annotations

from typing import Any

from keras import layers

from tfcompress.graph.copies import clone_layer
from tfcompress.graph.layers import KERNELS, activation_name, einsum_letters
from tfcompress.graph.weights import channel_axes
from tfcompress.integer.roles import LINEAR, OUTPUT, integer_layer
from tfcompress.quantization.canonicalize import Rule, canonical_form


def _linear(layer: Any) -> str:
    # No rule splits off the activation of such a layer.
    return LINEAR if activation_name(layer) == "linear" else OUTPUT


def _has_channels(layer: Any) -> bool:
    return bool(channel_axes(layer, layer.kernel))


def _is_dense(layer: Any) -> bool:
    """Returns whether an EinsumDense has its channels where a Dense layer has them."""
    _, letters, result = einsum_letters(layer)
    last = channel_axes(layer, layer.kernel) == (-1,) and result[-1] == letters[-1]
    return last and (layer.bias is None or len(layer.bias.shape) == 1)


integer_layer(
    "Dense Conv1D Conv2D DepthwiseConv1D DepthwiseConv2D Conv1DTranspose Conv2DTranspose",
    role=_linear,
    int16=True,
    accumulates=True,
)
integer_layer("Dense Conv1D Conv2D", int4=True)
integer_layer("EinsumDense", role=_linear, int16=_has_channels, accumulates=_is_dense)
integer_layer("Conv3D Conv3DTranspose", role=_linear)


@canonical_form
class SplitActivation(Rule):
    """A layer with a fused activation becomes a linear layer and an Activation layer."""

    def matches(self, layer: Any) -> bool:
        """Returns whether `layer` is a Keras layer with a Keras activation other than linear."""
        return type(layer) in KERNELS and activation_name(layer) not in (None, "linear")

    def parts(self, layer: Any) -> list[Any]:
        """Returns the linear layer, under the same name, and the activation."""
        activation = layer.get_config()["activation"]
        return [
            # Activity regularizers act on the layer's output, which is now the activation's.
            clone_layer(layer, activation="linear", activity_regularizer=None),
            layers.Activation(
                activation,
                name=f"{layer.name}_activation",
                dtype=layer.dtype_policy,
                activity_regularizer=layer.activity_regularizer,
            ),
        ]


@canonical_form
class SplitSeparable(Rule):
    """A separable convolution becomes its two halves, with a requantization between them."""

    def matches(self, layer: Any) -> bool:
        """Returns whether `layer` is a separable convolution without constraints."""
        kinds = (layers.SeparableConv1D, layers.SeparableConv2D)
        if type(layer) not in kinds or activation_name(layer) != "linear":
            return False
        return not (layer.depthwise_constraint or layer.pointwise_constraint)

    def parts(self, layer: Any) -> list[Any]:
        """Returns the depthwise and, under the layer's name, the pointwise convolution."""
        one = layer.rank == 1
        return [
            (layers.DepthwiseConv1D if one else layers.DepthwiseConv2D)(
                layer.kernel_size,
                strides=layer.strides,
                padding=layer.padding,
                depth_multiplier=layer.depth_multiplier,
                data_format=layer.data_format,
                dilation_rate=layer.dilation_rate,
                use_bias=False,
                depthwise_initializer=layer.depthwise_initializer,
                depthwise_regularizer=layer.depthwise_regularizer,
                name=f"{layer.name}_depthwise",
                dtype=layer.dtype_policy,
                trainable=layer.trainable,
            ),
            (layers.Conv1D if one else layers.Conv2D)(
                layer.filters,
                1,
                data_format=layer.data_format,
                use_bias=layer.use_bias,
                kernel_initializer=layer.pointwise_initializer,
                kernel_regularizer=layer.pointwise_regularizer,
                bias_initializer=layer.bias_initializer,
                bias_regularizer=layer.bias_regularizer,
                bias_constraint=layer.bias_constraint,
                activity_regularizer=layer.activity_regularizer,
                name=layer.name,
                dtype=layer.dtype_policy,
                trainable=layer.trainable,
            ),
        ]
