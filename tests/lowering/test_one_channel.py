"""Convolutions over one axis with one channel, and parametric ReLUs: integers, to the bit."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import tfcompress as tfc
from tests.agreeing import equal_when_trained, goes_all_the_way

SERIES, IMAGE = (30, 3), (12, 12, 3)


def samples(shape):
    return np.random.default_rng(0).normal(size=(48, *shape)).astype("float32")


def chain(shape, *layers):
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input(shape)
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x)


SINGLE = {
    "sigmoid": lambda: [L.Conv1D(4, 3, activation="relu"), L.Conv1D(1, 5, activation="sigmoid")],
    "same": lambda: [L.Conv1D(1, 5, padding="same")],
    "causal": lambda: [L.Conv1D(1, 3, padding="causal", dilation_rate=2, activation="relu")],
    "normalized": lambda: [L.Conv1D(1, 3, strides=2), L.BatchNormalization(), L.ReLU()],
    "depthwise": lambda: [L.Conv1D(1, 3), L.DepthwiseConv1D(3, strides=2, activation="relu")],
    "transposed": lambda: [L.Conv1DTranspose(1, 4, strides=2, activation="relu"), L.Conv1D(2, 3)],
    "separable": lambda: [L.SeparableConv1D(1, 3, activation="relu"), L.Flatten(), L.Dense(2)],
}


@pytest.mark.parametrize("name", SINGLE)
def test_one_channel(name, tmp_path):
    equal_when_trained(chain(SERIES, *SINGLE[name]()), samples(SERIES), tmp_path)


def sloped(low=-0.2, high=0.4, **options):
    slopes = keras.initializers.RandomUniform(low, high, seed=0)
    return L.PReLU(alpha_initializer=slopes, **options)


SLOPES = {
    "of each channel": lambda: [L.Conv2D(8, 3), sloped(shared_axes=[1, 2]), L.MaxPooling2D()],
    "everywhere": lambda: [L.Conv2D(4, 3), sloped(), L.Flatten(), L.Dense(3)],
    "of a vector": lambda: [L.Flatten(), L.Dense(16), sloped(), L.Dense(3)],
    "zero": lambda: [L.Conv2D(8, 3), L.PReLU(shared_axes=[1, 2])],
    "large": lambda: [L.Conv2D(8, 3), sloped(-3, 3, shared_axes=[1, 2])],
    "of the input": lambda: [sloped(shared_axes=[1, 2]), L.Conv2D(4, 3)],
}


@pytest.mark.parametrize("name", SLOPES)
def test_parametric_relu(name, tmp_path):
    model, x = chain(IMAGE, *SLOPES[name]()), samples(IMAGE)
    if name == "of each channel":
        goes_all_the_way(model, x, tmp_path)
    else:
        equal_when_trained(model, x, tmp_path)


WIDTH = [[0, 0], [1, 1], [1, 1], [0, 0]]
PADDED = {
    "minimum": lambda x: L.MaxPooling2D(3, 2)(ops.pad(x, WIDTH, constant_values=-np.inf)),
    "zeros": lambda x: L.Conv2D(4, 3)(ops.pad(x, WIDTH)),
    "ones": lambda x: L.Conv2D(4, 3)(ops.pad(x, WIDTH, constant_values=1.0)),
    "reflected": lambda x: L.Conv2D(4, 3)(ops.pad(x, WIDTH, mode="reflect")),
}


@pytest.mark.parametrize("name", PADDED)
@pytest.mark.parametrize("behind", [True, False], ids=["behind a layer", "of the input"])
def test_padding(name, behind, tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(IMAGE)
    x = L.Conv2D(4, 3, activation="relu")(inputs) if behind else inputs
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(PADDED[name](x))))
    if name != "ones":
        equal_when_trained(model, samples(IMAGE), tmp_path)
        return
    # The constant is quantized separately: some values differ by one LSB.
    result = tfc.export_tflite(model, tmp_path / "m.tflite", representative_dataset=samples(IMAGE))
    assert result.agreement.rmse < 0.05 and not result.float_tensors
