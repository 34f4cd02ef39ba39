"""From a .keras file and data to a checked file, on the command line alone."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image

import tfcompress as tfc
from tests.cli.conftest import done, run
from tests.conftest import ROOT


def test_prune_quantize_export_compare(work, tmp_path):
    data = work / "data.npz"
    pruned, aware, file = tmp_path / "p.keras", tmp_path / "q.keras", tmp_path / "m.tflite"
    process = done(
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
    assert f"wrote {pruned} after 4 epochs" in process.stdout and "accuracy 0.9" in process.stdout
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
    chosen = json.loads(done(*command, "--scheme", "auto", "--max-rmse", "0.3", "--json").stdout)
    assert chosen["trials"][-1]["rmse"] <= 0.3 and chosen["report"]["bytes"]


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
    process = json.loads(done("quantize", tmp_path / "m.keras", "-o", out, *data, *options).stdout)
    assert process["accuracy"] > 0.95
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


def test_a_function_is_data(work, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mydata.py").write_text(
        "import numpy as np\n"
        "def samples():\n    return np.eye(16, 8, dtype='float32')\n"
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
    process = subprocess.run(
        [*tool, "--import", "mylayers", "summary", "m.keras"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0 and "twice" in process.stdout.lower()


def test_completion_of_every_shell():
    for shell in ("bash", "zsh", "fish"):
        assert "_TFCOMPRESS_COMPLETE" in done("completion", shell).stdout


def test_names_that_are_nearly_right():
    with pytest.raises(AttributeError, match="Did you mean 'quantize'"):
        tfc.quantise  # noqa: B018


def test_a_size_is_given(tmp_path):
    inputs = keras.Input((None, None, 3), name="photo")
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(inputs))
    keras.Model(inputs, keras.layers.Dense(2)(x)).save(tmp_path / "any.keras")
    file = tmp_path / "any.tflite"
    refused = run("export", tmp_path / "any.keras")
    assert refused.exit_code == 1 and "input_shape=(224, 224, 3)" in refused.output + refused.stderr
    for text in ("16,12,3", "photo=16,12,3"):
        done("export", tmp_path / "any.keras", "-o", file, "--input-shape", text)
        assert tfc.TFLiteModel(file).inputs[0].shape == (1, 16, 12, 3)
    refused = run("export", tmp_path / "any.keras", "--input-shape", "16x12")
    assert refused.exit_code == 1 and "Received: '16x12'" in refused.output + refused.stderr


def test_the_other_ways_to_a_smaller_model(work, tmp_path):
    model, data = work / "model.keras", work / "data.npz"
    training = ("--data", data, "--val-data", data, "--epochs", 1, "--seed", 0)
    clustered = tmp_path / "clustered.keras"
    output = done("cluster", model, "-o", clustered, "--clusters", 8, *training)
    assert "validation accuracy" in output.stderr and "accuracy on --val-data" in output.stdout
    weights = tfc.strip(keras.models.load_model(clustered)).layers[0].get_weights()[0]
    assert len(np.unique(weights)) <= 8

    smaller = tmp_path / "smaller.keras"
    told = done("prune-channels", model, "-o", smaller, "--ratio", 0.5)
    assert "parameters 387 before, 195 after" in told.stdout
    student = tmp_path / "student.keras"
    result = json.loads(done("distill", model, smaller, "-o", student, *training, "--json").stdout)
    assert result["val_accuracy_after"] > result["val_accuracy_before"]
    assert keras.models.load_model(student).count_params() == 195
    trained = done("prune-channels", model, "-o", smaller, *training)
    assert "accuracy on these samples" in trained.stdout

    told = done("student", model, "-o", smaller, "--width", 0.25)
    assert "parameters 387 before, 99 after" in told.stdout

    factors = tmp_path / "factors.keras"
    done("factorize", model, "-o", factors, "--rank", 2)
    assert "first_factor" in [layer.name for layer in keras.models.load_model(factors).layers]
    missing = run("factorize", model, "-o", factors, "--epochs", 1)
    assert missing.exit_code == 1 and "--epochs needs --data" in missing.stderr


def test_a_recipe_is_run_and_its_file_made_again(work, tmp_path):
    model, data, file = work / "model.keras", work / "data.npz", tmp_path / "m.tflite"
    output = done("run", "qat-int8", "--model", model, "--data", data, "-o", file)
    assert "made as" in output.stdout and "m: epoch 3" in output.stderr
    again = done("reproduce", file, "--model", model, "--data", data)
    assert again.stdout.strip() == "the same bytes"
    told = json.loads(done("reproduce", file, "--model", model, "--data", data, "--json").stdout)
    assert told["same_bytes"] and told["differing"] == {}
    np.savez(tmp_path / "other.npz", x=np.zeros((16, 8), "float32"), y=np.zeros(16, "int64"))
    other = run("reproduce", file, "--model", model, "--data", tmp_path / "other.npz")
    assert other.exit_code == 1 and "The data is not the one" in other.stderr
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("stages:\n  - qantize\n")
    wrong = run("run", recipe, "--model", tmp_path / "no.keras", "--data", data)
    assert wrong.exit_code == 1 and "mine.yaml, line 2: there is no stage" in wrong.stderr


def test_a_search_writes_its_front_and_goes_on(work, tmp_path):
    data, found = work / "data.npz", tmp_path / "found"
    command = ["search", work / "model.keras", "--data", data, "--val-data", data, "-o", found]
    command += ["--space", "ptq", "--objective", "accuracy", "--objective", "bytes"]
    first = done(*command, "--trials", 1)
    assert "trial 0: PTQ int8: accuracy" in first.stderr and "on the front" in first.stdout
    told = json.loads(done(*command, "--trials", 2, "--json").stdout)
    assert [trial["number"] for trial in told["trials"]] == [0, 1]
    for trial in told["trials"]:
        if trial["front"]:
            file = found / f"trial{trial['number']}.tflite"
            assert file.stat().st_size == trial["values"]["bytes"]
            assert tfc.Recipe.from_yaml(file.with_suffix(".yaml")).export is not None
    assert (found / "front.png").exists()
