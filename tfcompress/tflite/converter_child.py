"""Script of the process that `converter_process` starts; imports nothing of tfcompress."""

import importlib
import os
import pickle
import signal
import sys
import types
from typing import Any

MODULES = {
    "wrap_converter": "tensorflow.compiler.mlir.lite.python.wrap_converter",
    "calibration_wrapper": (
        "tensorflow.lite.python.optimize._pywrap_tensorflow_lite_calibration_wrapper"
    ),
}


def load_native(folders: list[str]) -> None:
    """Loads TensorFlow's native library and its converter without its Python packages.

    `import tensorflow` takes ten times as long.
    """
    sys.modules["tensorflow"] = tensorflow = types.ModuleType("tensorflow")
    tensorflow.__path__ = folders
    from tensorflow.compiler.mlir.quantization.tensorflow import python
    from tensorflow.python import pywrap_tensorflow  # noqa: F401, which loads the library

    from tensorflow.compiler.mlir.quantization.tensorflow.python import (  # isort: skip
        pywrap_function_lib,
    )

    # Replaces the Python functions of a quantizer that is not used here.
    python.py_function_lib = pywrap_function_lib
    sys.modules[f"{python.__name__}.py_function_lib"] = pywrap_function_lib
    importlib.import_module(MODULES["wrap_converter"])


def load(folders: list[str]) -> None:
    """Loads the modules that calls may name."""
    try:
        load_native(folders)
    except (ImportError, AttributeError):  # another version of TensorFlow
        for name in [name for name in sys.modules if name.split(".")[0] == "tensorflow"]:
            del sys.modules[name]
        importlib.import_module("tensorflow")


def answer(kept: list[Any], where: str, name: str, args: tuple[Any, ...]) -> tuple[bool, Any]:
    """Returns whether a call succeeded, and its result or the error message.

    Args:
        kept: The last result that cannot be sent, such as a calibrator, and the arguments that it
            still reads. Calls refer to it as "made".
        where: A name of `MODULES`, or "made" for a method of the kept result.
        name: Name of the function.
        args: Its arguments.
    """
    if where != "made":
        kept.clear()
    try:
        owner = kept[0] if where == "made" else importlib.import_module(MODULES[where])
        result = getattr(owner, name)(*args)
    except Exception as error:
        return False, str(error) or type(error).__name__
    if type(result).__module__ != "builtins":
        kept[:] = [result, args]
        result = ...
    return True, result


def main() -> None:
    """Answers calls from standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller decides what Ctrl-C means
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # native code prints
    sys.path[:], folders = pickle.load(sys.stdin.buffer)
    load(folders)
    kept: list[Any] = []
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(answer(kept, *request), answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()
        del request  # releases its memory before the wait for the next request


if __name__ == "__main__":
    main()
