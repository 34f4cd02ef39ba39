"""Redirection of the standard error of native code, which Python's own does not cover."""

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
    """Captures what C++ code writes to standard error; yields a function that returns its tail.

    The file descriptor belongs to the process, so only one thread at a time can capture. If it is
    closed, nothing is captured.
    """
    with _one_at_a_time, tempfile.TemporaryFile() as file:

        def tail(limit: int = 1500) -> str:
            file.seek(0)
            return file.read().decode(errors="replace").strip()[-limit:]

        saved = _redirect(file.fileno())
        if saved is None:
            yield tail
            return
        _saved.append(saved)
        try:
            yield tail
        finally:
            _flush()
            _saved.remove(saved)
            os.dup2(saved, 2)
            os.close(saved)


_saved: list[int] = []
_one_at_a_time = threading.RLock()


@contextlib.contextmanager
def released_stderr() -> Iterator[None]:
    """Passes output to standard error through, inside `captured_stderr`."""
    hidden = _redirect(_saved[-1]) if _saved else None
    if hidden is None:
        yield
        return
    try:
        yield
    finally:
        _flush()
        os.dup2(hidden, 2)
        os.close(hidden)


def _redirect(descriptor: int) -> int | None:
    """Redirects standard error; returns a copy of its old descriptor, None if it was closed."""
    _flush()
    try:
        before = os.dup(2)
    except OSError:
        return None
    os.dup2(descriptor, 2)
    return before


def _flush() -> None:
    with contextlib.suppress(AttributeError, OSError, ValueError):  # None, or closed
        sys.stderr.flush()
