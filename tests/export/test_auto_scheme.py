"""scheme="auto": the smallest file within a tolerance."""

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tfcompress.export.auto_scheme import advice


@pytest.fixture(scope="module")
def steep():
    """A network with one channel of forty times the others, and its samples."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12,), name="x")
    x = keras.layers.Dense(16, activation="relu", name="before")(inputs)
    x = keras.layers.Dense(16, name="outliers")(x)
    x = keras.layers.Dense(16, activation="relu", name="after")(x)
    model = keras.Model(inputs, keras.layers.Dense(4, name="head")(x))
    for name, index, factor in (("outliers", (slice(None), 0), 40), ("after", 0, 1 / 40)):
        kernel = np.array(model.get_layer(name).kernel)
        kernel[index] *= factor
        model.get_layer(name).kernel.assign(kernel)
    return model, np.random.default_rng(0).uniform(-1, 1, (512, 12)).astype("float32")


def rmse(path, model, x):
    wanted = model.predict(x, verbose=0)
    return np.sqrt(np.mean((tfc.TFLiteModel(path).predict(x) - wanted) ** 2)) / wanted.std()


def auto(model, x, tmp_path, **options):
    path = tmp_path / "m.tflite"
    return tfc.export_tflite(model, path, scheme="auto", representative_dataset=x, **options)


def test_int8_where_it_is_enough(trained, fashion, tmp_path):
    model, x = trained("conv")[0], fashion[0][:128]
    result = auto(model, x, tmp_path, max_rmse=0.1)
    assert result.scheme == "int8" and [t.scheme for t in result.trials] == ["int8"]
    assert rmse(result.path, model, fashion[2]) < 0.1


def test_the_smallest_of_those_within_the_tolerance(steep, quiet, tmp_path):
    model, x = steep
    result = auto(model, x, tmp_path, max_rmse=0.02)
    within = [t for t in result.trials if t.rmse is not None and t.rmse <= 0.02]
    assert result.trials[0].scheme == "int8" and result.trials[0] not in within
    assert result.bytes == min(t.bytes for t in within)
    other = np.random.default_rng(1).uniform(-1, 1, (512, 12)).astype("float32")
    assert rmse(result.path, model, other) < 0.04


def test_the_noisiest_layers_get_16_bits(steep, quiet, tmp_path):
    model, x = steep
    result = auto(model, x, tmp_path, max_rmse=1e-3)  # so that all are tried
    named = {t.scheme: t.rmse for t in result.trials}
    assert named["int8, 2 layers int16x8"] < 0.6 * named["int8"]
    assert result.scheme == "float16"


def test_a_drop_of_accuracy(trained, fashion, tmp_path):
    model, (x, y, x_test, y_test) = trained("conv")[0], fashion
    result = auto(model, (x[:256], y[:256]), tmp_path, max_drop=0.02)
    found = tfc.TFLiteModel(result.path).predict(x_test).argmax(-1)
    wanted = model.predict(x_test, verbose=0).argmax(-1)
    assert np.mean(wanted == y_test) - np.mean(found == y_test) < 0.03


def test_nothing_within_the_tolerance(steep, quiet, tmp_path):
    with pytest.raises(tfc.ExportError, match=r"max_rmse=1e-12.*int8: RMSE.*float16: RMSE"):
        auto(*steep, tmp_path, max_rmse=1e-12)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "auto"}, "needs a tolerance"),
        ({"scheme": "auto", "max_drop": 0.1}, "needs labels"),
        ({"scheme": "auto", "max_rmse": -1}, "at least 0"),
        ({"scheme": "int8", "max_rmse": 0.1}, "are for scheme='auto'"),
    ],
)
def test_mistakes(steep, options, message, tmp_path):
    model, x = steep
    with pytest.raises(ValueError, match=message):
        tfc.export_tflite(model, tmp_path / "m.tflite", representative_dataset=x, **options)


def test_advice_names_the_layer_to_blame_and_what_works(steep, quiet):
    model, x = steep
    arguments = {"input_shape": None, "verbose": False}
    text = advice(tfc.export_tflite, model, {"x": x}, arguments)
    assert text.split("'")[1] in ("outliers", "after")
    assert "int16x8" in text and "RMSE" in text


def test_a_coarse_file_is_refused_with_advice(quiet, tmp_path):
    """Two channels, one ten thousand times the other: int8 loses the small one that counts."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((2,))
    x = keras.layers.Dense(2, use_bias=False, name="apart")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1, use_bias=False, name="sum")(x))
    model.set_weights([np.diag([1e4, 1.0]), np.array([[0.0], [1.0]])])
    x = np.random.default_rng(0).normal(size=(64, 2)).astype("float32")
    with pytest.raises(tfc.ExportError, match=r"around 'apart'.*float16: RMSE"):
        tfc.export_tflite(model, tmp_path / "m.tflite", representative_dataset=x)
