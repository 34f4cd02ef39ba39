"""What an export wrote, and how well it agrees with its model."""

from __future__ import annotations

import dataclasses
from typing import Any

from tfcompress.devices.check import TargetReport
from tfcompress.export.agreement import Accuracy
from tfcompress.export.auto_scheme import SchemeTrial
from tfcompress.export.compare_outputs import Agreement
from tfcompress.export.latency import Latency
from tfcompress.tables import as_text
from tfcompress.tflite.inspect import FileReport


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """A file that was written.

    Attributes:
        path: Path of the file.
        scheme: A name of `SCHEMES`.
        trained: Whether its ranges come from quantization-aware training.
        agreement: How well it agrees with the Keras model; None if verify=False.
        report: The contents of the file; see `FileReport`.
        seconds: Time the export took.
        kept_in_float: Paths of the operations of an integer file that compute in float, because
            they are steep near zero: roots, logarithms, reciprocals, and what leads to them.
        float_agreement: Of a quantization-aware model, how well the file agrees with the same model
            when nothing is quantized: what quantization costs. None for other models.
        accuracy: The accuracy of model and file, if the representative dataset has labels that are
            classes.
        latency: The latency of the file and of the float file, if `benchmark=True`.
        on_target: What of the file the target takes, if one was given.
        trials: The schemes that `scheme="auto"` tried.
    """

    path: str
    scheme: str
    trained: bool
    agreement: Agreement | None
    report: FileReport
    seconds: float
    kept_in_float: tuple[str, ...] = ()
    float_agreement: Agreement | None = None
    accuracy: Accuracy | None = None
    latency: Latency | None = None
    on_target: TargetReport | None = None
    trials: tuple[SchemeTrial, ...] = ()

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return self.report.bytes

    @property
    def gzip_bytes(self) -> int:
        """Size of the file after gzip."""
        return self.report.gzip_bytes

    @property
    def ops(self) -> dict[str, int]:
        """How often each operation occurs in the file."""
        return self.report.ops

    @property
    def dtypes(self) -> dict[str, int]:
        """How many tensors of each type the file holds."""
        return self.report.dtypes

    @property
    def float_tensors(self) -> list[str]:
        """Names of the float32 tensors left inside, inputs and outputs not counted."""
        return self.report.float_tensors

    def __rich__(self) -> Any:
        table = self.report.__rich__()
        if self.report.metadata is None:  # which has both
            ranges = ", ranges trained" if self.trained else ""
            table.add_row("made as", self.scheme + ranges)
            table.add_row("agreed with its model", str(self.agreement or "not checked"))
        if self.float_agreement is not None:
            table.add_row("agreed with floats", str(self.float_agreement))
        if self.accuracy is not None:
            table.add_row("accuracy", str(self.accuracy))
        if self.latency is not None:
            table.add_row("latency", str(self.latency))
        if self.on_target is not None:
            taken = self.on_target.operations - len(self.on_target.issues)
            table.add_row(
                f"on {self.on_target.target}", f"{taken} of {self.on_target.operations} operations"
            )
        if self.kept_in_float:
            table.add_row("in float, steep near zero", ", ".join(self.kept_in_float))
        return table

    def __str__(self) -> str:
        return as_text(self.__rich__())
