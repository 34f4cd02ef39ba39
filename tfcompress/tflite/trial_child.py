"""What the process of `trial` runs: a script that imports the runtime and nothing of tfcompress."""

import contextlib
import importlib
import os
import pickle
import signal
import sys
from typing import Any

_MEMORY = 2 * 2**30


def limit_memory(limited: bool) -> None:
    """Lets the process have 2 GiB more than it has, or all there is."""
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (now + _MEMORY if limited else most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def problem(module: Any, content: bytes, limited: bool) -> str | None:
    """Returns why a file cannot be used, or None if it can.

    It is opened and run as the runtime does by default and, if it may be that of somebody else,
    with its built-in kernels, too.

    Args:
        module: That of the runtime.
        content: A `.tflite` file.
        limited: Whether it may be that of somebody else.
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
        # Not every file runs on zeros of the least size: that it does not die is enough.
        with contextlib.suppress(RuntimeError, ValueError, MemoryError):
            interpreter.invoke()
            look(interpreter)
    return None


def look(interpreter: Any) -> None:
    """Reads whatever can be read of a file that is open."""
    for details in interpreter.get_tensor_details():
        # Some types are none that numpy knows.
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
