"""Int8 and int16 activations in one file."""

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
    same_qparams,
)


def merge_requantizations(content: bytes) -> bytes:
    """Returns the file with int8 and int16 activations in the form that the runtime's kernels need.

    The converter requantizes by `DEQUANTIZE, CAST, CAST, QUANTIZE`, where one `QUANTIZE` suffices
    (it also replaces `CAST, CAST, QUANTIZE` on floats). Operations in between that only move values
    come after it. The converter stores biases of layers with int16 activations as int32, but their
    kernels need int64. Additions in int16 must not assume scales that are powers of two.

    Args:
        content: An integer `.tflite` file.

    Raises:
        ExportError: If a bias is too large for the scale of its accumulator.
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
        producers = {int(t): op for op in graph.operators for t in op.outputs}
        consumers = collections.Counter(int(t) for op in graph.operators for t in op.inputs)
        for operator in list(graph.operators):
            code = model.operatorCodes[operator.opcodeIndex]
            kind = code.builtinCode
            is_int16 = graph.tensors[int(operator.outputs[0])].type == schema.TensorType.INT16
            if kind == kinds.QUANTIZE:
                _merge_requantization(model, graph, operator, producers, consumers, schema)
                code.version = max(code.version, 2)
            elif is_int16 and kind in (kinds.ADD, kinds.SUB):
                operator.builtinOptions.potScaleInt16 = False
            elif is_int16 and kind in biases and len(operator.inputs) > biases[kind]:
                bias = int(operator.inputs[biases[kind]])
                if bias >= 0:
                    _store_bias_as_int64(model, graph.tensors[bias], schema)
        _drop_casts(model, graph, producers, schema)
        drop_unread(graph)
    drop_unused_codes(model)
    drop_unused_tensors(model)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _merge_requantization(
    model: Any,
    graph: Any,
    operator: Any,
    producers: dict[int, Any],
    consumers: collections.Counter[int],
    schema: Any,
) -> None:
    """Makes a QUANTIZE requantize from the integers that were dequantized for it."""
    kinds = schema.BuiltinOperator

    def produced_by(tensor: int, *wanted: int) -> bool:
        producer = producers.get(tensor)
        return (
            producer is not None and model.operatorCodes[producer.opcodeIndex].builtinCode in wanted
        )

    tensor, moves = int(operator.inputs[0]), list[Any]()
    while produced_by(tensor, kinds.RESHAPE, kinds.TRANSPOSE):
        if consumers[tensor] > 1:
            return
        moves.insert(0, producers[tensor])
        tensor = int(producers[tensor].inputs[0])
    if produced_by(tensor, kinds.CAST):
        double = int(producers[tensor].inputs[0])
        if graph.tensors[double].type != schema.TensorType.FLOAT64 or not produced_by(
            double, kinds.CAST
        ):
            return  # a cast of the user's model
        tensor = int(producers[double].inputs[0])
    elif not produced_by(tensor, kinds.DEQUANTIZE):
        return
    dequantized = produced_by(tensor, kinds.DEQUANTIZE)
    input_index = int(producers[tensor].inputs[0]) if dequantized else tensor
    operator.inputs = [input_index]
    if moves:
        _quantize_before_moves(graph, operator, moves)
    if dequantized and same_qparams(
        graph.tensors[input_index], graph.tensors[int(operator.outputs[0])]
    ):
        for consumer in graph.operators:  # the integers have these qparams already
            output = operator.outputs[0]
            consumer.inputs = [
                input_index if index == output else int(index) for index in consumer.inputs
            ]


def _drop_casts(model: Any, graph: Any, producers: dict[int, Any], schema: Any) -> None:
    """Removes casts of floats to doubles and back to floats."""

    def cast_from(tensor: int, kind: int) -> int | None:
        producer = producers.get(tensor)
        if producer is None:
            return None
        cast = model.operatorCodes[producer.opcodeIndex].builtinCode == schema.BuiltinOperator.CAST
        input_index = int(producer.inputs[0])
        return input_index if cast and graph.tensors[input_index].type == kind else None

    for operator in graph.operators:
        for position, tensor in enumerate(map(int, operator.inputs)):
            double = cast_from(tensor, schema.TensorType.FLOAT64)
            single = None if double is None else cast_from(double, schema.TensorType.FLOAT32)
            if single is not None and graph.tensors[tensor].type == schema.TensorType.FLOAT32:
                operator.inputs = [int(t) for t in operator.inputs]
                operator.inputs[position] = single


def _quantize_before_moves(graph: Any, operator: Any, moves: list[Any]) -> None:
    """Puts a QUANTIZE before the operations that move values between its input and its output."""
    input_index, output_index = int(operator.inputs[0]), int(operator.outputs[0])
    graph.operators.remove(operator)
    graph.operators.insert(graph.operators.index(moves[0]), operator)
    chain = [operator, *moves]
    shapes = [input_index, *(int(move.outputs[0]) for move in moves[:-1])]
    for current, following, like in zip(chain[:-1], moves, shapes, strict=True):
        tensor = copy.copy(graph.tensors[output_index])
        tensor.shape = graph.tensors[like].shape
        tensor.shapeSignature = graph.tensors[like].shapeSignature
        graph.tensors.append(tensor)
        current.outputs = [len(graph.tensors) - 1]
        following.inputs = [len(graph.tensors) - 1, *following.inputs[1:]]
    moves[-1].outputs = [output_index]


def _store_bias_as_int64(model: Any, tensor: Any, schema: Any) -> None:
    """Stores an int32 bias as int64."""
    if tensor.type != schema.TensorType.INT32:
        return
    values = np.frombuffer(bytes(model.buffers[tensor.buffer].data), np.int32)
    if np.abs(values.astype(np.int64)).max(initial=0) >= np.iinfo(np.int32).max:
        raise ExportError(
            f"The bias {tensor.name!r} exceeds int32 at the scale of its layer with 16-bit "
            "activations: its weights are tiny. Give this layer 'int8'."
        )
    tensor.type = schema.TensorType.INT64
    tensor.buffer = add_buffer(model, np.frombuffer(values.astype(np.int64).tobytes(), np.uint8))
