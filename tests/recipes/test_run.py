"""Recipes that run: each that comes with the package, resumed after a kill, made again."""

import os
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tests.conftest import ROOT
from tfcompress.recipes import reproduce as reproduce_module
from tfcompress.recipes import run as run_module
from tfcompress.recipes.reproduce import reproduce
from tfcompress.recipes.run import Run
from tfcompress.tflite.metadata import read_metadata


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Conv2D(16, 3, use_bias=False, name="first")(inputs)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.ReLU()(keras.layers.Conv2D(16, 1, name="second")(x))
    x = keras.layers.Dropout(0.1)(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, keras.layers.Dense(3, name="logits")(x), name="net")
    generator = np.random.default_rng(0)
    y = generator.integers(0, 3, 96)
    x = generator.normal(size=(96, 8, 8, 1)).astype("float32") * 0.3 + y[:, None, None, None]
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, epochs=15, verbose=0)
    model.save(folder / "model.keras")
    np.savez(folder / "data.npz", x=x, y=y)
    return folder


@pytest.fixture
def model(folder):
    return keras.models.load_model(folder / "model.keras")


@pytest.fixture
def data(folder):
    with np.load(folder / "data.npz") as arrays:
        return arrays["x"], arrays["y"]


@pytest.mark.parametrize("name", tfc.Recipe.names())
@pytest.mark.filterwarnings("ignore::tfcompress.CompressionWarning")
def test_recipes_that_come_with_the_package_run(name, model, data, tmp_path):
    recipe = tfc.Recipe.from_yaml(name)
    path = tmp_path / "m.tflite"
    result = tfc.run_recipe(recipe, model, data, path, verbose=False)
    assert result.scheme in ("int8", "w4a8")
    assert list(tmp_path.iterdir()) == [path]  # nothing of its work is left
    record = read_metadata(path.read_bytes())["recipe"]
    assert tfc.Recipe.from_dict({"stages": record["stages"]}) == recipe
    if name == "smallest":
        weights = tfc.inspect_tflite(path)
        assert weights.sparsity > 0.8
    if name == "channels-qat":
        whole = tfc.run_recipe("ptq-int8", model, data, tmp_path / "whole.tflite", verbose=False)
        assert result.bytes < whole.bytes


TWO_TRAININGS = """stages:
  - prune: {sparsity: 0.5}
  - fit: {epochs: 3, batch_size: 16, distill: {alpha: 0.5}}
  - quantize
  - fit: {epochs: 6, batch_size: 4}
  - export
"""


def run(folder, recipe, output):
    command = [sys.executable, "-m", "tfcompress", "run", recipe, "--seed", "3", "-o", output]
    command += ["--model", folder / "model.keras", "--data", folder / "data.npz"]
    return subprocess.Popen(
        [str(part) for part in command],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_killed_run_goes_on_and_gives_the_bytes_of_an_undisturbed_one(folder, tmp_path):
    recipe = tmp_path / "two.yaml"
    recipe.write_text(TWO_TRAININGS)
    whole = run(folder, recipe, tmp_path / "whole.tflite")
    killed = run(folder, recipe, tmp_path / "killed.tflite")
    progress = tmp_path / ".killed.tflite.progress"
    deadline = time.monotonic() + 120
    # The second training: the model of the first is there.
    while time.monotonic() < deadline and killed.poll() is None:
        if list(progress.glob("[!.]*.keras")) and list(progress.glob("*/state.npz")):
            break
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "killed.tflite").exists()
    again = run(folder, recipe, tmp_path / "killed.tflite")
    output = again.communicate()[0]
    assert again.returncode == 0, output
    assert "epoch 1," not in output  # of neither training
    assert whole.wait() == 0, whole.stdout.read()
    assert (tmp_path / "killed.tflite").read_bytes() == (tmp_path / "whole.tflite").read_bytes()
    assert not progress.exists()


def test_a_file_is_made_again_to_the_byte(model, data, tmp_path, monkeypatch):
    recipe = tfc.Recipe.from_yaml(TWO_TRAININGS)
    path = tmp_path / "m.tflite"
    tfc.run_recipe(recipe, model, data, path, seed=5, verbose=False)
    content = path.read_bytes()
    same = reproduce(content, model, data, verbose=False)
    assert same.same_bytes and not same.differing and str(same) == "the same bytes"
    with pytest.raises(ValueError, match="The data is not"):
        reproduce(content, model, (data[0] + 1, data[1]), verbose=False)
    other = keras.models.clone_model(model)
    with pytest.raises(ValueError, match="The model is not"):
        reproduce(content, other, data, verbose=False)
    now = {**run_module.surroundings(), "keras": "9.9"}
    for module in (run_module, reproduce_module):
        monkeypatch.setattr(module, "surroundings", lambda: now)
    later = reproduce(content, model, data, verbose=False)
    assert later.same_model and not later.same_bytes
    assert "keras was 3" in str(later) and "is 9.9" in str(later)
    tfc.export_tflite(model, path, verbose=False)
    with pytest.raises(tfc.RecipeError, match="holds no recipe"):
        reproduce(path.read_bytes(), model, data)


def test_trainings_with_an_equal_beginning_are_done_once(model, data, tmp_path):
    arrays, epochs = {"image": data[0]}, []

    def trained(recipe):
        run = Run(
            tfc.Recipe.from_yaml(recipe),
            model,
            arrays,
            data[1],
            folder=tmp_path,
            identity="the same",
            watch=lambda student, epoch, logs: epochs.append(epoch),
        )
        return run.trained()

    beginning = "stages:\n - prune: {sparsity: 0.5}\n - fit: {epochs: 2}\n"
    first = trained(beginning)
    assert epochs == [1, 2]
    trained(beginning + " - quantize\n - fit: {epochs: 1}\n")
    assert epochs == [1, 2, 3]
    again = trained(beginning)
    assert epochs == [1, 2, 3]
    for one, other in zip(first.weights, again.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_a_late_stage_refuses_is_refused_before_any_training(model, data, tmp_path):
    recipe = tfc.Recipe.from_yaml(
        "stages:\n - fit: {epochs: 1000}\n - quantize: {layers: 'no_such_layer'}\n"
        " - fit: {epochs: 1}\n - export\n"
    )
    with pytest.raises(ValueError, match="no_such_layer"):
        tfc.run_recipe(recipe, model, data, tmp_path / "m.tflite", verbose=False)
    with pytest.raises(ValueError, match="no labels"):
        tfc.run_recipe(recipe, model, data[0], tmp_path / "m.tflite", verbose=False)
    with pytest.raises(tfc.RecipeError, match="has no export"):
        tfc.run_recipe("stages: [strip]", model, data, tmp_path / "m.tflite")
