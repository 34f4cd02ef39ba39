"""How fast a file is, beside the float file of the same model."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable

from tfcompress.errors import CompressionWarning, ExportError
from tfcompress.tflite.benchmark import benchmark
from tfcompress.tflite.inspect import FileReport
from tfcompress.tflite.profile import Profile, profile_tflite
from tfcompress.tflite.run import TFLiteModel
from tfcompress.tflite.trial import claim

_RUNS = 50


@dataclasses.dataclass(frozen=True)
class Latency:
    """The latency of a file, and of the float file of the same model, measured in turns.

    Attributes:
        ms: Median milliseconds of one inference of the file.
        float_ms: Of the float file.
        profile: Where the time of the file goes.
    """

    ms: float
    float_ms: float
    profile: Profile

    @property
    def speedup(self) -> float:
        """How many times as fast as the float file it is."""
        return self.float_ms / self.ms

    def __str__(self) -> str:
        return (
            f"{self.ms:.3f} ms, {self.speedup:.2f} times as fast as in float ({self.float_ms:.3f} "
            f"ms); {self.profile.outside:.0%} of it outside of XNNPACK"
        )


def measured_latency(content: bytes, in_float: Callable[[], bytes]) -> Latency | None:
    """Measures a file and its float file in turns; None, with a warning, without the latter.

    Args:
        content: The file.
        in_float: Returns the float file.
    """
    try:
        float_content = in_float()
    except ExportError as error:
        reason = str(error).splitlines()[0]
        warnings.warn(
            f"The latency was not measured: there is no float file to compare with. {reason}",
            CompressionWarning,
            stacklevel=3,
        )
        return None
    claim(float_content)
    files = {"float": TFLiteModel(float_content), "file": TFLiteModel(content)}
    results = benchmark(files, runs=_RUNS)
    profile = profile_tflite(content)
    return Latency(results["file"].median_ms, results["float"].median_ms, profile)


def slower_than_float(report: FileReport, latency: Latency | None) -> str | None:
    """Returns why an integer file is slower than the float one would be, or None if it is not.

    Args:
        report: The content of the file, with what it costs by the table.
        latency: What was measured; None to judge by the table.
    """
    speedup = latency.speedup if latency else report.estimated_speedup
    if speedup is None or speedup >= _SURELY_SLOWER:
        return None
    if latency and latency.ms < _LEAST_MS:
        return None
    shares = latency.profile.shares() if latency else report.outside
    slow = ", ".join(f"{name} {share:.0%}" for name, share in list(shares.items())[:3])
    outside = f" Outside of XNNPACK it spends: {slow}." if slow else ""
    known = "was measured" if latency else "is estimated from the table in docs/operations.md"
    return (
        f"The file is slower than a float32 file of the same model: {speedup:.2f} times as fast "
        f"{known}.{outside} "
        "`tfcompress profile` names their layers. Give these layers 'float32' in the overrides of "
        "the scheme, or other activations."
    )


_SURELY_SLOWER = 0.9  # estimates are rough, and measurements noisy
_LEAST_MS = 0.01  # of a measurement that can tell
