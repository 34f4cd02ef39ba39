"""Training on the command line: losses, and runs that were stopped."""

import gc
import os
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from tests.cli.conftest import done, run
from tests.conftest import ROOT
from tfcompress.recipes.fitting import Interruptible


def test_a_model_that_was_changed_is_not_gone_on_with(work, tmp_path, monkeypatch):
    from tfcompress.cli.commands import training

    model = tmp_path / "m.keras"
    model.write_bytes((work / "model.keras").read_bytes())
    first = training._identity(str(model))
    assert first == training._identity(str(model)) and first[0] == str(model)
    os.utime(model, (1, 1))
    assert training._identity(str(model)) != first


LOSSES = {
    "classes": (np.array([0, 2, 1, 1]), "sparse categorical crossentropy"),
    "classes as floats": (np.array([0.0, 2.0, 1.0, 1.0]), "sparse categorical crossentropy"),
    "one-hot": (np.eye(3)[[0, 1, 2, 0]], "categorical crossentropy"),
    "several at once": (np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]]), "binary"),
    "numbers": (np.random.default_rng(0).normal(size=(4, 3)), "mean squared error"),
}


@pytest.mark.parametrize(("y", "named"), LOSSES.values(), ids=LOSSES)
def test_the_usual_loss_for_the_labels(y, named):
    from tfcompress.recipes.losses import loss_for, usual_labels

    last = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    model = keras.Sequential([keras.Input((4,)), last, keras.layers.Reshape((3,))])
    loss, _, output = loss_for(model, usual_labels(y))
    assert output.startswith(named)
    assert not getattr(loss, "from_logits", False) and "from_logits=True" not in str(vars(loss))
    with pytest.raises(ValueError, match="do not fit outputs"):
        loss_for(model, np.ones((4, 2)))


def test_whole_numbers_to_be_told_are_no_classes():
    from tfcompress.recipes.losses import loss_for

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    assert loss_for(model, np.array([10, 65, 30]))[2] == "mean squared error"
    assert loss_for(model, np.array([0, 1, 1]))[2] == "binary crossentropy"


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
        # What runs in the background of a shell is deaf to it, and so are its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    backup = tmp_path / ".q.keras.progress"
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".*.progress/*/state.npz")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    output = process.stderr.read()
    assert backup.is_dir() and not out.exists(), output
    assert "epochs. Give the same command again to go on." in output.splitlines()[-1]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".q.keras.progress"]
    other = run(*command[:-1], 5)
    assert other.exit_code == 1 and "with other settings was stopped" in other.stderr
    again = done(*command)
    assert "Going on with the run" in again.stderr
    assert out.exists() and not backup.exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_python_loses_ends_the_run_all_the_same(work, tmp_path):
    def lose(phase, info):
        gc.callbacks.remove(lose)
        signal.raise_signal(signal.SIGINT)

    class Collects(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 3:
                gc.callbacks.append(lose)
                gc.collect()

        def on_train_batch_end(self, batch, logs=None):
            self.last = batch

    # What runs in the background of a shell ignores the signal.
    original = signal.signal(signal.SIGINT, signal.default_int_handler)
    before, collects = signal.getsignal(signal.SIGINT), Collects()
    with np.load(work / "data.npz") as data, pytest.raises(KeyboardInterrupt):
        model = keras.models.load_model(work / "model.keras")
        callbacks = [collects, Interruptible(1000)]
        model.fit(data["x"], data["y"], batch_size=32, verbose=0, callbacks=callbacks)
    assert collects.last == 3
    assert signal.getsignal(signal.SIGINT) is before
    signal.signal(signal.SIGINT, original)


def command_of(work, tmp_path, kind="quantize", *more):
    out = tmp_path / "out.keras"
    command = [kind, work / "model.keras", "-o", out, "--data", work / "data.npz", *more]
    return out, [str(part) for part in (*command, "--epochs", 3, "--batch-size", 16)]


def process_of(command):
    return subprocess.Popen(
        [sys.executable, "-m", "tfcompress", *command],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_runs_with_one_seed_are_equal_to_the_byte(work, tmp_path):
    contents = []
    for seed in (7, 7):
        out, command = command_of(work, tmp_path, "prune", "--seed", seed)
        process = process_of(command)
        assert process.wait(timeout=120) == 0, process.stderr.read()
        contents.append(out.read_bytes())
        out.unlink()
    assert contents[0] == contents[1]


def noisy(folder):
    """A model whose dropout and noise have states, and labelled data, in files."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(16, activation="relu"), keras.layers.Dropout(0.3)]
    layers += [keras.layers.GaussianNoise(0.1), keras.layers.Dense(3)]
    keras.Sequential([keras.Input((8,)), *layers]).save(folder / "model.keras")
    x = np.random.default_rng(0).normal(size=(400, 8)).astype("float32")
    np.savez(folder / "data.npz", x=x, y=(x[:, 0] > 0).astype(int) + (x[:, 1] > 0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "times"),
    [("prune", 20), ("quantize", 20), ("cluster", 4), ("prune-channels", 4), ("distill", 4)],
)
def test_a_run_that_is_killed_ends_like_one_that_was_not(kind, times, tmp_path):
    """At random moments, by any of three signals."""
    import random

    noisy(tmp_path)
    out, command = command_of(tmp_path, tmp_path, kind, "--seed", 5)
    if kind == "distill":  # it learns from itself
        command.insert(1, command[1])
    started = time.monotonic()
    process = process_of(command)
    assert process.wait(timeout=120) == 0, process.stderr.read()
    whole, seconds = out.read_bytes(), time.monotonic() - started
    moments = random.Random(0)
    for _ in range(times):
        out.unlink()
        process = process_of(command)
        try:
            process.wait(moments.uniform(0.3, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(moments.choice([signal.SIGKILL, signal.SIGINT, signal.SIGTERM]))
            process.wait(timeout=60)
        if not out.exists():
            process = process_of(command)
            assert process.wait(timeout=120) == 0, process.stderr.read()
        assert out.read_bytes() == whole
        assert sorted(p.name for p in tmp_path.iterdir()) == [
            "data.npz",
            "model.keras",
            "out.keras",
        ]


def test_a_second_training_on_one_output_is_told_at_once(work, tmp_path):
    from tfcompress.files import locked

    out, command = command_of(work, tmp_path)
    with locked(out):
        output = run(*command)
        assert output.exit_code == 1 and f"Another run (process {os.getpid()})" in output.stderr
    assert list(tmp_path.iterdir()) == []
    done(*command)
    assert [p.name for p in tmp_path.iterdir()] == ["out.keras"]


def test_training_that_made_it_worse_is_told(work, tmp_path, monkeypatch):
    monkeypatch.setenv("TF_DETERMINISTIC_OPS", "0")  # which --seed would set for what comes after
    _, command = command_of(work, tmp_path, "quantize", "--learning-rate", "5", "--seed", "1")
    output = done(*command)
    assert "accuracy on these samples:" in output.stdout
    assert "training made it worse: accuracy" in output.stderr
