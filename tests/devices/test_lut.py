"""Weights as indices into tables: the same outputs, on tflite-micro alone."""

import json

import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tests.cli.conftest import done
from tests.devices.conftest import export
from tfcompress.devices import lut
from tfcompress.devices.micro_file import MicroFile
from tfcompress.tflite.run import DECODE

pytest.importorskip("tflite_micro")


def clustered(per_channel, count):
    """Returns a function that adds layers whose kernels have few values."""

    def outputs_of(x):
        y = L.Conv2D(64, 3, activation="relu", name="conv")(x)
        y = L.Dense(64, name="dense")(L.GlobalAveragePooling2D()(y))
        model = tfc.strip(tfc.cluster(keras.Model(x, y), count, per_channel=per_channel))
        return model(x)

    return outputs_of


@pytest.mark.parametrize("per_channel", [False, True])
def test_the_file_shrinks_and_computes_the_same(per_channel, tmp_path):
    granularity = "channel" if per_channel else "tensor"
    scheme = tfc.QuantizationScheme(prefer="exactness", weight_granularity=granularity)
    path, x = export(
        tmp_path / "m.tflite", clustered(per_channel, 4), scheme=scheme, io_dtype="int8"
    )
    result = tfc.compress_lut(path, tmp_path / "lut.tflite")
    assert result.bytes == (tmp_path / "lut.tflite").stat().st_size < result.bytes_before - 500
    assert set(result.weights.values()) == {2} and len(result.weights) == 2
    assert result.arena_bytes > result.arena_bytes_before
    before, after = tfc.run_micro(path, x[:30]), tfc.run_micro(result.path, x[:30])
    np.testing.assert_array_equal(before.quantized, after.quantized)
    assert len(np.unique(after.quantized)) > 20
    assert after.operations[DECODE] == 2 and "before" in str(result)
    source, header = tfc.write_c_source(result.path, tmp_path / "lut.c")
    assert "AddDecode" in header.read_text() and source.exists()


def test_other_runtimes_refuse_it(tmp_path):
    scheme = tfc.QuantizationScheme(weight_granularity="tensor", prefer="exactness")
    path, _ = export(tmp_path / "m.tflite", clustered(False, 8), scheme=scheme, io_dtype="int8")
    file = done("compress-lut", path, "-o", tmp_path / "lut.tflite", "--json")
    assert json.loads(file.stdout)["weights"]
    with pytest.raises(ValueError, match=r"compressed for tflite-micro.*use run_micro"):
        tfc.TFLiteModel(tmp_path / "lut.tflite")
    pytest.importorskip("ethosu")
    with pytest.raises(ValueError, match=r"compressed for tflite-micro.*Vela"):
        tfc.compile_ethos_u(tmp_path / "lut.tflite")


def test_weights_of_many_values_stay(integer_file, tmp_path):
    with pytest.raises(ValueError, match=r"few enough values to pay.*cluster"):
        tfc.compress_lut(integer_file[0], tmp_path / "lut.tflite")
    assert not list(tmp_path.iterdir())


def test_a_form_that_is_larger_is_not_written(tmp_path, monkeypatch):
    """The tools of tflite-micro write some hundred bytes more for each operator."""
    monkeypatch.setattr(lut, "_OVERHEAD", 0)
    scheme = tfc.QuantizationScheme(prefer="exactness", weight_granularity="tensor")
    path, _ = export(
        tmp_path / "m.tflite",
        lambda x: L.Dense(4)(L.Dense(12, kernel_initializer="ones")(x)),
        (12,),
        scheme=scheme,
        io_dtype="int8",
    )
    with pytest.raises(ValueError, match="bytes more"):
        tfc.compress_lut(path, tmp_path / "lut.tflite")
    assert not (tmp_path / "lut.tflite").exists()


def test_bits_and_tables_that_take_the_fewest_bytes():
    values = np.tile(np.arange(16, dtype=np.int8), (8, 100))
    assert lut._bits(values, None) == (4, None) == lut._bits(values, 0)
    shifted = (values + 20 * np.arange(8, dtype=np.int8)[:, None]).astype(np.int8)
    assert lut._bits(shifted, 0) == (4, 0)  # 16 values in each of eight channels, 128 in all
    assert lut._bits(shifted, None) == (7, None)
    assert lut._bits(values[:, :8], None) == (None, None)  # does not pay


def test_a_form_that_computes_otherwise_is_not_written(tmp_path, monkeypatch):
    scheme = tfc.QuantizationScheme(weight_granularity="tensor", prefer="exactness")
    path, _ = export(tmp_path / "m.tflite", clustered(False, 8), scheme=scheme, io_dtype="int8")
    wrong = export(tmp_path / "w.tflite", clustered(False, 4), scheme=scheme, io_dtype="int8")[0]
    other = MicroFile(tfc.compress_lut(wrong, tmp_path / "other.tflite").path).content
    monkeypatch.setattr(lut, "_compressed", lambda file: (other, {"w": 1}))
    with pytest.raises(tfc.ExportError, match="does not compute the same"):
        tfc.compress_lut(path, tmp_path / "lut.tflite")
    assert not (tmp_path / "lut.tflite").exists()
