"""Inputs and outputs of a file: their types, and values collected batch by batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tfcompress.data import InputSpec


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """An input or output of a file.

    Attributes:
        name: Its name in the signature, or its tensor's name.
        index: Its tensor's number.
        shape: Its shape with the batch, None where it may vary.
        dtype: numpy name of its type in the file.
        scale: Its quantization scale; 0 if it is not quantized.
        zero_point: The quantized value of 0.
    """

    name: str
    index: int
    shape: tuple[int | None, ...]
    dtype: str
    scale: float
    zero_point: int

    def spec(self) -> InputSpec:
        """Returns what real values for the tensor look like."""
        return InputSpec(self.name, self.shape[1:], "float32" if self.scale else self.dtype)

    def quantized(self, values: np.ndarray) -> np.ndarray:
        """Quantizes real values to the type of the tensor."""
        if not self.scale:
            return values.astype(self.dtype, copy=False)
        limits = np.iinfo(self.dtype)
        # Multiplied by the inverse scale, as the runtime and quantization-aware models do.
        inverse = np.float32(1) / np.float32(self.scale)
        q = np.round(values.astype(np.float32) * inverse) + self.zero_point
        return np.clip(q, limits.min, limits.max).astype(self.dtype)

    def dequantized(self, values: np.ndarray) -> np.ndarray:
        """Dequantizes values of the tensor to real values."""
        if not self.scale:
            return values
        return ((values.astype(np.int32) - self.zero_point) * np.float32(self.scale)).astype(
            np.float32
        )


class CollectedOutput:
    """Collects an output batch by batch, in one array where its first axis is the batch.

    Args:
        samples: Number of samples of all batches.
    """

    def __init__(self, samples: int) -> None:
        self._samples, self._filled = samples, 0
        self._array: Any = None
        self._parts: list[np.ndarray] = []

    def add(self, value: np.ndarray, batch: int) -> None:
        """Adds the output for a batch; samples beyond the last one are left out."""
        if self._parts or not value.ndim or len(value) != batch:
            if self._array is not None:
                self._parts.append(self._array[: self._filled])
                self._array = None
            self._parts.append(np.atleast_1d(value))
            return
        if self._array is None:
            self._array = np.empty((self._samples, *value.shape[1:]), value.dtype)
        count = min(batch, self._samples - self._filled)
        self._array[self._filled : self._filled + count] = value[:count]
        self._filled += count

    def array(self) -> np.ndarray:
        """Returns all that was added."""
        return np.concatenate(self._parts) if self._parts else self._array


def info_of(details: dict[str, Any], name: str) -> TensorInfo:
    """Returns what an interpreter says of a tensor."""
    scale, zero_point = details["quantization"]
    shape = tuple(None if n == -1 else int(n) for n in details["shape_signature"])
    dtype = np.dtype(details["dtype"]).name
    quantized = np.dtype(details["dtype"]).kind in "iu" and scale
    return TensorInfo(
        name,
        details["index"],
        shape or tuple(details["shape"]),
        dtype,
        float(scale) if quantized else 0.0,
        int(zero_point) if quantized else 0,
    )
