"""Plausibility checks of samples, before ranges are measured on them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import keras
import numpy as np

from tfcompress.samples.probes import expected_ranges, far_samples, first_statistics

_FEWEST = 16  # samples


_UNLIKE = 10  # factor between the deviations of samples and of what a model expects


def problems_of(model: keras.Model, samples: Mapping[str, np.ndarray]) -> list[str]:
    """Returns texts of the problems of samples that ranges are measured on.

    Args:
        model: The float model.
        samples: Arrays by input name.
    """
    problems = [*_count_problems(samples)]
    for name, array in samples.items():
        if array.dtype.kind == "f" and len(array) > 1:
            if np.ptp(array) == 0:
                problems.append(
                    f"All values of input {name!r} in the representative dataset are "
                    f"{array.flat[0]:g}: no range can be measured on them. Pass samples like those "
                    "of training."
                )
                continue
            problems += _outlier_problems(name, array)
    return problems + _range_problems(model, samples)


def _outlier_problems(name: str, array: np.ndarray) -> list[str]:
    far = far_samples(array)
    if not far.any():
        return []
    usual = float(np.median(np.abs(array[~far]).reshape(int((~far).sum()), -1).max(1)))
    return [
        f"Input {name!r} of the representative dataset reaches {np.abs(array[far]).max():g} in "
        f"{int(far.sum())} of {len(array)} samples, beyond 20 deviations of its feature, and "
        f"{usual:g} in the middle one. The 256 quantized values must cover all of it. Leave "
        "these samples out, or choose QuantizationScheme(activation_range='auto')."
    ]


def _count_problems(samples: Mapping[str, np.ndarray]) -> list[str]:
    count = len(next(iter(samples.values())))
    if count < _FEWEST:
        return [
            f"The representative dataset has {count} samples, and ranges are measured on them: pass"
            " a hundred or more like those of training."
        ]
    if all(a.dtype.kind != "f" or np.isin(a, (0, 1)).all() for a in samples.values()):
        return []  # categories, which may be few
    rows = {_digest([array[index] for array in samples.values()]) for index in range(count)}
    if len(rows) >= count / 2:
        return []
    return [
        f"The representative dataset has {count} samples, of which only {len(rows)} are distinct: "
        "pass samples like those of training."
    ]


def _digest(parts: list[np.ndarray]) -> bytes:
    """Returns a hash of a sample: images themselves would take much memory."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part.tobytes())
    return digest.digest()


def _range_problems(model: keras.Model, samples: Mapping[str, np.ndarray]) -> list[str]:
    for name, expected in expected_ranges(model).items():
        array = samples[name]
        if expected is None or expected.whole or array.dtype.kind != "f":
            continue
        low, high = expected.low, expected.high
        middle, half = (high + low) / 2, (high - low) / 2
        half = np.maximum(half, 1e-12)
        axes = tuple(range(array.ndim - 1)) or (0,)
        spread = np.median(array.std(axes) * 3**0.5 / half)
        shift = np.median(np.abs(array.mean(axes) - middle) / half)
        if not 1 / _UNLIKE < spread < _UNLIKE or shift > _UNLIKE:
            return [
                f"Input {name!r} of the representative dataset is from {array.min():g} to "
                f"{array.max():g}, and the first layer that reads it expects about "
                f"{np.min(low):.3g} to {np.max(high):.3g}. Prepare the samples as in "
                "training."
            ]
    ratio = first_statistics(model, {name: array[:16] for name, array in samples.items()})
    if ratio is None or 1 / _UNLIKE**2 < ratio < _UNLIKE**2:
        return []
    ranges = "; ".join(
        f"{name!r} is from {a.min():g} to {a.max():g}" for name, a in samples.items()
    )
    return [
        f"On the representative dataset, what the first BatchNormalization reads has {ratio:.3g} "
        f"times the variance that it has learned. Input {ranges}. Prepare the samples as in "
        "training."
    ]
