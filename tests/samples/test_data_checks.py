"""Implausible samples give warnings before ranges are measured on them."""

import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tfcompress.graph.keras_internals import producing_operation
from tfcompress.samples.data_checks import problems_of
from tfcompress.samples.probes import far_samples

X = np.random.default_rng(0).normal(size=(500, 6)).astype("float32")


def net():
    keras.utils.set_random_seed(0)
    layers = [L.Dense(8, activation="relu"), L.Dense(3)]
    return keras.Sequential([keras.Input((6,), name="x"), *layers])


def problems(x, model=None):
    model = model or net()
    return problems_of(model, {producing_operation(model.inputs[0]).name: x})


def test_samples_that_tell_nothing(tmp_path):
    with pytest.warns(tfc.CompressionWarning, match=r"All values of input 'x' .* are 0"):
        tfc.export_tflite(net(), tmp_path / "m.tflite", representative_dataset=X[:64] * 0)


def test_usual_samples_are_fine():
    assert problems(X) == []
    assert problems(np.random.default_rng(0).random((16, 6)).astype("float32")) == []
    assert (
        problems(np.eye(6, dtype="float32")[np.arange(64) % 6]) == []
    )  # categories: most values are zero
    rare = np.zeros((500, 6), "float32")
    rare[::50, 2] = 30.0
    assert problems(rare + 0.01 * X) == []  # a tenth of the samples is not an outlier


def test_few_and_repeated_samples():
    (problem,) = problems(X[:15])
    assert "has 15 samples" in problem
    (problem,) = problems(np.tile(X[:9], (6, 1)))
    assert "54 samples, of which only 9 are distinct" in problem


def test_outliers_are_found_by_their_feature():
    """A value that is usual in one column, and beyond all others in another."""
    x = X * [1, 1000, 1, 1, 1, 1]
    x[7, 0] = 500
    (problem,) = problems(x.astype("float32"))
    assert "in 1 of 500 samples" in problem and "'auto'" in problem
    assert np.flatnonzero(far_samples(x.astype("float32"))).tolist() == [7]


def test_images_of_another_scale():
    image = np.random.default_rng(0).random((32, 8, 8, 3)).astype("float32")

    def model(*first):
        return keras.Sequential([keras.Input((8, 8, 3)), *first, L.Conv2D(4, 3), L.Flatten()])

    assert problems(image * 255, model(L.Rescaling(1 / 255))) == []
    (problem,) = problems(image, model(L.Rescaling(1 / 255)))
    assert "from 5" in problem or "expects about 0 to 255" in problem
    norm = L.Normalization(mean=[0.5, 0.4, 0.3], variance=[0.08, 0.07, 0.06])
    assert problems(image, model(norm)) == []
    assert len(problems(image * 255, model(norm))) == 1
    assert problems(image * 255, model()) == []  # no layer expects a range


def test_statistics_behind_the_first_convolution_tell():
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).random((64, 8, 8, 3)).astype("float32")
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), L.Conv2D(4, 3), L.BatchNormalization(momentum=0.5), L.Flatten()]
    )
    assert problems(x * 255, model) == []  # not trained yet
    model.compile("sgd", "mse")
    model.fit(x, np.zeros((64, 144)), epochs=4, verbose=0)
    assert problems(x, model) == []
    (problem,) = problems(x * 255, model)
    assert "BatchNormalization reads" in problem and "Prepare the samples as in training" in problem


def test_a_range_that_an_outlier_does_not_ruin(tmp_path):
    wild = X.copy()
    wild[250] = 1e4
    with (
        pytest.warns(tfc.CompressionWarning, match="reaches 10000 in 1 of 500 samples"),
        pytest.raises(tfc.ExportError, match="3 of the 3 channels"),
    ):
        tfc.export_tflite(net(), tmp_path / "m.tflite", representative_dataset=wild)
    assert not list(tmp_path.iterdir())
    scheme = tfc.QuantizationScheme(activation_range="auto")
    with pytest.warns(tfc.CompressionWarning, match="reaches 10000"):
        result = tfc.export_tflite(
            net(), tmp_path / "m.tflite", scheme=scheme, representative_dataset=wild
        )
    assert result.agreement.rmse < 0.03


def test_channels_that_are_lost_beside_others(tmp_path):
    inputs = keras.Input((6,))
    parts = [L.Dense(3)(inputs) * 100.0, L.Dense(3, activation="sigmoid")(inputs)]
    model = keras.Model(inputs, L.Concatenate(name="both")(parts))
    with pytest.raises(tfc.ExportError, match=r"output 'both' \(the first is 3\)"):
        tfc.export_tflite(model, tmp_path / "m.tflite", representative_dataset=X)
    apart = keras.Model(inputs, parts)
    tfc.export_tflite(apart, tmp_path / "m.tflite", representative_dataset=X)
