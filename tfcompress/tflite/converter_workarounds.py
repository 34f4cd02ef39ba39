"""Layers written otherwise than Keras does, so that the converter finds what the runtime has."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any
from unittest import mock

import keras
from keras import layers

from tfcompress.graph.keras_internals import backend, give_up_kernel, inbound_nodes
from tfcompress.graph.read import walk_layers
from tfcompress.integer.fake_quant import rounding_by

HUGE = 1 << 24  # numbers


def write_convolutions(tf: Any, model: keras.Model) -> None:
    """Has convolutions be one operation each that TensorFlow otherwise makes several of.

    Of dilated ones it makes three, which the converter knows again, but not where two convolutions
    read one tensor.
    """
    for _, layer in walk_layers(model):
        if getattr(layer, "data_format", "") != "channels_last":
            continue
        if type(layer) in _DILATED and max(_pair(layer.dilation_rate)) > 1:
            layer.call = _in_one_operation(tf, layer)


@contextlib.contextmanager
def native_rounding() -> Iterator[None]:
    """Has activations be rounded by one operation each, without what Keras puts around it.

    Constant ranges are attributes of the operation, not two constants more.
    """
    import tensorflow as tf

    def rounded(x: Any, minimum: Any, maximum: Any, **options: Any) -> Any:
        if not (isinstance(x, tf.Tensor) and x.dtype == tf.float32):
            return keras.quantizers.fake_quant_with_min_max_vars(x, minimum, maximum, **options)
        if isinstance(minimum, float) and isinstance(maximum, float):
            return tf.quantization.fake_quant_with_min_max_args(x, minimum, maximum, **options)
        return tf.quantization.fake_quant_with_min_max_vars(x, minimum, maximum, **options)

    with rounding_by(rounded):
        yield


@contextlib.contextmanager
def native_extremes() -> Iterator[None]:
    """Has `argmax` and `argmin` be one operation each; Keras tells zeros of both signs apart."""
    import tensorflow as tf

    def native(operation: Any) -> Any:
        def place_of(x: Any, axis: int | None = None, keepdims: bool = False) -> Any:
            x = tf.convert_to_tensor(x)
            rank = len(x.shape)
            x = tf.reshape(x, [-1]) if axis is None else x
            made = operation(x, axis=axis or 0, output_type=tf.int32)
            if not keepdims:
                return made
            return tf.reshape(made, [1] * rank) if axis is None else tf.expand_dims(made, axis)

        return place_of

    with (
        mock.patch.object(backend.numpy, "argmax", native(tf.argmax)),
        mock.patch.object(backend.numpy, "argmin", native(tf.argmin)),
    ):
        yield


_DILATED = (layers.Conv1D, layers.Conv2D, layers.DepthwiseConv1D, layers.DepthwiseConv2D)


def _pair(sizes: Any) -> tuple[int, int]:
    """Returns what holds for two axes, of which the first may be one pixel high."""
    given = [sizes] if isinstance(sizes, int) else [*sizes]
    return (1, given[0]) if len(given) == 1 else (given[0], given[1])


def _in_one_operation(tf: Any, layer: Any) -> Any:
    one = isinstance(layer, (layers.Conv1D, layers.DepthwiseConv1D))
    depthwise = isinstance(layer, (layers.DepthwiseConv1D, layers.DepthwiseConv2D))
    operation = tf.raw_ops.DepthwiseConv2dNative if depthwise else tf.raw_ops.Conv2D
    dilation = _pair(layer.dilation_rate)

    def call(inputs: Any, training: bool | None = None) -> Any:
        padding = layer.padding
        if padding == "causal":
            before = (layer.kernel_size[0] - 1) * dilation[1]
            inputs, padding = tf.pad(inputs, ((0, 0), (before, 0), (0, 0))), "valid"
        kernel = tf.convert_to_tensor(layer.kernel)
        outputs = operation(
            input=tf.expand_dims(inputs, 1) if one else inputs,
            filter=tf.expand_dims(kernel, 0) if one else kernel,
            strides=[1, *_pair(layer.strides), 1],
            padding=padding.upper(),
            dilations=[1, *dilation, 1],
        )
        return _finished(tf, layer, outputs, one)

    return call


def _finished(tf: Any, layer: Any, outputs: Any, one: bool) -> Any:
    """Returns the result of a layer from that of its weighted sum over two axes."""
    if layer.use_bias:
        outputs = tf.nn.bias_add(outputs, tf.convert_to_tensor(layer.bias))
    outputs = tf.squeeze(outputs, 1) if one else outputs
    return outputs if layer.activation is None else layer.activation(outputs)


def large_products(model: keras.Model) -> list[Any]:
    """Returns the dense layers whose kernel should not be transposed while it is converted."""
    return [
        layer
        for _, layer in walk_layers(model)
        if type(layer) is keras.layers.Dense
        and math.prod(layer.kernel.shape) > HUGE // 16
        and all([*node.input_tensors[0].shape].count(None) < 2 for node in inbound_nodes(layer))
    ]


def by_rows(tf: Any, layer: keras.layers.Dense) -> Any:
    """Has a dense layer multiply by its kernel as the file holds it, a row for each output.

    The converter would transpose the kernel, and keep both in memory.

    Returns:
        The transposed kernel. The layer's own is given up.
    """
    rows = tf.Variable(tf.transpose(give_up_kernel(layer, tf.Variable(tf.zeros((0,))))))

    def call(inputs: Any, training: bool | None = None) -> Any:
        flat = tf.reshape(inputs, (-1, rows.shape[1])) if len(inputs.shape) > 2 else inputs
        outputs = tf.matmul(flat, tf.convert_to_tensor(rows), transpose_b=True)
        if len(inputs.shape) > 2:
            ends = [-1 if size is None else size for size in (*inputs.shape[:-1], rows.shape[0])]
            outputs = tf.reshape(outputs, ends)
        if layer.use_bias:
            outputs = outputs + tf.convert_to_tensor(layer.bias)
        return outputs if layer.activation is None else layer.activation(outputs)

    layer.call = call
    return rows
