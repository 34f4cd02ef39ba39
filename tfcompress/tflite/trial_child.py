"""Script of the process that `trial` starts; imports the runtime and nothing of tfcompress."""

import contextlib
import importlib
import os
import pickle
import signal
import sys
from typing import Any

_MEMORY = 2 * 2**30


def limit_memory(limited: bool) -> None:
    """Limits the process to 2 GiB more than it uses now, or removes the limit."""
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        _, maximum = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY if limited else maximum, maximum))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def problem(module: Any, content: bytes, limited: bool) -> str | None:
    """Returns why a file cannot be used, or None if it can.

    The file is opened and run with the default kernels and, if it is untrusted, also with the
    built-in kernels.

    Args:
        module: The module of the runtime.
        content: A `.tflite` file.
        limited: Whether the file is untrusted.
    """
    home = module if hasattr(module, "OpResolverType") else getattr(module, "experimental", None)
    kinds: Any = getattr(home, "OpResolverType", None)
    options: list[dict[str, Any]] = [{}]
    if kinds is not None and limited:
        plain = {"experimental_op_resolver_type": kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES}
        options += [plain, {**plain, "experimental_preserve_all_tensors": True}]
    for option in options:
        try:
            interpreter = module.Interpreter(model_content=content, num_threads=1, **option)
            interpreter.allocate_tensors()
            for details in interpreter.get_input_details():
                shape = [max(1, int(n)) for n in details["shape_signature"]]
                if len(shape) and (details["shape_signature"] < 1).any():
                    interpreter.resize_tensor_input(details["index"], shape)
            interpreter.allocate_tensors()
            look(interpreter)
        except (RuntimeError, ValueError, MemoryError, TypeError, OverflowError) as error:
            return (str(error).strip() or type(error).__name__).splitlines()[0]
        # Not every file runs on zeros of the smallest shape. It only must not crash.
        with contextlib.suppress(RuntimeError, ValueError, MemoryError):
            interpreter.invoke()
            look(interpreter)
    return None


def look(interpreter: Any) -> None:
    """Reads all tensors and tables of an open file."""
    for details in interpreter.get_tensor_details():
        # numpy lacks some types.
        with contextlib.suppress(Exception):
            interpreter.get_tensor(details["index"])
        with contextlib.suppress(Exception):
            interpreter.tensor(details["index"])()
    interpreter._get_ops_details()
    interpreter._get_full_signature_list()


def main() -> None:
    """Answers for each file from standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller decides what Ctrl-C means
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # native code prints
    sys.path[:], name = pickle.load(sys.stdin.buffer)
    module = importlib.import_module(name)
    answer: Any = "ready"
    while True:
        pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()
        try:
            content, limited = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        limit_memory(limited)
        answer = problem(module, content, limited)


if __name__ == "__main__":
    main()
