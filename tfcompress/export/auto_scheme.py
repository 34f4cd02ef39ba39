"""scheme="auto": the smallest file within a tolerance; and what helps where int8 is too coarse."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import pathlib
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from tfcompress.data import collect
from tfcompress.errors import ExportError
from tfcompress.export.agreement import measure
from tfcompress.files import check_path, write_whole
from tfcompress.graph.inline import as_graph
from tfcompress.graph.read import input_specs
from tfcompress.graph.run import outputs_of
from tfcompress.post_training.noise import quantization_noise
from tfcompress.scheme import QuantizationScheme, as_scheme
from tfcompress.tflite.run import TFLiteModel, accuracy

Samples = Mapping[str, np.ndarray]
_SHARES = (8, 4, 2)  # of the layers get 16 bits: an eighth, a quarter, half
_FEWEST = 16  # samples, from which on a quarter of them is held out to judge files by


@dataclasses.dataclass(frozen=True)
class SchemeTrial:
    """A scheme that was tried.

    Attributes:
        scheme: Its name, and how many layers have 16 bits.
        bytes: The size of the file; None if there was none.
        rmse: The RMSE between file and float model over the deviation of the outputs.
        drop: The accuracy of the float model minus that of the file; None without labels.
        problem: Why there is no file.
    """

    scheme: str
    bytes: int | None = None
    rmse: float | None = None
    drop: float | None = None
    problem: str | None = None

    def __str__(self) -> str:
        if self.problem is not None:
            return f"{self.scheme}: {self.problem}"
        dropped = "" if self.drop is None else f", accuracy {-self.drop:+.2%}"
        return f"{self.scheme}: RMSE {self.rmse:.4f}{dropped}, {self.bytes:,} bytes"


def smallest_within(
    export: Callable[..., Any],
    model: keras.Model,
    path: Any,
    max_rmse: float | None,
    max_drop: float | None,
    arguments: dict[str, Any],
) -> Any:
    """Writes the smallest file that stays within a tolerance, of int8 to float16.

    Args:
        export: `export_tflite`.
        model: Its argument.
        path: Its argument.
        max_rmse: The largest RMSE between file and float model, over the deviation of the outputs.
        max_drop: The largest loss of accuracy, between 0 and 1, on a labelled dataset.
        arguments: Its other arguments, by name.

    Returns:
        The result of the export that was chosen, with `trials`.

    Raises:
        ExportError: If no scheme stays within the tolerance; the message has all figures.
        ValueError: If no tolerance is given, or samples or labels are missing.
    """
    _check_tolerance(max_rmse, max_drop)
    destination = check_path(path, ".tflite")
    graph = as_graph(model, input_shape=arguments["input_shape"])
    dataset = arguments.pop("representative_dataset")
    samples, classes = collect(
        dataset, input_specs(graph), limit=512, argument="representative_dataset"
    )
    if max_drop is not None and classes is None:
        raise ValueError("max_drop needs labels: pass representative_dataset=(x, y).")
    count = len(next(iter(samples.values())))
    judged = np.arange(count) % 4 == 3 if count >= _FEWEST else np.ones(count, bool)
    given = ~judged if count >= _FEWEST else judged
    held = {name: array[judged] for name, array in samples.items()}
    arguments["representative_dataset"] = {name: a[given] for name, a in samples.items()}
    labels = None if classes is None else np.asarray(classes)[judged]
    trials: list[SchemeTrial] = []
    best: tuple[Any, bytes, list[Any]] | None = None
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "model.tflite")
        for name, scheme in _candidates(graph, arguments["representative_dataset"]):
            trial, result, told = _tried(export, graph, file, name, scheme, arguments, held, labels)
            trials.append(trial)
            if result is None or not _is_within(trial, max_rmse, max_drop):
                continue
            if best is None or result.bytes < best[0].bytes:
                best = result, file.read_bytes(), told
            if scheme == "int8":
                break  # which nothing is smaller than
    if best is not None:
        result, content, told = best
        for warning in told:
            warnings.warn(warning, stacklevel=3)
        write_whole(destination, content)
        return dataclasses.replace(result, path=str(destination), trials=tuple(trials))
    wanted = [f"max_rmse={max_rmse}"] if max_rmse is not None else []
    wanted += [f"max_drop={max_drop}"] if max_drop is not None else []
    raise ExportError(
        f"No scheme stays within {' and '.join(wanted)}, judged on {int(judged.sum())} samples: "
        f"{'; '.join(map(str, trials))}. No file was written. Allow more, or export in float32."
    )


def advice(
    export: Callable[..., Any], model: keras.Model, samples: Samples, arguments: dict[str, Any]
) -> str:
    """Returns which layers are to blame for a coarse int8 file, and the first scheme that works.

    Args:
        export: `export_tflite`.
        model: A float model.
        samples: Arrays by input name.
        arguments: The arguments of `export` but model, path, scheme and representative dataset.
    """
    noise = _worst_first(model, samples)
    worst = ", ".join(f"{path!r} ({ratio:.1%})" for path, ratio in noise[:3])
    text = f"Most of the noise arises around {worst} of the signal."
    held = {name: array[:64] for name, array in samples.items()}
    arguments = {**arguments, "representative_dataset": samples}
    tried = []
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "model.tflite")
        for name, scheme in (*[*_with_exceptions(noise)][1:2], *_COARSE):
            trial, result, _ = _tried(export, model, file, name, scheme, arguments, held, None)
            tried.append(trial)
            if result is not None and trial.rmse is not None and trial.rmse < _WORKS:
                break
    return f"{text} Measured: {'; '.join(map(str, tried))}."


_WORKS = 0.1
_COARSE = (("int16x8", "int16x8"), ("float16", "float16"))


def _check_tolerance(max_rmse: float | None, max_drop: float | None) -> None:
    if max_rmse is None and max_drop is None:
        raise ValueError(
            "scheme='auto' needs a tolerance: max_rmse (of the deviation of the outputs, such as "
            "0.05) or max_drop (of accuracy, such as 0.01, with labels)."
        )
    for name, value in (("max_rmse", max_rmse), ("max_drop", max_drop)):
        if value is not None and not 0 <= value < 1:
            raise ValueError(f"{name} must be at least 0 and below 1. Received: {value!r}")


def _is_within(trial: SchemeTrial, max_rmse: float | None, max_drop: float | None) -> bool:
    close = max_rmse is None or (trial.rmse is not None and trial.rmse <= max_rmse)
    return close and (max_drop is None or (trial.drop is not None and trial.drop <= max_drop))


def _candidates(model: keras.Model, samples: Samples) -> Iterator[tuple[str, Any]]:
    """Yields the name of each scheme, and the scheme, from small files to large ones."""
    yield "int8", "int8"
    yield from _with_exceptions(_worst_first(model, samples))
    yield from _COARSE


def _worst_first(model: keras.Model, samples: Samples) -> list[tuple[str, float]]:
    noise = quantization_noise(model, as_scheme("int8"), samples)
    return sorted(noise.items(), key=lambda item: -item[1])


def _with_exceptions(noise: list[tuple[str, float]]) -> Iterator[tuple[str, QuantizationScheme]]:
    counts = sorted({max(1, len(noise) // share) for share in _SHARES} if noise else ())
    for count in counts:
        overrides = {glob.escape(path): "int16x8" for path, _ in noise[:count]}
        layers = "layer" if count == 1 else "layers"
        yield f"int8, {count} {layers} int16x8", QuantizationScheme(overrides=overrides)


def _tried(
    export: Callable[..., Any],
    model: keras.Model,
    file: pathlib.Path,
    name: str,
    scheme: Any,
    arguments: dict[str, Any],
    held: dict[str, np.ndarray],
    labels: np.ndarray | None,
) -> tuple[SchemeTrial, Any, list[Any]]:
    """Returns a trial, the result of its export if there is a file, and what was warned of."""
    with warnings.catch_warnings(record=True) as told, contextlib.suppress(OSError):
        warnings.simplefilter("always")
        try:
            result = export(model, file, scheme=scheme, **arguments)
        except (ExportError, ValueError) as error:
            reason = str(error).split(". ")[0][:200]
            return SchemeTrial(name, problem=reason), None, []
    rmse = measure(model, file, held).rmse
    drop = None
    if labels is not None:
        (expected,) = outputs_of(model, held)
        actual = np.asarray(TFLiteModel(file).predict(held))
        drop = accuracy(expected, labels) - accuracy(actual, labels)
    trial = SchemeTrial(name, result.bytes, rmse, drop)
    return trial, result, [warning.message for warning in told if _is_ours(warning.message)]


def _is_ours(message: Any) -> bool:
    return type(message).__module__.startswith("tfcompress")
