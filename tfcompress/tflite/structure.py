"""Whether what a file refers to is there: the native interpreter does not look, and dies.

Reads the few tables of TFLite's schema that refer to each other, by the numbers of their fields,
with nothing but numpy, so that it works on a device as well.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np


class _Broken(ValueError):
    """Something lies outside of the file, or of what it refers to."""


class _FlatTable:
    """A table of a flatbuffer; every read stays inside of the file."""

    def __init__(self, content: bytes, place: int) -> None:
        self._content, self._place = content, place
        self._fields = place - self._read("<i", place)
        self._size = self._read("<H", self._fields)

    def _read(self, kind: str, place: int) -> Any:
        if not 0 <= place <= len(self._content) - struct.calcsize(kind):
            raise _Broken("a part lies outside of the file")
        return struct.unpack_from(kind, self._content, place)[0]

    def _at(self, slot: int) -> int:
        """Returns where a field is; 0 if it is left out."""
        if 6 + 2 * slot > self._size:
            return 0
        offset = self._read("<H", self._fields + 4 + 2 * slot)
        return self._place + offset if offset else 0

    def number(self, slot: int, kind: str = "<I") -> int:
        """Returns a number, 0 if it is left out."""
        place = self._at(slot)
        return self._read(kind, place) if place else 0

    def table(self, slot: int) -> _FlatTable | None:
        """Returns a table, None if it is left out."""
        place = self._at(slot)
        return _FlatTable(self._content, place + self._read("<I", place)) if place else None

    def numbers(self, slot: int, kind: str) -> np.ndarray:
        """Returns a vector of numbers."""
        place = self._at(slot)
        if not place:
            return np.zeros(0, kind)
        start = place + self._read("<I", place)
        count = self._read("<I", start)
        if start + 4 + count * np.dtype(kind).itemsize > len(self._content):
            raise _Broken("a list ends behind the file")
        return np.frombuffer(self._content, kind, count, start + 4)

    def tables(self, slot: int) -> Iterator[_FlatTable]:
        """Yields the tables of a vector."""
        place = self._at(slot)
        if place:
            start = place + self._read("<I", place) + 4
            for index in range(len(self.numbers(slot, "<u4"))):
                at = start + 4 * index
                yield _FlatTable(self._content, at + self._read("<I", at))


def check_structure(content: bytes) -> None:
    """Refuses a file in which something refers to what is not there.

    Args:
        content: A `.tflite` file.

    Raises:
        ValueError: If there is such a thing; it says what.
    """
    model = _FlatTable(content, struct.unpack_from("<I", content)[0])
    codes = [max(code.number(0, "<b"), code.number(3, "<i")) for code in model.tables(1)]
    buffers = [bool(len(b.numbers(0, "<u1")) or b.number(1, "<Q")) for b in model.tables(4)]
    graphs = [*model.tables(2)]
    if not graphs:
        raise _Broken("it has no graph")
    counts = [_check_graph(graph, codes, buffers) for graph in graphs]
    for signature in model.tables(7):
        graph = signature.number(4)
        if graph >= len(graphs):
            raise _Broken(f"a signature is of graph {graph} of {len(graphs)}")
        for slot in (0, 1):
            for entry in signature.tables(slot):
                _check_indices([entry.number(1)], counts[graph], "a signature")


def _check_graph(graph: _FlatTable, codes: list[int], buffers: list[bool]) -> int:
    """Returns the number of tensors of a graph."""
    tensors = [*graph.tables(0)]
    count = len(tensors)
    _check_indices(graph.numbers(1, "<i4"), count, "an input of the graph")
    _check_indices(graph.numbers(2, "<i4"), count, "an output of the graph")
    for tensor in tensors:
        _check_tensor(tensor, len(buffers))
    held = [buffers[t.number(2)] if buffers else False for t in tensors]
    ready = {i for i, t in enumerate(tensors) if held[i] or t.number(5, "<B")}
    given = set(map(int, graph.numbers(1, "<i4")))
    if fixed := [index for index in given if held[index]]:
        raise _Broken(f"an input of the graph is tensor {fixed[0]}, which is a constant")
    ready |= given
    operators = [*graph.tables(3)]
    if not operators:
        raise _Broken("a graph has no operators")
    for operator in operators:
        if operator.number(0) >= len(codes):
            raise _Broken(f"an operator is of kind {operator.number(0)} of {len(codes)}")
        kind = codes[operator.number(0)]
        options = operator.number(3, "<B")
        if _OPTIONS.get(kind, options) != options:
            raise _Broken(f"an operator of kind {kind} has the options of another")
        read = operator.numbers(1, "<i4")  # -1 for one that is left out
        if (read[:2] == -1).any() and kind not in _LEFT_OUT:
            raise _Broken("an operator reads nothing in place of its first inputs")
        _check_indices(read[read != -1], count, "an operator's input")
        early = {int(index) for index in read if index != -1} - ready
        if early:
            raise _Broken(f"an operator reads tensor {min(early)}, which nothing has made by then")
        made = operator.numbers(2, "<i4")
        _check_indices(made, count, "an operator's output")
        ready |= set(map(int, made))
    return count


# Which options operators cannot do without: AVERAGE_POOL_2D, CONCATENATION, CONV_2D,
# DEPTHWISE_CONV_2D, FULLY_CONNECTED, MAX_POOL_2D, SOFTMAX.
_OPTIONS = {1: 5, 2: 10, 3: 1, 4: 2, 9: 8, 17: 5, 25: 9}
# Operators of which any input may be left out: LSTM, SVDF and other loops.
_LEFT_OUT = {16, 27, 34, 35, 44, 46, 52}


def _check_tensor(tensor: _FlatTable, buffers: int) -> None:
    shape = tensor.numbers(0, "<i4")
    if (shape < 0).any() or math.prod(map(int, shape)) >= 2**31:
        raise _Broken(f"a tensor has the shape {shape.tolist()}")
    if tensor.number(2) >= max(buffers, 1):
        raise _Broken(f"a tensor is in buffer {tensor.number(2)} of {buffers}")
    quantization = tensor.table(4)
    if quantization is None:
        return
    scales, zeros = quantization.numbers(2, "<f4"), quantization.numbers(3, "<i8")
    axis = quantization.number(6, "<i")
    if len(scales) > 1 and not (0 <= axis < len(shape) and shape[axis] == len(scales)):
        raise _Broken(f"a tensor of shape {shape.tolist()} has {len(scales)} scales")
    if len(zeros) not in (0, 1, len(scales)):
        raise _Broken(f"a tensor has {len(scales)} scales and {len(zeros)} zero points")
    if not (np.isfinite(scales).all() and (scales >= 0).all()):
        raise _Broken("a scale is no positive number")


def _check_indices(indices: Any, count: int, what: str) -> None:
    wrong = [int(index) for index in indices if not 0 <= index < count]
    if wrong:
        raise _Broken(f"{what} is tensor {wrong[0]} of {count}")
