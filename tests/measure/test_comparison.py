import keras
import numpy as np
import pytest

import tfcompress as tfc
from tests import nets


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    model = nets.tiny()
    x = nets.samples_for(model, 64)
    y = model.predict(x, verbose=0).argmax(-1)
    tfc.export_tflite(model, folder / "int8.tflite", representative_dataset=x)
    model.save(folder / "model.keras")
    return model, folder, x, y


def test_models_and_files_side_by_side(models):
    model, folder, x, y = models
    aware = tfc.quantize(model)
    aware(x, training=True)
    comparison = tfc.compare(
        {
            "float": model,
            "aware": aware,
            "saved": folder / "model.keras",
            "phone": str(folder / "int8.tflite"),
            "open file": tfc.TFLiteModel(folder / "int8.tflite"),
        },
        x,
        y,
        runs=10,
    )
    kinds = [row.kind for row in comparison.rows]
    assert kinds == ["keras", "keras", "keras", "tflite", "tflite"]
    assert comparison["float"].accuracy == comparison["saved"].accuracy == 1.0
    assert comparison["phone"].accuracy > 0.9 and comparison["aware"].accuracy > 0.9
    assert comparison["float"].bytes == comparison["saved"].bytes
    assert comparison["phone"].bytes == (folder / "int8.tflite").stat().st_size
    assert all(row.latency_ms > 0 for row in comparison.rows)
    text = str(comparison)
    assert "100.00%" in text and "phone" in text and "1.00x" in text
    with pytest.raises(KeyError, match="'none'; there are 'float'"):
        comparison["none"]


def test_without_data_there_is_no_accuracy(models):
    comparison = tfc.compare({"float": models[0]}, runs=3)
    assert comparison.rows[0].accuracy is None and "-" in str(comparison)


def test_labelled_datasets(models):
    import tensorflow as tf

    model, _, x, y = models
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    assert tfc.compare({"float": model}, dataset, runs=3)["float"].accuracy == 1.0


def test_bad_input_is_named(models, tmp_path):
    model, _, x, y = models
    with pytest.raises(ValueError, match="non-empty dict"):
        tfc.compare({})
    with pytest.raises(TypeError, match=r"models\['a'\] must be"):
        tfc.compare({"a": 3})
    with pytest.raises(FileNotFoundError, match="No such file"):
        tfc.compare({"a": tmp_path / "none.tflite"})
    with pytest.raises(ValueError, match="y is missing"):
        tfc.compare({"a": model}, x)
    with pytest.raises(ValueError, match="3 labels for 64 samples"):
        tfc.compare({"a": model}, x, y[:3])
    unsafe = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda t: t + 1)])
    unsafe.save(tmp_path / "unsafe.keras")
    with pytest.raises(ValueError, match="holds Python code"):
        tfc.compare({"a": tmp_path / "unsafe.keras"})
    assert np.isfinite(x).all()
