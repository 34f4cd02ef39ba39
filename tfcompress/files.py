"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import pathlib
import tempfile
from typing import Any


def check_path(path: Any) -> pathlib.Path:
    """Returns the path of a file that can be written, or says why it cannot."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a file path. Received: path={path!r}")
    target = pathlib.Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"path is a folder: {str(target)!r}. Name a file in it.")
    folder = target.parent
    if not folder.is_dir():
        raise FileNotFoundError(
            f"path cannot be written: there is no folder {str(folder)!r}. Create it first."
        )
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"path cannot be written: no permission in {str(folder)!r}.")
    return target


def write_whole(target: pathlib.Path, content: bytes) -> None:
    """Writes beside the target and renames: a reader sees the old file or the new one, whole."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
