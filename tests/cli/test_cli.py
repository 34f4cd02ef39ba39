import json

import keras
import pytest
from click.testing import CliRunner

import tfcompress as tfc
from tests import nets
from tests.conftest import ROOT
from tfcompress.cli import main

MODEL = ROOT / "tflite_models" / "fashion_mnist_student_int8.tflite"


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_inspect_prints_a_table_or_json():
    done = run("inspect", MODEL)
    assert done.exit_code == 0 and "CONV_2D" in done.output and "arena" in done.output
    report = json.loads(run("inspect", MODEL, "--json").output)
    assert report["float_tensors"] == [] and report["bytes"] == MODEL.stat().st_size


def test_inspect_reads_keras_files(tmp_path):
    tfc.prune(nets.tiny(), 0.5).save(tmp_path / "m.keras")
    done = run("inspect", tmp_path / "m.keras")
    assert done.exit_code == 0 and "first" in done.output and "50.0%" in done.output
    assert json.loads(run("inspect", tmp_path / "m.keras", "--json").output)["parameters"] == 83


def test_benchmark_puts_files_side_by_side(tmp_path):
    tfc.export_tflite(nets.tiny(), tmp_path / "m.tflite")
    done = run("benchmark", MODEL, tmp_path / "m.tflite", "--runs", 5)
    assert done.exit_code == 0 and "1.00x" in done.output and "median ms" in done.output
    report = json.loads(run("benchmark", MODEL, "--runs", 5, "--threads", 2, "--json").output)
    assert report[0]["threads"] == 2 and report[0]["median_ms"] > 0


def unsafe(folder):
    path = folder / "unsafe.keras"
    keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x + 1)]).save(path)
    return path


def corrupt(folder):
    path = folder / "corrupt.tflite"
    path.write_bytes(MODEL.read_bytes()[:5000])
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: f / "none.tflite", "No such file"),
        (lambda f: f / "none.keras", "No such file"),
        (corrupt, "not a usable TFLite model"),
        (unsafe, "holds Python code"),
    ],
)
def test_errors_are_one_line_and_exit_code_1(make, message, tmp_path):
    done = run("inspect", make(tmp_path))
    assert done.exit_code == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("Error: ") and message in done.stderr


@pytest.mark.parametrize("arguments", [["inspect"], ["benchmark"], ["nothing"], ["demo", "--none"]])
def test_wrong_usage_is_exit_code_2(arguments):
    assert run(*arguments).exit_code == 2


def test_help_and_version_are_instant(python):
    out = python("""
import sys
from click.testing import CliRunner
from tfcompress.cli import main
for arguments in (["--help"], ["--version"], ["demo", "--help"]):
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    print(done.output)
assert "tensorflow" not in sys.modules
""")
    assert "inspect" in out and tfc.__version__ in out and "--full" in out
