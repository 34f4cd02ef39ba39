"""The TFLite converter in a process of its own: what crashes it ends in an exception here."""

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
    """Yields a converter; `keep` leaves it to the next export, which need not wait for it."""
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
_TURNS = threading.RLock()  # of threads that export

_SETTINGS = {
    "CUDA_VISIBLE_DEVICES": "-1",  # the memory of a GPU belongs to the caller
    # Large arrays go back to the system once they are free.
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "MALLOC_MMAP_THRESHOLD_": "1048576",
}


@atexit.register
def _end_idle() -> None:
    for process in _idle:
        if process.is_usable():
            process.end()


class ConverterProcess:
    """Runs the native functions of the converter and its calibrator in a process of its own.

    The process loads while the caller goes on, for half a second: it reads TensorFlow's native
    library and not its Python.

    Attributes:
        meanwhile: What the caller does while the process converts the next model; None for nothing.
            It is forgotten then, and so is what it raises.
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
        """Whether it runs, and belongs to this process and not to one that forked this one."""
        return self._owner == os.getpid() and self._process.poll() is None

    def make_usable(self) -> None:
        """Starts another process in place of one that ended or is not ours; empties the log."""
        if not self.is_usable():
            if self._owner == os.getpid():
                self.end()
            self._start()
        self._log.seek(0)  # where the process goes on to write
        self._log.truncate()

    def end(self) -> None:
        """Ends the process, whatever it does."""
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def log(self, limit: int = 1500) -> str:
        """Returns the end of what the process wrote to standard error."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace").strip()[-limit:]

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Lets TensorFlow's Python call the functions of this process in place of native ones."""
        places = native_functions()
        with _TURNS:
            self.make_usable()  # minutes may have passed
            saved = [getattr(module, name) for module, name in places]
            for module, name in places:
                setattr(module, name, _Functions(self._call, name.strip("_")))
            try:
                yield
            finally:
                for (module, name), native in zip(places, saved, strict=True):
                    setattr(module, name, native)

    def _call(self, *request: Any) -> Any:
        """Returns what a function returns; (module, function, arguments), see `converter_child`."""
        if self._process.poll() is not None and "retrieve_collected_errors" in request[1]:
            return []  # asked for after a crash
        self._send(request)
        act, self.meanwhile = self.meanwhile, None
        if act is not None:
            with contextlib.suppress(Exception), released_stderr():
                act()
        answers: Any = self._process.stdout
        try:
            done, result = pickle.load(answers)
        except (EOFError, pickle.UnpicklingError):  # none, or half of one
            self._process.kill()
            raise RuntimeError(_ENDED.format(_how(self._process.wait()))) from None
        if not done:
            raise RuntimeError(result)
        return result

    def _send(self, message: Any) -> None:
        pipe: Any = self._process.stdin
        with contextlib.suppress(OSError):  # a broken pipe: `_call` says how the process ended
            pickle.dump(message, pipe, protocol=pickle.HIGHEST_PROTOCOL)
            pipe.flush()


class _Functions:
    """What stands for a native module, or for an object that one of its functions made."""

    def __init__(self, call: Any, module: str) -> None:
        self._call, self._module = call, module

    def __getattr__(self, name: str) -> Any:
        return functools.partial(self._ask, name)

    def _ask(self, name: str, *args: Any) -> Any:
        result = self._call(self._module, name, args)
        return _Functions(self._call, "made") if result is ... else result


_ENDED = "it crashed on this model, and its process ended ({})."


def _how(code: int) -> str:
    """Returns how a process ended, for people."""
    try:
        name = signal.Signals(-code).name
    except ValueError:
        return f"exit status {code}"
    return name + (", perhaps for want of memory" if name == "SIGKILL" else "")
