"""Repeatable and interruptible training: order of samples, seeds, signals, saved files."""

from __future__ import annotations

import json
import pathlib
import signal
import zipfile
from typing import Any

import keras
import numpy as np

from tfcompress.distill.cached import CachedTeacher
from tfcompress.files import replacing
from tfcompress.graph.fingerprint import numbered
from tfcompress.graph.run import packed


class Stopped(KeyboardInterrupt):
    """Training was interrupted by Ctrl-C; the message says how to resume."""


class Batches(keras.utils.PyDataset):
    """Batches in an order that depends on the seed and the epoch only, not on earlier epochs.

    Args:
        model: The model to train.
        arrays: Samples by input name.
        y: Labels.
        batch_size: Samples per batch.
        seed: The seed of the order.
        teacher: The stored outputs of a teacher for these samples, for a `Distiller`.
    """

    def __init__(
        self,
        model: keras.Model,
        arrays: dict[str, np.ndarray],
        y: np.ndarray,
        batch_size: int,
        seed: int,
        teacher: CachedTeacher | None = None,
    ) -> None:
        super().__init__()
        self._model, self._arrays, self._y, self._teacher = model, arrays, y, teacher
        self._size, self._seed = batch_size, seed
        self.start(0)

    def start(self, epoch: int) -> None:
        """Sets the order of an epoch."""
        self._order = np.random.default_rng((self._seed, epoch)).permutation(len(self._y))

    def __len__(self) -> int:
        return -(-len(self._y) // self._size)

    def __getitem__(self, index: int) -> Any:
        rows = self._order[index * self._size : (index + 1) * self._size]
        x = packed(self._model, {name: array[rows] for name, array in self._arrays.items()})
        if self._teacher is not None:
            x = {"inputs": x, "teacher": self._teacher.rows(rows)}
        return x, self._y[rows]


class Interruptible(keras.callbacks.Callback):
    """Ends training at Ctrl-C: at once, or, during the last step of an epoch, after its backup.

    This also works if Python loses the exception, as in garbage collection.

    Args:
        steps: Training steps of an epoch.
        batches: The batches, whose `start` is called with each epoch.
    """

    def __init__(self, steps: int, batches: Batches | None = None) -> None:
        super().__init__()
        self._steps, self._batches = steps, batches
        self._interrupted = self._deferred = False

    def on_train_begin(self, logs: Any = None) -> None:
        """Installs the handler of Ctrl-C."""
        self._interrupted = self._deferred = False
        self._before = signal.getsignal(signal.SIGINT)
        if self._before is not signal.SIG_IGN:  # as in the background of a shell
            signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, *_: Any) -> None:
        self._interrupted = True
        if not self._deferred:
            signal.signal(signal.SIGINT, self._before)
            raise KeyboardInterrupt

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Ends the run if it was interrupted during the backup of the epoch before."""
        self._deferred = False
        if self._interrupted:
            raise KeyboardInterrupt
        if self._batches is not None:
            self._batches.start(epoch)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Defers interrupts from the last step of an epoch until its backup is written."""
        self._deferred = batch + 1 >= self._steps

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Raises the exception that was lost."""
        if self._interrupted and not self._deferred:
            raise KeyboardInterrupt

    def on_train_end(self, logs: Any = None) -> None:
        """Restores the previous handler."""
        signal.signal(signal.SIGINT, self._before)


def seed_random_layers(model: keras.Model, seed: int) -> None:
    """Sets the states of random layers, which are drawn anew whenever a model is loaded."""
    states = (v for v in model.variables if v.path.endswith("seed_generator_state"))
    for number, state in enumerate(states):
        state.assign(np.random.SeedSequence((seed, number)).generate_state(2))


def save_undated(model: keras.Model, output: pathlib.Path) -> None:
    """Saves a model atomically, to a file without the date of saving."""
    with replacing(output) as part:
        model.save(part)
        with zipfile.ZipFile(part) as archive:
            entries = [(entry, archive.read(entry)) for entry in archive.infolist()]
        with zipfile.ZipFile(part, "w") as archive:
            for entry, content in entries:
                if entry.filename == "metadata.json":
                    metadata = {**json.loads(content), "date_saved": "1980-01-01@00:00:00"}
                    content = json.dumps(metadata).encode()
                if entry.filename == "config.json":
                    content = numbered(content.decode()).encode()
                entry.date_time = (1980, 1, 1, 0, 0, 0)
                archive.writestr(entry, content, entry.compress_type)
