"""check_target: what of a file a device runs where, and what to change so that it runs all."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tfcompress.devices.ethos_u import ACCELERATORS, compile_ethos_u
from tfcompress.devices.facts import facts_of
from tfcompress.devices.micro import is_installed, reasons_alone, require
from tfcompress.devices.micro_file import MicroFile
from tfcompress.devices.target import TARGETS, Target, target_named
from tfcompress.tables import as_text, table
from tfcompress.tflite.delegates import kernels_of
from tfcompress.tflite.profile import layer_of
from tfcompress.tflite.run import TFLiteModel

CHECKED = ("xnnpack", *TARGETS, *ACCELERATORS)
"""Everything that `check_target` takes as a target."""

_TOOLS = {"tflite-micro": ("tflite_micro", "tflite-micro"), "ethos": ("ethosu", "ethos-u-vela")}
"""Module and package of the tools that run here."""

_SIZES = {"ethos-u55": "-128", "ethos-u65": "-256", "ethos-u85": "-256"}
"""The NPU that stands for all of its family: they take the same operations."""


@dataclasses.dataclass(frozen=True)
class TargetIssue:
    """An operation that the target does not take.

    Attributes:
        layer: Path of the Keras layer, by the name of the tensor.
        operation: Kind of the operation.
        reason: Why: the rule that it breaks, or the words of the tool.
        change: What helps; empty if nothing is known to.
        index: Its number in the file.
    """

    layer: str
    operation: str
    reason: str
    change: str
    index: int


@dataclasses.dataclass(frozen=True)
class TargetReport:
    """What of a file a target takes.

    Attributes:
        path: The file.
        target: The target.
        source: What says so: the version of the tool that was run, or the list that was read.
        operations: Number of operations of the file.
        issues: The operations that the target does not take, in their order.
        partitions: Number of runs of operations that the target takes one after the other. 0 where
            a file runs wholly or not at all.
        cost: What it costs that some are left.
    """

    path: str
    target: str
    source: str
    operations: int
    issues: list[TargetIssue]
    partitions: int
    cost: str

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
        built = table(title, ("layer", "operation", "reason", "what helps"), rows)
        built.caption = self.cost
        return built

    def __str__(self) -> str:
        return as_text(self.__rich__())


def check_target(path_or_bytes: Any, target: str, *, tool: bool | None = None) -> TargetReport:
    """Says which operations of a `.tflite` file a target does not take, why, and what helps.

    "xnnpack" is asked on the installed runtime. For tflite-micro and Ethos-U the tool itself is run
    where it is installed; else, and for the others, the answer follows from a list of what the
    target takes (`tfcompress/devices/targets/`), which for tflite-micro and Ethos-U is compared
    with the tools (docs/micro.md), and for "edgetpu", "gpu" and "coreml" is not.

    Args:
        path_or_bytes: Path of the file, or its content.
        target: "xnnpack", "tflite-micro", "ethos-u55", "ethos-u65" or "ethos-u85", an NPU of a size
            such as "ethos-u55-128", "edgetpu", "gpu" or "coreml".
        tool: Whether to run the tool of the target. None where it is installed.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If `tool` is True and the tool is not installed.
        ValueError: If there is no such target, or it has no tool or no list; if the file cannot be
            read, or the tool fails on it.

    Example:
        >>> import tfcompress as tfc
        >>> path = "tflite_models/fashion_mnist_student_int8.tflite"
        >>> tfc.check_target(path, "ethos-u55", tool=False).fits
        True
    """
    if target not in CHECKED:
        raise ValueError(f"target must be one of {', '.join(CHECKED)}. Received: {target!r}")
    needed = _TOOLS.get("ethos" if target.startswith("ethos") else target)
    if tool and needed is None and target != "xnnpack":
        raise ValueError(f"tool=True is not possible for {target!r}: its tool does not run here.")
    if tool is False and target == "xnnpack":
        raise ValueError("tool=False is not possible for 'xnnpack', which the runtime itself has.")
    if tool and needed is not None:
        require(*needed, "micro")
    file = MicroFile(path_or_bytes)
    known = None if target == "xnnpack" else target_named(family_of(target))
    operators = file.operators if known else file.operators[: len(file.graphs[0].operators)]
    kinds = [file.kind_of(operator) for _, operator in operators]
    names = [graph.tensors[int(op.outputs[0])].name.decode() for graph, op in operators]
    installed = needed is not None and is_installed(needed[0])
    if known is not None and not (installed and tool is not False):
        verified = "" if known.verified else ", not verified"
        source = f"predicted from {known.source} of {known.date}{verified}"
        reasons = predicted(known, [facts_of(file, *each) for each in operators])
    else:
        source, reasons = _measured(file, target, kinds, names)
    issues = [
        TargetIssue(
            layer_of(names[i]),
            kinds[i],
            reason,
            _change(known, facts_of(file, *operators[i]), names[i]),
            i,
        )
        for i, reason in enumerate(reasons)
        if reason
    ]
    taken = [not reason for reason in reasons]
    starts = sum(now and not before for before, now in zip([False, *taken], taken, strict=False))
    alone = known is not None and not known.others
    return TargetReport(
        file.name,
        target,
        source,
        len(kinds),
        issues,
        starts if issues and not alone else 0,
        known.partition if known is not None else "The CPU's built-in kernels are slower.",
    )


def family_of(target: str) -> str:
    """Returns the target of which there is data for a target of some size."""
    return "-".join(target.split("-")[:2])


_BEHIND = "is behind one not taken"


def predicted(target: Target, facts: Sequence[dict[str, Any]]) -> list[str]:
    """Returns why a target does not take each operation, "" for those that it takes."""
    reasons = [target.reason_against(each) for each in facts]
    if target.rest_is_left and any(reasons):
        first = next(i for i, reason in enumerate(reasons) if reason)
        reasons[first:] = [reason or _BEHIND for reason in reasons[first:]]
    return reasons


def _measured(
    file: MicroFile, target: str, kinds: Sequence[str], names: Sequence[str]
) -> tuple[str, list[str]]:
    """Returns what was run, and why it does not take each operation."""
    if target == "xnnpack":
        model = TFLiteModel(file.content)
        reason = "XNNPACK does not take it: a built-in kernel runs"
        taken = [taken for _, taken in kernels_of(model.interpreter)]
        return model.runtime, ["" if ok else reason for ok in taken]
    if target == "tflite-micro":
        version = require(*_TOOLS[target], "micro")
        return f"tflite-micro {version}", reasons_alone(file)
    compiled = compile_ethos_u(file.content, target + _SIZES.get(target, ""))
    reasons = [""] * len(kinds)
    for kind, name, reason in compiled.reasons:
        # A fused activation is warned of by its own name.
        places = [i for i, other in enumerate(names) if other == name and not reasons[i]]
        places = [i for i in places if kinds[i] == kind] or places
        if places:
            reasons[places[0]] = " ".join(reason.split())
    return f"Vela {compiled.version}", reasons


_INTEGER = 'QuantizationScheme(prefer="exactness"), which has no operations in float'


def _change(target: Target | None, facts: dict[str, Any], name: str) -> str:
    """Returns what helps, as far as it is known."""
    kind, types = facts["kind"], facts["types"]
    if target is None:
        return 'prefer="latency", if the file was made with another' if kind != "WHILE" else ""
    if kind in target.changes:
        return target.changes[kind]
    if facts.get("weights") == "int4":
        return "8-bit weights: scheme='int8', or an override of this layer"
    if "float" in types and 32 not in target.needs["activation_bits"]:
        if kind in ("QUANTIZE", "DEQUANTIZE") and "fast_float" not in name:
            return "an integer io_dtype, if it is at an end of the file; else " + _INTEGER
        return _INTEGER
    if facts.get("weights") == "int8" and "float" in types:
        return "scheme='int8': it has float activations and int8 weights"
    return ""
