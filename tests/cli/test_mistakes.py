"""No mistake ends in a traceback."""

import numpy as np
import pytest

from tests.cli.conftest import run
from tests.conftest import ROOT


def broken_npz(folder):
    path = folder / "broken.npz"
    path.write_bytes(b"no arrays")
    return path


def pickled(folder):
    path = folder / "pickled.npz"
    np.savez(path, x=np.array([{"a": 1}], dtype=object))
    return path


def archive(folder, **arrays):
    path = folder / "other.npz"
    np.savez(path, **arrays)
    return path


X = np.ones((8, 8), "float32")
MISTAKES = {
    "no data": (lambda w, f: ["evaluate", w / "model.keras"], 2, "--data"),
    "no such data": (lambda w, f: ["evaluate", w / "model.keras", "--data", "x.npz"], 1, "no file"),
    "broken": (lambda w, f: ["evaluate", w / "model.keras", "--data", broken_npz(f)], 1, "read"),
    "pickled": (lambda w, f: ["evaluate", w / "model.keras", "--data", pickled(f)], 1, "read"),
    "other names": (
        lambda w, f: ["export", w / "model.keras", "--data", archive(f, a=X, b=X)],
        1,
        "'features' (or 'x')",
    ),
    "wrong shape": (
        lambda w, f: ["export", w / "model.keras", "--data", archive(f, x=X[:, :5])],
        1,
        "wrong shape",
    ),
    "no labels": (
        lambda w, f: ["evaluate", w / "model.keras", "--data", archive(f, x=X)],
        1,
        "y is missing",
    ),
    "no labels to train on": (
        lambda w, f: [
            "quantize",
            w / "model.keras",
            "-o",
            f / "q.keras",
            "--data",
            archive(f, x=X),
            "--epochs",
            1,
        ],
        1,
        "holds no labels",
    ),
    "fewer labels": (
        lambda w, f: [
            "quantize",
            w / "model.keras",
            "-o",
            f / "q.keras",
            "--data",
            archive(f, x=X, y=np.zeros(3, int)),
            "--epochs",
            1,
        ],
        1,
        "8 samples but 3 labels",
    ),
    "labels out of range": (
        lambda w, f: [
            "quantize",
            w / "model.keras",
            "-o",
            f / "q.keras",
            "--data",
            archive(f, x=X, y=np.full(8, 7)),
            "--epochs",
            1,
        ],
        1,
        "Labels must be 0 to 2",
    ),
    "unknown scheme": (
        lambda w, f: ["export", w / "model.keras", "--scheme", "int4"],
        1,
        "Did you mean 'int8'",
    ),
    "unknown pattern": (
        lambda w, f: [
            "prune",
            w / "model.keras",
            "-o",
            f / "q.keras",
            "--data",
            w / "data.npz",
            "--epochs",
            1,
            "--pattern",
            "4:2",
        ],
        1,
        "pattern must be",
    ),
    "unknown layer": (
        lambda w, f: [
            "prune",
            w / "model.keras",
            "-o",
            f / "q.keras",
            "--data",
            w / "data.npz",
            "--epochs",
            1,
            "--layers",
            "frist",
        ],
        1,
        "Nearest names: first",
    ),
    "output of another kind": (
        lambda w, f: [
            "prune",
            w / "model.keras",
            "-o",
            f / "q.h5",
            "--data",
            w / "data.npz",
            "--epochs",
            1,
        ],
        1,
        "must end in .keras",
    ),
    "over the model itself": (
        lambda w, f: ["export", w / "model.keras", "-o", f / "again.keras"],
        1,
        "must end in .tflite",
    ),
    "sparse integers": (
        lambda w, f: ["export", w / "model.keras", "--data", w / "data.npz", "--sparse"],
        1,
        "refuses sparse weights",
    ),
    "labels of other classes": (
        lambda w, f: ["evaluate", w / "model.keras", "--data", archive(f, x=X, y=np.full(8, 3))],
        1,
        "classes 0 to 2",
    ),
    "channels of the normalization": (
        lambda w, f: [
            "export",
            w / "model.keras",
            "--data",
            w / "data.npz",
            "--normalize",
            "1,2,1,1",
        ],
        1,
        "8 of each",
    ),
    "no folder": (
        lambda w, f: ["export", w / "model.keras", "-o", f / "none" / "m.tflite"],
        1,
        "no folder",
    ),
    "a file instead of a model": (
        lambda w, f: ["export", w / "data.npz"],
        1,
        "must be a .keras file",
    ),
    "no model": (lambda w, f: ["summary", f / "none.keras"], 1, "No such file"),
    "normalization": (
        lambda w, f: ["export", w / "model.keras", "--normalize", "1,0"],
        2,
        "deviations above 0",
    ),
    "no images": (lambda w, f: ["export", w / "model.keras", "--data", f], 1, "not take images"),
    "a misspelt command": (lambda w, f: ["exprot"], 2, "Did you mean 'export'"),
    "no epochs": (
        lambda w, f: ["quantize", w / "model.keras", "-o", f / "q.keras", "--data", "x"],
        2,
        "--epochs",
    ),
    "layer-errors of another file": (
        lambda w, f: [
            "layer-errors",
            w / "model.keras",
            ROOT / "tflite_models" / "fashion_mnist_student_int8.tflite",
            "--data",
            w / "data.npz",
        ],
        1,
        "no file of this model",
    ),
    "delegates of a model": (
        lambda w, f: ["inspect", w / "model.keras", "--delegates"],
        1,
        "needs a .tflite file",
    ),
}


@pytest.mark.parametrize(("make", "code", "message"), MISTAKES.values(), ids=MISTAKES)
def test_no_mistake_ends_in_a_traceback(make, code, message, work, tmp_path):
    failed = run(*make(work, tmp_path))
    assert failed.exit_code == code, failed.output
    assert message in failed.stderr and "Traceback" not in failed.output + failed.stderr
    if code == 1:
        assert len(failed.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.glob("*.keras")) and not list(tmp_path.glob(".*"))


def test_unforeseen_errors_are_one_line_too(work, monkeypatch):
    def fails(*_, **__):
        raise KeyError("odd")

    monkeypatch.setattr("tfcompress.measure.summary.summary", fails)
    failed = run("summary", work / "model.keras")
    assert failed.exit_code == 1 and "KeyError: 'odd' (set TFCOMPRESS_TRACEBACK=1" in failed.stderr
