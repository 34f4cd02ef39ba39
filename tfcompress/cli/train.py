"""Training from the command line: a model, data and a number of epochs, no code."""

from __future__ import annotations

import json
import math
import pathlib
import secrets
import shutil
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from rich.console import Console

from tfcompress.backup import BackupAndRestore
from tfcompress.cli.fitting import Batches, Interruptible, Stopped, save_undated
from tfcompress.data import samples, spread
from tfcompress.files import beside, check_path, locked, write_whole
from tfcompress.graph.keras_internals import loss_argument, producing_inputs, producing_operation
from tfcompress.graph.read import input_specs, is_graph
from tfcompress.graph.run import outputs_of
from tfcompress.progress import FitProgress, progress_bars
from tfcompress.tflite.run import accuracy


def train(
    model: keras.Model,
    wrap: Callable[[keras.Model, int], keras.Model],
    x: Any,
    y: np.ndarray | None,
    *,
    output: pathlib.Path,
    settings: dict[str, Any],
    seed: int | None,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    quiet: bool,
) -> dict[str, Any]:
    """Wraps a model, trains it and saves it; resumes an earlier run that was stopped.

    Args:
        model: A loaded model; if it was compiled, its loss is used.
        wrap: Takes the model and the number of training steps, and returns the model to train.
        x: Samples.
        y: Labels.
        output: File to write.
        settings: Settings that must be equal for an earlier run to be resumed.
        seed: Seed of the order of samples and of random layers; None for any.
        epochs: Total number of epochs.
        batch_size: Samples per training step.
        learning_rate: Learning rate of Adam, with cosine decay to zero.
        quiet: Whether to print nothing.

    Returns:
        The results, with the keys of the JSON output.

    Raises:
        ValueError: If labels are missing, or do not fit the model.
    """
    check_path(output)
    if output.suffix != ".keras":
        raise ValueError(f"--output must end in .keras. Received: {str(output)!r}")
    specs = input_specs(model)
    arrays = samples(x, specs, argument="--data")
    if y is None:
        raise ValueError(
            "--data holds no labels, which training needs: 'y' in an .npz file, subfolders as "
            "classes, or a function that returns (x, y)."
        )
    count = len(next(iter(arrays.values())))
    if len(y) != count:
        raise ValueError(f"--data holds {count} samples but {len(y)} labels.")
    y = _usual_labels(np.asarray(y))
    loss, metrics, loss_name = _loss(model, y)
    steps_per_epoch = math.ceil(count / batch_size)
    console = Console(quiet=quiet, stderr=True)
    backup = beside(output, ".progress")
    with (
        locked(output),
        _Progress(backup, {**settings, "samples": count, "epochs": epochs}) as run_folder,
    ):
        if run_folder.is_resumed:
            console.print(f"Going on with the run that was stopped, from {str(backup)!r}.")
        seed = run_folder.settle_seed(seed)
        keras.utils.set_random_seed(seed)
        before = _accuracy(model, arrays, y, metrics)
        wrapped = wrap(model, epochs * steps_per_epoch)
        rate = keras.optimizers.schedules.CosineDecay(learning_rate, epochs * steps_per_epoch)
        wrapped.compile(keras.optimizers.Adam(rate), loss, metrics=metrics)
        console.print(f"Loss: {loss_name}.")
        batches = Batches(wrapped, arrays, y, batch_size, seed)
        backup_callback = BackupAndRestore(backup, delete_checkpoint=False)
        run_folder.state = backup_callback
        with progress_bars(console) as progress:
            wrapped.fit(
                batches,
                epochs=epochs,
                shuffle=False,  # the batches define the order
                verbose=0,
                callbacks=[
                    backup_callback,
                    FitProgress(progress, output.stem, epochs, steps_per_epoch),
                    Interruptible(steps_per_epoch, batches),
                ],
            )
        after = _accuracy(wrapped, arrays, y, metrics)
        save_undated(wrapped, output)
    result = {
        "output": str(output),
        "epochs": epochs,
        "resumed": run_folder.is_resumed,
        "seed": seed,
        "loss_function": loss_name,
        **backup_callback.logs,
    }
    if before is not None and after is not None:
        result |= {"accuracy_before": before, "accuracy_after": after}
        if after < before:
            console.print(
                f"Warning: training made it worse: accuracy {before:.2%} before and {after:.2%} "
                "after, on the samples it was trained on. Try a smaller --learning-rate or more "
                "--epochs."
            )
    return result


def _accuracy(
    model: keras.Model, arrays: dict[str, np.ndarray], y: np.ndarray, metrics: list[Any]
) -> float | None:
    """Returns the accuracy on at most 2,000 samples; None if labels are no classes."""
    if not metrics or len(model.outputs) != 1:
        return None
    few = {name: spread(array, _EVALUATED) for name, array in arrays.items()}
    return accuracy(outputs_of(model, few)[0], spread(y, _EVALUATED))


_EVALUATED = 2000


class _Progress:
    """The folder of an unfinished run, with the settings that it was started with.

    It is removed when the run ends, and kept if the run is stopped after at least one epoch.
    """

    def __init__(self, folder: pathlib.Path, settings: dict[str, Any]) -> None:
        self._folder, self._settings = folder, settings
        self._file = folder / "settings.json"
        self.is_resumed = False
        self.state: BackupAndRestore | None = None

    def __enter__(self) -> _Progress:
        earlier: dict[str, Any] = {}
        if (self._folder / "state.npz").is_file() and self._file.is_file():
            earlier = json.loads(self._file.read_text())
            self.is_resumed = True
            differs = {**earlier, "seed": None} != {**self._settings, "seed": None}
            if differs or self._settings["seed"] not in (None, earlier["seed"]):
                raise ValueError(
                    "A run with other settings was stopped before its end, and is kept in "
                    f"{str(self._folder)!r}. Run it again with its settings "
                    f"({self._file.read_text()}), or delete that folder."
                )
            self._settings = earlier
        else:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir()
        return self

    def settle_seed(self, seed: int | None) -> int:
        """Returns the seed of the run: the argument, that of the stopped run, or a random one."""
        if not self.is_resumed:
            self._settings["seed"] = secrets.randbits(31) if seed is None else seed
            write_whole(self._file, json.dumps(self._settings, sort_keys=True).encode())
        return self._settings["seed"]

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        epochs_done = self.state.epoch if self.state else 0
        if kind is None or not (epochs_done or self.is_resumed):
            shutil.rmtree(self._folder, ignore_errors=True)  # nothing to resume
        elif issubclass(kind, KeyboardInterrupt):
            after = (
                f"after {epochs_done} of {self._settings['epochs']} epochs"
                if epochs_done
                else "again"
            )
            raise Stopped(f"Stopped {after}. Give the same command again to go on.") from error


def _usual_labels(y: np.ndarray) -> np.ndarray:
    """Converts labels to integers if they are whole numbers stored as floats."""
    return y.astype(np.int64) if y.dtype.kind == "f" and np.all(y == np.round(y)) else y


def _loss(model: keras.Model, y: np.ndarray) -> tuple[Any, list[Any], str]:
    """Returns the loss the model was compiled with, or a default, its metrics and its name.

    Raises:
        ValueError: If the labels do not fit the outputs.
    """
    compiled_loss = loss_argument(model)
    if len(model.outputs) != 1:
        if compiled_loss:
            return compiled_loss, [], "of the model"
        raise ValueError(
            f"model {model.name!r} has {len(model.outputs)} outputs and was saved without a loss. "
            "Compile it before you save it."
        )
    shape = tuple(model.outputs[0].shape[1:])
    units = shape[-1] if shape else 1
    are_classes = y.shape[1:] in (shape[:-1], (*shape[:-1], 1))
    if units > 1 and are_classes and y.dtype.kind in "biu" and not 0 <= y.min() <= y.max() < units:
        raise ValueError(
            f"Labels must be 0 to {units - 1}, as the model has {units} outputs. Received: labels "
            f"from {int(y.min())} to {int(y.max())}."
        )
    if compiled_loss:
        return compiled_loss, ["accuracy"] if y.dtype.kind in "biu" else [], "of the model"
    logits = {"from_logits": not _ends_in_probabilities(model)}
    are_binary = bool(np.isin(y, (0, 1)).all())
    if units > 1 and are_classes and y.dtype.kind in "biu":
        loss: Any = keras.losses.SparseCategoricalCrossentropy(**logits)
        return loss, ["accuracy"], "sparse categorical crossentropy"
    if y.shape[1:] not in (shape, shape[:-1] if units == 1 else shape):
        raise ValueError(
            f"Labels of the shape {y.shape[1:]} do not fit outputs of the shape {shape}. Give a "
            "number of a class or a row of the outputs' shape for each sample, or save the model "
            "compiled with its loss."
        )
    if units > 1 and np.allclose(y.sum(-1), 1) and y.min() >= 0:
        loss = keras.losses.CategoricalCrossentropy(**logits)
        return loss, ["accuracy"], "categorical crossentropy"
    if are_binary:
        return keras.losses.BinaryCrossentropy(**logits), ["accuracy"], "binary crossentropy"
    return keras.losses.MeanSquaredError(), [], "mean squared error"


def _ends_in_probabilities(model: keras.Model) -> bool:
    tensor = model.outputs[0]
    while True:
        operation = producing_operation(tensor)
        inner = getattr(operation, "layer", operation)
        if is_graph(inner):
            tensor = inner.outputs[0]
        elif type(inner).__name__ in _KEEP_VALUES or getattr(inner, "is_compression_helper", False):
            tensor = producing_inputs(tensor)[0]
        else:
            break
    activation = getattr(inner, "activation", None)
    return getattr(activation, "__name__", type(inner).__name__.lower()) in ("softmax", "sigmoid")


_KEEP_VALUES = ("Reshape", "Flatten", "Dropout", "Identity", "Permute")
