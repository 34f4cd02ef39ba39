"""Processes that were forked or spawned, calls that are traced, streams that are closed."""

import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT

STUDENT = "tflite_models/fashion_mnist_student_int8.tflite"


def script(code, timeout=120, **options):
    """Runs a script in a process of its own, and returns how it ended."""
    command = [sys.executable, "-c", code]
    options = {"capture_output": True, "text": True, **options}
    return subprocess.run(command, cwd=ROOT, timeout=timeout, **options)


FORKED = """
import multiprocessing, sys, time
import numpy as np, keras
import tfcompress as tfc
def export(model):
    started = time.monotonic()
    try:
        tfc.quantize(model)
        print("done")
    except RuntimeError as error:
        print(type(error).__name__, error, round(time.monotonic() - started))
    file = tfc.TFLiteModel("tflite_models/fashion_mnist_student_int8.tflite")
    print(file.predict(np.zeros((1, 28, 28, 1))).shape)
if __name__ == "__main__":
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model(np.ones((1, 4)))
    tfc.TFLiteModel("tflite_models/fashion_mnist_student_int8.tflite")
    process = multiprocessing.get_context(sys.argv[1] if sys.argv[1:] else "fork").Process(
        target=export, args=(model,))
    process.start()
    process.join(60)
    print("alive" if process.is_alive() else "ended")
    process.kill()
"""


def test_a_forked_process_is_told_within_a_second():
    process = script(FORKED)
    assert "RuntimeError This process was forked" in process.stdout and " 0\n" in process.stdout, (
        process
    )
    assert "(1, 10)" in process.stdout and "ended" in process.stdout  # files can be run


def test_a_spawned_process_works(tmp_path):
    (tmp_path / "spawned.py").write_text(FORKED)
    command = [sys.executable, str(tmp_path / "spawned.py"), "spawn"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert "done" in process.stdout and "(1, 10)" in process.stdout and "ended" in process.stdout, (
        process
    )


def test_export_inside_of_a_traced_function_is_refused(tmp_path):
    import tensorflow as tf

    import tfcompress as tfc
    from tests import nets

    model = nets.tiny()

    @tf.function
    def step():
        tfc.export_tflite(model, tmp_path / "m.tflite")

    started = time.monotonic()
    with pytest.raises(Exception, match=r"inside of a tf\.function, .*Call it outside"):
        step()
    assert time.monotonic() - started < 10 and not list(tmp_path.iterdir())


CLOSED = """
import os, sys
os.close({descriptor})
sys.{stream} = {replaced}
import keras, numpy as np
import tfcompress as tfc
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
result = tfc.export_tflite(model, sys.argv[1], verbose=True)
with open(sys.argv[1] + ".told", "w") as file:
    file.write(str(result.agreement.samples))
"""


@pytest.mark.parametrize(("descriptor", "stream"), [(1, "stdout"), (2, "stderr")])
@pytest.mark.parametrize("replaced", ["None", "sys.stdin"])
def test_closed_streams(descriptor, stream, replaced, tmp_path):
    if (stream, replaced) == ("stdout", "sys.stdin"):
        pytest.skip("print() itself fails")
    code = CLOSED.format(descriptor=descriptor, stream=stream, replaced=replaced)
    command = [sys.executable, "-c", code, str(tmp_path / "m.tflite")]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (tmp_path / "m.tflite.told").is_file(), process.stdout + process.stderr


def test_a_reader_that_has_seen_enough():
    command = f"{sys.executable} -m tfcompress inspect {STUDENT} | head -n 1"
    process = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert "Traceback" not in process.stderr and "Error" not in process.stderr, process.stderr


def test_a_narrow_terminal():
    command = [sys.executable, "-m", "tfcompress", "inspect", STUDENT]
    process = subprocess.run(
        ["script", "-qec", " ".join(command), "/dev/null"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"COLUMNS": "20", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "TERM": "xterm"},
    )
    assert process.returncode == 0 and "Traceback" not in process.stdout, process.stdout


@pytest.mark.parametrize(("name", "version"), [("keras", "4.0.1"), ("tensorflow", "2.19.0")])
def test_versions_that_are_not_known_are_refused_in_a_sentence(name, version):
    code = f"import keras, {name}\n{name}.__version__ = {version!r}\n"
    code += "import tfcompress\ntfcompress.prune"
    process = script(code)
    assert process.returncode == 1
    assert f"ImportError: tfcompress knows {name} " in process.stderr.splitlines()[-1]
    assert f"Found: {name} {version}. Install" in process.stderr


def test_the_bounds_of_the_package_are_those_that_are_checked():
    import configparser

    from tfcompress.process import KNOWN

    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    bounds = dict(
        line.split(">=") for line in setup["options"]["install_requires"].split() if ">=" in line
    )
    for name, (first, beyond) in KNOWN.items():
        assert bounds[name] == f"{first[0]}.{first[1]},<{beyond[0]}"


def test_without_the_runtime_tensorflow_runs_files(tmp_path):
    """The fall-back that the documentation names."""
    code = """
import sys
sys.modules["ai_edge_litert"] = sys.modules["tflite_runtime"] = None
import keras, numpy as np
import tfcompress as tfc
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
result = tfc.export_tflite(model, sys.argv[1], representative_dataset=x)
assert result.agreement.kernels == "tensorflow", result.agreement
file = tfc.TFLiteModel(result.path)
assert np.abs(file.predict(x) - model.predict(x, verbose=0)).max() < 0.1
file.benchmark(runs=2)
tfc.compare({"float": model, "file": result.path}, x, np.zeros(32, int))
print("all of it")
"""
    command = [sys.executable, "-c", code, str(tmp_path / "m.tflite")]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "all of it" in process.stdout, process.stderr
