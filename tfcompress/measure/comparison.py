"""compare: accuracy, size and latency of models and files, on the same data and runtime."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress.data import collect
from tfcompress.devices.outcome import check_device, outcome
from tfcompress.files import check_path, save_figure, write_whole
from tfcompress.graph.read import input_specs
from tfcompress.graph.run import predict
from tfcompress.measure.energy import Energy, Power, inferences_to_pay_back
from tfcompress.measure.files_of import as_file, loaded
from tfcompress.tables import as_text, table
from tfcompress.tflite.benchmark import benchmark
from tfcompress.tflite.inspect import FileReport, inspect_tflite
from tfcompress.tflite.profile import Profile, profile_tflite
from tfcompress.tflite.run import TFLiteModel, accuracy


@dataclasses.dataclass(frozen=True)
class ComparisonRow:
    """One model or file.

    Attributes:
        name: Its name in `models`.
        kind: "keras" or "tflite".
        accuracy: Share of samples with the correct label; None without data.
        bytes: Size of the file; a Keras model is measured as a float32 file.
        gzip_bytes: The same after gzip.
        latency_ms: Median latency of one inference.
        outside: The share of the time outside of XNNPACK, from 0 to 1; see `profile_tflite`.
        devices: What each device makes of the file, in words, by its name.
        joules: Estimated energy of one inference; None if no power was stated.
        pays_back: Inferences after which it has saved the energy of its training, against the first
            row; None if that is not known, or never.
    """

    name: str
    kind: str
    accuracy: float | None
    bytes: int
    gzip_bytes: int
    latency_ms: float
    outside: float = 0.0
    devices: dict[str, str] = dataclasses.field(default_factory=dict)
    joules: float | None = None
    pays_back: float | None = None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The rows in the order of `models`; ratios are to the first row.

    Attributes:
        rows: One for each model or file.
        samples: Number of samples on which the accuracy was measured.
        threads: Number of threads of the interpreter.
        runtime: The runtime on which the latencies were measured.
        reports: The content of each file, by name.
        profiles: Where the time of each file goes, by name.
        power: The power that energies are estimated from, if one was stated.
    """

    rows: list[ComparisonRow]
    samples: int
    threads: int
    runtime: str
    reports: dict[str, FileReport] = dataclasses.field(default_factory=dict, repr=False)
    profiles: dict[str, Profile] = dataclasses.field(default_factory=dict, repr=False)
    power: Power | None = None

    def __getitem__(self, name: str) -> ComparisonRow:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"{name!r}; there are {', '.join(repr(row.name) for row in self.rows)}")

    def cells(self) -> list[tuple[str, ...]]:
        """Returns the cells of each row of the table, with ratios to the first row."""
        first = self.rows[0]
        return [
            (
                row.name,
                "-" if row.accuracy is None else f"{row.accuracy:.2%}",
                f"{row.bytes:,}",
                f"{row.gzip_bytes:,}",
                f"{first.gzip_bytes / row.gzip_bytes:.2f}x",
                f"{row.latency_ms:.3f}",
                f"{first.latency_ms / row.latency_ms:.2f}x",
                f"{row.outside:.0%}",
                *row.devices.values(),
                *self._energy_cells(row),
            )
            for row in self.rows
        ]

    @property
    def columns(self) -> tuple[str, ...]:
        """The heads of the columns."""
        known = ("model", "accuracy", "bytes", "gzip bytes", "smaller", "latency ms", "faster")
        energy = ("mJ", "pays back after") if self.power else ()
        return (*known, "outside", *self.rows[0].devices, *energy)

    def _energy_cells(self, row: ComparisonRow) -> tuple[str, ...]:
        if row.joules is None:
            return ()
        return f"{1000 * row.joules:.3g}", f"{row.pays_back:,.0f}" if row.pays_back else "-"

    def __rich__(self) -> Any:
        result = table("", self.columns, self.cells())
        result.caption = (
            f"{self.samples} samples; {self.threads} thread(s), {self.runtime}; Keras models are "
            "measured as float32 .tflite files; outside: of XNNPACK, in slower kernels"
        )
        if self.rows[0].devices:
            result.caption += "; NPUs: share of the operations, flash or DRAM, estimated time"
        if self.power:
            result.caption += f"; energy estimated from the latency and a stated {self.power}"
        return result

    def __str__(self) -> str:
        return as_text(self.__rich__())

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws accuracy against bytes and against latency, with the Pareto front.

        Args:
            path: File to write, such as "pareto.png".
        """
        from tfcompress.measure.report import pareto_figure  # matplotlib is slow to import

        target = check_path(path)
        save_figure(pareto_figure(self.rows), target, dpi=130)

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Writes an HTML page with the table, the plots and the content of each file.

        The page opens from disk and has no external resources.

        Args:
            path: File to write, such as "report.html".
        """
        from tfcompress.measure.report import comparison_page  # likewise

        write_whole(check_path(path), comparison_page(self, self.reports, self.profiles).encode())


def compare(
    models: Mapping[str, Any],
    x: Any = None,
    y: Any = None,
    *,
    num_threads: int = 1,
    runs: int = 200,
    devices: Sequence[str] = (),
    power: Power | None = None,
    trained: Mapping[str, Energy] | None = None,
) -> Comparison:
    """Measures accuracy, bytes and latency of models and files side by side.

    Latencies are measured in alternating rounds, so that noise of the machine affects all equally.
    The size and latency of a Keras model are those of a float32 `.tflite` file of it, without
    quantization and pruning; its accuracy is that of the Keras model itself.

    Args:
        models: By name: Keras models, `TFLiteModel` objects, or paths of `.keras` and `.tflite`
            files. Ratios in the table are to the first.
        x: Samples, in any form that `export_tflite` takes; may hold the labels. None omits
            the accuracy.
        y: Labels: integers or one-hot rows.
        num_threads: Number of threads of the interpreter.
        runs: Number of inferences to measure for each.
        devices: Devices for a column each: "tflite-micro" for its working memory, or an NPU that
            `compile_ethos_u` takes.
        power: Power and grid where inferences run, for a column with their energy.
        trained: By name, what the training of a model took (`TrainingEnergy.energy`): a column says
            after how many inferences that is paid back, against the first model.

    Returns:
        Plain data that prints as a table.

    Raises:
        FileNotFoundError: If a file does not exist.
        ImportError: If a tool of `devices` is not installed.
        TypeError: If an entry is neither a model nor a path.
        ValueError: If there are no models, a file is damaged or unsafe to load, data and models
            do not match, or `trained` names no model or comes without `power`.

    Example:
        >>> import tfcompress as tfc
        >>> path = "tflite_models/fashion_mnist_student_int8.tflite"
        >>> tfc.compare({"student": path}, runs=5).rows[0].kind
        'tflite'
    """
    if not isinstance(models, Mapping) or not models:
        raise ValueError(
            "models must be a non-empty dict of models or paths by name. "
            f"Received: models={models!r}"
        )
    for device in devices:
        check_device(device)
    for name in trained or {}:
        if name not in models or power is None:
            raise ValueError(
                "trained needs power=, and the energy of trainings by the names of models. "
                f"Received: {name!r}"
            )
    opened = {name: loaded(f"models[{name!r}]", model) for name, model in models.items()}
    files: dict[str, TFLiteModel] = {}
    accuracies: dict[str, float | None] = {}
    count = 0
    for name, model in opened.items():
        accuracies[name] = None
        if x is not None:
            accuracies[name], count = measure_accuracy(model, x, y)
        files[name] = as_file(name, model, num_threads)
    latencies = benchmark(files, runs=runs)
    rows, reports = [], {}
    profiles = {name: profile_tflite(file.content, num_threads) for name, file in files.items()}
    for name, file in files.items():
        report = reports[name] = inspect_tflite(file.content)
        kind = "keras" if isinstance(opened[name], keras.Model) else "tflite"
        rows.append(
            ComparisonRow(
                name,
                kind,
                accuracies[name],
                report.bytes,
                report.gzip_bytes,
                latencies[name].median_ms,
                profiles[name].outside,
                {device: outcome(file.content, device) for device in devices},
            )
        )
    if power is not None:
        rows = _with_energy(rows, power, trained or {})
    runtime = next(iter(files.values())).runtime
    return Comparison(rows, count, num_threads, runtime, reports, profiles, power)


def _with_energy(
    rows: list[ComparisonRow], power: Power, trained: Mapping[str, Energy]
) -> list[ComparisonRow]:
    energies = [Energy(row.latency_ms / 1000, power) for row in rows]
    return [
        dataclasses.replace(
            row,
            joules=used.joules,
            pays_back=inferences_to_pay_back(trained[row.name], energies[0], used)
            if row.name in trained
            else None,
        )
        for row, used in zip(rows, energies, strict=True)
    ]


def measure_accuracy(model: Any, x: Any, y: Any) -> tuple[float, int]:
    """Returns the accuracy of a Keras model or file, and the number of samples.

    Args:
        model: A Keras model or `TFLiteModel`.
        x: Samples, with labels or without.
        y: Labels; None if `x` holds them.

    Raises:
        ValueError: If there are no labels, or several outputs.
    """
    specs = input_specs(model) if isinstance(model, keras.Model) else model.specs()
    features, labels = collect(x, specs, argument="x")
    labels = labels if y is None else np.asarray(y)
    if labels is None:
        raise ValueError("y is missing: pass labels, or data that holds them.")
    if isinstance(model, keras.Model):
        outputs = predict(model, features)
    else:
        outputs = model.predict(features)
    if not hasattr(outputs, "shape"):
        raise ValueError("compare() measures the accuracy of models with a single output only.")
    return accuracy(outputs, labels), len(labels)
