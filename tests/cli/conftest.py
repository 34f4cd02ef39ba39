"""Shared fixtures of the tests of the command line."""

import keras
import numpy as np
import pytest
from click.testing import CliRunner

from tfcompress.cli import main


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def done(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output + result.stderr
    return result


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a trained model and an .npz of its data."""
    folder = tmp_path_factory.mktemp("work")
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    x = generator.normal(size=(512, 8)).astype("float32")
    y = (x[:, :3] @ generator.normal(size=(3, 3)) + x[:, 3:6]).argmax(-1)
    model = keras.Sequential(
        [
            keras.Input((8,), name="features"),
            keras.layers.Dense(32, activation="relu", name="first"),
            keras.layers.Dense(3, name="last"),
        ],
        name="small",
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss)
    model.fit(x, y, epochs=10, verbose=0)
    model.save(folder / "model.keras")
    np.savez(folder / "data.npz", x=x, y=y)
    return folder
