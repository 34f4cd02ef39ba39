"""The files of a teacher's cache: written atomically, read by index of the sample."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

MANIFEST = "manifest.json"


def shard_name(index: int) -> str:
    """Returns the name of the folder of a shard."""
    return f"shard-{index:05d}"


class StoredOutput:
    """Rows of one output or feature, by index of the sample.

    Args:
        shards: Folders of the shards, in order.
        key: Name of the output.
        shard_size: Number of samples in each shard but the last.
        shape: Shape of one row.

    Attributes:
        count: Number of rows.
    """

    def __init__(
        self, shards: list[pathlib.Path], key: str, shard_size: int, shape: tuple[int | None, ...]
    ) -> None:
        self.shape = shape
        self._size = shard_size
        self._parts = {}
        names = [key] if (shards[0] / f"{key}.npy").is_file() else []
        for name in names or [f"{key}_values", f"{key}_indices", f"{key}_rest"]:
            self._parts[name.removeprefix(key)] = [
                np.load(shard / f"{name}.npy", mmap_mode="r") for shard in shards
            ]
        first = next(iter(self._parts.values()))
        self.dtype = first[0].dtype
        self.count = sum(len(shard) for shard in first)

    @property
    def nbytes(self) -> int:
        """Size of all rows in bytes."""
        return self.count * self.rows(np.zeros(1, np.int64)).nbytes

    def rows(self, index: np.ndarray) -> np.ndarray:
        """Returns the rows of a batch of samples."""
        return self._expanded(
            {name: self._taken(shards, index) for name, shards in self._parts.items()}
        )

    def _taken(self, shards: list[np.ndarray], index: np.ndarray) -> np.ndarray:
        """Returns rows by number; of each shard that holds some, all at once."""
        taken = np.empty((len(index), *shards[0].shape[1:]), shards[0].dtype)
        order = np.argsort(index)
        numbers, firsts = np.unique(index[order] // self._size, return_index=True)
        for number, chosen in zip(numbers, np.split(order, firsts[1:]), strict=True):
            taken[chosen] = shards[number][index[chosen] % self._size]
        return taken

    def all(self) -> np.ndarray:
        """Returns all rows in order."""
        return self._expanded({name: np.concatenate(p) for name, p in self._parts.items()})

    def _expanded(self, arrays: dict[str, np.ndarray]) -> np.ndarray:
        if "" in arrays:
            return arrays[""]
        values, order, rest = arrays["_values"], arrays["_indices"], arrays["_rest"]
        full = np.repeat(rest[..., None], self.shape[-1] or 0, axis=-1)
        np.put_along_axis(full, order, values, axis=-1)
        return full


def to_half(values: np.ndarray, path: str) -> np.ndarray:
    """Returns features in float16.

    Raises:
        ValueError: If they are too large for it.
    """
    if np.abs(values).max(initial=0.0) > np.finfo(np.float16).max:
        raise ValueError(
            f"The features of {path!r} reach {np.abs(values).max():.0f}, which float16 cannot "
            "hold. Name a layer behind a normalization."
        )
    return values.astype(np.float16)


def save_shard(shard: pathlib.Path, digest: str, arrays: dict[str, np.ndarray]) -> None:
    """Writes a shard under a temporary name, syncs it to disk, and renames it."""
    temporary = pathlib.Path(tempfile.mkdtemp(dir=shard.parent, prefix=".cache-"))
    for key, array in arrays.items():
        with _synced(temporary / f"{key}.npy") as file:
            np.save(file, array)
    with _synced(temporary / "data.txt") as file:
        file.write(digest.encode())
    os.rename(temporary, shard)


@contextlib.contextmanager
def _synced(path: pathlib.Path) -> Iterator[Any]:
    """Opens a file for writing, and syncs it to disk at the end."""
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def alone(folder: pathlib.Path) -> Iterator[None]:
    """Locks a folder against other processes; waits for one that has it.

    The system releases the lock if its process dies.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def write_manifest(manifest: pathlib.Path, description: dict[str, Any]) -> None:
    """Writes the manifest under a temporary name, and renames it."""
    temporary = manifest.with_name(f".cache-{os.getpid()}.json")
    with _synced(temporary) as file:
        file.write(json.dumps(description, indent=1).encode())
    os.replace(temporary, manifest)


def to_arrays(
    key: str, values: np.ndarray, kind: str | None, top_k: int | None
) -> dict[str, np.ndarray]:
    """Returns the arrays to store for one output, by name.

    Args:
        key: Name of the output.
        values: Logits or probabilities (batch, ..., classes).
        kind: "linear", "softmax" or "sigmoid".
        top_k: Number of values to store; None for all.

    Raises:
        ValueError: If `top_k` does not apply to the output.
    """
    values = values.astype(np.float32)
    if top_k is None or top_k >= values.shape[-1]:
        return {key: values}
    if kind not in ("linear", "softmax") or values.shape[-1] < 2 or top_k < 1:
        raise ValueError(
            f"top_k={top_k!r} must be >= 1 and needs logits or a softmax over several classes; "
            f"{key} is {kind}, shaped {values.shape}."
        )
    order = np.argpartition(values, -top_k, axis=-1)[..., -top_k:]
    largest_values = np.take_along_axis(values, order, axis=-1)
    others = np.ones(values.shape, bool)
    np.put_along_axis(others, order, False, axis=-1)
    count = values.shape[-1] - top_k
    if kind == "softmax":
        rest = np.sum(values, axis=-1, where=others) / count
    else:
        largest = np.max(values, axis=-1, keepdims=True)
        mass = np.sum(np.exp(values - largest), axis=-1, where=others)
        rest = np.log(np.maximum(mass, 1e-30)) + largest[..., 0] - math.log(count)
    return {
        f"{key}_values": largest_values,
        f"{key}_indices": order.astype(np.int32),
        f"{key}_rest": rest.astype(np.float32),
    }
