"""Smoothing: outliers move from activations to weights, and nothing else changes."""

import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tfcompress.export.agreement import measure
from tfcompress.post_training.smooth import smooth

X = np.random.default_rng(0).normal(size=(64, 6, 16)).astype("float32")


def block(residual=False, projections="attention"):
    """A normalization with two outlying channels, whose weights are as small as training makes."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 16), name="x")
    normalized = L.LayerNormalization(name="norm")(inputs)
    if projections == "attention":
        x = L.MultiHeadAttention(2, 8, name="attention")(normalized, normalized)
    elif projections == "einsum":
        x = L.EinsumDense("abc,cde->abde", (6, 2, 8), bias_axes="de", name="einsum")(normalized)
        x = L.Reshape((6, 16))(x)
    else:
        x = L.Add()([L.Dense(16, name="one")(normalized), L.Dense(16, name="other")(normalized)])
    x = L.Add()([x, normalized if residual else inputs])
    model = keras.Model(inputs, L.Dense(4)(x))
    norm = model.get_layer("norm")
    outlying = np.ones(16)
    outlying[[2, 11]] = 60
    norm.gamma.assign(outlying)
    for layer in model.layers:
        if layer.name in ("attention", "einsum", "one", "other"):
            for weight in layer.weights:
                if weight.shape[0] == 16 and "output" not in weight.path:
                    value = np.array(weight)
                    value[[2, 11]] /= 60
                    weight.assign(value)
    return model


@pytest.mark.parametrize("projections", ["attention", "einsum", "dense"])
def test_it_computes_the_same_with_smaller_errors(projections, quiet, tmp_path):
    model = block(projections=projections)
    smoothed = smooth(model, {"x": X})
    np.testing.assert_allclose(smoothed(X), model(X), atol=2e-5)
    gamma = np.array(smoothed.get_layer("norm").gamma)
    assert gamma.max() / gamma.min() < 20  # 60 before
    errors = []
    for equalize in (False, True):
        scheme = tfc.QuantizationScheme(equalize=equalize)
        path = tmp_path / f"{equalize}.tflite"
        tfc.export_tflite(model, path, scheme=scheme, representative_dataset=X)
        errors.append(measure(model, path, {"x": X}).rmse)
    assert errors[1] < 0.7 * errors[0]


def test_a_residual_connection_that_reads_it_as_well():
    model = block(residual=True)
    assert smooth(model, {"x": X}) is model


def test_the_model_is_not_changed():
    model = block()
    before = [np.array(w) for w in model.weights]
    calls = [layer.call for layer in model.layers]
    smooth(model, {"x": X})
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    assert [layer.call for layer in model.layers] == calls
