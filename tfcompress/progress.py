"""Progress bars of training."""

from __future__ import annotations

from typing import Any

import keras
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


def progress_bars(console: Console) -> Progress:
    """Returns a display of bars with a name, a percentage, a time and a note."""
    return Progress(
        TextColumn("{task.description:<34}"),
        BarColumn(),
        TextColumn("{task.percentage:>4.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


class FitProgress(keras.callbacks.Callback):
    """Updates a progress bar with the training steps.

    Args:
        progress: The display of the bar.
        name: What to call the training.
        epochs: Total number of epochs.
        steps: Training steps of one epoch.
    """

    def __init__(self, progress: Progress, name: str, epochs: int, steps: int) -> None:
        super().__init__()
        self._progress = progress
        self._name = name
        self._steps = steps
        self._task = progress.add_task(name, total=epochs * steps, note="")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Counts the training steps of earlier epochs, also those of an earlier run."""
        self._before = epoch * self._steps

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Counts the training steps up to this batch."""
        self._progress.update(self._task, completed=self._before + batch + 1)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Shows the metrics; prints a line if the output is no terminal."""
        names = {"accuracy": "training accuracy", "val_accuracy": "validation accuracy"}
        shown = {k: v for k, v in (logs or {}).items() if k == "loss" or k in names}
        note = ", ".join(
            f"{names[k]} {v:.1%}" if k in names else f"{k} {v:.4g}"
            for k, v in sorted(shown.items(), key=lambda item: item[0] in names)
        )
        done = (epoch + 1) * self._steps
        self._progress.update(self._task, note=note, completed=done)
        if not self._progress.console.is_terminal:
            self._progress.console.print(f"{self._name}: epoch {epoch + 1}, {note}")
