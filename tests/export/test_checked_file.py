"""On which runtime a file is compared with its model."""

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tfcompress.export import checked_file

pytest.importorskip("tflite_micro")


def trained(kernels):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((10, 10, 3))
    x = keras.layers.Conv2D(8, 3, activation="tanh")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))
    model = tfc.quantize(model, tfc.QuantizationScheme(kernels=kernels))
    x = np.random.default_rng(0).normal(size=(128, 10, 10, 3)).astype("float32")
    model.compile("adam", "sparse_categorical_crossentropy")
    y = np.random.default_rng(1).integers(0, 3, 128)
    model.fit(x, y, verbose=0)
    return model, x, y


def test_a_model_like_the_reference_kernels_is_compared_on_tflite_micro(tmp_path):
    model, x, y = trained("reference")
    result = tfc.export_tflite(model, tmp_path / "m.tflite", representative_dataset=(x, y))
    assert result.agreement.kernels.startswith("tflite-micro")
    assert (result.agreement.max_lsb, result.agreement.samples) == (0, 16)
    assert result.accuracy.samples > 16  # on the fast kernels
    model, x, y = trained("xnnpack")
    result = tfc.export_tflite(model, tmp_path / "m.tflite")
    assert not result.agreement.kernels.startswith("tflite-micro")


def test_without_tflite_micro_other_kernels_may_differ(tmp_path, monkeypatch):
    model, _, _ = trained("reference")
    monkeypatch.setattr(checked_file, "is_installed", lambda module: False)
    result = tfc.export_tflite(model, tmp_path / "m.tflite")
    assert "litert" in result.agreement.kernels and result.agreement.max_lsb <= 2


def test_a_wrong_file_is_refused_on_tflite_micro(tmp_path, monkeypatch):
    model, _, _ = trained("reference")
    run_micro = checked_file.run_micro

    def wrong(*arguments):
        result = run_micro(*arguments)
        if result.outputs is not None:
            result.outputs[:, 0] += 0.2
        return result

    monkeypatch.setattr(checked_file, "run_micro", wrong)
    with pytest.raises(tfc.ExportError, match="does not compute what its model computes"):
        tfc.export_tflite(model, tmp_path / "m.tflite")
    assert not [*tmp_path.iterdir()]
