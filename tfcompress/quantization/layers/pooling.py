"""Maxima and means of neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from tfcompress.graph.keras_internals import inbound_nodes
from tfcompress.integer.fixed_point import scale_of_constant
from tfcompress.integer.grid_ops import FixedFakeQuant
from tfcompress.integer.producers import GlobalMean
from tfcompress.integer.roles import AVERAGE, MOVE, integer_layer
from tfcompress.quantization.canonicalize import Rule, canonical_form
from tfcompress.quantization.layers.base import RuntimeLayer, runtime_layer

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
integer_layer("RuntimeAverage BorderScale", role=AVERAGE)

MOST_TAPS = 25  # of a depthwise kernel, for which XNNPACK has code; larger ones are slow
EXACT_FACTORS = "exact_factors"  # in the names of factors that are multiples of FACTOR_SCALE
_QUARTER = 0.25  # of which the factors at the border of averages are multiples: 1, 6/4, 9/4
FACTOR_SCALE = _QUARTER * (1 + 2.0**-21)  # a little more, so that no product is a tie


class _OfWindows(RuntimeLayer):
    """What averages over windows and the correction at their border have in common.

    Args:
        counts: For each axis of the result the number of values under each window; empty if all
            windows are full.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    propagates_mask = False  # as in Keras

    def __init__(self, counts: list[list[int]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.counts = counts

    def _count(self) -> np.ndarray:
        """Returns the number of values under each window, of shape (1, *positions, 1)."""
        total = np.ones(1, "float32")
        for counts in self.counts:
            total = total[..., None] * np.asarray(counts, "float32")
        return total.reshape(1, *map(len, self.counts), 1)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "counts": self.counts}


@keras.saving.register_keras_serializable("tfcompress")
class RuntimeAverage(_OfWindows):
    """Averages over windows as a depthwise convolution with equal weights.

    Beyond the border it counts zeros; `BorderScale` corrects that.

    Args:
        options: Constructor arguments of the pooling.
        **kwargs: Arguments of `_OfWindows`.
    """

    def __init__(self, options: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.options = options
        self._taps = math.prod(options["pool_size"])

    @property
    def averages(self) -> float:
        """How its averages are rounded: by weights of this scale, with quantized values of 127."""
        return float(scale_of_constant(1 / self._taps, 127))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape of the averages."""
        output = ops.average_pool(keras.KerasTensor(input_shape), **self.options)
        return output.shape

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the averages."""
        if self.lowered:
            return self._convolved(inputs)
        averages = ops.average_pool(inputs, **self.options)
        if self.counts:
            averages = averages * ops.cast(self._count() / self._taps, averages.dtype)
        return averages

    def _convolved(self, inputs: Any) -> Any:
        size, strides = (tuple(self.options[key]) for key in ("pool_size", "strides"))
        one = len(size) == 1
        if one:  # an image of one row
            inputs, size, strides = ops.expand_dims(inputs, 1), (1, *size), strides * 2
        kernel = np.full((*size, inputs.shape[-1], 1), 1 / self._taps, "float32")
        outputs = ops.depthwise_conv(
            inputs,
            ops.convert_to_tensor(kernel),
            strides,
            self.options["padding"],
            data_format="channels_last",
        )
        return ops.squeeze(outputs, 1) if one else outputs

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "options": self.options}


@keras.saving.register_keras_serializable("tfcompress")
class BorderScale(_OfWindows):
    """Multiplies averages at the border, which counted zeros, by the taps over the values."""

    averages = FACTOR_SCALE

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the averages of the values alone."""
        count = self._count()
        factors = ops.convert_to_tensor(count.max() / count, inputs.dtype)
        if self.lowered:
            limits = (-128 * FACTOR_SCALE, 127 * FACTOR_SCALE)
            factors = FixedFakeQuant(*limits, name=f"{self.name}_{EXACT_FACTORS}")(factors)
        return inputs * factors


_MOST_GROWTH = 2.0  # of the squared rounding error, on average over an image


def _growth_of_errors(counts: list[list[int]]) -> float:
    """Returns by how much the factors at the border enlarge the squared error of rounding."""
    return math.prod(float(np.mean((max(axis) / np.asarray(axis)) ** 2)) for axis in counts)


@canonical_form
class AverageByConvolution(Rule):
    """An average over windows as a depthwise convolution, which is eight times as fast."""

    preferences = ("latency", "bytes")

    def matches(self, layer: Any) -> bool:
        """Returns whether `layer` averages small windows, and its border can be corrected."""
        kinds = (layers.AveragePooling1D, layers.AveragePooling2D)
        if type(layer) not in kinds or layer.data_format != "channels_last":
            return False
        if math.prod(layer.pool_size) > MOST_TAPS or not inbound_nodes(layer):
            return False
        counts = self._counts(layer)
        if counts and _growth_of_errors(counts) > _MOST_GROWTH:
            return False
        factors = [1.0]
        for axis, size in zip(counts or [], layer.pool_size, strict=False):
            if max(axis) < size:  # a window that is larger than the image
                return False
            factors = [factor * size / n for factor in factors for n in set(axis)]
        return counts is not None and all(
            (factor / _QUARTER).is_integer() and factor / _QUARTER < 128 for factor in factors
        )

    def parts(self, layer: Any) -> list[Any]:
        """Returns the convolution and, if windows reach over the border, the correction."""
        names = ("pool_size", "strides", "padding", "data_format")
        options = {name: getattr(layer, name) for name in names}
        counts = self._counts(layer) or []
        average = runtime_layer(RuntimeAverage, layer, options=options, counts=counts)
        if not counts:
            return [average]
        name = f"{layer.name}_border"
        return [average, BorderScale(counts, name=name, dtype=layer.dtype_policy)]

    def _counts(self, layer: Any) -> list[list[int]] | None:
        """Returns the `counts` of the layers, or None if they are not known."""
        if layer.padding == "valid":
            return []
        shapes = {tuple(node.input_tensors[0].shape[1:-1]) for node in inbound_nodes(layer)}
        if len(shapes) > 1 or None in (shape := shapes.pop()):
            return None
        counts = []
        for length, size, stride in zip(shape, layer.pool_size, layer.strides, strict=True):
            windows = -(-length // stride)
            before = max((windows - 1) * stride + size - length, 0) // 2
            starts = [index * stride - before for index in range(windows)]
            counts.append([min(s + size, length) - max(s, 0) for s in starts])
        full = [[size] * len(axis) for axis, size in zip(counts, layer.pool_size, strict=True)]
        return [] if counts == full else counts


@keras.saving.register_keras_serializable("tfcompress")
class RuntimeMean(RuntimeLayer):
    """The mean of an image of known size, as XNNPACK's MEAN: a sum, times a float.

    Unlike averages over windows it has a scale of its own: means vary much less than pixels.

    Args:
        count: The number of pixels.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    propagates_mask = False

    def __init__(self, count: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.count = count

    def link(self, read: Sequence[Any], result: Any) -> GlobalMean | None:
        """Returns the mean of the quantized pixels: of each call its own, as it has no kernels."""
        known = read[0] is not None and self.compute_dtype == "float32"
        return GlobalMean(read[0], self.count) if known else None

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape of the mean."""
        return (input_shape[0], 1, 1, input_shape[3])

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the mean."""
        return ops.mean(inputs, axis=(1, 2), keepdims=True)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "count": self.count}


@canonical_form
class PoolGlobally(Rule):
    """A global average of an image of known size becomes an average pooling over all of it.

    TFLite computes the first as MEAN, in which its kernels differ by one LSB, and the second as
    AVERAGE_POOL_2D, which they all round alike.
    """

    preferences: tuple[str, ...] = ("exactness",)

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
            self.average(layer, height, width),
            layers.Reshape(shape, name=f"{layer.name}_reshape", dtype=layer.dtype_policy),
        ]

    def average(self, layer: Any, height: int, width: int) -> Any:
        """Returns the layer that averages over all of the image."""
        return layers.AveragePooling2D((height, width), name=layer.name, dtype=layer.dtype_policy)


@canonical_form
class MeanGlobally(PoolGlobally):
    """The same as MEAN, which XNNPACK takes."""

    preferences = ("latency", "bytes")

    def average(self, layer: Any, height: int, width: int) -> Any:
        """Returns the mean."""
        return runtime_layer(RuntimeMean, layer, count=height * width)
