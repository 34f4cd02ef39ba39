"""What makes a run repeatable and interruptible: order of samples, seeds, signals, saved files."""

from __future__ import annotations

import json
import pathlib
import re
import signal
import zipfile
from typing import Any

import keras
import numpy as np

from tfcompress.files import replacing
from tfcompress.graph.run import packed


class Stopped(KeyboardInterrupt):
    """Ctrl-C, and what to do to go on."""


class Batches(keras.utils.PyDataset):
    """Batches in an order that depends on the seed and the epoch only, not on earlier epochs.

    Args:
        model: What they are for.
        arrays: Samples by input name.
        y: Labels.
        batch_size: Samples of a batch.
        seed: Of the order.
    """

    def __init__(
        self,
        model: keras.Model,
        arrays: dict[str, np.ndarray],
        y: np.ndarray,
        batch_size: int,
        seed: int,
    ) -> None:
        super().__init__()
        self._model, self._arrays, self._y = model, arrays, y
        self._size, self._seed = batch_size, seed
        self.start(0)

    def start(self, epoch: int) -> None:
        """Takes the order of an epoch."""
        self._order = np.random.default_rng((self._seed, epoch)).permutation(len(self._y))

    def __len__(self) -> int:
        return -(-len(self._y) // self._size)

    def __getitem__(self, index: int) -> Any:
        rows = self._order[index * self._size : (index + 1) * self._size]
        features = {name: array[rows] for name, array in self._arrays.items()}
        return packed(self._model, features), self._y[rows]


class Interruptible(keras.callbacks.Callback):
    """Ends training at Ctrl-C: at once, or after an epoch that is as good as trained was kept.

    Also where Python loses the exception, as in garbage collection.

    Args:
        steps: Steps of an epoch.
        batches: Is told which epoch begins.
    """

    def __init__(self, steps: int, batches: Batches | None = None) -> None:
        super().__init__()
        self._steps, self._batches = steps, batches
        self._asked = self._waits = False

    def on_train_begin(self, logs: Any = None) -> None:
        """Listens to Ctrl-C."""
        self._asked = self._waits = False
        self._before = signal.getsignal(signal.SIGINT)
        if self._before is not signal.SIG_IGN:  # as in the background of a shell
            signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, *_: Any) -> None:
        self._asked = True
        if not self._waits:
            signal.signal(signal.SIGINT, self._before)
            raise KeyboardInterrupt

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Ends the run if that was asked for while the epoch before was kept."""
        self._waits = False
        if self._asked:
            raise KeyboardInterrupt
        if self._batches is not None:
            self._batches.start(epoch)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Waits with an interrupt from the last step until the epoch is kept."""
        self._waits = batch + 1 >= self._steps

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Raises the exception that was lost."""
        if self._asked and not self._waits:
            raise KeyboardInterrupt

    def on_train_end(self, logs: Any = None) -> None:
        """Puts back what listened before."""
        signal.signal(signal.SIGINT, self._before)


def _numbered(config: str) -> str:
    """Returns a model's config with its shared objects numbered, in place of places in memory."""
    numbers: dict[str, int] = {}

    def number(found: re.Match[str]) -> str:
        return found[1] + str(numbers.setdefault(found[2], len(numbers)))

    return re.sub(r'("shared_object_id": )(\d+)', number, config)


def save_undated(model: keras.Model, output: pathlib.Path) -> None:
    """Saves a model, whole or not at all, to a file that says nothing of when it was saved."""
    with replacing(output) as part:
        model.save(part)
        with zipfile.ZipFile(part) as archive:
            held = [(entry, archive.read(entry)) for entry in archive.infolist()]
        with zipfile.ZipFile(part, "w") as archive:
            for entry, content in held:
                if entry.filename == "metadata.json":
                    told = {**json.loads(content), "date_saved": "1980-01-01@00:00:00"}
                    content = json.dumps(told).encode()
                if entry.filename == "config.json":
                    content = _numbered(content.decode()).encode()
                entry.date_time = (1980, 1, 1, 0, 0, 0)
                archive.writestr(entry, content, entry.compress_type)
