"""compile_ethos_u: compiles a file for Arm's Ethos-U NPUs with Arm's compiler, Vela."""

from __future__ import annotations

import csv
import dataclasses
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

from tfcompress.devices.micro import require
from tfcompress.devices.micro_file import MicroFile, operations_of
from tfcompress.files import check_path, write_whole
from tfcompress.tables import as_text, size, table
from tfcompress.tflite.parts import objects_of
from tfcompress.tflite.run import DECODE

ACCELERATORS = (
    *(f"ethos-u55-{macs}" for macs in (32, 64, 128, 256)),
    *(f"ethos-u65-{macs}" for macs in (256, 512)),
    *(f"ethos-u85-{macs}" for macs in (128, 256, 512, 1024, 2048)),
)
"""The NPUs that Vela knows, with their multiply-accumulates per cycle."""

_SECONDS = 600.0
_KIB = 1024


@dataclasses.dataclass(frozen=True)
class EthosUResult:
    """What Vela made of a file. Times are its estimates, not measured on a chip.

    Attributes:
        path: The file.
        accelerator: The NPU.
        system: Vela's names of the clock and memories, and of how they are used.
        version: The version of Vela.
        operations: Number of operations of the file.
        on_cpu: Number of operations of each kind that stay on the microcontroller's CPU.
        reasons: For each of those Vela's reason: kind, name of the output tensor, reason.
        sram_bytes: Working memory.
        flash_bytes: Weights as stored, after Vela's compression, and commands.
        dram_bytes: The same in systems that have DRAM, with what of the working memory lies there.
        cycles: Cycles of the NPU for one inference.
        milliseconds: Time of one inference by Vela's estimate.
        content: The compiled file, for tflite-micro with the driver of the NPU.
    """

    path: str
    accelerator: str
    system: str
    version: str
    operations: int
    on_cpu: dict[str, int]
    reasons: list[tuple[str, str, str]]
    sram_bytes: int
    flash_bytes: int
    dram_bytes: int
    cycles: int
    milliseconds: float
    content: bytes = dataclasses.field(repr=False)

    @property
    def share_on_npu(self) -> float:
        """Share of the file's operations that run on the NPU."""
        return 1 - sum(self.on_cpu.values()) / max(self.operations, 1)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the compiled file.

        Args:
            path: The file to write, which ends with `.tflite`.
        """
        write_whole(check_path(path, ".tflite"), self.content)

    def as_dict(self) -> dict[str, Any]:
        """Returns the result without the compiled file, as a dict for JSON."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del values["content"]
        return {**values, "share_on_npu": self.share_on_npu}

    def __rich__(self) -> Any:
        rows = [
            ("operations on the NPU", f"{self.share_on_npu:.0%} of {self.operations}"),
            ("SRAM", size(self.sram_bytes)),
            ("flash", size(self.flash_bytes)),
            *([("DRAM", size(self.dram_bytes))] if self.dram_bytes else []),
            ("cycles", f"{self.cycles:,}"),
            ("estimated ms", f"{self.milliseconds:.3f}"),
            ("system", self.system),
            *((f"on the CPU: {kind}", f"{count}") for kind, count in self.on_cpu.items()),
        ]
        title = f"{self.path} on {self.accelerator} by Vela {self.version}"
        return table(title, ("", "value"), rows)

    def __str__(self) -> str:
        return as_text(self.__rich__())


def compile_ethos_u(
    path_or_bytes: Any,
    accelerator: str = "ethos-u55-128",
    *,
    system_config: str | None = None,
    memory_mode: str | None = None,
) -> EthosUResult:
    """Compiles a `.tflite` file for an Ethos-U NPU with Vela, in a process of its own.

    Integer files with integer inputs and outputs (`io_dtype="int8"`) and
    `QuantizationScheme(prefer="exactness")` run wholly on the NPU where it has the operations.

    Args:
        path_or_bytes: Path of the file, or its content.
        accelerator: One of `ACCELERATORS`.
        system_config: Vela's name of clock and memories, such as "Ethos_U55_Deep_Embedded"; None
            for Vela's choice.
        memory_mode: Vela's name of how memories are used, such as "Sram_Only"; None likewise.

    Returns:
        Where operations run, memory, estimated time, and the compiled file.

    Raises:
        ImportError: If Vela is not installed.
        FileNotFoundError: If there is no such file.
        ValueError: If there is no such NPU, the file is not a TFLite model, or Vela cannot compile
            it; the message holds Vela's.

    Example:
        >>> import tfcompress as tfc
        >>> file = "tflite_models/fashion_mnist_student_int8.tflite"
        >>> result = tfc.compile_ethos_u(file, "ethos-u55-128")
        >>> result.share_on_npu, 10_000 < result.flash_bytes < 25_000
        (1.0, True)
    """
    if accelerator not in ACCELERATORS:
        raise ValueError(
            f"accelerator must be one of {', '.join(ACCELERATORS)}. Received: {accelerator!r}"
        )
    version = require("ethosu", "ethos-u-vela", "micro")
    model = MicroFile(path_or_bytes)
    if DECODE in model.operations:
        raise ValueError(
            f"{model.name} is compressed for tflite-micro (compress_lut), and Vela does not read "
            "that: compile the file that it was made of."
        )
    if model.has_int4():
        raise ValueError(
            f"{model.name} has 4-bit weights, which Vela cannot read. Export with scheme='int8'."
        )
    options = ["--accelerator-config", accelerator]
    for name, value in (("--system-config", system_config), ("--memory-mode", memory_mode)):
        options += [name, value] if value else []
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder, "file.tflite")
        source.write_bytes(model.content)
        log = _vela(source, options, model.name)
        compiled = source.with_name("file_vela.tflite").read_bytes()
        (summary,) = pathlib.Path(folder).glob("file_summary_*.csv")
        with summary.open() as file:
            figures = next(csv.DictReader(file))
    reasons = [(m[1], m[2], m[3].strip()) for m in _WARNING.finditer(log)]
    left = operations_of(objects_of(compiled))
    on_cpu = {name: count for name, count in left.items() if name != "ethos-u"}
    flash = sum(float(figures[f"{kind}_flash_memory_used"]) for kind in ("on_chip", "off_chip"))
    return EthosUResult(
        model.name,
        accelerator,
        f"{figures['system_config']}, {figures['memory_mode']}",
        version,
        sum(model.operations.values()),
        on_cpu,
        reasons,
        round(float(figures["sram_memory_used"]) * _KIB),
        round(flash * _KIB),
        round(float(figures["dram_memory_used"]) * _KIB),
        round(float(figures["cycles_total"])),
        float(figures["inference_time"]) * 1e3,
        compiled,
    )


_WARNING = re.compile(
    r"^Warning \([a-z ]+\) operator: (\w+), ofm: '(.*)'\n\s*Reason: (.*(?:\n(?!Warning|\n).+)*)",
    re.M,
)


def _vela(source: pathlib.Path, options: list[str], name: str) -> str:
    """Runs Vela on a file, and returns what it printed."""
    command = [sys.executable, "-m", "ethosu.vela", str(source), *options]
    try:
        process = subprocess.run(
            [*command, "--output-dir", str(source.parent)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"Vela took more than {_SECONDS:.0f} seconds for {name}.") from error
    log = process.stdout.decode(errors="replace")
    if process.returncode or not source.with_name("file_vela.tflite").exists():
        lines = [line.strip() for line in log.splitlines() if line.strip()]
        said = [line for line in lines if not line.startswith("Warning: No ")]
        reason = said[-1] if said else f"exit status {process.returncode}"
        if process.returncode < 0:
            reason = f"it crashes (signal {-process.returncode})"
        raise ValueError(f"Vela cannot compile {name}: {reason}")
    return log
