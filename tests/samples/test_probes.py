"""Samples that a file is checked on."""

import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tfcompress.graph.read import input_specs
from tfcompress.samples.probes import (
    affordable,
    expected_scales,
    first_statistics,
    noise_for,
    probes,
    stressed,
)


def noise(*layers, shape=(8, 8, 3), **options):
    model = keras.Sequential([keras.Input(shape, name="x", **options), *layers])
    return noise_for(model, input_specs(model), 200)["x"]


def normed(axis, *, size):
    layer = L.BatchNormalization(axis=axis)
    layer.build((None, *size))
    layer.moving_mean.assign(np.arange(layer.moving_mean.shape[0]) * 10.0)
    layer.moving_variance.assign(np.full(layer.moving_mean.shape, 4.0))
    return layer


def test_noise_is_of_the_scale_that_the_first_layers_expect():
    made = noise(L.Rescaling(1 / 255), L.Conv2D(2, 3))
    assert 0 <= made.min() < 10 and 245 < made.max() <= 255
    made = noise(L.Rescaling(1 / 127.5, offset=-1), L.Conv2D(2, 3))
    assert 0 <= made.min() < 10 and 245 < made.max() <= 255
    made = noise(L.Dropout(0.1), normed(-1, size=(8, 8, 3)))
    np.testing.assert_allclose(made.mean((0, 1, 2)), [0, 10, 20], atol=0.2)
    np.testing.assert_allclose(made.std((0, 1, 2)), 2, rtol=0.05)
    norm = L.Normalization(mean=5.0, variance=9.0)
    made = noise(norm, L.Dense(2), shape=(4,))
    assert abs(made.mean() - 5) < 0.3 and abs(made.std() - 3) < 0.2
    tokens = noise(L.Embedding(30, 4), shape=(6,), dtype="int32")
    assert tokens.dtype == np.int32 and set(np.unique(tokens)) == set(range(30))
    assert set(np.unique(noise(L.Embedding(30, 4), shape=(6,)))) == set(range(30))


@pytest.mark.filterwarnings("ignore::tfcompress.CompressionWarning")
@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ((L.Reshape((4, 3)), normed(-1, size=(4, 3))), (12,)),
        ((normed(1, size=(10, 3)),), (10, 3)),
        ((L.Normalization(axis=1, mean=np.arange(10.0), variance=np.ones(10)),), (10, 3)),
        ((L.Permute((2, 1)), normed(-1, size=(3, 4))), (4, 3)),
    ],
    ids=["reshaped", "channels first", "rows", "swapped"],
)
def test_channels_elsewhere_than_last_have_one_scale(layers, shape, tmp_path):
    made = noise(*layers, shape=shape)
    assert made.shape == (200, *shape) and made.max() > 8
    model = keras.Sequential([keras.Input(shape, name="x"), *layers, L.Flatten(), L.Dense(2)])
    tfc.export_tflite(model, tmp_path / "m.tflite")
    tfc.export_tflite(model, tmp_path / "m.tflite", representative_dataset=made)


def test_statistics_behind_a_convolution_tell_the_scale():
    keras.utils.set_random_seed(0)
    for high in (1.0, 255.0):
        x = high * np.random.default_rng(0).random((64, 8, 8, 3)).astype("float32")
        layers = [L.Conv2D(4, 3), L.BatchNormalization(momentum=0.1), L.Flatten(), L.Dense(2)]
        model = keras.Sequential([keras.Input((8, 8, 3), name="x"), *layers])
        model.compile("sgd", "mse")
        model.optimizer.learning_rate = 0.0
        model.fit(x, np.zeros((64, 2)), epochs=3, verbose=0)
        assert 0.5 < first_statistics(model, {"x": x}) < 2
        made = noise_for(model, input_specs(model))["x"]
        assert high / 2 < made.max() <= high


def test_a_trained_range_tells_as_well():
    model = tfc.quantize(keras.Sequential([keras.Input((4,), name="x"), L.Dense(2)]))
    model(np.linspace(-30, 50, 64).reshape(16, 4).astype("float32"), training=True)
    scale = expected_scales(model)["x"]
    assert scale.low < -29 and scale.high > 49


def test_the_samples_are_spread_and_none_that_stands_out():
    model = keras.Sequential([keras.Input((4,), name="x"), L.Dense(2)])
    x = np.random.default_rng(0).normal(size=(1000, 4)).astype("float32")
    x[::250] = 1e5
    y = np.arange(1000)
    found = probes(model, input_specs(model), {"x": x}, y)
    assert found.source == "representative_dataset" and np.abs(found.samples["x"]).max() < 10
    np.testing.assert_array_equal(found.samples["x"], x[found.labels])
    assert found.labels.min() < 20 and found.labels.max() > 980 and len(found.labels) == 512


def test_as_many_as_can_be_afforded():
    small = keras.Sequential([keras.Input((4,)), L.Dense(2)])
    large = keras.Sequential([keras.Input((600, 600, 3)), L.Conv2D(64, 5), L.Conv2D(64, 5)])
    assert (affordable(small), affordable(large)) == (512, 2)


def test_stressed_samples_stay_within_what_a_place_has():
    model = keras.Sequential([keras.Input((3,), name="x"), L.Dense(2)])
    x = np.random.default_rng(0).normal(size=(32, 3)).astype("float32") * [1, 10, 100]
    found = probes(model, input_specs(model), {"x": x.astype("float32")})
    made = stressed(found, 64)["x"]
    assert made.shape == (64, 3) and (made.min(0) >= x.min(0) - 1e-4).all()
    ends = np.isclose(made[32:], x.min(0)) | np.isclose(made[32:], x.max(0))
    assert ends.all()
    noise_made = stressed(probes(model, input_specs(model), None), 64)["x"]
    assert noise_made.max() > 3 and noise_made.min() < -3
