"""Tries files of others in a process of its own: what crashes the runtime ends that process."""

from __future__ import annotations

import atexit
import hashlib
import io
import json
import multiprocessing.spawn
import os
import pathlib
import pickle
import subprocess
import sys
import threading
import zipfile
import zlib
from typing import Any

from tfcompress.tflite.structure import check_structure

RECIPE = "tfcompress.json"
DIGEST = "sha256"
_CHILD = pathlib.Path(__file__).with_name("trial_child.py")
_SECONDS = 20.0
_known: set[bytes] = set()
_one_at_a_time = threading.RLock()


def trust(content: bytes) -> None:
    """Says that a file was made here, and needs neither check nor trial."""
    _known.add(_digest(content))


def warm_up(module: str) -> None:
    """Starts the process that files are tried in, which loads while the caller goes on.

    Args:
        module: Name of the runtime's module.
    """
    with _one_at_a_time:
        _process(module)


def try_file(content: bytes, module: str) -> None:
    """Checks the structure of a file, and opens and runs it in a process of its own.

    Once for each content. Files of this library carry a digest of theirs, which tells that they are
    as they were written.

    Args:
        content: A `.tflite` file.
        module: Name of the runtime's module.

    Raises:
        ValueError: If something refers to what is not there; the process dies, does not end within
            20 seconds or takes more than 2 GiB; or the runtime refuses the file.
    """
    digest = _digest(content)
    if digest in _known or _is_own(content):
        return
    check_structure(content)
    with _one_at_a_time:
        problem = _process(module).open(content)
    if problem:
        raise ValueError(problem)
    _known.add(digest)


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _is_own(content: bytes) -> bool:
    """Returns whether a file is as `write_metadata` made it."""
    if RECIPE.encode() not in content[-4096:]:
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            first = min(entry.header_offset for entry in archive.infolist())
            told = json.loads(archive.read(RECIPE)).get(DIGEST)
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, OSError, AttributeError):
        return False
    return told == hashlib.sha256(content[:first]).hexdigest()


class _Process:
    """A process that opens files, one after the other."""

    def __init__(self, module: str) -> None:
        executable = os.fsdecode(multiprocessing.spawn.get_executable() or sys.executable)
        self.owner, self.module = os.getpid(), module
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

    def open(self, content: bytes) -> str | None:
        """Returns why a file cannot be used, or None if it can."""
        out_of_time = threading.Event()

        def give_up() -> None:
            out_of_time.set()
            self._process.kill()

        timer = threading.Timer(_SECONDS, give_up)
        timer.start()
        answers: Any = self._process.stdout
        try:
            self._send(content)
            return pickle.load(answers)
        except (EOFError, OSError, pickle.UnpicklingError):
            self.end()
            if out_of_time.is_set():
                return f"the runtime did not open and run it within {_SECONDS:.0f} seconds"
            return f"it crashes the runtime (exit status {self._process.returncode})"
        finally:
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
