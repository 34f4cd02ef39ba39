"""Latency of TFLite models, measured in alternating rounds."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

_ROUNDS = 10


@dataclasses.dataclass(frozen=True)
class BenchmarkResult:
    """Latency of one inference at the file's batch size.

    Attributes:
        name: Name of the model.
        median_ms: Median in milliseconds.
        p10_ms: Tenth percentile.
        p90_ms: Ninetieth percentile.
        runs: Number of inferences measured.
        threads: Number of threads of the interpreter.
        runtime: Runtime and kernels.
    """

    name: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int
    threads: int
    runtime: str

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.median_ms:.3f} ms (p10 {self.p10_ms:.3f}, p90 {self.p90_ms:.3f}; "
            f"{self.runs} runs, {self.threads} thread(s), {self.runtime})"
        )


def benchmark(
    models: Mapping[str, Any], *, runs: int = 200, warmup: int = 20
) -> dict[str, BenchmarkResult]:
    """Measures several models in alternating rounds, so that noise affects all equally.

    Args:
        models: `TFLiteModel` objects by name.
        runs: Number of inferences to measure for each.
        warmup: Number of inferences before the measurement, for each.

    Returns:
        Results by name.

    Raises:
        ValueError: If `runs` is not positive or `warmup` negative.
    """
    if runs < 1 or warmup < 0:
        raise ValueError(f"runs must be >= 1 and warmup >= 0. Received: {runs}, {warmup}")
    for model in models.values():
        _fill(model)
        for _ in range(warmup):
            model.invoke_once()
    times: dict[str, list[float]] = {name: [] for name in models}
    rounds = min(_ROUNDS, runs)
    for index in range(rounds):
        count = runs * (index + 1) // rounds - runs * index // rounds
        for name, model in models.items():
            for _ in range(count):
                start = time.perf_counter()
                model.invoke_once()
                times[name].append((time.perf_counter() - start) * 1000)
    results = {}
    for name, model in models.items():
        p10, median, p90 = np.percentile(times[name], [10, 50, 90])
        results[name] = BenchmarkResult(
            name, float(median), float(p10), float(p90), runs, model.num_threads, model.runtime
        )
    return results


def _fill(model: Any) -> None:
    """Sets every input to valid values: random ones where they are real, zeros for indices."""
    generator = np.random.default_rng(0)
    inputs = []
    for info in model.inputs:
        shape = tuple(n or 1 for n in info.shape)
        if info.dtype.startswith("float"):
            values = generator.random(shape).astype(info.dtype)
        elif info.scale:
            limits = np.iinfo(info.dtype)
            values = generator.integers(limits.min, limits.max, shape, info.dtype, endpoint=True)
        else:
            values = np.zeros(shape, info.dtype)
        inputs.append(values)
    model.set_inputs(inputs)
