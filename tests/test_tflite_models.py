"""The models that ship are what their manifest says."""

import hashlib
import json

import numpy as np
import pytest

from tests.conftest import ROOT
from tfcompress.demo.data import load
from tfcompress.tflite.inspect import inspect_tflite
from tfcompress.tflite.run import TFLiteModel

FOLDER = ROOT / "tflite_models"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text())


def test_every_file_is_in_the_manifest():
    assert {p.name for p in FOLDER.glob("*.tflite")} == set(MANIFEST)


@pytest.mark.parametrize("name", MANIFEST)
def test_measured_again(name):
    entry, path = MANIFEST[name], FOLDER / name
    content = path.read_bytes()
    assert len(content) == entry["bytes"]
    assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    report = inspect_tflite(path)
    assert report.float_tensors == [] and report.gzip_bytes == entry["gzip_bytes"]
    assert [i[2] for i in (*report.inputs, *report.outputs)] == ["int8", "int8"]
    assert report.sparsity == pytest.approx(entry["sparsity"], abs=1e-4)
    data = load()
    measured = TFLiteModel(path).evaluate(data.x_test, data.y_test)
    # Kernels differ among processors by one LSB, which changes the class of few images.
    assert measured == pytest.approx(entry["accuracy"], abs=0.002)
    assert entry["made_by"] and np.isfinite(measured)
