"""A trained model and its data, in files and loaded."""

import keras
import numpy as np
import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    x = generator.normal(size=(256, 8)).astype("float32")
    y = (x[:, :4] @ generator.normal(size=(4, 3))).argmax(-1)
    layers = [keras.Input((8,), name="x"), keras.layers.Dense(16, "relu"), keras.layers.Dense(3)]
    model = keras.Sequential(layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss)
    model.fit(x, y, epochs=15, verbose=0)
    model.save(folder / "model.keras")
    np.savez(folder / "data.npz", x=x, y=y)
    return folder


@pytest.fixture
def model(folder):
    return keras.models.load_model(folder / "model.keras")


@pytest.fixture
def data(folder):
    with np.load(folder / "data.npz") as arrays:
        return arrays["x"], arrays["y"]
