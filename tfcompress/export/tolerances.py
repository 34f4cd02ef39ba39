"""How far a file may be from its model before there is a warning, or it is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from tfcompress.errors import ExportError, QuantizationError
from tfcompress.export.compare_outputs import Output, OutputComparison


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """How far a file may be from a model.

    The error of a channel is its RMSE over its reference deviation: its standard deviation, but at
    least some share of its largest value and of the deviation of all channels.

    Attributes:
        refused: Largest error of a file that is accepted.
        warned: Largest error of a file that is accepted without a warning.
        is_copy: Whether file and model do the same arithmetic, so that every channel, every row
            and every value is checked. Else the file is quantized and the model is not: only all
            channels together are checked, and whether channels are lost.
        lsb: RMSE in LSB of the output that is always allowed: values near the middle between two
            quantized values may be rounded to either.
        largest: Largest difference of a single value, in deviations; None for no limit.
        excused: Largest error where no value is off by more than one LSB, or kernels differ as
            much.
        least: Lower limit of the reference deviation of a channel, as a share of the deviation of
            all channels.
    """

    refused: float
    warned: float
    is_copy: bool = True
    lsb: float = 0.0
    largest: float | None = None
    excused: float = np.inf
    least: float = 0.002


TOLERANCES = {
    "float32": Tolerance(1e-3, 1e-4),
    "float32 of half": Tolerance(0.05, 0.02, least=0.05),
    "float32 far out": Tolerance(0.05, np.inf, least=0.02),
    "float16": Tolerance(0.05, 0.01, least=0.1),
    "dynamic_int8": Tolerance(0.04, 0.25, least=0.1),
    "int16x8": Tolerance(0.04, 0.25, least=0.02),
    "int8": Tolerance(0.5, 0.1, is_copy=False),
    "w4a8": Tolerance(1.0, 0.3, is_copy=False),
    "trained": Tolerance(np.inf, np.inf, is_copy=False),
    "int8 copy": Tolerance(0.03, 0.02, lsb=0.1, largest=0.5, excused=0.042),
    "int8 copy of many": Tolerance(0.03, 0.02, lsb=0.1, largest=0.5),
    "int8 copy in part": Tolerance(0.2, 0.05, lsb=0.3, largest=1.5),
    "int8 copy of 4 bits": Tolerance(0.25, 0.1, lsb=0.75, largest=2.0),
    "int8 copy of 16 bits": Tolerance(0.03, 0.02, lsb=1.5, largest=1.5),
    "int8 copy of other kernels": Tolerance(0.25, 0.1, lsb=1.0, largest=2.0),
    "int8 copy of half": Tolerance(0.5, 0.2),
}
"""Tolerances by scheme, and of an integer file as a copy of its quantized model."""


_ROW = 2.0  # times the tolerance of a channel, for a row: it has fewer values


_ENOUGH = 16  # values of a row, to check it


_FIXED_DEVIATION = 8 / 256  # lower limit of the reference of a softmax or sigmoid


_FEW_LSB = 3.01  # differences up to this give no warning


_LOST = 0.1  # the share of channels that a file may lose


Allowed = Callable[[], Sequence[np.ndarray]]


def judge(
    comparison: OutputComparison, tolerance: str, kind: str = "", allowed: Allowed | None = None
) -> str | None:
    """Returns a warning for a poor file, or None for a good one.

    Args:
        comparison: The outputs of file and model.
        tolerance: A key of `TOLERANCES`.
        kind: What to call the file in messages.
        allowed: Returns, for each output, an RMSE for each channel that is not an error of the
            file, such as that between two sets of kernels. Called only where the tolerance is
            exceeded.

    Raises:
        ExportError: If the file is broken; `QuantizationError` if quantization costs too much.
    """
    limit = TOLERANCES[tolerance]
    problems = [
        _copied(output, limit, index, allowed) if limit.is_copy else _rounded(output, limit)
        for index, output in enumerate(comparison.outputs)
    ]
    hint = _HINTS.get(" ".join(tolerance.split()[:2]), "")
    figures = f"{comparison.agreement}. {hint}".strip()
    if reason := next((reason for refused, reason in filter(None, problems) if refused), None):
        raise (ExportError if limit.is_copy else QuantizationError)(
            f"The {kind or tolerance} file does not compute what its model computes: {reason}. "
            f"Measured: {figures} No file was written."
        )
    if reason := next((reason for _, reason in filter(None, problems)), None):
        return f"The {kind or tolerance} file is a poor copy of its model: {reason}. {figures}"
    return None


Problem = tuple[bool, str] | None


def _copied(output: Output, limit: Tolerance, index: int, allowed: Allowed | None) -> Problem:
    """Judges an output of a file that does the same arithmetic as its model."""
    most = limit.excused * output.reference(limit.least)
    one_lsb = output.lsb > 0 and limit.lsb > 0 and output.farthest.max() <= 1.01 * output.lsb
    more = np.minimum(output.rmse, most) if one_lsb else np.zeros_like(output.rmse)
    reason = _fault(output, limit, limit.refused, more)
    if reason and allowed:
        more = np.maximum(more, np.minimum(allowed()[index], most))
        reason = _fault(output, limit, limit.refused, more)
    if reason:
        return True, reason
    if output.farthest.max() <= _FEW_LSB * output.lsb:  # whatever its scale
        return None
    reason = _fault(output, limit, limit.warned, np.zeros_like(more))
    return (False, reason) if reason else None


def _fault(output: Output, limit: Tolerance, share: float, more: np.ndarray) -> str | None:
    """Returns which error is larger than some share of the deviation, and than `more`."""
    reference = output.reference(limit.least)
    allowed = np.maximum.reduce(
        [share * reference, np.full_like(reference, limit.lsb * output.lsb)]
    )
    allowed = np.maximum(allowed, more)
    counts = output.farthest > 0.51 * output.lsb  # else no quantized value is nearer
    far = counts & (output.rmse > allowed)
    if far.any():
        channel = int((far * output.rmse / allowed).argmax())
        error = f"{output.rmse[channel] / reference[channel]:.4f} of its deviation (RMSE)"
        return f"{output.at(channel)} is off by {error}; the largest allowed is {share}"
    if limit.largest is not None and not output.is_choice:
        few = (3.5 + 2 * limit.lsb) * output.lsb
        most = np.maximum(np.maximum(limit.largest * reference, few), 6 * more)
        far = counts & (output.farthest > most)
        if far.any():
            channel = int((far * output.farthest / most).argmax())
            error = (
                f"{output.farthest[channel] / reference[channel]:.2f} deviations at single values"
            )
            return f"{output.at(channel)} is off by {error}; the largest allowed is {limit.largest}"
    values = len(output.wanted) * len(output.rmse)
    rows = output.rows(reference) if values >= _ENOUGH and counts.any() else np.zeros(0)
    if rows.size and rows.max() > _ROW * float((allowed / reference).max()):
        index = np.unravel_index(int(rows.argmax()), output.wanted.shape[1:-1])
        row = ", ".join(map(str, index))
        return f"output {output.name!r}, row {row}, is off by {rows.max():.4f} of its deviation"
    return None


def _rounded(output: Output, limit: Tolerance) -> Problem:
    """Judges an output of a file that is quantized where its model is not."""
    lost = output.lost()
    refused = lost.mean() > _LOST
    if refused or (lost & (output.file_deviation == 0)).any():
        problem = (
            f"{int(lost.sum())} of the {len(lost)} channels of output {output.name!r} (the first is"
            f" {int(lost.argmax())}) vary in the model and hardly in the file"
        )
        fix = (
            "they are below 1/256, the scale of a softmax or sigmoid: export the model without it, "
            "or with 16 bits"
            if output.is_fixed
            else f"the scale of the output is {output.lsb:.3g}, set by the other channels, and "
            "they are too small for it: give them an output of their own"
        )
        return bool(refused), f"{problem}: {fix}"
    pooled = output.pooled
    if not output.is_choice:
        rmse, spread = output.usual()
        least = _FIXED_DEVIATION if output.is_fixed else 0.0
        pooled = rmse / max(spread, least) if max(spread, least) else pooled
    if pooled <= limit.warned or output.farthest.max() <= 0.51 * output.lsb:
        return None
    reason = f"output {output.name!r} is off by {pooled:.4f} of its deviation (RMSE)"
    return pooled > limit.refused, reason


_HINTS = {
    "int16x8": "Check that the representative dataset is preprocessed like the training data.",
    "int8": (
        "Check that the representative dataset is preprocessed like the training data; if it is, "
        "train with quantize()."
    ),
    "w4a8": (
        "Weights of 4 bits need training: train with "
        "quantize(model, 'w4a8'), or give the first and last layer 8 bits by overrides."
    ),
    "trained": "Quantization costs this model much: train on, or give layers more bits.",
    "int8 copy": (
        "It is compared with the quantized model: the converter did not keep its integers. "
        "layer_errors() says where; a layer can be left out (override 'float32')."
    ),
}
