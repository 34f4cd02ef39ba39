"""Files that the tests of devices share."""

import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc


def export(path, outputs_of, shape=(12, 12, 8), **options):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape, name="image")
    model = keras.Model(inputs, outputs_of(inputs))
    x = np.random.default_rng(0).normal(size=(128, *shape)).astype("float32")
    tfc.export_tflite(model, path, representative_dataset=x, metadata=False, **options)
    return str(path), x


def small(x):
    x = L.Conv2D(8, 3, activation="relu")(x)
    return L.Dense(4, name="scores")(L.GlobalAveragePooling2D()(x))


@pytest.fixture(scope="session")
def integer_file(tmp_path_factory):
    """A file that is integers from input to output, and data."""
    path = tmp_path_factory.mktemp("devices") / "small.tflite"
    scheme = tfc.QuantizationScheme(prefer="exactness")
    return export(path, small, scheme=scheme, io_dtype="int8")


@pytest.fixture(scope="session")
def gelu_file(tmp_path_factory):
    """A file with an operation that tflite-micro lacks, and with float ends."""
    path = tmp_path_factory.mktemp("devices") / "gelu.tflite"
    return export(path, lambda x: small(L.Conv2D(8, 3, activation="gelu")(x)))[0]
