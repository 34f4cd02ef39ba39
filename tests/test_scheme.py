import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tfcompress.scheme import as_scheme

BAD = {
    "bits": (dict(weight_bits=5), ValueError, "weight_bits must be 8 or 4"),
    "range": (dict(weight_range="minmax"), ValueError, "Did you mean 'min_max'"),
    "activations": (dict(activation_range="percentil"), ValueError, "Did you mean 'percentile'"),
    "rounding": (dict(rounding="adaraund"), ValueError, "Did you mean 'adaround'"),
    "overrides": (dict(overrides=["a"]), TypeError, "overrides must be a dict"),
    "override": (dict(overrides={"a": "int9"}), ValueError, r"overrides\['a'\].*'int8'"),
}


@pytest.mark.parametrize(("options", "kind", "message"), BAD.values(), ids=BAD)
def test_bad_fields(options, kind, message):
    with pytest.raises(kind, match=message):
        tfc.QuantizationScheme(**options)


def test_names_stand_for_schemes():
    assert as_scheme("int8") == tfc.QuantizationScheme()
    assert as_scheme("w4a8").weight_bits == 4 and as_scheme("w4a8").name == "w4a8"
    with pytest.raises(ValueError, match="Did you mean 'w4a8'"):
        as_scheme("w4a16")


def net():
    keras.utils.set_random_seed(0)
    stack = [L.Conv2D(8, 3, name="a"), L.ReLU(), L.DepthwiseConv2D(3, name="b"), L.ReLU()]
    return keras.Sequential(
        [
            keras.Input((10, 10, 3)),
            *stack,
            L.Conv2D(7, 3, name="c"),
            L.Flatten(),
            L.Dense(5, name="d"),
        ]
    )


X = np.random.default_rng(0).normal(size=(64, 10, 10, 3)).astype("float32")


@pytest.mark.parametrize("weight_range", ["min_max", "mse", "learned"])
@pytest.mark.parametrize("activation_range", [None, "learned"])
def test_four_bits_train_and_are_exact(weight_range, activation_range, tmp_path):
    model = net()
    scheme = tfc.QuantizationScheme(4, weight_range, activation_range, prefer="bytes")
    aware = tfc.quantize(model, scheme)
    aware.compile(keras.optimizers.Adam(1e-3), "mse")
    aware.fit(X, model.predict(X, verbose=0), epochs=3, verbose=0)
    names = {w.path.split("/")[-1] for w in aware.trainable_weights}
    assert ("clip" in names) == (weight_range == "learned")
    assert ("range" in names) == (activation_range == "learned")
    result = tfc.export_tflite(aware, tmp_path / "m.tflite")
    assert result.scheme == "w4a8" and result.float_tensors == []
    # The scale of biases is input scale times weight scale, which is coarse with 4 bits.
    assert result.agreement.max_lsb <= 3.01
    eight = tfc.export_tflite(model, tmp_path / "8.tflite", scheme="int8", representative_dataset=X)
    # All but the 72 depthwise weights take half a byte.
    saved = (model.count_params() - 72 - 8 - 8 - 7 - 5) / 2
    # Which is which: those of the depthwise convolution keep 8 bits.
    assert result.report.weight_bytes == {"int4": saved, "int8": 72}
    assert "int4" in str(result)
    assert saved - 300 <= eight.bytes - result.bytes <= saved + 400


def kernel_scales(path):
    details = tfc.TFLiteModel(path, delegates=False).interpreter.get_tensor_details()
    return [len(d["quantization_parameters"]["scales"]) for d in details if d["name"]]


@pytest.mark.filterwarnings("ignore:.*poor copy")  # of the float model, with 4 bits
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("bits", [8, 4])
def test_one_scale_for_all_of_a_kernel(bits, trained, tmp_path):
    model = net()
    scheme = tfc.QuantizationScheme(bits, weight_granularity="tensor")
    path = tmp_path / "m.tflite"
    if trained:
        model = tfc.quantize(model, scheme)
        model.compile("adam", "mse")
        model.fit(X, np.zeros((64, 5)), epochs=2, verbose=0)
        result = tfc.export_tflite(model, path)
    else:
        inputs = keras.Input((10, 10, 3))
        model = keras.Model(inputs, model(L.BatchNormalization()(L.Conv2D(3, 1)(inputs))))
        result = tfc.export_tflite(model, path, scheme=scheme, representative_dataset=X)
    assert result.float_tensors == []
    assert result.agreement.max_lsb <= 2.01 or not trained
    assert max(kernel_scales(path)) == 1


def test_one_scale_for_all_is_refused_where_channels_have_their_own(tmp_path):
    scheme = tfc.QuantizationScheme(weight_granularity="tensor")
    normalized = keras.Sequential(
        [keras.Input((4,)), L.Dense(3, name="dense"), L.BatchNormalization(name="n")]
    )
    with pytest.raises(ValueError, match="not possible with 'n'"):
        tfc.quantize(normalized, scheme)
    folded = tfc.quantize(tfc.fold_batch_norm(normalized), scheme)
    assert [layer.name for layer in folded.layers if hasattr(layer, "layer")] == ["dense"]
    first = keras.Sequential([keras.Input((4,)), L.BatchNormalization(name="n"), L.Dense(3)])
    with pytest.raises(ValueError, match="not possible with 'n'"):
        tfc.export_tflite(
            first, tmp_path / "m.tflite", scheme=scheme, representative_dataset=np.eye(16, 4)
        )
    mixed = tfc.QuantizationScheme(weight_granularity="tensor", overrides={"d": "int8"})
    with pytest.raises(ValueError, match="whole file"):
        tfc.quantize(net(), mixed)


def test_overrides_leave_layers_in_float(tmp_path):
    model = net()
    scheme = tfc.QuantizationScheme(overrides={"c": "float32", "a": "w4a8"})
    result = tfc.export_tflite(
        model, tmp_path / "m.tflite", scheme=scheme, representative_dataset=X
    )
    assert result.ops["NEG"] == 1 and result.agreement.rmse < 0.2
    assert any("c" in name for name in result.float_tensors)
    aware = tfc.quantize(model, scheme)
    aware.compile("sgd", "mse")
    aware.fit(X, model.predict(X, verbose=0), verbose=0)
    trained = tfc.export_tflite(aware, tmp_path / "m.tflite")
    assert trained.ops["NEG"] == 1 and trained.agreement.max_lsb <= 2.01
    with pytest.raises(ValueError, match=r"overrides\['cc'\]='cc' matches no layer"):
        tfc.quantize(model, tfc.QuantizationScheme(overrides={"cc": "float32"}))


def test_a_trained_model_keeps_its_scheme(tmp_path):
    aware = tfc.quantize(net(), "w4a8")
    with pytest.raises(ValueError, match="not what this model was trained for"):
        tfc.export_tflite(aware, tmp_path / "m.tflite", scheme="int8")


def test_learned_ranges_are_refused_on_jax(monkeypatch):
    """There they would keep the values from before the first batch."""
    model = net()
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ValueError, match="activation_range='learned' is not possible on JAX"):
        tfc.quantize(model, tfc.QuantizationScheme(activation_range="learned"))
