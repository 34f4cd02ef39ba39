"""Maxima and means of neighbours."""

from __future__ import annotations

from typing import Any

from keras import layers

from tfcompress.graph.keras_internals import inbound_nodes
from tfcompress.integer.roles import AVERAGE, MOVE, integer_layer
from tfcompress.quantization.canonicalize import Rule, canonical_form

integer_layer(
    "MaxPooling1D MaxPooling2D GlobalMaxPooling1D GlobalMaxPooling2D MaxPool", role=MOVE, int16=True
)
integer_layer(
    "MaxPooling3D GlobalMaxPooling3D AdaptiveMaxPooling1D AdaptiveMaxPooling2D Max Amax Min Amin",
    role=MOVE,
)
integer_layer("MaxPooling1D MaxPooling2D", keeps_channels=True)
# A global average that no rule replaces by one of these is a MEAN, whose output is requantized.
integer_layer("AveragePooling1D AveragePooling2D AveragePool", role=AVERAGE, int16=True)
integer_layer("AveragePooling3D AdaptiveAveragePooling1D AdaptiveAveragePooling2D", role=AVERAGE)
integer_layer("Mean", int16=True)


@canonical_form
class PoolGlobally(Rule):
    """A global average of an image of known size becomes an average pooling over all of it.

    TFLite computes the first as MEAN, in which its kernels differ by one LSB, and the second as
    AVERAGE_POOL_2D, which they all round alike.
    """

    def matches(self, layer: Any) -> bool:
        """Returns whether `layer` averages images of one known size, channels last."""
        if type(layer) is not layers.GlobalAveragePooling2D or not inbound_nodes(layer):
            return False
        shapes = {tuple(node.input_tensors[0].shape[1:]) for node in inbound_nodes(layer)}
        return (
            layer.data_format == "channels_last" and len(shapes) == 1 and None not in shapes.pop()
        )

    def parts(self, layer: Any) -> list[Any]:
        """Returns the pooling, under the same name, and a reshape to what the layer returns."""
        height, width, channels = inbound_nodes(layer)[0].input_tensors[0].shape[1:]
        shape = (1, 1, channels) if layer.keepdims else (channels,)
        return [
            layers.AveragePooling2D((height, width), name=layer.name, dtype=layer.dtype_policy),
            layers.Reshape(shape, name=f"{layer.name}_reshape", dtype=layer.dtype_policy),
        ]
