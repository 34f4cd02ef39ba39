"""From a .keras file and data to a checked file, on the command line alone."""

import json
import os
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import tfcompress as tfc
from tests.conftest import ROOT
from tfcompress.cli import main


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def done(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output + result.stderr
    return result


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a trained model and an .npz of its data."""
    folder = tmp_path_factory.mktemp("work")
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    x = generator.normal(size=(512, 8)).astype("float32")
    y = (x[:, :3] @ generator.normal(size=(3, 3)) + x[:, 3:6]).argmax(-1)
    model = keras.Sequential(
        [
            keras.Input((8,), name="features"),
            keras.layers.Dense(32, activation="relu", name="first"),
            keras.layers.Dense(3, name="last"),
        ],
        name="small",
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss)
    model.fit(x, y, epochs=10, verbose=0)
    model.save(folder / "model.keras")
    np.savez(folder / "data.npz", x=x, y=y)
    return folder


def test_prune_quantize_export_compare(work, tmp_path):
    data = work / "data.npz"
    pruned, aware, file = tmp_path / "p.keras", tmp_path / "q.keras", tmp_path / "m.tflite"
    told = done(
        "prune",
        work / "model.keras",
        "-o",
        pruned,
        "--data",
        data,
        "--epochs",
        4,
        "--sparsity",
        0.6,
    )
    assert f"wrote {pruned} after 4 epochs" in told.stdout and "accuracy 0.9" in told.stdout
    done("quantize", pruned, "-o", aware, "--data", data, "--epochs", 2)
    result = json.loads(done("export", aware, "-o", file, "--json").stdout)
    assert result["scheme"] == "int8" and result["trained"] and result["report"]["sparsity"] > 0.55
    assert sorted(os.listdir(tmp_path)) == ["m.tflite", "p.keras", "q.keras"]

    page, picture = tmp_path / "report.html", tmp_path / "pareto.png"
    table = done(
        "compare", work / "model.keras", file, "--data", data, "--html", page, "--plot", picture
    )
    assert "accuracy" in table.stdout and page.stat().st_size > 10_000 and picture.exists()
    rows = json.loads(done("compare", file, "--data", data, "--json").stdout)["rows"]
    share = json.loads(done("evaluate", file, "--data", data, "--json").stdout)
    assert share["samples"] == 512 and share["accuracy"] == rows[0]["accuracy"] > 0.9
    text = done("evaluate", work / "model.keras", "--data", data).stdout
    assert "on 512 samples" in text
    errors = json.loads(done("layer-errors", aware, file, "--data", data, "--json").stdout)
    assert {row["path"] for row in errors["rows"]} >= {"last"} and errors["rows"][0]["sqnr"] > 25
    assert "60.0%" in done("summary", pruned).stdout
    assert "QUANTIZE" in done("inspect", file).stdout
    assert "Edge TPU" in done("inspect", file, "--delegates").stdout
    assert "ranges" in done("histograms", file, "-o", tmp_path / "h.png").stdout


def test_export_without_training(work, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("red\ngreen\nblue\n")
    file = tmp_path / "m.tflite"
    command = ["export", work / "model.keras", "-o", file, "--data", work / "data.npz"]
    text = done(*command, "--labels", labels, "--normalize", "0,1").stdout
    assert "RMSE" in text and "red, green, blue" in text and "(x - 0) / 1" in text
    half = json.loads(
        done("export", work / "model.keras", "-o", file, "--scheme", "float16", "--json").stdout
    )
    assert half["scheme"] == "float16"


def test_patterns_and_layers(work, tmp_path):
    out = tmp_path / "p.keras"
    common = ["-o", out, "--data", work / "data.npz", "--epochs", 2, "--json"]
    done("prune", work / "model.keras", *common, "--pattern", "2:4", "--layers", "first")
    rows = json.loads(done("summary", out, "--json").stdout)["layers"]
    assert [row["target"] for row in rows] == [0.5, None]
    done("prune", work / "model.keras", *common, "--pattern", "4x1")
    done("prune", work / "model.keras", *common, "--ranking", "global", "--sparsity", 0.5)
    rows = json.loads(done("summary", out, "--json").stdout)["layers"]
    assert rows[0]["sparsity"] != rows[1]["sparsity"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Folders of images as classes: dark ones and bright ones."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for name, level in (("bright", 200), ("dark", 50)):
        (folder / name).mkdir()
        for index in range(12):
            pixels = generator.integers(level - 40, level + 40, (20, 16, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12, 12, 1), name="grey")
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(inputs))
    keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(x)).save(folder / "m.keras")
    return folder


def test_a_folder_of_images_is_data(images, tmp_path):
    data = ["--data", images, "--normalize", "127.5,127.5"]
    (images / "m.keras").rename(tmp_path / "m.keras")
    out = tmp_path / "q.keras"
    options = ["--epochs", 30, "--learning-rate", 0.02, "--json"]
    told = json.loads(done("quantize", tmp_path / "m.keras", "-o", out, *data, *options).stdout)
    assert told["accuracy"] > 0.95
    file = tmp_path / "m.tflite"
    done("export", out, "-o", file, "--normalize", "127.5,127.5")
    assert json.loads(done("evaluate", file, *data, "--json").stdout)["accuracy"] > 0.95


def test_folders_that_hold_no_images_are_no_classes(images):
    from tfcompress.cli.data import load_data
    from tfcompress.data import InputSpec

    (images / ".checkpoints").mkdir()
    Image.new("L", (4, 4)).save(images / ".checkpoints" / "a.png")
    (images / "__MACOSX").mkdir()
    (images / "aaa").mkdir()
    deep = np.full((12, 12), 200 * 256 + 7, np.uint16)
    Image.fromarray(deep).save(images / "bright" / "deep.png")
    x, y = load_data(str(images), [InputSpec("grey", (12, 12, 1), "float32")])
    assert set(y) == {0, 1} and x[y == 0].mean() > 150 > 100 > x[y == 1].mean()
    assert x.max() <= 255 and any((image == 200).all() for image in x)


def test_files_of_both_splits(work, tmp_path):
    x, y = np.load(work / "data.npz")["x"], np.load(work / "data.npz")["y"]
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x[:50], y_test=y[:50])
    data = ["--data", tmp_path / "d.npz", "--json"]
    assert json.loads(done("evaluate", work / "model.keras", *data).stdout)["samples"] == 50


def test_a_model_that_was_changed_is_not_gone_on_with(work, tmp_path, monkeypatch):
    from tfcompress.cli import making

    model = tmp_path / "m.keras"
    model.write_bytes((work / "model.keras").read_bytes())
    first = making._identity(str(model))
    assert first == making._identity(str(model)) and first[0] == str(model)
    os.utime(model, (1, 1))
    assert making._identity(str(model)) != first


LOSSES = {
    "classes": (np.array([0, 2, 1, 1]), "sparse categorical crossentropy"),
    "classes as floats": (np.array([0.0, 2.0, 1.0, 1.0]), "sparse categorical crossentropy"),
    "one-hot": (np.eye(3)[[0, 1, 2, 0]], "categorical crossentropy"),
    "several at once": (np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]]), "binary"),
    "numbers": (np.random.default_rng(0).normal(size=(4, 3)), "mean squared error"),
}


@pytest.mark.parametrize(("y", "named"), LOSSES.values(), ids=LOSSES)
def test_the_usual_loss_for_the_labels(y, named):
    from tfcompress.cli.train import _loss, _usual_labels

    last = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    model = keras.Sequential([keras.Input((4,)), last, keras.layers.Reshape((3,))])
    loss, _, told = _loss(model, _usual_labels(y))
    assert told.startswith(named)
    assert not getattr(loss, "from_logits", False) and "from_logits=True" not in str(vars(loss))
    with pytest.raises(ValueError, match="do not fit outputs"):
        _loss(model, np.ones((4, 2)))


def test_whole_numbers_to_be_told_are_no_classes():
    from tfcompress.cli.train import _loss

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    assert _loss(model, np.array([10, 65, 30]))[2] == "mean squared error"
    assert _loss(model, np.array([0, 1, 1]))[2] == "binary crossentropy"


def test_a_function_is_data(work, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mydata.py").write_text(
        "import numpy as np\n"
        "def samples():\n    return np.ones((8, 8), 'float32')\n"
        "def labelled():\n    return np.ones((8, 8)), np.zeros(8, int)\n"
        "def dataset():\n    import tensorflow as tf\n"
        "    return tf.data.Dataset.from_tensor_slices(labelled()).batch(4)\n"
        "def fails():\n    return 1 / 0\n"
    )
    file = tmp_path / "m.tflite"
    done("export", work / "model.keras", "-o", file, "--data", "mydata:samples")
    for name in ("labelled", "dataset"):
        done("evaluate", file, "--data", f"mydata:{name}")
    for source, message in (
        ("mydata:nothing", "no function 'nothing'"),
        ("mydata:fails", "raised ZeroDivisionError"),
        ("yourdata:x", "no module 'yourdata'"),
    ):
        failed = run("evaluate", file, "--data", source)
        assert failed.exit_code == 1 and message in failed.stderr


def test_a_module_of_custom_layers_is_imported(tmp_path):
    (tmp_path / "mylayers.py").write_text(
        "import keras\n"
        "@keras.saving.register_keras_serializable('mine')\n"
        "class Twice(keras.layers.Layer):\n"
        "    def call(self, x):\n        return 2 * x\n"
    )
    code = (
        "import keras, mylayers\n"
        "keras.Sequential([keras.Input((4,)), keras.layers.Dense(2), mylayers.Twice()])"
        ".save('m.keras')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    tool = [sys.executable, "-m", "tfcompress"]
    failed = subprocess.run(
        [*tool, "summary", "m.keras"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert failed.returncode == 1 and "Twice" in failed.stderr and "--import" in failed.stderr
    told = subprocess.run(
        [*tool, "--import", "mylayers", "summary", "m.keras"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0 and "twice" in told.stdout.lower()


def test_a_stopped_run_is_gone_on_with(work, tmp_path):
    out = tmp_path / "q.keras"
    command = ["quantize", work / "model.keras", "-o", out, "--data", work / "data.npz"]
    command = [str(part) for part in (*command, "--epochs", 8, "--batch-size", 2)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "tfcompress", *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    backup = tmp_path / ".q.keras.progress"
    deadline = time.monotonic() + 120
    while not list(backup.glob("[0-9]*.keras")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
    assert backup.is_dir() and not out.exists(), process.stderr.read()
    other = run(*command[:-1], 5)
    assert other.exit_code == 1 and "with other settings was stopped" in other.stderr
    again = done(*command)
    assert "Going on with the run" in again.stderr
    assert out.exists() and not backup.exists()


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

    monkeypatch.setattr("tfcompress.wrap.summary.summary", fails)
    failed = run("summary", work / "model.keras")
    assert failed.exit_code == 1 and "KeyError: 'odd' (set TFCOMPRESS_TRACEBACK=1" in failed.stderr


def test_completion_of_every_shell():
    for shell in ("bash", "zsh", "fish"):
        assert "_TFCOMPRESS_COMPLETE" in done("completion", shell).stdout


def test_names_that_are_nearly_right():
    with pytest.raises(AttributeError, match="Did you mean 'quantize'"):
        tfc.quantise  # noqa: B018
