"""Does a file compute what its model computes? Measured on real samples, before it is kept."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tfcompress.errors import ExportError

REFUSED = {
    "float32": 1e-3,
    "float32 of half": 0.05,
    "float16": 0.05,
    "int16x8": 0.5,
    "dynamic_int8": 0.5,
    "int8": 0.5,
    "int8 trained": 0.1,
    "int8 trained of half": 0.5,
    "int8 measured": 0.1,
}
"""Largest RMSE, over the deviation of the model's outputs, of a file that is handed back."""

WARNED = {
    "float32": 1e-4,
    "float32 of half": 0.01,
    "float16": 5e-3,
    "int16x8": 0.1,
    "dynamic_int8": 0.1,
    "int8": 0.1,
    "int8 trained": 0.02,
    "int8 trained of half": 0.1,
    "int8 measured": 0.02,
}
"""Largest RMSE, likewise, of a file that is handed back without a warning."""


EXACT_STEPS = 2
"""Largest difference, in steps of the output's scale, of an exact copy of a trained model."""


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How well a file agrees with the Keras model it was made from.

    Attributes:
        samples: Samples compared.
        source: Where they come from: "representative_dataset", "training" or "synthetic".
        rmse: Root mean squared difference of the outputs over the deviation of the model's, the
            worst output; of outputs that are integers or truths, such as classes, the share of
            values that differ.
        max_steps: Largest difference in steps of the output's scale; None if it has none.
        max_error: Largest absolute difference.
        top1: Share of samples with the same largest output; None if outputs are no vectors.
        kernels: The runtime and kernels compared.
        constant: Where the file puts out one value for all samples and the model does not: the name
            of an output and the places along its last axis.
    """

    samples: int
    source: str
    rmse: float
    max_steps: float | None
    max_error: float
    top1: float | None
    kernels: str
    constant: tuple[str, tuple[int, ...]] | None = None

    def __str__(self) -> str:
        parts = [f"RMSE {self.rmse:.4f} of the deviation"]
        if self.max_steps is not None:
            parts.append(f"at most {self.max_steps:.1f} steps")
        if self.top1 is not None:
            parts.append(f"same top-1 on {self.top1:.1%}")
        return f"{', '.join(parts)} ({self.samples} {self.source} samples, {self.kernels})"


def compare_outputs(
    expected: dict[str, np.ndarray],
    actual: dict[str, np.ndarray],
    scales: dict[str, float],
    *,
    source: str,
    kernels: str,
) -> Agreement:
    """Measures the agreement of a file's outputs with the model's.

    Args:
        expected: The model's outputs by name.
        actual: The file's outputs by name.
        scales: Step of each output's grid; 0 where there is none.
        source: Where the samples come from.
        kernels: Which kernels ran.

    Raises:
        ExportError: If names or shapes differ, or the file puts out NaN where the model does not.
    """
    worst_rmse = worst_error = 0.0
    worst_steps: list[float] = []
    same: list[float] = []
    count, constant = 0, None
    for name, wanted in expected.items():
        if name not in actual or actual[name].shape != wanted.shape:
            shape = actual[name].shape if name in actual else "nothing"
            raise ExportError(
                f"The file is broken: output {name!r} should have the shape {wanted.shape} and "
                f"has {shape}."
            )
        count = len(wanted)
        if wanted.dtype.kind in "biu":
            differs = wanted != actual[name].astype(wanted.dtype)
            worst_rmse = max(worst_rmse, float(np.mean(differs)) if differs.size else 0.0)
            worst_error = max(worst_error, float(differs.any()))
            continue
        wanted = wanted.astype(np.float64)
        got = actual[name].astype(np.float64)
        finite = np.isfinite(wanted)
        if not np.isfinite(got[finite]).all():
            raise ExportError(
                f"The file is broken: output {name!r} holds NaN or infinity where the model's "
                "output is finite."
            )
        if not finite.any():
            raise ExportError(
                f"Nothing could be compared: the model itself puts out NaN or infinity as {name!r} "
                f"for all {count} {source} samples. Pass samples like those of training as "
                "representative_dataset. No file was written."
            )
        places = _constant(wanted, got)
        if places and constant is None:
            constant = name, places
        difference = np.abs(got - wanted)[finite]
        # A constant output has no deviation; then its size is the measure.
        spread = wanted[finite].std() or np.abs(wanted[finite]).max() or 1.0
        worst_rmse = max(worst_rmse, float(np.sqrt(np.mean(difference**2)) / spread))
        worst_error = max(worst_error, float(difference.max()))
        if scales.get(name):
            worst_steps.append(float(difference.max() / scales[name]))
        if wanted.ndim >= 2 and wanted.shape[-1] > 1:
            same.append(float(np.mean(wanted.argmax(-1) == got.argmax(-1))))
    return Agreement(
        count,
        source,
        worst_rmse,
        max(worst_steps) if worst_steps else None,
        worst_error,
        min(same) if same else None,
        kernels,
        constant,
    )


def _constant(wanted: np.ndarray, got: np.ndarray) -> tuple[int, ...]:
    """Returns the places of the last axis that vary in the model, and not at all in the file."""
    if wanted.ndim < 2 or len(wanted) < _ENOUGH:
        return ()
    axes = tuple(range(wanted.ndim - 1))
    varies = wanted.std(axes) > _VARIES * np.maximum(np.abs(wanted).max(axes), 1e-9)
    return tuple(int(i) for i in np.flatnonzero(varies & (np.ptp(got, axes) == 0)))


_ENOUGH, _VARIES = 16, 0.05


def judge(agreement: Agreement, tolerance: str) -> str | None:
    """Returns a warning for a poor file, or None for a good one.

    Args:
        agreement: What was measured.
        tolerance: A key of `REFUSED`.

    Raises:
        ExportError: If the file is broken.
    """
    steps = agreement.max_steps
    if (
        agreement.constant is not None
        and tolerance.startswith("int8")
        and "trained" not in tolerance
    ):
        name, places = agreement.constant
        return (
            f"The file puts out one value for all samples at {len(places)} of the places of "
            f"output {name!r} (the first is {places[0]}), where the model does not: beside the "
            "others they are too small for its grid. Give them an output of their own."
        )
    if tolerance.startswith("int8") and steps is not None and steps <= 0.51:
        return None  # nothing on the grid of the output is nearer
    # A coarse grid is no fault of the copy: the model has the same.
    exact = steps is not None and steps < EXACT_STEPS + 0.5
    if exact and tolerance == "int8 measured":  # these few samples may be alike
        return None
    kind = tolerance.removesuffix(" measured")
    if agreement.rmse > REFUSED[tolerance]:
        raise ExportError(
            f"The {kind} file does not compute what its model computes: {agreement}. The "
            f"largest RMSE allowed is {REFUSED[tolerance]}. {_hint(tolerance)} No file was written."
        )
    if agreement.rmse > WARNED[tolerance] and not (exact and tolerance.startswith("int8 trained")):
        return f"The {kind} file is a poor copy of its model: {agreement}. {_hint(tolerance)}"
    return None


def _hint(tolerance: str) -> str:
    if tolerance == "int16x8":
        return "Check that the representative dataset is preprocessed like the training data."
    if tolerance == "int8":
        return (
            "Check that the representative dataset is preprocessed like the training data; if it "
            "is, train with quantize()."
        )
    if tolerance.startswith("int8 trained"):
        return "Train on, so that the ranges settle, and see float_tensors of the result."
    if tolerance == "int8 measured":
        return (
            "The model is the one with measured ranges here: the converter did not keep its "
            "integers. layer_errors() says where; a layer can be left out (override 'float32')."
        )
    return ""


def synthetic(specs: Any, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Makes samples where nothing is known of the data: uniform in [0, 1], or 0 and 1."""
    generator = np.random.default_rng(seed)
    made = {}
    for spec in specs:
        shape = (count, *(n or 8 for n in spec.shape))
        kind = np.dtype(spec.dtype).kind
        made[spec.name] = (
            generator.random(shape).astype(spec.dtype)
            if kind == "f"
            else generator.integers(0, 2, shape).astype(spec.dtype)
        )
    return made
