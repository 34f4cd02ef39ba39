"""`export_tflite(benchmark=True)`, and the warning of files that are slower than in float."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tests import nets
from tfcompress.export.latency import Latency, slower_than_float


@pytest.mark.parametrize("wrap", [False, True])
def test_both_files_are_measured(wrap, tmp_path):
    model = nets.tiny()
    data = np.random.default_rng(0).normal(size=(32, *model.input_shape[1:])).astype("float32")
    if wrap:
        model = tfc.quantize(tfc.prune(model, 0.5))
        model(data, training=True)
    options = {} if wrap else {"representative_dataset": data}
    path = tmp_path / "m.tflite"
    with warnings.catch_warnings():  # a machine may be busy
        warnings.filterwarnings("ignore", "The file is slower than a float32")
        result = tfc.export_tflite(model, path, benchmark=True, **options)
    assert result.latency.ms > 0 and result.latency.float_ms > 0
    assert result.latency.speedup == result.latency.float_ms / result.latency.ms
    assert len(result.latency.profile.operations) == sum(result.ops.values())
    assert "as fast as in float" in str(result)
    assert tfc.export_tflite(model, path, **options).latency is None


def test_what_was_measured_counts_more_than_the_table(tmp_path):
    path = tfc.export_tflite(nets.tiny(), tmp_path / "m.tflite").path
    report = tfc.inspect_tflite(path)
    measured = tfc.profile_tflite(path)
    assert slower_than_float(report, Latency(1.0, 2.0, measured)) is None
    text = slower_than_float(report, Latency(2.0, 1.0, measured))
    assert "0.50 times as fast was measured" in text


def test_sixteen_bits_are_known_to_be_slow(tmp_path):
    """No warning: its docstring says it, and who asks for it wants precision."""
    inputs = keras.Input((32, 32, 16))
    model = keras.Model(inputs, L.Conv2D(16, 3, padding="same")(inputs))
    data = np.random.default_rng(0).normal(size=(16, 32, 32, 16)).astype("float32")
    result = tfc.export_tflite(
        model, tmp_path / "m.tflite", scheme="int16x8", representative_dataset=data
    )
    assert result.report.estimated_speedup < 0.5
