"""Convolutions over one axis that put out one channel, as convolutions of an image one pixel high.

The converter does not find the bias of one channel that Keras adds behind a reshaping, and leaves
the layer in float; the channel of a transposed one it takes for another axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import layers, ops

from tfcompress.lowering.affine_conv import Flat

_IN_TWO_AXES: dict[type, type] = {
    layers.Conv1D: layers.Conv2D,
    layers.DepthwiseConv1D: layers.DepthwiseConv2D,
    layers.Conv1DTranspose: layers.Conv2DTranspose,
}


def puts_out_one_channel(layer: Any) -> bool:
    """Returns whether a layer is such a convolution."""
    if type(layer) not in _IN_TWO_AXES or not layer.built or layer.data_format != "channels_last":
        return False
    transposed = isinstance(layer, layers.Conv1DTranspose)
    axes = (-2, -1) if isinstance(layer, layers.DepthwiseConv1D) else (-2,) if transposed else (-1,)
    if any(layer.kernel.shape[axis] != 1 for axis in axes) or getattr(layer, "groups", 1) != 1:
        return False
    return getattr(layer, "output_padding", None) is None


def as_image_layer(layer: Any, use_bias: bool) -> Any:
    """Returns the unbuilt layer over two axes for one that `puts_out_one_channel`.

    Its weights are those of the original, with an axis of one in front.
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


def in_an_image(layer: Any, image_layer: Any) -> Callable[[Any], Flat]:
    """Returns a function that calls the layer over two axes for one over one."""

    def called(x: Any) -> Flat:
        if layer.padding == "causal":
            before = (layer.kernel_size[0] - 1) * layer.dilation_rate[0]
            x = ops.pad(x, ((0, 0), (before, 0), (0, 0)))
        image = image_layer(ops.expand_dims(x, 1))
        return Flat(image, lambda made: ops.squeeze(made, 1))

    return called
