"""Twelve small networks, trained for a hundred epochs, are equal to their files."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import tfcompress as tfc
from tfcompress.export.agreement import measure
from tfcompress.graph.keras_internals import producing_operation


def image(x):
    return ops.reshape(x, (-1, 8, 8, 1))


def rows(x):
    return ops.reshape(x, (-1, 8, 8))


def conv(x, filters, **options):
    return L.ReLU()(L.BatchNormalization()(L.Conv2D(filters, 3, padding="same", **options)(x)))


def plain(x):
    return L.GlobalAveragePooling2D()(conv(L.MaxPooling2D()(conv(image(x), 8)), 16))


def depthwise(x):
    x = conv(image(x), 8)
    x = L.ReLU(6.0)(L.BatchNormalization()(L.DepthwiseConv2D(3, padding="same")(x)))
    return L.Flatten()(L.Conv2D(4, 1)(x))


def residual(x):
    x = conv(image(x), 8)
    return L.GlobalAveragePooling2D()(L.ReLU()(L.Add()([x, L.Conv2D(8, 3, padding="same")(x)])))


def dense(x):
    return L.Dense(16, activation="tanh")(L.Dense(32, activation="relu")(x))


def branches(x):
    x = conv(image(x), 6)
    concatenated = L.Concatenate()([L.Conv2D(4, 1)(x), L.Conv2D(4, 3, padding="same")(x), x])
    return L.Flatten()(L.AveragePooling2D(2)(L.ReLU()(concatenated)))


def gated(x):
    x = conv(image(x), 8)
    gate = L.Dense(8, activation="sigmoid")(L.Dense(4, activation="relu")(_pooled(x)))
    return L.GlobalAveragePooling2D()(L.Multiply()([x, L.Reshape((1, 1, 8))(gate)]))


def _pooled(x):
    return L.GlobalAveragePooling2D()(x)


def separable(x):
    return L.Flatten()(L.SeparableConv2D(8, 3, strides=2, activation="relu")(conv(image(x), 4)))


def upsampled(x):
    x = L.Conv2DTranspose(6, 3, strides=2, activation="relu")(conv(image(x), 6, strides=2))
    return L.GlobalMaxPooling2D()(x)


def series(x):
    x = L.Conv1D(12, 3, activation="relu")(rows(x))
    return L.GlobalAveragePooling1D()(L.Conv1D(12, 3, activation="relu")(x))


def attention(x):
    x = L.Dense(16)(rows(x))
    return L.Flatten()(L.Add()([x, L.MultiHeadAttention(2, 8)(x, x)]))


def recurrent(x):
    return L.SimpleRNN(16)(rows(x))


def swished(x):
    return L.GlobalAveragePooling2D()(L.Conv2D(12, 3, activation="hard_swish")(conv(image(x), 8)))


MICRO = (
    plain,
    depthwise,
    residual,
    dense,
    branches,
    gated,
    separable,
    upsampled,
    series,
    attention,
    recurrent,
    swished,
)


def digits():
    """Eight classes of noisy patterns, 8x8."""
    generator = np.random.default_rng(0)
    patterns = generator.normal(size=(8, 64))
    y = generator.integers(0, 8, 1024)
    x = patterns[y] + generator.normal(size=(1024, 64))
    return x.astype("float32"), y


@pytest.mark.slow
@pytest.mark.parametrize("build", MICRO, ids=lambda build: build.__name__)
def test_a_hundred_epochs(build, tmp_path):
    keras.utils.set_random_seed(0)
    x, y = digits()
    inputs = keras.Input((64,))
    model = keras.Model(inputs, L.Dense(8)(build(inputs)))
    aware = tfc.quantize(model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    aware.compile(keras.optimizers.Adam(2e-3), loss, metrics=["accuracy"])
    aware.fit(x[:768], y[:768], batch_size=64, epochs=100, verbose=0)
    assert (
        aware.evaluate(x[768:], y[768:], verbose=0)[1] > 0.4
    )  # of eight classes; not all can do it well
    result = tfc.export_tflite(aware, tmp_path / "m.tflite")
    assert result.float_tensors == []
    name = producing_operation(model.inputs[0]).name
    result_agreement = measure(aware, result.path, {name: x[768:]})
    assert result_agreement.max_lsb < 0.01 and result_agreement.top1 == 1, result_agreement
