"""Lowers 1D convolutions with one output channel to convolutions of an image one pixel high.

Keras adds the bias after a reshape. With one channel the converter does not recognize it as a bias,
and leaves the layer in float. In a transposed convolution it confuses the channel with another
axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import layers, ops

from tfcompress.lowering.affine_conv import ImageForm

_IN_TWO_AXES: dict[type, type] = {
    layers.Conv1D: layers.Conv2D,
    layers.DepthwiseConv1D: layers.DepthwiseConv2D,
    layers.Conv1DTranspose: layers.Conv2DTranspose,
}


def has_one_output_channel(layer: Any) -> bool:
    """Returns whether a layer is a 1D convolution with one output channel."""
    if type(layer) not in _IN_TWO_AXES or not layer.built or layer.data_format != "channels_last":
        return False
    transposed = isinstance(layer, layers.Conv1DTranspose)
    axes = (-2, -1) if isinstance(layer, layers.DepthwiseConv1D) else (-2,) if transposed else (-1,)
    if any(layer.kernel.shape[axis] != 1 for axis in axes) or getattr(layer, "groups", 1) != 1:
        return False
    return getattr(layer, "output_padding", None) is None


def as_image_layer(layer: Any, use_bias: bool) -> Any:
    """Returns the unbuilt 2D layer for a 1D layer with `has_one_output_channel`.

    Its weights are those of the original, with a leading axis of size 1.
    """
    transposed = isinstance(layer, layers.Conv1DTranspose)
    depthwise = isinstance(layer, layers.DepthwiseConv1D)
    return _IN_TWO_AXES[type(layer)](
        **({} if depthwise else {"filters": 1}),
        kernel_size=(1, *layer.kernel_size),
        strides=(1, *layer.strides) if transposed else layer.strides[0],
        padding="valid" if layer.padding == "causal" else layer.padding,
        dilation_rate=(1, *layer.dilation_rate),
        use_bias=use_bias,
        activation=layer.activation,
        name=layer.name,
        dtype="float32",
    )


def call_as_image(layer: Any, image_layer: Any) -> Callable[[Any], ImageForm]:
    """Returns a function that calls the 2D layer in place of the 1D one."""

    def call(x: Any) -> ImageForm:
        if layer.padding == "causal":
            before = (layer.kernel_size[0] - 1) * layer.dilation_rate[0]
            x = ops.pad(x, ((0, 0), (before, 0), (0, 0)))
        image = image_layer(ops.expand_dims(x, 1))
        return ImageForm(image, lambda outputs: ops.squeeze(outputs, 1))

    return call
