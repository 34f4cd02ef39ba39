"""Samples that a file is checked on."""

import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tfcompress.graph.read import input_specs
from tfcompress.samples.probes import (
    affordable,
    expected_ranges,
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


def test_noise_is_in_the_range_that_the_first_layers_expect():
    samples = noise(L.Rescaling(1 / 255), L.Conv2D(2, 3))
    assert 0 <= samples.min() < 10 and 245 < samples.max() <= 255
    samples = noise(L.Rescaling(1 / 127.5, offset=-1), L.Conv2D(2, 3))
    assert 0 <= samples.min() < 10 and 245 < samples.max() <= 255
    samples = noise(L.Dropout(0.1), normed(-1, size=(8, 8, 3)))
    np.testing.assert_allclose(samples.mean((0, 1, 2)), [0, 10, 20], atol=0.2)
    np.testing.assert_allclose(samples.std((0, 1, 2)), 2, rtol=0.05)
    norm = L.Normalization(mean=5.0, variance=9.0)
    samples = noise(norm, L.Dense(2), shape=(4,))
    assert abs(samples.mean() - 5) < 0.3 and abs(samples.std() - 3) < 0.2
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
    samples = noise(*layers, shape=shape)
    assert samples.shape == (200, *shape) and samples.max() > 8
    model = keras.Sequential([keras.Input(shape, name="x"), *layers, L.Flatten(), L.Dense(2)])
    tfc.export_tflite(model, tmp_path / "m.tflite")
    tfc.export_tflite(model, tmp_path / "m.tflite", representative_dataset=samples)


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
        samples = noise_for(model, input_specs(model))["x"]
        assert high / 2 < samples.max() <= high


def test_a_trained_range_tells_as_well():
    model = tfc.quantize(keras.Sequential([keras.Input((4,), name="x"), L.Dense(2)]))
    model(np.linspace(-30, 50, 64).reshape(16, 4).astype("float32"), training=True)
    expected = expected_ranges(model)["x"]
    assert expected.low < -29 and expected.high > 49


def test_the_samples_are_spread_and_none_that_stands_out():
    model = keras.Sequential([keras.Input((4,), name="x"), L.Dense(2)])
    x = np.random.default_rng(0).normal(size=(1000, 4)).astype("float32")
    x[::250] = 1e5
    y = np.arange(1000)
    chosen = probes(model, input_specs(model), {"x": x}, y)
    assert chosen.source == "representative_dataset" and np.abs(chosen.samples["x"]).max() < 10
    np.testing.assert_array_equal(chosen.samples["x"], x[chosen.labels])
    assert chosen.labels.min() < 20 and chosen.labels.max() > 980 and len(chosen.labels) == 512


def test_as_many_as_can_be_afforded():
    small = keras.Sequential([keras.Input((4,)), L.Dense(2)])
    large = keras.Sequential([keras.Input((600, 600, 3)), L.Conv2D(64, 5), L.Conv2D(64, 5)])
    assert (affordable(small), affordable(large)) == (512, 2)


def test_stressed_samples_stay_within_the_values_of_a_position():
    model = keras.Sequential([keras.Input((3,), name="x"), L.Dense(2)])
    x = np.random.default_rng(0).normal(size=(32, 3)).astype("float32") * [1, 10, 100]
    chosen = probes(model, input_specs(model), {"x": x.astype("float32")})
    samples = stressed(chosen, 64)["x"]
    assert samples.shape == (64, 3) and (samples.min(0) >= x.min(0) - 1e-4).all()
    extreme = np.isclose(samples[32:], x.min(0)) | np.isclose(samples[32:], x.max(0))
    assert extreme.all()
    noise_samples = stressed(probes(model, input_specs(model), None), 64)["x"]
    assert noise_samples.max() > 3 and noise_samples.min() < -3
