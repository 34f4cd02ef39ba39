"""Roots, logarithms and reciprocals of what may be small."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import tfcompress as tfc
from tests.agreeing import equals_its_file

X = np.random.default_rng(0).normal(size=(128, 12)).astype("float32")


def mean(x):
    return ops.mean(x, -1, keepdims=True)


def summed(x):
    return ops.sum(x, -1, keepdims=True)


def squares(x):
    return mean(ops.square(x))


STEEP = {
    "root": lambda x: ops.sqrt(x + 1e-6),
    "power": lambda x: (x + 1e-6) ** 0.5,
    "root of squares": lambda x: ops.sqrt(summed(x * x)),
    "distance": lambda x: ops.sqrt(summed(ops.square(x[:, :8] - x[:, 8:])) + 1e-7),
    "signed root": lambda x: ops.sign(x) * ops.sqrt(ops.abs(x) + 1e-8),
    "logarithm": lambda x: ops.log(x + 1e-6),
    "log of softmax": lambda x: ops.log(ops.softmax(x) + 1e-9),
    "reciprocal": lambda x: ops.reciprocal(x + 1e-2),
    "quotient": lambda x: 1.0 / (x + 1e-2),
    "share": lambda x: x / (summed(x) + 1e-9),
    "unit length": lambda x: x / ops.sqrt(ops.maximum(summed(x * x), 1e-12)),
    "layer normalization": lambda x: (
        (x - mean(x)) * ops.rsqrt(mean(ops.square(x - mean(x))) + 1e-5)
    ),
    "variance": lambda x: (x - mean(x)) / ops.sqrt(ops.var(x, -1, keepdims=True) + 1e-6),
    "generalized mean": lambda x: mean(ops.clip(x, 1e-6, 1e4) ** 3.0) ** (1 / 3),
}


def net(function):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((12,))
    x = L.Dense(16, activation="relu")(inputs)
    return keras.Model(inputs, L.Dense(3)(L.Concatenate()([function(x), x])))


QUICK = ("root", "distance", "logarithm", "share", "variance")


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in STEEP]
)
def test_training_stays_finite_and_the_file_equal(name, tmp_path):
    model = net(STEEP[name])
    noisy = model.predict(X, verbose=0)
    noisy = noisy + 0.1 * noisy.std() * np.random.default_rng(3).normal(size=noisy.shape)
    aware = tfc.quantize(model)
    aware.compile(keras.optimizers.Adam(1e-3), "mse")
    losses = aware.fit(X, noisy, epochs=3, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    result = equals_its_file(aware, X, tmp_path, floats=20)
    assert result.kept_in_float and {*result.kept_in_float} <= {o.name for o in aware.operations}
    assert "steep near zero" in str(result)


def test_two_equal_inputs_have_a_gradient(tmp_path):
    """Quantized values cancel to exactly zero, which floats hardly do."""
    keras.utils.set_random_seed(0)
    one, two = keras.Input((10,)), keras.Input((10,))
    branch = keras.Sequential([keras.Input((10,)), L.Dense(16, activation="relu"), L.Dense(6)])
    distance = ops.sqrt(summed(ops.square(branch(one) - branch(two))))
    aware = tfc.quantize(keras.Model([one, two], distance))
    aware.compile("sgd", "mse")
    x = X[:, :10]
    near = x + 1e-4 * np.random.default_rng(0).normal(size=x.shape).astype("float32")
    losses = aware.fit([x, near], np.ones((128, 1)), epochs=2, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    tfc.export_tflite(aware, tmp_path / "m.tflite")


def test_nothing_else_is_kept_in_float(tmp_path):
    model = net(lambda x: ops.square(x) * 0.5)
    result = tfc.export_tflite(model, tmp_path / "m.tflite", representative_dataset=X)
    assert result.kept_in_float == () and result.float_tensors == []
