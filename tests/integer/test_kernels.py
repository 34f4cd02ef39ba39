"""Models with the reference kernels' arithmetic, beside tflite-micro, which has these kernels."""

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tests import test_layers
from tfcompress.graph.read import output_names
from tfcompress.graph.run import outputs_of
from tfcompress.integer import int64_fixed_point
from tfcompress.integer.kernels import ReferenceKernels
from tfcompress.post_training.pipeline import post_training
from tfcompress.quantization.state import quantizers

SCHEME = tfc.QuantizationScheme(activation_range="min_max", correct_bias=False, kernels="reference")
FEW = (
    "DepthwiseConv2D; MultiHeadAttention; LayerNormalization; PReLU; LeakyReLU; silu; hard_swish; "
    "tanh; Multiply three; Subtract; UpSampling2D bilinear; GRU; EinsumDense"
).split("; ")
INEXACT = ("Maximum", "Minimum")
"""Layers whose accumulators the model does not follow, with XNNPACK's kernels neither."""


def equal_on_micro(name, tmp_path):
    """Returns the share of values that are equal on tflite-micro, None if it cannot run them."""
    path = tmp_path / "m.tflite"
    model, data = test_layers.exported(name, SCHEME, path)
    few = {key: value[:16] for key, value in data.items()}
    result = tfc.run_micro(path, few)
    if result.missing:
        return None
    names = output_names(model)
    outputs = result.outputs if isinstance(result.outputs, dict) else {names[0]: result.outputs}
    expected = outputs_of(post_training(model, SCHEME, data), few)
    pairs = [(e, outputs[n].reshape(e.shape)) for n, e in zip(names, expected, strict=True)]
    return np.concatenate([np.ravel(np.isclose(a, b, 0, 1e-6)) for a, b in pairs]).mean()


@pytest.mark.parametrize("name", FEW)
def test_a_layer_equals_its_file_on_tflite_micro(name, tmp_path):
    pytest.importorskip("tflite_micro")
    assert equal_on_micro(name, tmp_path) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in test_layers.INTEGER if name not in FEW])
def test_every_other_layer(name, tmp_path):
    pytest.importorskip("tflite_micro")
    share = equal_on_micro(name, tmp_path)
    if share is not None:  # else tests/devices/test_sweep.py says what is missing
        assert share > 0.99 if name in INEXACT else share == 1


def test_a_trained_model_keeps_its_kernels(tmp_path):
    """Saved, loaded, exported and checked with them."""
    pytest.importorskip("tflite_micro")
    inputs = keras.Input((12, 12, 3))
    x = keras.layers.Conv2D(6, 3, activation="swish")(inputs)
    x = keras.layers.LSTM(5)(keras.layers.Reshape((10, 60))(x))
    model = tfc.quantize(keras.Model(inputs, keras.layers.Dense(3, "softmax")(x)), SCHEME)
    assert {q.kernels for q in quantizers(model)} == {"reference"}
    x = np.random.default_rng(0).normal(size=(64, 12, 12, 3)).astype("float32")
    model.compile("adam", "mse")
    model.fit(x, np.zeros((64, 3)), verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    result = tfc.export_tflite(loaded, tmp_path / "m.tflite")
    assert result.agreement.kernels.startswith("tflite-micro") and result.agreement.max_lsb == 0
    on_micro = tfc.run_micro(result.path, x).outputs
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), on_micro)
    assert (tfc.TFLiteModel(result.path).predict(x) != on_micro).any()  # other kernels


def test_ties_of_floats():
    x = keras.ops.convert_to_tensor([-1.5, -0.5, 0.5, 1.5, 2.4])
    rounded = ReferenceKernels().quantize(x, keras.ops.ones(()))
    assert np.asarray(rounded).tolist() == [-2, -1, 1, 2, 2]


def test_scheme():
    assert tfc.QuantizationScheme(kernels="reference").prefer == "exactness"
    with pytest.raises(ValueError, match="kernels must be one of 'xnnpack', 'reference'"):
        tfc.QuantizationScheme(kernels="micro")
    with pytest.raises(ValueError, match="kernels='reference' needs 8-bit activations"):
        tfc.QuantizationScheme(kernels="reference", overrides={"*": "int16x8"})


def test_jax_is_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="not possible on JAX, which has no 64-bit integers"):
        tfc.quantize(model, SCHEME, check=False)
    with pytest.raises(RuntimeError, match="predict and evaluate it on TensorFlow or PyTorch"):
        int64_fixed_point.double(1.0)
