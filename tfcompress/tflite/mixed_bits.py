"""Grids of 8 and of 16 bits in one file."""

from __future__ import annotations

import collections
import copy
from typing import Any

import numpy as np

from tfcompress.errors import ExportError
from tfcompress.tensorflow_internals import flatbuffer_schema
from tfcompress.tflite.flatbuffer_edits import (
    TRANSPOSE_CONV,
    add_buffer,
    drop_unread,
    drop_unused_codes,
    drop_unused_tensors,
)


def merge_requantizations(content: bytes) -> bytes:
    """Returns the file with activations of 8 and of 16 bits as the runtime wants them.

    Between the two stand `DEQUANTIZE, CAST, CAST, QUANTIZE`, where one `QUANTIZE` does (as it does
    for floats behind `CAST, CAST`); what only moves values about and got in between comes after it.
    Biases of layers on 16 bits are int64, which the converter forgets, and no scale of these is
    taken to be a power of two.

    Args:
        content: A `.tflite` file of integers.

    Raises:
        ExportError: If a bias is too large for the steps of its layer.
    """
    schema = flatbuffer_schema()
    from tensorflow.lite.tools import flatbuffer_utils

    view = schema.Model.GetRootAsModel(content, 0)
    graphs = [view.Subgraphs(i) for i in range(view.SubgraphsLength())]
    types = {graph.Tensors(i).Type() for graph in graphs for i in range(graph.TensorsLength())}
    if not types & {schema.TensorType.INT16, schema.TensorType.FLOAT64}:
        return content
    kinds = schema.BuiltinOperator
    biases = {kinds.CONV_2D: 2, kinds.DEPTHWISE_CONV_2D: 2, kinds.FULLY_CONNECTED: 2}
    biases[TRANSPOSE_CONV] = 3
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    for graph in model.subgraphs:
        makers = {int(t): op for op in graph.operators for t in op.outputs}
        readers = collections.Counter(int(t) for op in graph.operators for t in op.inputs)
        for operator in list(graph.operators):
            code = model.operatorCodes[operator.opcodeIndex]
            kind = code.builtinCode
            wide = graph.tensors[int(operator.outputs[0])].type == schema.TensorType.INT16
            if kind == kinds.QUANTIZE:
                _join(model, graph, operator, makers, readers, schema)
                code.version = max(code.version, 2)
            elif wide and kind in (kinds.ADD, kinds.SUB):
                operator.builtinOptions.potScaleInt16 = False
            elif wide and kind in biases and len(operator.inputs) > biases[kind]:
                bias = int(operator.inputs[biases[kind]])
                if bias >= 0:
                    _widen(model, graph.tensors[bias], schema)
        _drop_casts(model, graph, makers, schema)
        drop_unread(graph)
    drop_unused_codes(model)
    drop_unused_tensors(model)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _join(
    model: Any,
    graph: Any,
    operator: Any,
    makers: dict[int, Any],
    readers: collections.Counter[int],
    schema: Any,
) -> None:
    """Has a QUANTIZE read the integers that were made floats for it."""
    kinds = schema.BuiltinOperator

    def made_by(tensor: int, *wanted: int) -> bool:
        maker = makers.get(tensor)
        return maker is not None and model.operatorCodes[maker.opcodeIndex].builtinCode in wanted

    found, moves = int(operator.inputs[0]), list[Any]()
    while made_by(found, kinds.RESHAPE, kinds.TRANSPOSE):
        if readers[found] > 1:
            return
        moves.insert(0, makers[found])
        found = int(makers[found].inputs[0])
    if made_by(found, kinds.CAST):
        double = int(makers[found].inputs[0])
        if graph.tensors[double].type != schema.TensorType.FLOAT64 or not made_by(
            double, kinds.CAST
        ):
            return  # what the user casts
        found = int(makers[double].inputs[0])
    elif not made_by(found, kinds.DEQUANTIZE):
        return
    integers = made_by(found, kinds.DEQUANTIZE)
    source = int(makers[found].inputs[0]) if integers else found
    operator.inputs = [source]
    if moves:
        _put_before(graph, operator, moves)
    if integers and _grid(graph.tensors[source]) == _grid(graph.tensors[int(operator.outputs[0])]):
        for reader in graph.operators:  # of integers that are on this grid already
            same = operator.outputs[0]
            reader.inputs = [source if tensor == same else int(tensor) for tensor in reader.inputs]


def _drop_casts(model: Any, graph: Any, makers: dict[int, Any], schema: Any) -> None:
    """Has floats be read directly that are made doubles, and floats again."""

    def cast_from(tensor: int, kind: int) -> int | None:
        maker = makers.get(tensor)
        if maker is None:
            return None
        cast = model.operatorCodes[maker.opcodeIndex].builtinCode == schema.BuiltinOperator.CAST
        source = int(maker.inputs[0])
        return source if cast and graph.tensors[source].type == kind else None

    for operator in graph.operators:
        for place, tensor in enumerate(map(int, operator.inputs)):
            double = cast_from(tensor, schema.TensorType.FLOAT64)
            single = None if double is None else cast_from(double, schema.TensorType.FLOAT32)
            if single is not None and graph.tensors[tensor].type == schema.TensorType.FLOAT32:
                operator.inputs = [int(t) for t in operator.inputs]
                operator.inputs[place] = single


def _grid(tensor: Any) -> tuple[Any, ...]:
    return tensor.type, list(tensor.quantization.scale), list(tensor.quantization.zeroPoint)


def _put_before(graph: Any, operator: Any, moves: list[Any]) -> None:
    """Has a QUANTIZE come before what moves values about between its input and its output."""
    source, final = int(operator.inputs[0]), int(operator.outputs[0])
    graph.operators.remove(operator)
    graph.operators.insert(graph.operators.index(moves[0]), operator)
    steps = [operator, *moves]
    shapes = [source, *(int(move.outputs[0]) for move in moves[:-1])]
    for step, following, like in zip(steps[:-1], moves, shapes, strict=True):
        tensor = copy.copy(graph.tensors[final])
        tensor.shape = graph.tensors[like].shape
        tensor.shapeSignature = graph.tensors[like].shapeSignature
        graph.tensors.append(tensor)
        step.outputs = [len(graph.tensors) - 1]
        following.inputs = [len(graph.tensors) - 1, *following.inputs[1:]]
    moves[-1].outputs = [final]


def _widen(model: Any, tensor: Any, schema: Any) -> None:
    """Stores a bias of 32 bits in 64."""
    if tensor.type != schema.TensorType.INT32:
        return
    values = np.frombuffer(bytes(model.buffers[tensor.buffer].data), np.int32)
    if np.abs(values.astype(np.int64)).max(initial=0) >= np.iinfo(np.int32).max:
        raise ExportError(
            f"The bias {tensor.name!r} is larger than 2**31 steps of its layer with 16-bit "
            "activations: its weights are tiny. Give this layer 'int8'."
        )
    tensor.type = schema.TensorType.INT64
    tensor.buffer = add_buffer(model, np.frombuffer(values.astype(np.int64).tobytes(), np.uint8))
