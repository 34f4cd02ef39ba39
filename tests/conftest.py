import os
import pathlib
import subprocess
import sys
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import pytest
import tensorflow as tf

import tfcompress as tfc
from tests import nets
from tfcompress.demo.data import load

ROOT = pathlib.Path(__file__).resolve().parent.parent


# What Keras 3.12, the newest for Python 3.10, cannot do itself, by a part of the test's name.
KERAS_3_12 = {
    "test_a_copy_is_the_model[Discretization]": "one_hot along a second axis has another shape",
    "test_vocabularies_stay[one_hot]": "one_hot along a second axis has another shape",
    "test_the_two_parts_are_the_model[mixed columns]": "one_hot has another shape",
    "test_the_two_parts_are_the_model[FeatureSpace]": "refuses an input that nothing reads",
    "[an input that nothing reads-": "refuses an input that nothing reads",
    "test_vocabularies_stay[tf_idf]": "an IntegerLookup with idf weights cannot be saved",
    "test_trained[array_split]": "has no array_split",
    "test_trained[GroupQueryAttention]": "computes in an order of its own: one LSB",
    "test_channels_elsewhere_than_last_have_one_scale[rows]": "normalizes the last axis only",
    "test_saved_models_load_in_a_fresh_process": "the models were saved by Keras 3.15",
}


def pytest_collection_modifyitems(items):
    reasons = {}
    if tuple(map(int, keras.__version__.split(".")[:2])) < (3, 13):
        reasons = {part: f"Keras 3.12: {reason}" for part, reason in KERAS_3_12.items()}
    if not convolves_channels_first():
        reasons["channels first"] = "TensorFlow convolves it with TF_ENABLE_ONEDNN_OPTS=1 only here"
    for item in items:
        for part, reason in reasons.items():
            if part in item.nodeid:
                item.add_marker(pytest.mark.skip(reason=reason))


def convolves_channels_first():
    """Returns whether TensorFlow does on this processor: by oneDNN, its default on newer ones."""
    try:
        tf.nn.conv2d(tf.ones((1, 1, 3, 3)), tf.ones((2, 2, 1, 1)), 1, "VALID", data_format="NCHW")
    except tf.errors.UnimplementedError:
        return False
    return True


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(1)


@pytest.fixture(scope="session")
def fashion():
    """5,000 training and 1,000 test images of Fashion-MNIST."""
    data = load()
    return data.x_train[:5000], data.y_train[:5000], data.x_test[:1000], data.y_test[:1000]


@pytest.fixture(scope="session")
def trained(fashion):
    """Returns float and quantization-aware models by name, trained on real images at first use."""
    models = {}

    def get(name):
        if name not in models:
            keras.utils.set_random_seed(3)
            x, y = fashion[:2]
            model = nets.NETS[name]()
            nets.compiled(model).fit(x, y, epochs=4, batch_size=64, verbose=0)
            aware = tfc.quantize(model)
            nets.compiled(aware, 3e-4).fit(x, y, batch_size=64, verbose=0)
            models[name] = model, aware
        return models[name]

    return get


@pytest.fixture
def quiet():
    """Lets our own warnings pass, where a test is not about them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tfc.CompressionWarning)
        yield


@pytest.fixture
def python(tmp_path):
    """Runs code in a new process, in a folder of its own, and returns what it printed."""

    def run(code, *, executable=sys.executable, timeout=300, **variables):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
        done = subprocess.run(
            [executable, "-c", code],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


def arrays(model):
    return [keras.ops.convert_to_numpy(v).copy() for v in model.variables]
