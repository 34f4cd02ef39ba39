"""Damaged files end in one of the documented errors: `make fuzz` tries thousands."""

import subprocess
import sys

from tests.conftest import ROOT

STUDENT = "tflite_models/fashion_mnist_student_int8.tflite"


def test_damaged_files_are_refused_and_kill_nothing(tmp_path):
    command = [sys.executable, "-m", "tests.fuzzing.run", "-n", "94", "--seed", "5", STUDENT]
    command += ["--bad", str(tmp_path), "--batch", "94"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and "no bad ends" in result.stdout, (
        result.stdout[-2000:] + result.stderr
    )
