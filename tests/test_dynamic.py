"""Models of any size of input, from data to a checked file."""

import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc


def anywhere():
    inputs = keras.Input((None, None, 3), name="photo")
    x = L.Conv2D(6, 3, padding="same", activation="relu")(inputs)
    return keras.Model(inputs, L.Dense(4)(L.GlobalAveragePooling2D()(x)))


def reader():
    inputs = keras.Input((None,), dtype="int32", name="ids")
    x = L.GlobalAveragePooling1D()(L.Embedding(30, 8)(inputs))
    return keras.Model(inputs, L.Dense(4)(x))


IMAGES = np.random.default_rng(0).integers(0, 255, (32, 9, 7, 3), np.uint8)
TOKENS = np.random.default_rng(0).integers(0, 30, (32, 6)).astype("int32")


@pytest.mark.parametrize(("make", "x"), [(anywhere, IMAGES), (reader, TOKENS)])
@pytest.mark.parametrize("scheme", ["float32", "float16", "dynamic_int8", "int8", "int16x8"])
def test_sizes_stay_open_in_the_file(make, x, scheme, tmp_path):
    keras.utils.set_random_seed(0)
    model = make()
    result = tfc.export_tflite(
        model, tmp_path / "m.tflite", scheme=scheme, representative_dataset=x
    )
    file = tfc.TFLiteModel(result.path)
    wanted = model.predict(x, verbose=0)
    assert np.sqrt(np.mean((file.predict(x) - wanted) ** 2)) < 0.05 * wanted.std()
    if file.inputs[0].shape[1] is None:
        larger = np.concatenate([x, x], axis=1)
        assert file.predict(larger).shape == (32, 4)
