"""Works around a converter bug with biases of equal values."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops


def uneven(offsets: np.ndarray) -> np.ndarray:
    """Returns biases that are not all equal; the first one is changed by one float32 ULP if needed.

    If all are equal, the converter stores one value and quantizes it with the scale of the first
    channel.
    """
    if len(offsets) < 2 or not offsets[0] or np.any(offsets != offsets[0]):
        return offsets
    changed = offsets.copy()
    changed[0] = np.nextafter(changed[0], 2 * changed[0])
    return changed


def uneven_biases(layer: Any) -> list[Any]:
    """Returns values for the variables of a `RuntimeLayer`, with `uneven` applied to each bias."""
    parts = layer.bias_parts()

    def value(variable: Any) -> Any:
        if id(variable) not in parts:
            return variable
        rows = np.atleast_2d(ops.convert_to_numpy(variable))
        pieces = [map(uneven, np.split(row, parts[id(variable)])) for row in rows]
        return np.reshape([np.concatenate([*row]) for row in pieces], variable.shape)

    return [value(variable) for variable in layer.original_variables()]
