"""Files on tflite-micro, beside LiteRT and numpy."""

import json

import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tests.cli.conftest import done, run
from tests.devices.conftest import export
from tfcompress.devices import micro

pytest.importorskip("tflite_micro")


def test_outputs_are_those_of_litert_within_two_lsb(integer_file):
    """The kernels of MEAN differ by one, which the dense layer behind it can double."""
    path, x = integer_file
    result = tfc.run_micro(path, x[:20])
    model = tfc.TFLiteModel(path)
    (info,) = model.outputs
    assert result.missing == {} and result.quantized.dtype == np.int8
    assert np.abs(result.outputs - model.predict(x[:20])).max() < 2.01 * info.scale
    assert len(np.unique(result.quantized)) > 10


def test_a_dense_layer_in_numpy(tmp_path):
    """The fixed-point arithmetic of the reference kernel, in integers of numpy."""

    def outputs_of(x):
        return L.Dense(5)(x)

    path, x = export(tmp_path / "m.tflite", outputs_of, (16,), scheme="int8", io_dtype="int8")
    model = tfc.TFLiteModel(path)
    details = {d["name"]: d for d in model.interpreter.get_tensor_details()}
    (source,), (target,) = model.inputs, model.outputs
    weights = next(d for d in details.values() if tuple(d["shape"]) == (5, 16))
    bias = next(d for d in details.values() if tuple(d["shape"]) == (5,))
    w, b = (model.interpreter.get_tensor(d["index"]).astype(np.int64) for d in (weights, bias))
    scales = np.asarray(weights["quantization_parameters"]["scales"], np.float64)
    accumulators = (source.quantized(x).astype(np.int64) - source.zero_point) @ w.T + b
    expected = np.stack(
        [
            [
                requantized(int(a), source.scale * s / target.scale)
                for a, s in zip(row, scales, strict=True)
            ]
            for row in accumulators
        ]
    )
    expected = np.clip(expected + target.zero_point, -128, 127)
    np.testing.assert_array_equal(tfc.run_micro(path, x).quantized, expected)


def requantized(accumulator, multiplier):
    """Times a multiplier of 31 bits, rounded; then a right shift, rounded away from zero."""
    fraction, exponent = np.frexp(multiplier)
    fixed = int(np.round(fraction * 2**31))
    high = (accumulator * fixed + (1 << 30 if accumulator >= 0 else 1 - (1 << 30))) / 2**31
    high = int(np.trunc(high))
    shift = -int(exponent)
    mask = (1 << shift) - 1
    remainder, threshold = high & mask, (mask >> 1) + (high < 0)
    return (high >> shift) + (remainder > threshold)


def test_working_memory_is_what_the_runtime_allocates(integer_file, tmp_path):
    """Twice the pixels need twice the memory, about; the runtime's own part stays."""
    arenas = [
        tfc.run_micro(export(tmp_path / "m.tflite", conv, (side, side, 8), io_dtype="int8")[0])
        for side in (16, 32)
    ]
    small, large = (result.arena_bytes for result in arenas)
    assert 16 * 16 * 16 < small < large < 4.2 * small and large > 32 * 32 * 16


def conv(x):
    return L.Conv2D(8, 3, padding="same")(x)


def test_several_inputs_and_outputs(tmp_path):
    keras.utils.set_random_seed(0)
    a, b = keras.Input((6,), name="a"), keras.Input((4,), name="b")
    joined = L.Dense(8, activation="relu")(L.Concatenate()([a, b]))
    model = keras.Model([b, a], {"one": L.Dense(3)(joined), "two": L.Dense(2)(joined)})
    generator = np.random.default_rng(0)
    x = {
        name: generator.normal(size=(128, n)).astype("float32") for name, n in (("a", 6), ("b", 4))
    }
    path = tfc.export_tflite(model, tmp_path / "m.tflite", representative_dataset=x).path
    result, expected = tfc.run_micro(path, x), tfc.TFLiteModel(path).predict(x)
    assert result.outputs.keys() == expected.keys() == {"one", "two"}
    for name, value in expected.items():
        assert np.abs(result.outputs[name] - value).max() < 0.02 * np.ptp(value)


def test_a_fixed_batch(tmp_path):
    path, x = export(tmp_path / "m.tflite", lambda x: L.Dense(3)(x), (5,), batch_size=4)
    result = tfc.run_micro(path, x[:10])
    assert result.outputs.shape == (10, 3)
    np.testing.assert_allclose(result.outputs, tfc.TFLiteModel(path).predict(x[:10]), atol=0.05)


def test_missing_operations_are_named(gelu_file):
    result = tfc.run_micro(gelu_file, np.zeros((1, 12, 12, 8)))
    assert result.missing == {"GELU": "no kernel"}
    assert result.outputs is None and result.arena_bytes is None
    assert "no kernel" in str(result) and "does not run" in str(result)


def test_bad_input(integer_file, tmp_path, monkeypatch):
    path, _ = integer_file
    with pytest.raises(FileNotFoundError):
        tfc.run_micro(tmp_path / "none.tflite")
    with pytest.raises(ValueError, match="shape"):
        tfc.run_micro(path, np.zeros((1, 5)))
    child = tmp_path / "child.py"
    child.write_text("import os, sys; sys.stdin.buffer.read(); os.abort()")
    with monkeypatch.context() as patch:
        patch.setattr(micro, "_CHILD", child)
        with pytest.raises(ValueError, match="crashes tflite-micro"):
            tfc.run_micro(path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"tfcompress\[micro\]"):
        tfc.run_micro(path)


def test_the_command(integer_file, gelu_file):
    shown = json.loads(done("micro", integer_file[0], "--json").stdout)
    assert shown["arena_bytes"] > 1000 and shown["operations"]["CONV_2D"] == 1
    refused = run("micro", gelu_file)
    assert refused.exit_code == 1 and "no kernel" in refused.stdout
