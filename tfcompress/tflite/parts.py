"""Single operations of a file, as files of their own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfcompress.tensorflow_internals import flatbuffer_schema

FAST_FLOAT = "/fast_float"  # ends the names of tensors that are float because that is faster


def objects_of(content: bytes) -> Any:
    """Returns a file as objects."""
    schema = flatbuffer_schema()
    return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))


def content_of(model: Any) -> bytes:
    """Returns the file that objects describe."""
    import flatbuffers  # a device may lack it

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def part_of(
    model: Any,
    operator: Any,
    shapes: Mapping[int, tuple[int, ...]],
    graph: Any = None,
) -> tuple[tuple[Any, ...], bytes]:
    """Returns one operation as a file of its own.

    Args:
        model: The file as objects. Operations with subgraphs cannot be taken out.
        operator: One of its operators.
        shapes: The shapes of its tensors at run time.
        graph: The graph of the operator; None for the first.

    Returns:
        A key, equal for operations that take equally long; and the file. Its inputs are those of
        the operation that are not constants.
    """
    schema = flatbuffer_schema()
    graph = model.subgraphs[0] if graph is None else graph
    part, alone, single = schema.ModelT(), schema.SubGraphT(), copy.copy(operator)
    code = model.operatorCodes[operator.opcodeIndex]
    part.version, part.operatorCodes, part.subgraphs = model.version, [code], [alone]
    part.buffers = [schema.BufferT()]
    alone.tensors, alone.inputs, alone.operators = [], [], [single]
    new: dict[int, int] = {-1: -1}
    described: list[Any] = []

    def index_of(old: int, reads: bool) -> int:
        if old not in new:
            tensor = copy.copy(graph.tensors[old])
            buffer = model.buffers[tensor.buffer]
            constant = buffer.data is not None and len(buffer.data)
            if old in shapes:
                tensor.shape, tensor.shapeSignature = list(shapes[old]), None
            tensor.buffer = 0
            if constant:
                part.buffers.append(buffer)
                tensor.buffer = len(part.buffers) - 1
            new[old] = len(alone.tensors)
            alone.tensors.append(tensor)
            if reads and not constant and not tensor.isVariable:
                alone.inputs.append(new[old])
            small = bytes(buffer.data) if constant and len(buffer.data) <= 64 else bool(constant)
            described.append((tuple(tensor.shape), tensor.type, small, _qparams(tensor)))
        return new[old]

    single.opcodeIndex = 0
    single.inputs = [index_of(int(t), True) for t in operator.inputs]
    intermediates = operator.intermediates
    if intermediates is not None:
        single.intermediates = [index_of(int(t), False) for t in intermediates]
    single.outputs = [index_of(int(t), False) for t in operator.outputs]
    alone.outputs = list(single.outputs)
    options = operator.builtinOptions
    fields = tuple(sorted(vars(options).items())) if options is not None else ()
    key = (code.builtinCode, str(fields), tuple(single.inputs), tuple(described))
    return key, content_of(part)


def _qparams(tensor: Any) -> tuple[Any, ...]:
    """Returns what of the quantization parameters may decide which kernel is taken."""
    quantization = tensor.quantization
    if quantization is None or quantization.scale is None:
        return ()
    return len(quantization.scale), int(np.ravel(quantization.zeroPoint)[0])
