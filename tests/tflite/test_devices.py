"""The shipped student on the runtime that older devices have, in an environment of its own."""

import json
import subprocess
import sys
import venv

import numpy as np
import pytest

from tests.conftest import ROOT
from tfcompress.demo.data import load
from tfcompress.tflite.run import TFLiteModel

MODEL = ROOT / "tflite_models" / "fashion_mnist_student_int8.tflite"
NEEDS = ["tflite-runtime==2.14.0", "numpy<2"]


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    """A Python with nothing but tflite-runtime and numpy."""
    if sys.version_info >= (3, 12):
        pytest.skip("tflite-runtime 2.14.0 has no wheels for Python above 3.11")
    folder = tmp_path_factory.mktemp("device")
    venv.create(folder, with_pip=True)
    executable = folder / "bin" / "python"
    install = [executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:", *NEEDS]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("tflite-runtime 2.14.0 cannot be installed here: no package registry")
    return executable


@pytest.mark.parametrize("delegates", [False, True])
def test_the_student_runs_as_it_does_here(device, delegates, python, tmp_path):
    images = load().x_test[:200]
    np.save(tmp_path / "images.npy", images)
    out = python(
        f"""
import json, sys
import numpy as np
from tfcompress.tflite.run import TFLiteModel
model = TFLiteModel({str(MODEL)!r}, delegates={delegates})
np.save("outputs.npy", model.predict(np.load("images.npy")))
print(json.dumps([model.runtime, np.__version__, "tensorflow" in sys.modules]))
""",
        executable=device,
    )
    runtime, version, has_tensorflow = json.loads(out.strip().splitlines()[-1])
    assert runtime.startswith("tflite_runtime") and version < "2" and not has_tensorflow
    here = TFLiteModel(MODEL, delegates=delegates)
    lsb = np.abs(np.load(tmp_path / "outputs.npy") - here.predict(images)) / here.outputs[0].scale
    lsb = np.round(lsb)
    if not delegates:
        assert lsb.max() == 0
    # The default kernels of the two requantize differently: 1 LSB for each requantization.
    assert lsb.max() <= 2 and np.mean(lsb <= 1) >= 0.98
