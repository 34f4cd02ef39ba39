"""Tries untrusted files in a separate process, so that a crash of the runtime ends only that."""

from __future__ import annotations

import atexit
import hashlib
import multiprocessing.spawn
import os
import pathlib
import pickle
import subprocess
import sys
import threading
from typing import Any

from tfcompress.tflite.structure import check_structure

_CHILD = pathlib.Path(__file__).with_name("trial_child.py")
_SECONDS, _LOAD_SECONDS = 20.0, 120.0
_known: set[bytes] = set()
_own: set[bytes] = set()
_one_at_a_time = threading.RLock()


def trust(content: bytes) -> None:
    """Marks a file as checked: it needs no trial."""
    _known.add(_digest(content))


def claim(content: bytes) -> None:
    """Marks a file as written by this package: its trial has no limits of time and memory."""
    _own.add(_digest(content))


def warm_up(module: str) -> None:
    """Starts the process that tries files; it loads while the caller continues.

    Args:
        module: Name of the runtime's module.
    """
    with _one_at_a_time:
        _process(module)


def try_file(content: bytes, module: str) -> None:
    """Checks the structure of a file, and opens and runs it in a separate process.

    Each content is tried once.

    Args:
        content: A `.tflite` file.
        module: Name of the runtime's module.

    Raises:
        ValueError: If the file has a broken reference; the process crashes, takes more than 20
            seconds or more than 2 GiB; or the runtime rejects the file.
    """
    digest = _digest(content)
    if digest in _known:
        return
    check_structure(content)
    with _one_at_a_time:
        problem = _process(module).open(content, limited=digest not in _own)
    if problem:
        raise ValueError(problem)
    _known.add(digest)


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


class _Process:
    """A process that opens files one by one."""

    def __init__(self, module: str) -> None:
        executable = os.fsdecode(multiprocessing.spawn.get_executable() or sys.executable)
        self.owner, self.module, self._ready = os.getpid(), module, False
        self._process = subprocess.Popen(
            [executable, "-I", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._send((list(sys.path), module))

    def _send(self, message: Any) -> None:
        pipe: Any = self._process.stdin
        pickle.dump(message, pipe, protocol=pickle.HIGHEST_PROTOCOL)
        pipe.flush()

    def is_usable(self) -> bool:
        """Whether the process runs and was started here, not by a parent before a fork."""
        return self.owner == os.getpid() and self._process.poll() is None

    def end(self) -> None:
        """Kills the process."""
        if self.owner == os.getpid():
            self._process.kill()
            self._process.communicate()

    def open(self, content: bytes, limited: bool) -> str | None:
        """Returns why a file cannot be used, or None if it can."""
        try:
            if not self._ready:
                self._answer(_LOAD_SECONDS)
                self._ready = True
            self._send((content, limited))
            return self._answer(_SECONDS if limited else None)
        except TimeoutError:
            return f"the runtime did not open and run it within {_SECONDS:.0f} seconds"
        except (EOFError, OSError, pickle.UnpicklingError):
            self.end()
            if not self._ready:
                return f"the runtime {self.module} could not be loaded to try it"
            return f"it crashes the runtime (exit status {self._process.returncode})"
        except BaseException:
            self.end()  # its late answer would be read as the answer for another file
            raise

    def _answer(self, seconds: float | None) -> Any:
        """Returns the next answer of the process; kills it if the answer takes too long."""
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(seconds, give_up) if seconds else None
        if timer:
            timer.start()
        try:
            answers: Any = self._process.stdout
            return pickle.load(answers)
        except (EOFError, pickle.UnpicklingError):
            if late.is_set():
                self.end()
                raise TimeoutError from None
            raise
        finally:
            if timer:
                timer.cancel()


_running: list[_Process] = []


def _process(module: str) -> _Process:
    usable = [p for p in _running if p.is_usable() and p.module == module]
    for process in _running:
        if process not in usable:
            process.end()
    _running[:] = usable or [_Process(module)]
    return _running[0]


@atexit.register
def _end() -> None:
    for process in _running:
        process.end()
