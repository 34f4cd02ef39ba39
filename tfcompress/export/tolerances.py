"""How far a file may be from its model before it is warned of, or refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from tfcompress.errors import ExportError
from tfcompress.export.compare_outputs import Output, OutputComparison


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """How far a file may be from a model.

    A channel is measured by its RMSE over its deviation. Where it hardly varies, its deviation is
    taken to be at least some share of its largest value, or of the deviation of all channels.

    Attributes:
        refused: Largest RMSE of a file that is handed back.
        warned: Largest RMSE of a file that is handed back without a warning.
        is_copy: Whether file and model compute alike, so that every channel, every row and every
            value counts. Else the file is rounded where the model is not: all channels together
            count, and those that are lost.
        steps: RMSE in steps of the output's scale that is no fault: values near the middle between
            two steps may fall to either side.
        largest: Largest single difference, in deviations; None for any.
        least: The least deviation of a channel that counts, of that of all channels.
        excused: Largest RMSE where no value is off by more than a step, or kernels differ as much.
    """

    refused: float
    warned: float
    is_copy: bool = True
    steps: float = 0.0
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
    "int8 copy": Tolerance(0.03, 0.02, steps=0.1, largest=0.5, excused=0.042),
    "int8 copy of many": Tolerance(0.03, 0.02, steps=0.1, largest=0.5),
    "int8 copy in part": Tolerance(0.2, 0.05, steps=0.3, largest=1.5),
    "int8 copy of 4 bits": Tolerance(0.25, 0.1, steps=0.75, largest=2.0),
    "int8 copy of 16 bits": Tolerance(0.03, 0.02, steps=1.5, largest=1.5),
    "int8 copy of half": Tolerance(0.5, 0.2),
}
"""What is asked of a file, by its scheme, and of an integer file as a copy of its integer model."""


_ROW = 2.0  # a row may be so many times as far off as a channel: it has fewer values


_ENOUGH = 16  # values of a row


_FIXED_DEVIATION = 8 / 256  # the least that counts of a softmax or sigmoid


_FEW_STEPS = 3.01  # of a copy that is never warned of


_LOST = 0.1  # the share of channels that a file may lose


Allowed = Callable[[], Sequence[np.ndarray]]


def judge(
    found: OutputComparison, tolerance: str, kind: str = "", allowed: Allowed | None = None
) -> str | None:
    """Returns a warning for a poor file, or None for a good one.

    Args:
        found: What was measured.
        tolerance: A key of `TOLERANCES`.
        kind: What to call the file in messages.
        allowed: Returns an RMSE for each channel of each output that is no fault of the file, such
            as that between two sets of kernels; asked only where the tolerance is exceeded.

    Raises:
        ExportError: If the file is broken.
    """
    limit = TOLERANCES[tolerance]
    problems = [
        _copied(output, limit, index, allowed) if limit.is_copy else _rounded(output, limit)
        for index, output in enumerate(found.outputs)
    ]
    hint = _HINTS.get(" ".join(tolerance.split()[:2]), "")
    told = f"{found.agreement}. {hint}".strip()
    if reason := next((reason for refused, reason in filter(None, problems) if refused), None):
        raise ExportError(
            f"The {kind or tolerance} file does not compute what its model computes: {reason}. "
            f"Measured: {told} No file was written."
        )
    if reason := next((reason for _, reason in filter(None, problems)), None):
        return f"The {kind or tolerance} file is a poor copy of its model: {reason}. {told}"
    return None


Problem = tuple[bool, str] | None


def _copied(output: Output, limit: Tolerance, index: int, allowed: Allowed | None) -> Problem:
    """Judges an output of a file that computes like its model."""
    most = limit.excused * output.scale(limit.least)
    a_step = output.step > 0 and limit.steps > 0 and output.farthest.max() <= 1.01 * output.step
    more = np.minimum(output.rmse, most) if a_step else np.zeros_like(output.rmse)
    reason = _fault(output, limit, limit.refused, more)
    if reason and allowed:
        more = np.maximum(more, np.minimum(allowed()[index], most))
        reason = _fault(output, limit, limit.refused, more)
    if reason:
        return True, reason
    if output.farthest.max() <= _FEW_STEPS * output.step:  # however coarse the grid
        return None
    reason = _fault(output, limit, limit.warned, np.zeros_like(more))
    return (False, reason) if reason else None


def _fault(output: Output, limit: Tolerance, share: float, more: np.ndarray) -> str | None:
    """Returns what is farther off than some share of its deviation, and than `more`."""
    scale = output.scale(limit.least)
    allowed = np.maximum.reduce([share * scale, np.full_like(scale, limit.steps * output.step)])
    allowed = np.maximum(allowed, more)
    counts = output.farthest > 0.51 * output.step  # else nothing on the grid is nearer
    far = counts & (output.rmse > allowed)
    if far.any():
        channel = int((far * output.rmse / allowed).argmax())
        told = f"{output.rmse[channel] / scale[channel]:.4f} of its deviation (RMSE)"
        return f"{output.at(channel)} is off by {told}; the largest allowed is {share}"
    if limit.largest is not None and not output.is_choice:
        few = (3.5 + 2 * limit.steps) * output.step
        most = np.maximum(np.maximum(limit.largest * scale, few), 6 * more)
        far = counts & (output.farthest > most)
        if far.any():
            channel = int((far * output.farthest / most).argmax())
            told = f"{output.farthest[channel] / scale[channel]:.2f} deviations in places"
            return f"{output.at(channel)} is off by {told}; the largest allowed is {limit.largest}"
    seen = len(output.wanted) * len(output.rmse)
    rows = output.rows(scale) if seen >= _ENOUGH and counts.any() else np.zeros(0)
    if rows.size and rows.max() > _ROW * float((allowed / scale).max()):
        place = np.unravel_index(int(rows.argmax()), output.wanted.shape[1:-1])
        at = ", ".join(map(str, place))
        return f"output {output.name!r}, row {at}, is off by {rows.max():.4f} of its deviation"
    return None


def _rounded(output: Output, limit: Tolerance) -> Problem:
    """Judges an output of a file that is rounded where its model is not."""
    lost = output.lost()
    refused = lost.mean() > _LOST
    if refused or (lost & (output.file_deviation == 0)).any():
        how = (
            f"{int(lost.sum())} of the {len(lost)} channels of output {output.name!r} (the first is"
            f" {int(lost.argmax())}) vary in the model and hardly in the file"
        )
        fix = (
            "they are below 1/256, the step of a softmax or sigmoid: export the model without it, "
            "or with 16 bits"
            if output.is_fixed
            else f"the step of the output is {output.step:.3g}, beside the others they are too "
            "small for it: give them an output of their own"
        )
        return bool(refused), f"{how}: {fix}"
    pooled = output.pooled
    if not output.is_choice:
        rmse, spread = output.usual()
        least = _FIXED_DEVIATION if output.is_fixed else 0.0
        pooled = rmse / max(spread, least) if max(spread, least) else pooled
    if pooled <= limit.warned or output.farthest.max() <= 0.51 * output.step:
        return None
    told = f"output {output.name!r} is off by {pooled:.4f} of its deviation (RMSE)"
    return pooled > limit.refused, told


_HINTS = {
    "int16x8": "Check that the representative dataset is preprocessed like the training data.",
    "int8": (
        "Check that the representative dataset is preprocessed like the training data; if it is, "
        "train with quantize()."
    ),
    "w4a8": (
        "Four bits are few for weights that were not trained for them: train with "
        "quantize(model, 'w4a8'), or give the first and last layer eight by overrides."
    ),
    "trained": "Rounding costs this model much: train on, or give layers more bits.",
    "int8 copy": (
        "The model is the one with ranges here: the converter did not keep its integers. "
        "layer_errors() says where; a layer can be left out (override 'float32')."
    ),
}
