import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import tfcompress as tfc

SHAPES = {"vectors": (12,), "series": (6, 12), "images": (5, 5, 4), "volumes": (3, 3, 3, 4)}


def scaled(kind, shape):
    """Returns a model that scales vectors to unit length, and samples, zeros among them."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape)
    x = L.Dense(8, use_bias=False)(inputs)
    if kind == "function":
        x = ops.normalize(x)
    elif kind == "another axis":
        x = L.UnitNormalization(axis=1)(x)
    elif kind == "all axes":
        x = L.UnitNormalization(axis=[*range(1, len(shape) + 1)])(x)
    else:
        x = L.UnitNormalization()(x)
    samples = np.random.default_rng(0).normal(size=(64, *shape)).astype("float32")
    samples[::8] = 0
    return keras.Model(inputs, x), samples


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["layer", "function", "another axis"])
def test_vectors_of_length_one_are_integers(kind, shape, tmp_path):
    model, x = scaled(kind, SHAPES[shape])
    aware = tfc.quantize(model)
    aware(x, training=True)
    result = tfc.export_tflite(aware, tmp_path / "m.tflite", representative_dataset=x)
    assert result.float_tensors == [] and result.ops["L2_NORMALIZATION"] == 1
    assert result.agreement.max_lsb <= 1.01
    measured = tfc.export_tflite(model, tmp_path / "p.tflite", representative_dataset=x)
    assert measured.float_tensors == [] and measured.agreement.rmse < 0.05


@pytest.mark.parametrize("kind", ["layer", "function", "another axis", "all axes"])
def test_zeros_stay_zeros_in_files_of_floats(kind, tmp_path):
    """With the Keras form, the converter makes them NaN."""
    model, x = scaled(kind, (6, 12))
    tfc.export_tflite(model, tmp_path / "m.tflite")
    outputs = tfc.TFLiteModel(tmp_path / "m.tflite").predict(x)
    np.testing.assert_allclose(outputs, model.predict(x, verbose=0), atol=1e-6)
    assert not outputs[0].any()


def test_several_axes_stay_in_float(tmp_path):
    model, x = scaled("all axes", (6, 12))
    result = tfc.export_tflite(model, tmp_path / "m.tflite", representative_dataset=x)
    assert result.float_tensors != [] and result.agreement.rmse < 0.05
