"""Standard error of native code, which Python's own redirection does not reach."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def captured_stderr() -> Iterator[Any]:
    """Keeps what C++ code writes to standard error; yields a function that returns its end.

    The descriptor is the process's: one thread at a time has it.
    """
    with _one_at_a_time, tempfile.TemporaryFile() as file:
        sys.stderr.flush()

        def tail(limit: int = 1500) -> str:
            file.seek(0)
            return file.read().decode(errors="replace").strip()[-limit:]

        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        _saved.append(saved)
        try:
            yield tail
        finally:
            sys.stderr.flush()
            _saved.remove(saved)
            os.dup2(saved, 2)
            os.close(saved)


_saved: list[int] = []
_one_at_a_time = threading.RLock()


@contextlib.contextmanager
def released_stderr() -> Iterator[None]:
    """Lets what is written to standard error through, inside of `captured_stderr`."""
    if not _saved:
        yield
        return
    sys.stderr.flush()
    hidden = os.dup(2)
    os.dup2(_saved[-1], 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(hidden, 2)
        os.close(hidden)
