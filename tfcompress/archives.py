"""Archives from untrusted sources: the unpacked size is checked before anything is unpacked."""

from __future__ import annotations

import os
import pathlib
import zipfile
import zlib
from typing import Any

import numpy as np

LIMIT = "TFCOMPRESS_UNPACK_LIMIT"
_DEFAULT = 8 * 2**30
DAMAGES = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error, MemoryError)


def check_archive(path: pathlib.Path, what: str) -> None:
    """Rejects a zip archive that unpacks to more than 8 GiB according to its headers.

    The environment variable TFCOMPRESS_UNPACK_LIMIT sets another limit, in bytes.

    Args:
        path: The archive.
        what: What to call it in messages.

    Raises:
        ValueError: If it is no archive, damaged, or too large.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except DAMAGES as error:
        raise ValueError(
            f"{what} cannot be read: it is no archive, or damaged ({error})"
        ) from error
    _check_size(sum(entry.file_size for entry in entries), what)
    names = [entry.filename for entry in entries]
    if len(set(names)) < len(names):
        raise ValueError(f"{what} is damaged: it holds two files of one name.")


def check_weights_file(path: pathlib.Path, what: str) -> None:
    """Rejects a `.keras` archive whose weights, which may be compressed again, are too large.

    Raises:
        ValueError: If they are, or cannot be read.
    """
    import h5py  # a dependency of Keras, which a device does not have

    size = 0

    def add(name: str, entry: Any) -> None:
        nonlocal size
        if isinstance(entry, h5py.Dataset):
            size += int(entry.nbytes)

    try:
        with zipfile.ZipFile(path) as archive:
            stored = [n for n in archive.namelist() if n.endswith(".h5")]
            for name in stored:
                with archive.open(name) as file, h5py.File(file, "r") as weights:
                    weights.visititems(add)
    except (*DAMAGES, RuntimeError, TypeError) as error:
        raise ValueError(f"{what} is damaged: its weights cannot be read ({error}).") from error
    _check_size(size, what)


def load_arrays(path: pathlib.Path, what: str) -> dict[str, np.ndarray]:
    """Returns the arrays of an `.npz` or `.npy` file, each checked against its header.

    Args:
        path: The file; an `.npy` file holds one array, "x".
        what: What to call it in messages.

    Raises:
        ValueError: If it is damaged, too large, or holds Python objects.
    """
    try:
        if path.suffix == ".npy":
            _check_size(path.stat().st_size, what)
            with open(path, "rb") as file:
                _check_header(file, path.stat().st_size)
            return {"x": np.load(path, allow_pickle=False)}
        check_archive(path, what)
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                with archive.open(entry) as member:
                    _check_header(member, entry.file_size)
        with np.load(path, allow_pickle=False) as loaded:
            return {name: loaded[name] for name in loaded.files}
    except Exception as error:  # headers are parsed as Python, so damaged ones may raise anything
        if str(error).startswith(what):
            raise
        raise ValueError(f"{what} cannot be read as arrays: {error}") from error


def _check_header(file: Any, size: int) -> None:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0
    shape, _, dtype = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which could run code")
    count = int(np.prod([int(n) for n in shape], dtype=object)) if shape else 1
    if count < 0 or count * dtype.itemsize > size:
        raise ValueError(f"an array of the shape {shape} is said to be in {size} bytes")


def _check_size(size: int, what: str) -> None:
    text = os.environ.get(LIMIT, str(_DEFAULT))
    if not text.isdigit():
        raise ValueError(f"{LIMIT} must be a number of bytes. Received: {text!r}")
    limit = int(text)
    if size > limit:
        raise ValueError(
            f"{what} unpacks to {size:,} bytes, and the limit is {limit:,}. If you trust it, set "
            f"the environment variable {LIMIT}={size}."
        )
