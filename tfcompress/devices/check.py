"""check_target: what of a file a device runs where, and what to change so that it runs all."""

from __future__ import annotations

import dataclasses
from typing import Any

from tfcompress.devices.ethos_u import ACCELERATORS, compile_ethos_u
from tfcompress.devices.micro import run_micro
from tfcompress.devices.micro_file import MicroFile
from tfcompress.tables import as_text, table
from tfcompress.tflite.delegates import kernels_of
from tfcompress.tflite.profile import layer_of
from tfcompress.tflite.run import TFLiteModel

TARGETS = ("xnnpack", "tflite-micro", *ACCELERATORS)
"""The targets that are run here, or compiled for."""


@dataclasses.dataclass(frozen=True)
class TargetIssue:
    """An operation that the target does not take.

    Attributes:
        layer: Path of the Keras layer, by the name of the tensor.
        operation: Kind of the operation.
        reason: Why, in the words of the tool.
        change: What helps; empty if nothing is known to.
    """

    layer: str
    operation: str
    reason: str
    change: str


@dataclasses.dataclass(frozen=True)
class TargetReport:
    """What of a file a target takes.

    Attributes:
        path: The file.
        target: The target.
        source: What says so: the version of the tool that was run.
        operations: Number of operations of the file.
        issues: The operations that the target does not take, in their order.
        partitions: Number of runs of operations that the target takes one after the other; each
            but the first costs a copy from the CPU and back. 0 where a file runs wholly or not at
            all.
    """

    path: str
    target: str
    source: str
    operations: int
    issues: list[TargetIssue]
    partitions: int

    @property
    def fits(self) -> bool:
        """Whether the target takes every operation."""
        return not self.issues

    def __rich__(self) -> Any:
        count = self.operations - len(self.issues)
        title = f"{self.path} on {self.target} ({self.source}): "
        if self.fits:
            return title + f"all {count} operations"
        title += f"{count} of {self.operations}"
        if self.partitions:
            title += f", in {self.partitions} parts"
        rows = [(i.layer, i.operation, i.reason, i.change or "-") for i in self.issues]
        return table(title, ("layer", "operation", "reason", "what helps"), rows)

    def __str__(self) -> str:
        return as_text(self.__rich__())


def check_target(path_or_bytes: Any, target: str) -> TargetReport:
    """Says which operations of a `.tflite` file a target does not take, why, and what helps.

    Nothing is believed: "xnnpack" is asked on the installed runtime, "tflite-micro" runs the file,
    and Vela compiles it for an NPU.

    Args:
        path_or_bytes: Path of the file, or its content.
        target: "xnnpack", "tflite-micro" or an NPU such as "ethos-u55-128".

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If the tool of the target is not installed.
        ValueError: If there is no such target, or the file cannot be read or crashes the tool.

    Example:
        >>> import tfcompress as tfc
        >>> path = "tflite_models/fashion_mnist_student_int8.tflite"
        >>> tfc.check_target(path, "ethos-u55-128").fits
        True
    """
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}. Received: {target!r}")
    file = MicroFile(path_or_bytes)
    graph = file.objects.subgraphs[0]
    names = [graph.tensors[int(op.outputs[0])].name.decode() for op in graph.operators]
    kinds = [file.kind_of(op) for op in graph.operators]
    source, reasons = _reasons(file, target, kinds, names)
    issues = [
        TargetIssue(layer_of(names[i]), kinds[i], reason, _change(target, kinds[i], reason))
        for i, reason in sorted(reasons.items())
    ]
    taken = [index not in reasons for index in range(len(kinds))]
    starts = sum(now and not before for before, now in zip([False, *taken], taken, strict=False))
    partitions = starts if issues and target != "tflite-micro" else 0
    return TargetReport(file.name, target, source, len(kinds), issues, partitions)


def _reasons(
    file: MicroFile, target: str, kinds: list[str], names: list[str]
) -> tuple[str, dict[int, str]]:
    """Returns what was run, and why operations are not taken, by their number."""
    if target == "xnnpack":
        model = TFLiteModel(file.content)
        taken = [delegated for _, delegated in kernels_of(model.interpreter)]
        reason = "XNNPACK does not take it: a built-in kernel runs"
        return model.runtime, {i: reason for i, ok in enumerate(taken) if not ok}
    if target == "tflite-micro":
        micro = run_micro(file.content)
        missing = {i: micro.missing[k] for i, k in enumerate(kinds) if k in micro.missing}
        return f"tflite-micro {micro.version}", missing
    compiled = compile_ethos_u(file.content, target)
    reasons: dict[int, str] = {}
    for kind, name, reason in compiled.reasons:
        places = [i for i in range(len(kinds)) if (kinds[i], names[i]) == (kind, name)]
        place = next((i for i in places if i not in reasons), None)
        if place is not None:
            reasons[place] = " ".join(reason.split())
    return f"Vela {compiled.version}", reasons


_INTEGER = 'QuantizationScheme(prefer="exactness"), which has no operations in float'
_CHANGES = {
    "GELU": "another activation, such as ReLU or hard_swish",
    "SELECT": "another activation or layer: it comes from selu, or from indices below zero",
    "EXP": "another activation",
    "TILE": "Resizing or Conv2DTranspose in place of UpSampling2D",
    "SOFTMAX": "logits as the output: argmax needs no softmax",
    "WHILE": 'QuantizationScheme(prefer="exactness"), which has no loops',
}


def _change(target: str, kind: str, reason: str) -> str:
    """Returns what helps, as far as it is known."""
    if target == "xnnpack":
        return 'prefer="latency", if the file was made with another' if kind != "WHILE" else ""
    if kind in ("QUANTIZE", "DEQUANTIZE") and "fast_float" not in reason:
        return 'io_dtype="int8", if it is at an end of the file; else ' + _INTEGER
    if "Float32" in reason or "FLOAT32" in reason or kind == "DEQUANTIZE":
        return _INTEGER
    if "int4" in reason.lower():
        return "8-bit weights: scheme='int8'"
    return _CHANGES.get(kind, "")
