"""run_micro: runs a file on tflite-micro, the runtime of microcontrollers."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import pathlib
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfcompress.data import collect
from tfcompress.devices.micro_file import MicroFile
from tfcompress.tables import as_text, size, table
from tfcompress.tflite.parts import part_of

_CHILD = pathlib.Path(__file__).with_name("micro_child.py")
_ARENA = 1 << 28  # bytes on this machine; what a file really needs is measured
_SECONDS = 600.0


@dataclasses.dataclass(frozen=True)
class MicroResult:
    """What tflite-micro made of a file.

    Attributes:
        path: The file.
        version: The version of the package tflite-micro.
        outputs: Real values, of shape (samples, ...); a dict by output name if there are several.
            None without inputs, and where the file does not run.
        quantized: The same as the runtime puts them out: integers, where the output has a scale.
        arena_bytes: Working memory that the runtime allocated, its own structures included; None
            where the file does not run.
        operations: Number of operations of each kind, which a resolver on the device must add.
        missing: Why the file does not run, by kind of operation; empty where it does.
    """

    path: str
    version: str
    outputs: Any
    quantized: Any
    arena_bytes: int | None
    operations: dict[str, int]
    missing: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Returns the result without the outputs, as a dict for JSON."""
        return {
            "path": self.path,
            "version": self.version,
            "arena_bytes": self.arena_bytes,
            "operations": self.operations,
            "missing": self.missing,
        }

    def __rich__(self) -> Any:
        rows = [
            (name, count, self.missing.get(name, "runs"))
            for name, count in sorted(self.operations.items(), key=lambda item: -item[1])
        ]
        arena = "does not run" if self.arena_bytes is None else f"arena {size(self.arena_bytes)}"
        title = f"{self.path} on tflite-micro {self.version}: {arena}"
        return table(title, ("operation", "number", "on tflite-micro"), rows)

    def __str__(self) -> str:
        return as_text(self.__rich__())


def run_micro(path_or_bytes: Any, x: Any = None) -> MicroResult:
    """Runs a `.tflite` file on tflite-micro, in a process of its own.

    tflite-micro computes with its reference kernels, which round some operations in another way
    than XNNPACK does. A device computes the same unless its vendor replaced kernels.

    Args:
        path_or_bytes: Path of the file, or its content.
        x: Real inputs, as for `TFLiteModel.predict`. None to only open the file.

    Returns:
        Outputs, working memory, and the operations that the runtime lacks, if any.

    Raises:
        ImportError: If tflite-micro is not installed.
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a TFLite model or crashes tflite-micro, or if `x` does not
            fit its inputs.

    Example:
        >>> import tfcompress as tfc
        >>> result = tfc.run_micro("tflite_models/fashion_mnist_student_int8.tflite")
        >>> result.missing, 10_000 < result.arena_bytes < 20_000
        ({}, True)
    """
    version = require("tflite_micro", "tflite-micro", "micro")
    model = MicroFile(path_or_bytes)
    operations = model.operations
    features = None if x is None else collect(x, model.specs(), argument="x")[0]
    answer, log = _ask(model, None if features is None else [*_batches(model, features)])
    if answer is None:
        raise ValueError(f"{model.name} crashes tflite-micro {version}.{_last_line(log)}")
    if "error" in answer:
        missing = _missing(model) or {_culprit(log, operations): _reason(log) or answer["error"]}
        return MicroResult(model.name, version, None, None, None, operations, missing)
    arena = re.search(r"Arena allocation total (\d+)", log)
    outputs: Any = None
    quantized: Any = None
    if features is not None:
        samples = len(next(iter(features.values())))
        values = {
            info.name: np.concatenate([parts[place] for parts in answer["outputs"]])
            for place, info in enumerate(model.outputs)
        }
        quantized = {name: value[:samples] for name, value in values.items()}
        outputs = {info.name: info.dequantized(quantized[info.name]) for info in model.outputs}
        if len(outputs) == 1:
            (outputs,), (quantized,) = outputs.values(), quantized.values()
    return MicroResult(
        model.name, version, outputs, quantized, int(arena[1]) if arena else None, operations, {}
    )


def is_installed(module: str) -> bool:
    """Returns whether an optional package is installed."""
    return importlib.util.find_spec(module) is not None


def require(module: str, package: str, extra: str) -> str:
    """Returns the version of an optional package.

    Raises:
        ImportError: If it is not installed; the message names the extra.
    """
    if not is_installed(module):
        raise ImportError(
            f"{package} is not installed: pip install 'tfcompress[{extra}]' (Linux, x86-64)."
        )
    return importlib.metadata.version(package)


def _ask(file: MicroFile, inputs: Sequence[Any] | None) -> tuple[dict[str, Any] | None, str]:
    """Returns the answer of a process that runs a file, None if it crashed; and what it printed."""
    request = {"content": file.content, "inputs": inputs, "outputs": len(file.outputs)}
    request |= {"arena": _ARENA, "path": list(sys.path)}
    try:
        process = subprocess.run(
            [sys.executable, "-I", str(_CHILD)],
            input=pickle.dumps(request),
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"tflite-micro took more than {_SECONDS:.0f} seconds.") from error
    log = process.stderr.decode(errors="replace")
    return pickle.loads(process.stdout) if process.stdout else None, log


def _batches(model: MicroFile, features: Mapping[str, np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Yields the inputs of one inference each, quantized, in the order of the runtime."""
    size = model.inputs[0].shape[0] or 1
    samples = len(features[model.inputs[0].name])
    for start in range(0, samples, size):
        rows = np.minimum(np.arange(start, start + size), samples - 1)
        yield [info.quantized(features[info.name][rows]) for info in model.inputs]


def reasons_alone(model: MicroFile) -> list[str]:
    """Returns why each operation of a file does not run, tried in a file of its own on zeros.

    Args:
        model: The file.

    Returns:
        The words of tflite-micro for each operation, "" if it runs. Loops and branches run; what
        they hold is tried as well.
    """
    if _runs(model)[0]:
        return [""] * len(model.operators)
    tried: dict[Any, str] = {}
    reasons = []
    for graph, operator in model.operators:
        if model.kind_of(operator) in ("WHILE", "IF"):
            reasons.append("")
            continue
        key, content = part_of(model.objects, operator, {}, graph)
        if key not in tried:
            runs, reason = _runs(MicroFile(content))
            tried[key] = "" if runs else reason
        reasons.append(tried[key])
    return reasons


def _runs(model: MicroFile) -> tuple[bool, str]:
    """Returns whether a file runs on zeros, and what the runtime says if it does not."""
    zeros = [np.zeros([size or 1 for size in i.shape], i.dtype) for i in model.inputs]
    answer, log = _ask(model, [zeros])
    if answer is None:
        return False, "crashes"
    return "error" not in answer, _reason(log) or answer.get("error", "")


def _missing(model: MicroFile) -> dict[str, str]:
    """Returns why kinds of operations do not run."""
    kinds = (model.kind_of(operator) for _, operator in model.operators)
    pairs = zip(kinds, reasons_alone(model), strict=True)
    missing: dict[str, str] = {}
    for kind, reason in pairs:
        if reason:
            missing.setdefault(kind, reason)
    return missing


def _culprit(log: str, operations: dict[str, int]) -> str:
    """Returns the operation that a log names last."""
    named = [word for word in re.findall(r"[A-Z][A-Z0-9_]+", log) if word in operations]
    return named[-1] if named else "the file"


def _reason(log: str) -> str:
    """Returns the first line of a log in words."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    if any("Didn't find op" in line for line in lines):
        return "no kernel"
    return lines[0] if lines else ""


def _last_line(log: str) -> str:
    lines = log.strip().splitlines()
    return f" It printed: {lines[-1]}" if lines else ""
