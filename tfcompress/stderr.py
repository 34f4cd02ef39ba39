"""Standard error of native code, which Python's own redirection does not reach."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def captured_stderr() -> Iterator[Any]:
    """Keeps what C++ code writes to standard error; yields a function that returns its end."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:

        def tail(limit: int = 1500) -> str:
            file.seek(0)
            return file.read().decode(errors="replace").strip()[-limit:]

        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield tail
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
