"""profile_tflite: where the time of a file goes, operation by operation and layer by layer."""

from __future__ import annotations

import collections
import dataclasses
import os
import time
from typing import Any

import numpy as np

from tfcompress.files import check_path, save_figure
from tfcompress.tables import as_text, table
from tfcompress.tflite.delegates import kernels_of
from tfcompress.tflite.parts import objects_of, part_of
from tfcompress.tflite.run import TFLiteModel

_TURNS, _SECONDS_OF_A_TURN = 7, 0.001


@dataclasses.dataclass(frozen=True)
class OperationTime:
    """The time of one operation.

    Attributes:
        index: Its position in the file.
        operation: Its kind, such as "CONV_2D".
        layer: The Keras layer that its output is named after.
        shape: The shape of its output.
        dtype: The type of its output.
        delegated: Whether XNNPACK computes it; if not, a built-in kernel does.
        ms: Milliseconds of one inference, measured alone.
    """

    index: int
    operation: str
    layer: str
    shape: tuple[int, ...]
    dtype: str
    delegated: bool
    ms: float


@dataclasses.dataclass(frozen=True)
class Profile:
    """Where the time of a file goes.

    Attributes:
        path: The file.
        total_ms: Milliseconds of one inference of the whole file.
        operations: One row for each operation, in the order of the file. Their sum differs from
            `total_ms`: XNNPACK fuses operations, and handing tensors over takes time as well.
        threads: Number of threads.
    """

    path: str
    total_ms: float
    operations: list[OperationTime]
    threads: int

    @property
    def outside(self) -> float:
        """The share of the time that built-in kernels take, from 0 to 1."""
        return sum(self.shares().values())

    def shares(self) -> dict[str, float]:
        """Returns the share of the time of each kind of operation outside of XNNPACK."""
        total = self._sum()
        return {kind: ms / total for kind, inside, _, ms in self.by_operation() if not inside}

    def _sum(self) -> float:
        return sum(row.ms for row in self.operations) or 1.0

    def by_operation(self) -> list[tuple[str, bool, int, float]]:
        """Returns kind, whether delegated, number and milliseconds, the slowest kind first."""
        times: dict[tuple[str, bool], list[float]] = collections.defaultdict(list)
        for row in self.operations:
            times[row.operation, row.delegated].append(row.ms)
        rows = [(*key, len(ms), sum(ms)) for key, ms in times.items()]
        return sorted(rows, key=lambda row: -row[-1])

    def by_layer(self) -> list[tuple[str, str, float, float]]:
        """Returns layer, its operations, milliseconds, and those outside of XNNPACK."""
        times: dict[str, list[OperationTime]] = collections.defaultdict(list)
        for row in self.operations:
            times[row.layer].append(row)
        rows = []
        for layer, parts in times.items():
            kinds = collections.Counter(row.operation for row in parts)
            text = ", ".join(kind + (f" x{n}" if n > 1 else "") for kind, n in kinds.items())
            outside = sum(row.ms for row in parts if not row.delegated)
            rows.append((layer, text, sum(row.ms for row in parts), outside))
        return sorted(rows, key=lambda row: -row[2])

    def tables(self) -> list[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
        """Returns two tables, each as its head and its rows: by operation, and by layer."""
        total = self._sum()
        kinds: list[tuple[str, ...]] = [
            (kind, "XNNPACK" if delegated else "built-in", str(n), f"{ms:.4f}", f"{ms / total:.1%}")
            for kind, delegated, n, ms in self.by_operation()
        ]
        layers: list[tuple[str, ...]] = [
            (layer, text, f"{ms:.4f}", f"{ms / total:.1%}", f"{outside:.4f}" if outside else "-")
            for layer, text, ms, outside in self.by_layer()
        ]
        shown = layers[:_LAYERS_SHOWN]
        if len(layers) > len(shown):
            shown.append((f"... {len(layers) - len(shown)} more", "", "", "", ""))
        by_kind: tuple[str, ...] = ("operation", "kernel", "number", "ms alone", "share")
        by_layer: tuple[str, ...] = ("Keras layer", "operations", "ms alone", "share", "outside")
        return [(by_kind, kinds), (by_layer, shown)]

    def __rich__(self) -> Any:
        from rich.console import Group  # a device may lack it

        title = (
            f"{self.path}: {self.total_ms:.3f} ms, {self.outside:.1%} of it outside of XNNPACK "
            f"({self.threads} thread(s))"
        )
        by_operation, by_layer = self.tables()
        return Group(title, table("", *by_operation), table("", *by_layer))

    def __str__(self) -> str:
        return as_text(self.__rich__())

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws the slowest layers as bars, built-in kernels in another colour.

        Args:
            path: The picture to write, `.png` or `.svg`.
        """
        from matplotlib.figure import Figure

        target = check_path(path)
        rows = self.by_layer()[:_LAYERS_SHOWN][::-1]
        figure = Figure(figsize=(8, 1.2 + 0.28 * len(rows)), layout="constrained")
        axes = figure.subplots()
        labels = [layer for layer, *_ in rows]
        outside = [row[3] for row in rows]
        inside = [row[2] - row[3] for row in rows]
        axes.barh(labels, inside, color="tab:blue", label="XNNPACK")
        axes.barh(labels, outside, left=inside, color="tab:red", label="built-in kernels")
        axes.set_xlabel("milliseconds, each operation alone")
        axes.set_title(f"{os.path.basename(self.path)}: {self.total_ms:.2f} ms", fontsize=10)
        axes.legend(loc="lower right")
        save_figure(figure, target, dpi=150)


_LAYERS_SHOWN = 20


def profile_tflite(path_or_bytes: Any, num_threads: int = 1) -> Profile:
    """Measures how the time of an inference is spread over operations and layers.

    The runtime has no profiler in Python. Each operation is therefore run as a file of its own, in
    turns with all others; the least time of the turns counts. Operations that are alike (kind,
    options, shapes, types) are measured once.

    Args:
        path_or_bytes: Path of the file, or its content. Its inputs need fixed shapes, except for
            the batch, which is 1 then.
        num_threads: Number of threads of the interpreter.

    Returns:
        Plain data that prints as two tables: by kind of operation, and by Keras layer.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a TFLite model, or a damaged one.

    Example:
        >>> import tfcompress as tfc
        >>> report = tfc.profile_tflite("tflite_models/fashion_mnist_student_int8.tflite")
        >>> [kind for kind, delegated, *_ in report.by_operation() if not delegated]
        ['AVERAGE_POOL_2D']
    """
    model = TFLiteModel(path_or_bytes, num_threads)
    interpreter = model.interpreter
    kernels = kernels_of(interpreter)
    details = {d["index"]: d for d in interpreter.get_tensor_details()}
    whole = objects_of(model.content)
    tensors, operators = whole.subgraphs[0].tensors, whole.subgraphs[0].operators
    shapes = {index: tuple(map(int, d["shape"])) for index, d in details.items()}
    opened: dict[Any, Any] = {None: interpreter}
    keys = []
    for operator, (_, delegated) in zip(operators, kernels, strict=True):
        key, content = part_of(whole, operator, shapes)
        keys.append((key, delegated))
        if keys[-1] not in opened:
            opened[keys[-1]] = _opened(model, content, delegated)
    times = _least_times({key: one for key, one in opened.items() if one is not None})
    # What cannot be run alone, such as a loop, takes the rest of the time.
    alone = sum(times.get(key, 0.0) for key in keys)
    unknown = sum(key not in times for key in keys)
    rest = max(times[None] - alone, 0.0) / max(unknown, 1)
    rows = []
    for position, (operator, key) in enumerate(zip(operators, keys, strict=True)):
        output, (operation, delegated) = int(operator.outputs[0]), kernels[position]
        rows.append(
            OperationTime(
                position,
                operation["op_name"],
                layer_of((tensors[output].name or b"").decode()),
                shapes.get(output, ()),
                np.dtype(details[output]["dtype"]).name if output in details else "?",
                delegated,
                times.get(key, rest),
            )
        )
    return Profile(model.name, times[None], rows, num_threads)


def _opened(model: TFLiteModel, content: bytes, delegated: bool) -> Any:
    """Returns an interpreter of one operation, or None if it cannot be run alone."""
    try:
        interpreter = model.interpreter_of(content, delegates=delegated)
        _fill(interpreter)
        interpreter.invoke()
    except (RuntimeError, ValueError):
        return None
    return interpreter


def _fill(interpreter: Any) -> None:
    for detail in interpreter.get_input_details():
        interpreter.set_tensor(detail["index"], _values(detail))


def _least_times(interpreters: dict[Any, Any]) -> dict[Any, float]:
    """Returns the least milliseconds of each interpreter, measured in turns."""
    counts, times = {}, dict.fromkeys(interpreters, float("inf"))
    for key, interpreter in interpreters.items():
        _fill(interpreter)
        start = time.perf_counter()
        interpreter.invoke()
        took = time.perf_counter() - start
        counts[key] = int(min(max(_SECONDS_OF_A_TURN / max(took, 1e-6), 1), 50))
    for _ in range(_TURNS):
        for key, interpreter in interpreters.items():
            start = time.perf_counter()
            for _ in range(counts[key]):
                interpreter.invoke()
            took = (time.perf_counter() - start) / counts[key]
            times[key] = min(times[key], took * 1000)
    return times


def _values(detail: dict[str, Any]) -> np.ndarray:
    """Returns values for an input: positive numbers, which every operation takes; index 0."""
    shape, dtype = detail["shape"], np.dtype(detail["dtype"])
    random = np.random.default_rng(0)
    scale, zero_point = detail["quantization"]
    if dtype.kind == "f":
        return random.uniform(0.1, 1, shape).astype(dtype)
    if not scale:
        return np.zeros(shape, dtype)
    limits = np.iinfo(dtype)
    lowest = min(zero_point + 1, limits.max)
    return random.integers(lowest, limits.max, shape, dtype, endpoint=True)


def layer_of(name: str) -> str:
    """Returns the path of the Keras layer that a tensor is named after.

    A name joins those of all operations that were fused; the one with weights counts. TensorFlow
    opens the scope of a layer twice, so that it ends in "_1".
    """
    fused = [part for part in name.split(";") if part.count("/") > 1]
    weighted = (part for part in fused if part.rsplit("/", 1)[1] in _WEIGHTED)
    chosen = next(weighted, fused[0] if fused else "")
    first, *inner = chosen.split("/")[1:-1] or [name or "?"]
    scopes = [s for s in inner if not (s[:1].isupper() or s.endswith("_quantizer"))]
    return "/".join(scope.removesuffix("_1") for scope in (first, *scopes))


_WEIGHTED = ("BiasAdd", "MatMul", "convolution", "depthwise")
