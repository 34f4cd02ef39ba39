"""Inputs of any size become inputs of a fixed size; the error says which layer needs it."""

import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc


def samples(*shape):
    return np.random.default_rng(0).normal(size=(32, *shape)).astype("float32")


def anywhere(*more):
    inputs = keras.Input((None, None, 3), name="photo")
    x = L.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    return keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(x)))


def nested():
    return keras.Sequential([keras.Input((None, None, 3), name="photo"), anywhere(), L.Dense(2)])


def two():
    first, second = keras.Input((None, 3), name="one"), keras.Input((4,), name="two")
    x = L.GlobalMaxPooling1D()(L.Conv1D(4, 3, name="conv")(first))
    return keras.Model([first, second], L.Dense(2)(L.Concatenate()([x, second])))


@pytest.mark.parametrize("make", [anywhere, nested])
@pytest.mark.parametrize("scheme", ["float32", "int8"])
def test_one_size(make, scheme, tmp_path):
    keras.utils.set_random_seed(0)
    model, x = make(), samples(16, 12, 3)
    options = {"scheme": scheme, "representative_dataset": x if scheme == "int8" else None}
    with pytest.raises(ValueError, match=r"layer '.*conv' needs at least 3.*input_shape=\(224,"):
        tfc.export_tflite(model, tmp_path / "m.tflite", **options)
    result = tfc.export_tflite(model, tmp_path / "m.tflite", input_shape=(16, 12, 3), **options)
    file = tfc.TFLiteModel(result.path)
    assert file.inputs[0].shape == (1, 16, 12, 3) and file.inputs[0].name == "photo"
    wanted = model.predict(x, verbose=0)
    assert np.sqrt(np.mean((file.predict(x) - wanted) ** 2)) < 0.1 * wanted.std()


def test_by_input_and_after_training(tmp_path):
    x = [samples(9, 3), samples(4)]
    model = tfc.quantize(two())
    model.compile("sgd", "mse")
    model.fit(x, samples(2), verbose=0)
    result = tfc.export_tflite(
        model, tmp_path / "m.tflite", input_shape={"one": (9, 3)}, representative_dataset=x
    )
    assert [info.shape for info in tfc.TFLiteModel(result.path).inputs] == [(1, 9, 3), (1, 4)]
    assert result.agreement.rmse < 1e-5


@pytest.mark.parametrize(
    ("make", "shape", "said"),
    [
        (anywhere, (16, 16, 4), "without the batch"),
        (anywhere, (16, 16), "without the batch"),
        (anywhere, (16, None, 3), "whole numbers"),
        (anywhere, {"image": (8, 8, 3)}, "does not have"),
        (two, (9, 3), "must be a dict"),
    ],
)
def test_wrong_shapes(make, shape, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        tfc.export_tflite(make(), tmp_path / "m.tflite", input_shape=shape)
