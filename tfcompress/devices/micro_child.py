"""Script of the process in which `run_micro` runs a file; imports nothing of tfcompress."""

import os
import pickle
import sys
from typing import Any


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Returns the outputs of a file for each set of inputs.

    Args:
        request: "content", the file; "arena", bytes of working memory; "inputs", a list of one
            array per input for each inference, or None to only open the file.
    """
    # Found only once the caller's path is set.
    from tflite_micro import runtime

    interpreter = runtime.Interpreter.from_bytes(request["content"], arena_size=request["arena"])
    outputs = []
    for inputs in request["inputs"] or ():
        for index, value in enumerate(inputs):
            interpreter.set_input(value, index)
        interpreter.invoke()
        outputs.append([interpreter.get_output(i).copy() for i in range(request["outputs"])])
    interpreter.print_allocations()
    return {"outputs": outputs}


def main() -> None:
    """Answers one request from standard input."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # native code prints
    request = pickle.load(sys.stdin.buffer)
    sys.path[:] = request.pop("path")
    try:
        result = answer(request)
    except (RuntimeError, ValueError) as error:
        result = {"error": str(error)}
    pickle.dump(result, answers, protocol=pickle.HIGHEST_PROTOCOL)


if __name__ == "__main__":
    main()
