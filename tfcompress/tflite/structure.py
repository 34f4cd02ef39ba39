"""Checks the references inside a `.tflite` file.

The native interpreter does not check them and crashes on a broken one. Only the tables of TFLite's
schema that refer to each other are read, by field number and with numpy alone, so that the check
also runs on a device.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np


class _Broken(ValueError):
    """A reference points outside the file, or outside the list that it indexes."""


class _FlatTable:
    """A table of a flatbuffer. Every read is checked against the size of the file."""

    def __init__(self, content: bytes, position: int) -> None:
        self._content, self._position = content, position
        self._fields = position - self._read("<i", position)
        self._size = self._read("<H", self._fields)

    def _read(self, kind: str, position: int) -> Any:
        if not 0 <= position <= len(self._content) - struct.calcsize(kind):
            raise _Broken("a part lies outside of the file")
        return struct.unpack_from(kind, self._content, position)[0]

    def _position_of(self, slot: int) -> int:
        """Returns the position of a field in the file, 0 if the field is absent."""
        if 6 + 2 * slot > self._size:
            return 0
        offset = self._read("<H", self._fields + 4 + 2 * slot)
        return self._position + offset if offset else 0

    def number(self, slot: int, kind: str = "<I") -> int:
        """Returns a number field, 0 if it is absent."""
        position = self._position_of(slot)
        return self._read(kind, position) if position else 0

    def table(self, slot: int) -> _FlatTable | None:
        """Returns a table field, None if it is absent."""
        position = self._position_of(slot)
        return (
            _FlatTable(self._content, position + self._read("<I", position)) if position else None
        )

    def numbers(self, slot: int, kind: str) -> np.ndarray:
        """Returns a vector of numbers, empty if the field is absent."""
        position = self._position_of(slot)
        if not position:
            return np.zeros(0, kind)
        start = position + self._read("<I", position)
        count = self._read("<I", start)
        if start + 4 + count * np.dtype(kind).itemsize > len(self._content):
            raise _Broken("a list reaches beyond the end of the file")
        return np.frombuffer(self._content, kind, count, start + 4)

    def tables(self, slot: int) -> Iterator[_FlatTable]:
        """Yields the tables of a vector field."""
        position = self._position_of(slot)
        if position:
            start = position + self._read("<I", position) + 4
            for index in range(len(self.numbers(slot, "<u4"))):
                element = start + 4 * index
                yield _FlatTable(self._content, element + self._read("<I", element))


def check_structure(content: bytes) -> None:
    """Raises an error for a file with a broken reference.

    Args:
        content: A `.tflite` file.

    Raises:
        ValueError: If a reference is broken; the message names it.
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
    """Checks a graph, and returns its number of tensors."""
    tensors = [*graph.tables(0)]
    count = len(tensors)
    _check_indices(graph.numbers(1, "<i4"), count, "an input of the graph")
    _check_indices(graph.numbers(2, "<i4"), count, "an output of the graph")
    for tensor in tensors:
        _check_tensor(tensor, len(buffers))
    is_constant = [buffers[t.number(2)] if buffers else False for t in tensors]
    available = {i for i, t in enumerate(tensors) if is_constant[i] or t.number(5, "<B")}
    graph_inputs = set(map(int, graph.numbers(1, "<i4")))
    if constant_inputs := [index for index in graph_inputs if is_constant[index]]:
        raise _Broken(f"an input of the graph is tensor {constant_inputs[0]}, which is a constant")
    available |= graph_inputs
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
        inputs = operator.numbers(1, "<i4")  # -1 stands for an omitted input
        if (inputs[:2] == -1).any() and kind not in _OPTIONAL_INPUTS:
            raise _Broken("an operator lacks one of its first inputs")
        _check_indices(inputs[inputs != -1], count, "an operator's input")
        unavailable = {int(index) for index in inputs if index != -1} - available
        if unavailable:
            raise _Broken(
                f"an operator reads tensor {min(unavailable)}, which no earlier operator computes"
            )
        outputs = operator.numbers(2, "<i4")
        _check_indices(outputs, count, "an operator's output")
        available |= set(map(int, outputs))
    return count


# The type of options that these operators need: AVERAGE_POOL_2D, CONCATENATION, CONV_2D,
# DEPTHWISE_CONV_2D, FULLY_CONNECTED, MAX_POOL_2D, SOFTMAX.
_OPTIONS = {1: 5, 2: 10, 3: 1, 4: 2, 9: 8, 17: 5, 25: 9}
# Operators of which any input may be omitted: LSTM, SVDF and other recurrent ones.
_OPTIONAL_INPUTS = {16, 27, 34, 35, 44, 46, 52}


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
        raise _Broken("a scale is not a finite number >= 0")


def _check_indices(indices: Any, count: int, what: str) -> None:
    wrong = [int(index) for index in indices if not 0 <= index < count]
    if wrong:
        raise _Broken(f"{what} is tensor {wrong[0]} of {count}")
