"""What a file costs and what it is worth, as the objectives of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfcompress.scheme import check_choice
from tfcompress.tflite.benchmark import benchmark
from tfcompress.tflite.inspect import inspect_tflite
from tfcompress.tflite.run import TFLiteModel
from tfcompress.tflite.run import accuracy as accuracy_of
from tfcompress.tune.score import Metric

ACCURACY = "accuracy"
COSTS = ("bytes", "gzip_bytes", "latency_ms", "arena_bytes")
"""Objectives of which less is better."""


class Objectives:
    """Measures files on one set of samples.

    Args:
        names: "accuracy" and one or more of `COSTS`.
        reference: The float file, beside which latency is measured in turns.
        samples: Samples by input name.
        labels: Their labels.
        metric: In place of accuracy.

    Attributes:
        names: The names, in order.
        reference: The measures of the float file.
    """

    def __init__(
        self,
        names: Sequence[str],
        reference: bytes,
        samples: Mapping[str, np.ndarray],
        labels: np.ndarray,
        metric: Metric | None,
    ) -> None:
        for name in names:
            check_choice(name, "objectives", (ACCURACY, *COSTS))
        if ACCURACY not in names or len(set(names)) < 2:
            raise ValueError(
                f"objectives are 'accuracy' and one or more of {', '.join(COSTS)}. Received: "
                f"{names!r}"
            )
        self.names = tuple(dict.fromkeys(names))
        self._samples, self._labels, self._metric = samples, labels, metric or accuracy_of_outputs
        self._float = TFLiteModel(reference)
        self.reference = self.measured(reference)

    @property
    def directions(self) -> list[str]:
        """Returns what is better, for Optuna."""
        return ["maximize" if name == ACCURACY else "minimize" for name in self.names]

    def measured(self, content: bytes) -> dict[str, float]:
        """Returns the objectives of a file."""
        file, found = TFLiteModel(content), {}
        outputs = file.predict(dict(self._samples))
        found[ACCURACY] = float(self._metric(self._labels, outputs))
        report = inspect_tflite(content)
        found["bytes"], found["gzip_bytes"] = report.bytes, report.gzip_bytes
        if "latency_ms" in self.names:
            found["latency_ms"] = self._latency(file)
        if "arena_bytes" in self.names:
            found["arena_bytes"] = file.arena_bytes()
        return {name: float(found[name]) for name in self.names}

    def _latency(self, file: TFLiteModel) -> float:
        """Returns milliseconds, as if the float file took what it took first."""
        times = benchmark({"float": self._float, "file": file}, runs=100)
        ratio = times["file"].median_ms / times["float"].median_ms
        before = getattr(self, "reference", None)
        return ratio * (before["latency_ms"] if before else times["float"].median_ms)


def accuracy_of_outputs(labels: Any, outputs: Any) -> float:
    """Returns the share of samples whose class is right."""
    return accuracy_of(np.asarray(outputs), np.asarray(labels))


def dominates(
    one: Mapping[str, float],
    other: Mapping[str, float],
    names: Sequence[str],
    slack: float = 0.0,
) -> bool:
    """Returns whether one is no worse in any objective, and better in one.

    Args:
        one: Objectives by name.
        other: Those of another.
        names: The objectives that count.
        slack: The share by which one may cost more and be no worse.
    """
    costs = [name for name in names if name != ACCURACY]
    no_worse = all(one[name] <= other[name] * (1 + slack) for name in costs)
    better = one[ACCURACY] > other[ACCURACY] or any(one[n] < other[n] for n in costs)
    return no_worse and one[ACCURACY] >= other[ACCURACY] and better
