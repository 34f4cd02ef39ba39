"""Training by several processes: the same weights as by one, also after a kill."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tests.conftest import ROOT

pytestmark = pytest.mark.slow
COMMAND = [sys.executable, str(ROOT / "examples" / "many_machines.py"), "--fast", "--epochs", "3"]


def run(folder, processes):
    subprocess.run([*COMMAND, "--folder", folder, "--processes", str(processes)], check=True)
    return keras.saving.load_model(folder / "student.keras")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process trains."""
    return run(tmp_path_factory.mktemp("alone"), 1)


def check_same(model, other):
    """Sums over a batch have another order: the last digits may differ, and no mask may."""
    ours = {row.name: row.sparsity for row in tfc.summary(model).layers}
    assert ours == {row.name: row.sparsity for row in tfc.summary(other).layers}
    for one, two in zip(model.variables, other.variables, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-4, err_msg=one.path)


@pytest.mark.parametrize("processes", [2, 4])
def test_more_processes_train_the_same_model(alone, processes, tmp_path):
    trained = run(tmp_path, processes)
    check_same(trained, alone)
    report = tfc.inspect_tflite(tmp_path / "student.tflite")
    assert report.float_tensors == [] and 0.79 < report.sparsity < 0.81


def test_killed_processes_go_on(alone, tmp_path):
    command = [*COMMAND, "--folder", str(tmp_path), "--processes", "2"]
    started = subprocess.Popen(command, start_new_session=True)
    state = pathlib.Path(tmp_path, "backup", "state.npz")
    deadline = time.monotonic() + 300
    while not state.exists() and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    assert state.exists() and not (tmp_path / "student.keras").exists()
    check_same(run(tmp_path, 2), alone)
