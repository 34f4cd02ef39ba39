"""Which operations of a file a delegate takes over, asked of the runtime."""

from __future__ import annotations

from typing import Any

from tfcompress.tensorflow_internals import operation_details


def kernels_of(interpreter: Any) -> list[tuple[dict[str, Any], bool]]:
    """Returns the details of each operation of a file, and whether the delegate takes it."""
    details = operation_details(interpreter)
    operations = [op for op in details if op["op_name"] != "DELEGATE"]
    taken = _taken(operations, [op for op in details if op["op_name"] == "DELEGATE"])
    return [(op, id(op) in taken) for op in operations]


def _taken(operations: list[dict[str, Any]], delegates: list[dict[str, Any]]) -> set[int]:
    """Returns the `id` of each operation between the inputs and outputs of a delegate's node."""
    producers = {int(t): op for op in operations for t in op["outputs"] if t >= 0}
    taken = set()
    for node in delegates:
        inputs = {int(t) for t in node["inputs"]}
        pending = [int(t) for t in node["outputs"]]
        while pending:
            tensor = pending.pop()
            producer = producers.get(tensor)
            if tensor in inputs or producer is None or id(producer) in taken:
                continue
            taken.add(id(producer))
            pending += [int(t) for t in producer["inputs"]]
    return taken
