"""delegate_report: operations of a file that a delegate takes over, and those left on the CPU.

XNNPACK is part of the runtime, so its operations are measured. The other delegates are in phones
and on boards; for them there are lists (`targets/`), which nobody could compare with them here.
NNAPI, deprecated since Android 15, and Hexagon are not listed.
"""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

from tfcompress.devices.check import TargetReport, check_target
from tfcompress.tables import as_text, table

_DELEGATES = {"XNNPACK": "xnnpack", "GPU": "gpu", "Core ML": "coreml", "Edge TPU": "edgetpu"}
_NOTES = {
    "XNNPACK": "the CPU's own fast kernels",
    "GPU": "computes in float16 or float32, int8 files as well",
    "Core ML": "float files only",
    "Edge TPU": "all from the first operation it does not know on stays",
}


@dataclasses.dataclass(frozen=True)
class DelegateRow:
    """One delegate.

    Attributes:
        delegate: Its name.
        delegated: Operations that it takes over.
        on_cpu: Number of operations of each kind that stay on the CPU.
        source: "measured" or "documented".
        note: A remark.
    """

    delegate: str
    delegated: int
    on_cpu: dict[str, int]
    source: str
    note: str


@dataclasses.dataclass(frozen=True)
class DelegateReport:
    """The operations of a file that each delegate takes over.

    Attributes:
        path: The file.
        operations: Number of its operations.
        rows: One for each delegate.
    """

    path: str
    operations: int
    rows: list[DelegateRow]

    def __rich__(self) -> Any:
        rows = [
            (
                row.delegate,
                f"{row.delegated} of {self.operations}",
                ", ".join(f"{name} {count}" for name, count in row.on_cpu.items()) or "-",
                row.source,
                row.note,
            )
            for row in self.rows
        ]
        columns = ("delegate", "takes", "on the CPU", "", "note")
        return table(f"{self.path}: delegates", columns, rows)

    def __str__(self) -> str:
        return as_text(self.__rich__())


def delegate_report(path_or_bytes: Any) -> DelegateReport:
    """Reports which operations of a file each delegate takes over, and which stay on the CPU.

    XNNPACK is measured on the installed runtime. GPU, Core ML and Edge TPU follow from lists of the
    operations and types that they support; `check_target` says of each what stands in the way.

    Args:
        path_or_bytes: Path of the file, or its content.

    Returns:
        Plain data that prints as a table.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a TFLite model, or a damaged one.

    Example:
        >>> import tfcompress as tfc
        >>> path = "tflite_models/fashion_mnist_student_int8.tflite"
        >>> {row.delegate: row.on_cpu for row in tfc.delegate_report(path).rows}["Edge TPU"]
        {}
    """
    reports = {name: check_target(path_or_bytes, key) for name, key in _DELEGATES.items()}
    first = reports["XNNPACK"]
    rows = [_row(name, report) for name, report in reports.items()]
    return DelegateReport(first.path, first.operations, rows)


def _row(name: str, report: TargetReport) -> DelegateRow:
    left = collections.Counter(issue.operation for issue in report.issues)
    source = "measured" if name == "XNNPACK" else "documented"
    taken = report.operations - len(report.issues)
    return DelegateRow(name, taken, dict(left.most_common()), source, _NOTES[name])
