"""What a file costs by the table: operations outside of XNNPACK, and floats beside integers."""

import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tfcompress.tflite.costs import COSTS, TARGET, estimate


def exported(activation, tmp_path, prefer="exactness", size=32):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((size, size, 16))
    x = L.Activation(activation)(L.Conv2D(16, 3, padding="same")(inputs))
    model = keras.Model(inputs, L.Conv2D(16, 3, padding="same")(x))
    data = np.random.default_rng(0).normal(size=(16, size, size, 16)).astype("float32")
    scheme = tfc.QuantizationScheme(prefer=prefer)
    return tfc.export_tflite(
        model, tmp_path / "m.tflite", scheme=scheme, representative_dataset=data
    )


def test_a_slow_kernel_is_named_with_its_share(tmp_path):
    with pytest.warns(tfc.CompressionWarning, match="slower than a float32 file"):
        report = exported("hard_swish", tmp_path).report
    assert list(report.outside) == ["HARD_SWISH"] and 0.5 < report.outside["HARD_SWISH"] < 1
    assert report.estimated_speedup < 0.9
    assert "HARD_SWISH" in dict(report.rows())["outside of XNNPACK"]


def test_nothing_is_outside_of_a_file_of_fast_operations(tmp_path):
    report = exported("hard_swish", tmp_path, "latency", size=64).report
    assert report.outside == {} and report.estimated_speedup > 1.5
    assert dict(report.rows())["outside of XNNPACK"] == "nothing"


def test_the_estimate_counts_multiplications_and_values(tmp_path):
    """One convolution of 32x32x16 with 9 * 16 weights each, and one sum."""
    inputs = keras.Input((32, 32, 16))
    model = keras.Model(inputs, L.Add()([L.Conv2D(16, 3, padding="same")(inputs), inputs]))
    file = tfc.TFLiteModel(tfc.export_tflite(model, tmp_path / "m.tflite").path)
    costs = COSTS[TARGET]
    values = 32 * 32 * 16
    expected = values * (9 * 16 * costs["CONV_2D"].float32 + costs["ADD"].float32)
    found = estimate(file.interpreter, file.content)
    assert found.ns == pytest.approx(expected) and found.float_ns == pytest.approx(expected)
    assert found.outside == {} and found.share_outside == 0


def test_a_file_of_microseconds_has_no_estimate(tmp_path):
    assert exported("hard_swish", tmp_path, size=4).report.estimated_speedup is None
