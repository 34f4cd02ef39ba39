"""The TFLite converter in a separate process, so that its crash becomes an exception here."""

from __future__ import annotations

import atexit
import contextlib
import functools
import multiprocessing.spawn
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tfcompress.stderr import released_stderr
from tfcompress.tensorflow_internals import native_functions

_CHILD = pathlib.Path(__file__).with_name("converter_child.py")


@contextlib.contextmanager
def converter_process(*, keep: bool) -> Iterator[ConverterProcess]:
    """Yields a converter process; `keep` reuses it for the next export, which saves its start."""
    try:
        process = _idle.pop()
    except IndexError:
        process = ConverterProcess()
    process.make_usable()
    try:
        yield process
    except BaseException:
        process.end()  # it may be in the middle of a conversion
        raise
    if keep and not _idle:
        _idle.append(process)
    else:
        process.end()


_idle: list[ConverterProcess] = []
_ONE_EXPORT = threading.RLock()  # one thread exports at a time

_SETTINGS = {
    "CUDA_VISIBLE_DEVICES": "-1",  # the memory of a GPU belongs to the caller
    # Freed large arrays are returned to the system.
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "MALLOC_MMAP_THRESHOLD_": "1048576",
}


@atexit.register
def _end_idle() -> None:
    for process in _idle:
        if process.is_usable():
            process.end()


class ConverterProcess:
    """Runs the native functions of the converter and its calibrator in a separate process.

    The process loads TensorFlow's native library without its Python packages. This takes half a
    second, while the caller continues.

    Attributes:
        meanwhile: A function that the caller runs while the process converts the next model, or
            None. It runs once; its exceptions are ignored.
    """

    def __init__(self) -> None:
        self.meanwhile: Callable[[], Any] | None = None
        self._start()

    def _start(self) -> None:
        import tensorflow as tf

        self._owner = os.getpid()
        executable = os.fsdecode(multiprocessing.spawn.get_executable() or sys.executable)
        self._log = tempfile.TemporaryFile("a+b")  # noqa: SIM115
        self._process = subprocess.Popen(
            [executable, "-I", "-S", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **_SETTINGS},
        )
        self._send((list(sys.path), list(tf.__path__)))

    def is_usable(self) -> bool:
        """Whether the process runs, and was started here, not by a parent before a fork."""
        return self._owner == os.getpid() and self._process.poll() is None

    def make_usable(self) -> None:
        """Starts a new process if this one is not usable, and empties the log."""
        if not self.is_usable():
            if self._owner == os.getpid():
                self.end()
            self._start()
        self._log.seek(0)  # the process continues to write from here
        self._log.truncate()

    def end(self) -> None:
        """Kills the process, and closes its log."""
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def log(self, limit: int = 1500) -> str:
        """Returns the last characters that the process wrote to standard error."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace").strip()[-limit:]

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Replaces TensorFlow's native functions by calls of this process, for a `with` block."""
        functions = native_functions()
        with _ONE_EXPORT:
            self.make_usable()  # the process may have ended meanwhile
            originals = [getattr(module, name) for module, name in functions]
            for module, name in functions:
                setattr(module, name, _Functions(self._call, name.strip("_")))
            try:
                yield
            finally:
                for (module, name), original in zip(functions, originals, strict=True):
                    setattr(module, name, original)

    def _call(self, *request: Any) -> Any:
        """Calls (module, function, arguments) in the process, see `converter_child.answer`."""
        if self._process.poll() is not None and "retrieve_collected_errors" in request[1]:
            return []  # TensorFlow collects the errors after a crash
        self._send(request)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            with contextlib.suppress(Exception), released_stderr():
                meanwhile()
        answers: Any = self._process.stdout
        try:
            succeeded, result = pickle.load(answers)
        except (EOFError, pickle.UnpicklingError):  # no answer, or an incomplete one
            self._process.kill()
            raise RuntimeError(_ENDED.format(_how(self._process.wait()))) from None
        if not succeeded:
            raise RuntimeError(result)
        return result

    def _send(self, message: Any) -> None:
        pipe: Any = self._process.stdin
        with contextlib.suppress(OSError):  # a broken pipe: `_call` reports how the process ended
            pickle.dump(message, pipe, protocol=pickle.HIGHEST_PROTOCOL)
            pipe.flush()


class _Functions:
    """Stands for a native module, or for an object that one of its functions returned."""

    def __init__(self, call: Any, module: str) -> None:
        self._call, self._module = call, module

    def __getattr__(self, name: str) -> Any:
        return functools.partial(self._ask, name)

    def _ask(self, name: str, *args: Any) -> Any:
        result = self._call(self._module, name, args)
        return _Functions(self._call, "made") if result is ... else result


_ENDED = "it crashed on this model, and its process ended ({})."


def _how(code: int) -> str:
    """Returns a description of how a process ended."""
    try:
        name = signal.Signals(-code).name
    except ValueError:
        return f"exit status {code}"
    return name + (", perhaps for want of memory" if name == "SIGKILL" else "")
