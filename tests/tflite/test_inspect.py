import dataclasses
import gzip
import json

import numpy as np

import tfcompress as tfc
from tests import nets
from tfcompress.tflite.inspect import weights
from tfcompress.tflite.run import TFLiteModel


def test_tells_what_is_inside(tmp_path):
    model = nets.tiny()
    path = tmp_path / "m.tflite"
    x = nets.samples_for(model, 32)
    tfc.export_tflite(model, path, representative_dataset=x)
    report = tfc.inspect_tflite(path)
    assert report.bytes == path.stat().st_size and 0 < report.gzip_bytes < report.bytes
    assert report.ops == {"FULLY_CONNECTED": 2, "QUANTIZE": 1, "DEQUANTIZE": 1}
    assert report.inputs[0][1:] == ((1, 6), "float32")
    assert report.float_tensors == [] and report.dtypes["float32"] == 2
    as_json = json.loads(json.dumps(report.as_dict()))
    moved = dataclasses.replace(report, path=str(path))
    assert as_json["gzip_bytes"] == moved.gzip_bytes == len(gzip.compress(path.read_bytes(), 9))
    assert report.sparsity < 0.1 and "FULLY_CONNECTED 2" in str(report)


def test_a_float_file_is_full_of_floats(tmp_path):
    tfc.export_tflite(nets.tiny(), tmp_path / "m.tflite")
    assert (
        len(tfc.inspect_tflite(tmp_path / "m.tflite").float_tensors) == 3
    )  # two kernels and what is between


def test_weights_are_the_models(tmp_path):
    model = nets.tiny()
    tfc.export_tflite(model, tmp_path / "m.tflite")
    stored = [w for w, _ in weights(TFLiteModel(tmp_path / "m.tflite", delegates=False)).values()]
    for layer in model.layers:
        kernel = np.asarray(layer.kernel).T
        assert any(w.shape == kernel.shape and np.array_equal(w, kernel) for w in stored)
