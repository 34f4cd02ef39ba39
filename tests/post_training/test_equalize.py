import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tfcompress.post_training.equalize import equalize
from tfcompress.post_training.fold_batch_norm import fold_batch_norm


def badly_scaled():
    """Depthwise blocks whose channels differ a thousandfold, which the next layer reverts."""
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    stack = [keras.Input((12, 12, 3)), L.Conv2D(16, 3, name="a"), L.ReLU()]
    stack += [L.DepthwiseConv2D(3, name="b"), L.ReLU(), L.Conv2D(8, 1, name="c"), L.ReLU()]
    model = keras.Sequential([*stack, L.GlobalAveragePooling2D(), L.Dense(5)])
    for first, second in (("a", "b"), ("b", "c")):
        factors = 10 ** generator.uniform(-1.5, 1.5, 16)
        kernel, bias = model.get_layer(first).get_weights()
        shape = (16, 1) if first == "b" else (16,)
        model.get_layer(first).set_weights([kernel * factors.reshape(shape), bias * factors])
        kernel, bias = model.get_layer(second).get_weights()
        model.get_layer(second).set_weights([kernel / factors[:, None], bias])
    return model


def test_the_model_stays_the_same():
    model = badly_scaled()
    x = np.random.default_rng(1).normal(size=(8, 12, 12, 3)).astype("float32")
    before = [w.copy() for w in model.get_weights()]
    even = equalize(model)
    np.testing.assert_allclose(even.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-3)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    outputs = np.abs(even.get_layer("a").kernel).max((0, 1, 2))
    inputs = np.abs(even.get_layer("b").kernel)[..., 0].max((0, 1))
    np.testing.assert_allclose(outputs, inputs, rtol=1e-2)


def test_it_recovers_what_min_max_loses(tmp_path):
    model = badly_scaled()
    x = np.random.default_rng(1).normal(size=(64, 12, 12, 3)).astype("float32")
    errors = {}
    for name, scheme in {
        "min_max": tfc.QuantizationScheme(correct_bias=False),
        "equalized": tfc.QuantizationScheme(correct_bias=False, equalize=True),
    }.items():
        path = tmp_path / f"{name}.tflite"
        tfc.export_tflite(model, path, scheme=scheme, representative_dataset=x, verify=False)
        wanted = model.predict(x, verbose=0)
        errors[name] = np.sqrt(np.mean((tfc.TFLiteModel(path).predict(x) - wanted) ** 2)) / np.std(
            wanted
        )
    assert errors["equalized"] < 0.05 and errors["min_max"] > 4 * errors["equalized"], errors


@pytest.mark.parametrize("between", [L.ReLU(6.0), L.Activation("tanh"), L.Softmax()])
def test_what_is_not_homogeneous_is_left_alone(between):
    model = keras.Sequential([keras.Input((4,)), L.Dense(6), between, L.Dense(3)])
    for old, new in zip(model.get_weights(), equalize(model).get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    "layer",
    [
        L.Conv2D(6, 3, use_bias=False),
        L.Conv2D(6, 3, groups=2),
        L.DepthwiseConv2D(3, depth_multiplier=2),
        L.Conv2DTranspose(6, 3),
        L.Dense(5),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_batch_norm_is_folded(layer):
    generator = np.random.default_rng(0)
    norm = L.BatchNormalization()
    model = keras.Sequential([keras.Input((8, 8, 4)), layer, norm, L.ReLU()])
    norm.set_weights([generator.uniform(0.5, 1.5, w.shape) for w in norm.get_weights()])
    folded = fold_batch_norm(model)
    assert not any(isinstance(part, L.BatchNormalization) for part in folded.layers)
    x = generator.normal(size=(4, 8, 8, 4)).astype("float32")
    np.testing.assert_allclose(folded(x), model(x), atol=1e-4)


def test_a_norm_that_cannot_be_folded_stays():
    inputs = keras.Input((6,))
    x = L.Dense(4)(inputs)
    model = keras.Model(inputs, [L.BatchNormalization()(x), x])
    kinds = [type(layer) for layer in fold_batch_norm(model).layers]
    assert L.BatchNormalization in kinds
