"""Errors about what is not finite name the right cause."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import tfcompress as tfc

X = np.abs(np.random.default_rng(0).normal(size=(64, 6))).astype("float32")


def test_a_logarithm_of_zero_in_the_data(tmp_path):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, L.Dense(2)(ops.log(L.ReLU()(inputs))))
    zeros = np.where(X < 0.5, 0, X)
    with pytest.raises(
        ValueError, match="'log.*' computes NaN or infinity on these samples"
    ) as error:
        tfc.export_tflite(model, tmp_path / "m.tflite", representative_dataset=zeros)
    assert "diverged" not in str(error.value)


def test_a_negative_variance(tmp_path):
    model = keras.Sequential([keras.Input((6,)), L.Dense(3), L.BatchNormalization(name="norm")])
    model.get_layer("norm").moving_variance.assign([1.0, -0.5, 1.0])
    with pytest.raises(ValueError, match=r"moving_variance of layer 'norm' is negative \(-0.5\)"):
        tfc.export_tflite(model, tmp_path / "m.tflite", representative_dataset=X)


def test_an_infinite_constant(tmp_path):
    inputs = keras.Input((6,))
    x = ops.where(inputs > 0.5, L.Dense(6)(inputs), float("-inf"))
    with pytest.raises(ValueError, match="a constant that is infinite"):
        tfc.export_tflite(
            keras.Model(inputs, L.Dense(2)(ops.softmax(x) * 1.0)),
            tmp_path / "m.tflite",
            representative_dataset=X,
        )


def test_nothing_to_compare(tmp_path):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, L.Dense(2)(ops.log(inputs - 50.0)))
    with pytest.raises(tfc.ExportError, match="Nothing could be compared"):
        tfc.export_tflite(model, tmp_path / "m.tflite", scheme="float32")
    assert not list(tmp_path.iterdir())
