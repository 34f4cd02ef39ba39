"""Tries files of others in a process of its own: what crashes the runtime ends that process."""

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
_SECONDS, _TO_LOAD = 20.0, 120.0
_known: set[bytes] = set()
_own: set[bytes] = set()
_one_at_a_time = threading.RLock()


def trust(content: bytes) -> None:
    """Says that a file was checked, and needs no trial."""
    _known.add(_digest(content))


def claim(content: bytes) -> None:
    """Says that a file was made here: it may take as long as it needs, and as much memory."""
    _own.add(_digest(content))


def warm_up(module: str) -> None:
    """Starts the process that files are tried in, which loads while the caller goes on.

    Args:
        module: Name of the runtime's module.
    """
    with _one_at_a_time:
        _process(module)


def try_file(content: bytes, module: str) -> None:
    """Checks the structure of a file, and opens and runs it in a process of its own.

    Once for each content.

    Args:
        content: A `.tflite` file.
        module: Name of the runtime's module.

    Raises:
        ValueError: If something refers to what is not there; the process dies, does not end within
            20 seconds or takes more than 2 GiB; or the runtime refuses the file.
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
    """A process that opens files, one after the other."""

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
        """Whether it runs, and was not started by a process that this one was forked from."""
        return self.owner == os.getpid() and self._process.poll() is None

    def end(self) -> None:
        """Ends the process, whatever it does."""
        if self.owner == os.getpid():
            self._process.kill()
            self._process.communicate()

    def open(self, content: bytes, limited: bool) -> str | None:
        """Returns why a file cannot be used, or None if it can."""
        try:
            if not self._ready:
                self._answer(_TO_LOAD)
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
            self.end()  # its answer would be taken for that of another file
            raise

    def _answer(self, seconds: float | None) -> Any:
        """Returns what the process says next; ends it if that takes too long."""
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
