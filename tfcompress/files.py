"""Atomic writes, and temporary files that are always removed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pathlib
import re
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from typing import Any

_OTHERS = {  # suffixes of known kinds of files
    ".h5": "a Keras 2 model",
    ".hdf5": "a Keras 2 model",
    ".json": "JSON",
    ".keras": "a Keras model",
    ".npz": "arrays",
    ".onnx": "an ONNX model",
    ".pb": "a TensorFlow graph",
    ".pt": "a PyTorch model",
    ".pth": "a PyTorch model",
    ".tflite": "a TFLite model",
    ".zip": "an archive",
}


def check_path(path: Any, suffix: str | None = None) -> pathlib.Path:
    """Returns the path of a file that can be written; raises an error if it cannot.

    Args:
        path: The path.
        suffix: The usual suffix of such files; suffixes of other kinds are rejected. None: any.

    Raises:
        OSError: If there can be no such file.
        TypeError: If it is no path.
        ValueError: If its suffix is that of another kind of file.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a file path. Received: path={path!r}")
    target = pathlib.Path(path)
    ending = target.suffix.lower()
    if suffix is not None and ending != suffix and ending in _OTHERS:
        raise ValueError(
            f"path ends in {target.suffix!r}, as {_OTHERS[ending]} does, and {_OTHERS[suffix]} is "
            f"written. Name it {target.with_suffix(suffix).name!r}, say. Received: {str(target)!r}"
        )
    length, limit = len(os.fsencode(target.name)), _longest_name(target.parent)
    if length > limit:
        raise ValueError(
            f"path has a name of {length} bytes, and the file system takes {limit}: {str(target)!r}"
        )
    if target.is_dir():
        raise IsADirectoryError(f"path is a folder: {str(target)!r}. Name a file in it.")
    folder = _end_of_links(target).parent
    if not folder.is_dir():
        raise FileNotFoundError(
            f"path cannot be written: there is no folder {str(folder)!r}. Create it first."
        )
    if _is_stream(target):
        if not os.access(target, os.W_OK):
            raise PermissionError(f"path cannot be written: no permission for {str(target)!r}.")
    elif not os.access(folder, os.W_OK):
        raise PermissionError(f"path cannot be written: no permission in {str(folder)!r}.")
    if target.exists() and not (target.is_file() or _is_stream(target)):
        raise ValueError(f"path is neither a file nor a stream: {str(target)!r}")
    return target


def write_whole(target: pathlib.Path, content: bytes) -> None:
    """Writes a file atomically: a reader sees either the old or the new content.

    The permissions of an existing file stay, links are followed, and a stream (a device, a FIFO) is
    written to.

    Raises:
        OSError: If it cannot be written; it names the target and the reason.
    """
    if _is_stream(target):
        with _named(target), open(target, "wb") as file:
            file.write(content)
        return
    with replacing(target) as part, _named(target), open(part, "r+b") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # otherwise the error of a full disk may come after the renaming


@contextlib.contextmanager
def replacing(target: pathlib.Path, *, private: bool = False) -> Iterator[pathlib.Path]:
    """Yields the path of an empty file, which replaces the target if no exception is raised.

    Other users cannot read it before.

    Args:
        target: A file, or a link to one. The yielded file has its suffix, and at the end its
            permissions, or the default permissions of new files.
        private: Whether other users cannot read it afterwards either.
    """
    target = _end_of_links(target)
    with _named(target):
        _remove_left_behind(target.parent, _PART)
        part = target.parent / f"{_PART}{_mark()}{target.suffix[:20]}"
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        yield part
        with _named(target):
            if not private:
                old = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
                os.chmod(part, 0o666 & ~_umask() if old is None else old)
            os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def temporary_folder() -> Iterator[str]:
    """Yields a folder that other users cannot read.

    It is removed at the end; if the process was killed, by the next run.
    """
    _remove_left_behind(pathlib.Path(tempfile.gettempdir()), _FOLDER)
    with tempfile.TemporaryDirectory(prefix=f"{_FOLDER}{_mark()}-") as folder:
        yield folder


def save_figure(figure: Any, path: Any, dpi: int) -> None:
    """Writes a matplotlib figure atomically.

    Args:
        figure: The figure.
        path: File to write; its suffix defines the format, PNG if it has none.
        dpi: Dots per inch.
    """
    target = check_path(path)
    known = figure.canvas.get_supported_filetypes()
    file_format = target.suffix.lstrip(".").lower() or "png"
    if file_format not in known:
        raise ValueError(
            f"path must end in one of {', '.join(f'.{name}' for name in sorted(known))}. Received: "
            f"{str(target)!r}"
        )
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, format=file_format)
    write_whole(target, buffer.getvalue())


def beside(target: pathlib.Path, ending: str) -> pathlib.Path:
    """Returns the path of a hidden companion file beside a file; long names are hashed."""
    name = f".{target.name}{ending}"
    if len(os.fsencode(name)) > _longest_name(target.parent):
        digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]
        name = f".{digest}{ending}"
    return target.with_name(name)


@contextlib.contextmanager
def locked(target: pathlib.Path) -> Iterator[None]:
    """Locks a file against other runs that would write it.

    Raises:
        ValueError: If another run holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    path = beside(_end_of_links(target), ".lock")
    while True:
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 32).decode(errors="replace") or "unknown"
            os.close(handle)
            raise ValueError(
                f"Another run (process {holder}) is writing {str(target)!r}. Wait for it, or name "
                "another output."
            ) from None
        except OSError:  # a file system without locks
            os.close(handle)
            path.unlink(missing_ok=True)
            yield
            return
        if _is_same(handle, path):  # otherwise the previous holder has removed the lock file
            break
        os.close(handle)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


@contextlib.contextmanager
def one_at_a_time(target: pathlib.Path) -> Iterator[None]:
    """Waits until no other process is in here for the same file.

    Args:
        target: The file; its lock stays beside it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with open(beside(target, ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_same(handle: int, path: pathlib.Path) -> bool:
    try:
        return os.fstat(handle).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


_PART, _FOLDER = ".tfcompress-", "tfcompress-"


def _umask() -> int:
    """Returns the umask of the process: the permissions that new files do not get."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/status") as file:
        for line in file:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    current = os.umask(0)  # not atomic: other threads may create files meanwhile
    os.umask(current)
    return current


def _mark() -> str:
    """Returns a unique name part with the machine and process that a temporary file belongs to."""
    host = re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname())[:64]
    return f"{host}-{os.getpid()}-{secrets.token_hex(4)}"


def _remove_left_behind(folder: pathlib.Path, prefix: str) -> None:
    """Removes files in a folder that killed processes of this machine have left."""
    if os.name != "posix":
        return
    host = re.escape(_mark().rsplit("-", 2)[0])
    form = re.compile(rf"{re.escape(prefix)}{host}-(\d+)-[0-9a-f]{{8}}")
    with contextlib.suppress(OSError):
        for path in folder.glob(f"{prefix}*"):
            match = form.match(path.name)
            if match and not is_running(int(match[1])) and path.stat().st_uid == os.getuid():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def is_running(process: int) -> bool:
    """Returns whether there is such a process on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # a process of another user
    return True


@contextlib.contextmanager
def _named(target: pathlib.Path) -> Iterator[None]:
    """Makes errors name the target, not the temporary file beside it."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise type(error)(error.errno, error.strerror, str(target)) from error


def _end_of_links(target: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(os.path.realpath(target)) if target.is_symlink() else target


def _is_stream(target: pathlib.Path) -> bool:
    return target.is_char_device() or target.is_fifo()


def _longest_name(folder: pathlib.Path) -> int:
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (OSError, ValueError, AttributeError):
        return 255
