"""Which axes of a kernel are a layer's input and output channels."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import layers, ops

from tfcompress.graph.layers import DEPTHWISE, TRANSPOSED

WEIGHTED = (
    layers.Dense,
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv3D,
    *DEPTHWISE,
    *TRANSPOSED,
)
"""The layers whose kernels these functions know."""


def output_first(layer: Any, kernel: np.ndarray) -> np.ndarray:
    """Returns a kernel as (output channels, all else)."""
    if isinstance(layer, DEPTHWISE):
        return kernel.reshape(-1, kernel.shape[-2] * kernel.shape[-1]).T
    axis = -2 if isinstance(layer, TRANSPOSED) else -1
    return np.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1)


def input_first(layer: Any, kernel: np.ndarray) -> np.ndarray:
    """Returns a kernel as (input channels, all else)."""
    axis = -1 if isinstance(layer, TRANSPOSED) else -2
    return np.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1)


def scale_outputs(layer: Any, kernel: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Returns the kernel with every output channel multiplied by its factor."""
    if isinstance(layer, DEPTHWISE):
        return kernel * factors.reshape(kernel.shape[-2:])
    return kernel * (factors[:, None] if isinstance(layer, TRANSPOSED) else factors)


def scale_inputs(layer: Any, kernel: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Returns the kernel with every input channel multiplied by its factor."""
    return kernel * (factors if isinstance(layer, TRANSPOSED) else factors[:, None])


def array(variable: Any) -> np.ndarray:
    """Returns the value of a variable in double precision."""
    return np.asarray(ops.convert_to_numpy(variable), np.float64)
