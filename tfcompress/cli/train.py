"""Training from the command line: a model, data and a number of epochs, no code."""

from __future__ import annotations

import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from rich.console import Console

from tfcompress.data import samples
from tfcompress.files import check_path
from tfcompress.graph.read import input_specs, load_keras
from tfcompress.progress import FitProgress, progress_bars
from tfcompress.wrap.calibrate import packed


def train(
    model: keras.Model,
    wrap: Callable[[keras.Model, int], keras.Model],
    x: Any,
    y: np.ndarray | None,
    *,
    output: pathlib.Path,
    settings: dict[str, Any],
    epochs: int,
    batch_size: int,
    learning_rate: float,
    quiet: bool,
) -> dict[str, Any]:
    """Wraps a model, trains it and saves it; goes on where an earlier run was stopped.

    Args:
        model: A loaded model; if it was compiled, its loss is used.
        wrap: Given the model and the number of training steps, returns what is trained.
        x: Samples.
        y: Labels.
        output: File to write.
        settings: What must be the same for an earlier run to be gone on with.
        epochs: Epochs in all.
        batch_size: Samples of a step.
        learning_rate: Of Adam, falling to zero along a cosine.
        quiet: Whether to show nothing.

    Returns:
        What was done, for people and machines.

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
    _check_labels(model, y)
    loss, metrics = _loss(model, y)
    each = math.ceil(count / batch_size)
    backup = output.with_name(f".{output.name}.progress")
    kept = _resume(backup, {**settings, "samples": count, "epochs": epochs})
    console = Console(quiet=quiet, stderr=True)
    if kept:
        console.print(f"Going on with the run that was stopped, from {str(backup)!r}.")
        wrapped, start = load_keras(kept), int(kept.stem)
    else:
        wrapped, start = wrap(model, epochs * each), 0
        rate = keras.optimizers.schedules.CosineDecay(learning_rate, epochs * each)
        wrapped.compile(keras.optimizers.Adam(rate), loss, metrics=metrics)
    try:
        with progress_bars(console) as progress:
            history = wrapped.fit(
                packed(wrapped, arrays),
                y,
                batch_size=batch_size,
                epochs=epochs,
                initial_epoch=start,
                verbose=0,
                callbacks=[FitProgress(progress, output.stem, epochs, each), _Keep(backup)],
            ).history
    finally:
        if not list(backup.glob("*.keras")):  # there is nothing to go on with
            shutil.rmtree(backup, ignore_errors=True)
    _save_whole(wrapped, output)
    shutil.rmtree(backup, ignore_errors=True)
    final = {name: float(values[-1]) for name, values in history.items()}
    return {"output": str(output), "epochs": epochs, "resumed": bool(kept), **final}


class _Keep(keras.callbacks.Callback):
    """Saves the model, its optimizer with it, after each epoch: the last of them stays."""

    def __init__(self, folder: pathlib.Path) -> None:
        super().__init__()
        self._folder = folder

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Replaces the model of the epoch before."""
        before = list(self._folder.glob("*.keras"))
        _save_whole(self.model, self._folder / f"{epoch + 1}.keras")
        for path in before:
            path.unlink(missing_ok=True)


def _resume(backup: pathlib.Path, settings: dict[str, Any]) -> pathlib.Path | None:
    """Returns the model of an earlier run with the same settings, or None."""
    told = backup / "settings.json"
    text = json.dumps(settings, sort_keys=True)
    kept = sorted(backup.glob("[0-9]*.keras"), key=lambda path: int(path.stem))
    if kept and told.is_file():
        if told.read_text() == text:
            return kept[-1]
        raise ValueError(
            f"A run with other settings was stopped before its end, and is kept in "
            f"{str(backup)!r}. Run it again with its settings ({told.read_text()}), or delete that "
            "folder."
        )
    shutil.rmtree(backup, ignore_errors=True)
    backup.mkdir()
    told.write_text(text)
    return None


def _save_whole(model: keras.Model, output: pathlib.Path) -> None:
    part = output.with_name(f".part-{output.name}")
    try:
        model.save(part)
        os.replace(part, output)
    finally:
        part.unlink(missing_ok=True)


def _check_labels(model: keras.Model, y: np.ndarray) -> None:
    """Refuses numbers of classes that the model does not have."""
    output = model.outputs[0]
    units = output.shape[-1]
    numbers = y.dtype.kind in "biu" and (y.ndim < len(output.shape) or y.shape[-1] != units)
    if len(model.outputs) == 1 and units > 1 and numbers and not 0 <= y.min() <= y.max() < units:
        raise ValueError(
            f"Labels must be 0 to {units - 1}, as the model has {units} outputs. Received: labels "
            f"from {int(y.min())} to {int(y.max())}."
        )


def _loss(model: keras.Model, y: np.ndarray) -> tuple[Any, list[Any]]:
    """Returns the loss that the model was compiled with, or the usual one of its output."""
    compiled = getattr(model, "_compile_loss", None)
    if getattr(model, "compiled", False) and compiled is not None and compiled._user_loss:
        return compiled._user_loss, ["accuracy"] if y.dtype.kind in "biu" else []
    if len(model.outputs) != 1:
        raise ValueError(
            f"model {model.name!r} has {len(model.outputs)} outputs and was saved without a loss. "
            "Compile it before you save it."
        )
    units = model.outputs[0].shape[-1]
    whole = y.dtype.kind in "biu"
    same_rank = y.ndim == len(model.outputs[0].shape)
    probabilities = _ends_in_probabilities(model)
    if units == 1 and whole:
        return keras.losses.BinaryCrossentropy(from_logits=not probabilities), ["accuracy"]
    if units > 1 and whole and (not same_rank or y.shape[-1] == 1):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not probabilities)
        return loss, ["accuracy"]
    if units > 1 and same_rank and np.allclose(y.sum(-1), 1) and y.min() >= 0:
        loss = keras.losses.CategoricalCrossentropy(from_logits=not probabilities)
        return loss, ["accuracy"]
    return keras.losses.MeanSquaredError(), []


def _ends_in_probabilities(model: keras.Model) -> bool:
    last = model.outputs[0]._keras_history.operation
    activation = getattr(getattr(last, "layer", last), "activation", None)
    named = getattr(activation, "__name__", type(last).__name__.lower())
    return named in ("softmax", "sigmoid")
