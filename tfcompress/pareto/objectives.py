"""What a file costs and what it is worth, as the objectives of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress.devices.ethos_u import ACCELERATORS, compile_ethos_u
from tfcompress.devices.for_target import known_target
from tfcompress.devices.micro import run_micro
from tfcompress.devices.outcome import DEVICES, check_device
from tfcompress.graph.cost import macs
from tfcompress.scheme import check_choice
from tfcompress.tflite.benchmark import benchmark
from tfcompress.tflite.inspect import inspect_tflite
from tfcompress.tflite.run import TFLiteModel
from tfcompress.tflite.run import accuracy as accuracy_of
from tfcompress.tune.score import Metric

ACCURACY = "accuracy"
COSTS = ("bytes", "gzip_bytes", "macs", "arena_bytes", "latency_ms", "flash_bytes", "cycles")
"""Objectives of which less is better."""


def costs_of(target: str | None) -> tuple[str, ...]:
    """Returns the costs that can be measured for a target; None is this machine."""
    if target in (None, "xnnpack"):
        return COSTS[:5]
    if target in ACCELERATORS:
        return (*COSTS[:4], *COSTS[5:])
    return COSTS[: 4 if target in DEVICES else 3]


class Objectives:
    """Measures files on one set of samples.

    Args:
        names: "accuracy" and one or more of `COSTS`.
        target: What files are for; None for this machine.
        reference: The float file, beside which latency is measured in turns.
        model: The float model.
        samples: Samples by input name.
        labels: Their labels.
        metric: In place of accuracy.

    Attributes:
        names: The names, in order.
        reference: The measures of the float file, without those of a device.
    """

    def __init__(
        self,
        names: Sequence[str],
        target: str | None,
        reference: bytes,
        model: keras.Model,
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
        if target is not None:
            known_target(target)
        for name in set(names) - {ACCURACY, *costs_of(target)}:
            raise ValueError(
                f"Objective {name!r} is not known for target={target!r}, for which there are "
                f"{', '.join(costs_of(target))}."
            )
        self._device = target if target in DEVICES else None
        if self._device is not None:
            check_device(self._device)
        self.names = tuple(dict.fromkeys(names))
        self._samples, self._labels, self._metric = samples, labels, metric or accuracy_of_outputs
        self._float = TFLiteModel(reference)
        self.reference = self._measured(self._float, model)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_float": self._float.content}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _float=TFLiteModel(state["_float"]))

    @property
    def directions(self) -> list[str]:
        """Returns what is better, for Optuna."""
        return ["maximize" if name == ACCURACY else "minimize" for name in self.names]

    def measured(self, content: bytes, model: keras.Model) -> dict[str, float]:
        """Returns the objectives of a file.

        Args:
            content: The file.
            model: The model that it was made from.

        Raises:
            ValueError: If the target cannot run it.
        """
        found = self._measured(TFLiteModel(content), model)
        if self._device is not None:
            found |= self._on_device(content)
        return {name: found[name] for name in self.names}

    def _measured(self, file: TFLiteModel, model: keras.Model) -> dict[str, float]:
        """Returns what is the same on every target."""
        report = inspect_tflite(file.content)
        outputs = file.predict(dict(self._samples))
        found: dict[str, float] = {
            ACCURACY: float(self._metric(self._labels, outputs)),
            "bytes": report.bytes,
            "gzip_bytes": report.gzip_bytes,
        }
        if "macs" in self.names:
            found["macs"] = macs(model)
        if "latency_ms" in self.names:
            found["latency_ms"] = self._latency(file)
        if "arena_bytes" in self.names and self._device is None:
            found["arena_bytes"] = file.arena_bytes()
        return {name: float(found[name]) for name in self.names if name in found}

    def _on_device(self, content: bytes) -> dict[str, float]:
        """Returns what the runtime or the compiler of the target says."""
        if self._device == "tflite-micro":
            micro = run_micro(content)
            if micro.arena_bytes is None:
                raise ValueError(f"tflite-micro lacks {', '.join(micro.missing)}.")
            return {"arena_bytes": float(micro.arena_bytes)}
        compiled = compile_ethos_u(content, str(self._device))
        if compiled.on_cpu:
            raise ValueError(
                f"{', '.join(compiled.on_cpu)} stay on the CPU, for which no cycles are known."
            )
        return {
            "arena_bytes": float(compiled.sram_bytes),
            "flash_bytes": float(compiled.flash_bytes or compiled.dram_bytes),
            "cycles": float(compiled.cycles),
        }

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
