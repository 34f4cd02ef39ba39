"""Training from the command line: a model, data and a number of epochs, no code."""

from __future__ import annotations

import json
import math
import pathlib
import shutil
import signal
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from rich.console import Console

from tfcompress.data import samples
from tfcompress.files import check_path, replacing
from tfcompress.graph.read import input_specs, is_graph, load_keras
from tfcompress.graph.run import packed
from tfcompress.progress import FitProgress, progress_bars


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
    y = _usual_labels(np.asarray(y))
    loss, metrics, told = _loss(model, y)
    each = math.ceil(count / batch_size)
    console = Console(quiet=quiet, stderr=True)
    backup = output.with_name(f".{output.name}.progress")
    kept = _resume(backup, {**settings, "samples": count, "epochs": epochs})
    try:
        if kept:
            console.print(f"Going on with the run that was stopped, from {str(backup)!r}.")
            wrapped, start = load_keras(kept), int(kept.stem)
        else:
            wrapped, start = wrap(model, epochs * each), 0
            rate = keras.optimizers.schedules.CosineDecay(learning_rate, epochs * each)
            wrapped.compile(keras.optimizers.Adam(rate), loss, metrics=metrics)
        console.print(f"Loss: {told}.")
        with progress_bars(console) as progress:
            history = wrapped.fit(
                packed(wrapped, arrays),
                y,
                batch_size=batch_size,
                epochs=epochs,
                initial_epoch=start,
                verbose=0,
                callbacks=[
                    FitProgress(progress, output.stem, epochs, each),
                    _Keep(backup),
                    _Interruptible(),
                ],
            ).history
    finally:
        if not list(backup.glob("*.keras")):  # there is nothing to go on with
            shutil.rmtree(backup, ignore_errors=True)
    _save_whole(wrapped, output)
    shutil.rmtree(backup, ignore_errors=True)
    final = {name: float(values[-1]) for name, values in history.items()}
    return {
        "output": str(output),
        "epochs": epochs,
        "resumed": bool(kept),
        "loss_function": told,
        **final,
    }


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


class _Interruptible(keras.callbacks.Callback):
    """Ends training at Ctrl-C also where Python loses the exception, as in garbage collection."""

    def on_train_begin(self, logs: Any = None) -> None:
        """Listens to Ctrl-C."""
        self._asked = False
        self._before = signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, *_: Any) -> None:
        self._asked = True
        signal.signal(signal.SIGINT, self._before)
        raise KeyboardInterrupt

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Raises the exception that was lost."""
        if self._asked:
            raise KeyboardInterrupt

    def on_train_end(self, logs: Any = None) -> None:
        """Puts back what listened before."""
        signal.signal(signal.SIGINT, self._before)


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
    with replacing(output) as part:
        model.save(part)


def _usual_labels(y: np.ndarray) -> np.ndarray:
    """Returns whole numbers that are stored as floats as integers."""
    return y.astype(np.int64) if y.dtype.kind == "f" and np.all(y == np.round(y)) else y


def _loss(model: keras.Model, y: np.ndarray) -> tuple[Any, list[Any], str]:
    """Returns the loss that the model was compiled with, or the usual one, metrics, and which.

    Raises:
        ValueError: If the labels do not fit the outputs.
    """
    compiled = getattr(model, "_compile_loss", None)
    given = compiled is not None and getattr(model, "compiled", False) and compiled._user_loss
    if len(model.outputs) != 1:
        if given:
            return given, [], "of the model"
        raise ValueError(
            f"model {model.name!r} has {len(model.outputs)} outputs and was saved without a loss. "
            "Compile it before you save it."
        )
    shape = tuple(model.outputs[0].shape[1:])
    units = shape[-1] if shape else 1
    numbers = y.shape[1:] in (shape[:-1], (*shape[:-1], 1))
    if units > 1 and numbers and y.dtype.kind in "biu" and not 0 <= y.min() <= y.max() < units:
        raise ValueError(
            f"Labels must be 0 to {units - 1}, as the model has {units} outputs. Received: labels "
            f"from {int(y.min())} to {int(y.max())}."
        )
    if given:
        return given, ["accuracy"] if y.dtype.kind in "biu" else [], "of the model"
    logits = {"from_logits": not _ends_in_probabilities(model)}
    zero_or_one = bool(np.isin(y, (0, 1)).all())
    if units > 1 and numbers and y.dtype.kind in "biu":
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
    if zero_or_one:
        return keras.losses.BinaryCrossentropy(**logits), ["accuracy"], "binary crossentropy"
    return keras.losses.MeanSquaredError(), [], "mean squared error"


def _ends_in_probabilities(model: keras.Model) -> bool:
    tensor = model.outputs[0]
    while True:
        operation = tensor._keras_history.operation
        inner = getattr(operation, "layer", operation)
        if is_graph(inner):
            tensor = inner.outputs[0]
        elif type(inner).__name__ in _KEEP_VALUES or getattr(inner, "is_compression_helper", False):
            node = operation._inbound_nodes[tensor._keras_history.node_index]
            tensor = node.input_tensors[0]
        else:
            break
    activation = getattr(inner, "activation", None)
    return getattr(activation, "__name__", type(inner).__name__.lower()) in ("softmax", "sigmoid")


_KEEP_VALUES = ("Reshape", "Flatten", "Dropout", "Identity", "Permute")
