import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tests import nets
from tests.conftest import ROOT

STUDENT = ROOT / "tflite_models" / "fashion_mnist_student_int8.tflite"


def rows(path):
    return {row.delegate: row for row in tfc.delegate_report(path).rows}


def exported(model, tmp_path, **options):
    tfc.export_tflite(model, tmp_path / "m.tflite", **options)
    return rows(tmp_path / "m.tflite")


def test_an_int8_network():
    report = rows(STUDENT)
    assert list(report) == ["XNNPACK", "GPU", "Core ML", "Edge TPU"]
    # Measured: ai-edge-litert 2.3.0 leaves the pooling to its built-in kernels.
    assert report["XNNPACK"].source == "measured" and report["XNNPACK"].delegated >= 13
    assert set(report["XNNPACK"].on_cpu) <= {"AVERAGE_POOL_2D"}
    assert report["Edge TPU"].on_cpu == {} and report["GPU"].on_cpu == {}
    assert report["Core ML"].delegated == 0


def test_a_float_network(tmp_path):
    report = exported(nets.residual(), tmp_path)
    assert report["Core ML"].on_cpu == {} and report["XNNPACK"].on_cpu == {}
    assert report["Edge TPU"].delegated == 0


def test_the_edge_tpu_stops_at_what_it_does_not_know(tmp_path):
    inputs = keras.Input((8, 8, 4))
    x = L.Conv2D(4, 3, activation="relu")(inputs)
    x = L.Conv2D(4, 3, activation="gelu")(x)
    model = keras.Model(inputs, L.Conv2D(4, 3)(x))
    data = np.random.default_rng(0).random((16, 8, 8, 4))
    scheme = tfc.QuantizationScheme(prefer="exactness")  # integers alone
    report = exported(model, tmp_path, scheme=scheme, representative_dataset=data, io_dtype="int8")
    assert report["Edge TPU"].delegated == 2 and report["Edge TPU"].on_cpu == {
        "GELU": 1,
        "CONV_2D": 1,
    }
    assert report["GPU"].on_cpu == {}


def test_no_accelerator_takes_16_bits(tmp_path):
    model, x = nets.tiny(), np.eye(16, 6, dtype="float32")
    report = exported(model, tmp_path, scheme="int16x8", representative_dataset=x, io_dtype="int16")
    assert all(report[name].delegated == 0 for name in ("GPU", "Core ML", "Edge TPU"))


def test_it_prints_and_refuses(tmp_path):
    assert "13 of 14" in str(tfc.delegate_report(STUDENT))
    with pytest.raises(FileNotFoundError):
        tfc.delegate_report(tmp_path / "none.tflite")
