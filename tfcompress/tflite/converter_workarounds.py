"""Layers lowered in other ways than by Keras, so that the converter finds the runtime's kernels."""

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
from tfcompress.integer.fake_quant import replaced_fake_quant

HUGE = 1 << 24  # elements


def lower_convolutions(tf: Any, model: keras.Model) -> None:
    """Lowers each dilated convolution to one operation.

    TensorFlow makes three operations of it. The converter fuses them, but not where two
    convolutions read one tensor.
    """
    for _, layer in walk_layers(model):
        if getattr(layer, "data_format", "") != "channels_last":
            continue
        if type(layer) in _DILATED and max(_pair(layer.dilation_rate)) > 1:
            layer.call = _in_one_operation(tf, layer)


@contextlib.contextmanager
def native_fake_quant() -> Iterator[None]:
    """Lowers each fake-quantization to TensorFlow's operation, without Keras' wrapper.

    A constant range becomes attributes of the operation instead of two more constants.
    """
    import tensorflow as tf

    def fake_quantized(x: Any, minimum: Any, maximum: Any, **options: Any) -> Any:
        if not (isinstance(x, tf.Tensor) and x.dtype == tf.float32):
            return keras.quantizers.fake_quant_with_min_max_vars(x, minimum, maximum, **options)
        if isinstance(minimum, float) and isinstance(maximum, float):
            return tf.quantization.fake_quant_with_min_max_args(x, minimum, maximum, **options)
        return tf.quantization.fake_quant_with_min_max_vars(x, minimum, maximum, **options)

    with replaced_fake_quant(fake_quantized):
        yield


@contextlib.contextmanager
def native_extremes() -> Iterator[None]:
    """Lowers `argmax` and `argmin` to one operation each; Keras adds a test for the sign of 0."""
    import tensorflow as tf

    def native(operation: Any) -> Any:
        def index_of(x: Any, axis: int | None = None, keepdims: bool = False) -> Any:
            x = tf.convert_to_tensor(x)
            rank = len(x.shape)
            x = tf.reshape(x, [-1]) if axis is None else x
            indices = operation(x, axis=axis or 0, output_type=tf.int32)
            if not keepdims:
                return indices
            return (
                tf.reshape(indices, [1] * rank) if axis is None else tf.expand_dims(indices, axis)
            )

        return index_of

    with (
        mock.patch.object(backend.numpy, "argmax", native(tf.argmax)),
        mock.patch.object(backend.numpy, "argmin", native(tf.argmin)),
    ):
        yield


_DILATED = (layers.Conv1D, layers.Conv2D, layers.DepthwiseConv1D, layers.DepthwiseConv2D)


def _pair(sizes: Any) -> tuple[int, int]:
    """Returns sizes for two axes; for one size, that of the first axis is 1."""
    values = [sizes] if isinstance(sizes, int) else [*sizes]
    return (1, values[0]) if len(values) == 1 else (values[0], values[1])


def _in_one_operation(tf: Any, layer: Any) -> Any:
    is_1d = isinstance(layer, (layers.Conv1D, layers.DepthwiseConv1D))
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
            input=tf.expand_dims(inputs, 1) if is_1d else inputs,
            filter=tf.expand_dims(kernel, 0) if is_1d else kernel,
            strides=[1, *_pair(layer.strides), 1],
            padding=padding.upper(),
            dilations=[1, *dilation, 1],
        )
        return _with_bias_and_activation(tf, layer, outputs, is_1d)

    return call


def _with_bias_and_activation(tf: Any, layer: Any, outputs: Any, is_1d: bool) -> Any:
    """Returns the output of a layer from that of its 2D convolution: adds bias and activation."""
    if layer.use_bias:
        outputs = tf.nn.bias_add(outputs, tf.convert_to_tensor(layer.bias))
    outputs = tf.squeeze(outputs, 1) if is_1d else outputs
    return outputs if layer.activation is None else layer.activation(outputs)


def large_products(model: keras.Model) -> list[Any]:
    """Returns the dense layers whose kernel is too large to be transposed by the converter."""
    return [
        layer
        for _, layer in walk_layers(model)
        if type(layer) is keras.layers.Dense
        and math.prod(layer.kernel.shape) > HUGE // 16
        and all([*node.input_tensors[0].shape].count(None) < 2 for node in inbound_nodes(layer))
    ]


def by_rows(tf: Any, layer: keras.layers.Dense) -> Any:
    """Lowers a dense layer with the kernel as the file stores it: a row for each output.

    The converter would transpose the kernel, and keep both in memory.

    Returns:
        The transposed kernel. The layer releases its own.
    """
    rows = tf.Variable(tf.transpose(give_up_kernel(layer, tf.Variable(tf.zeros((0,))))))

    def call(inputs: Any, training: bool | None = None) -> Any:
        flat = tf.reshape(inputs, (-1, rows.shape[1])) if len(inputs.shape) > 2 else inputs
        outputs = tf.matmul(flat, tf.convert_to_tensor(rows), transpose_b=True)
        if len(inputs.shape) > 2:
            shape = [-1 if size is None else size for size in (*inputs.shape[:-1], rows.shape[0])]
            outputs = tf.reshape(outputs, shape)
        if layer.use_bias:
            outputs = outputs + tf.convert_to_tensor(layer.bias)
        return outputs if layer.activation is None else layer.activation(outputs)

    layer.call = call
    return rows
