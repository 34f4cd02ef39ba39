"""Mends in the file what the runtime knows and the converter does not."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

_BYTE, _NIBBLE = 127, 7  # the largest integers of a weight with 8 and with 4 bits


def use_integer_kernels(content: bytes) -> bytes:
    """Returns the file with operations on integers where it computes on floats between integers.

    The converter turns `DEQUANTIZE, ELU, QUANTIZE` into nothing better; the runtime looks the
    integer up in a table instead, which gives the same.

    Args:
        content: A `.tflite` file.
    """
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils

    known = {schema.BuiltinOperator.ELU}
    view = schema.Model.GetRootAsModel(content, 0)
    codes = {view.OperatorCodes(i).BuiltinCode() for i in range(view.OperatorCodesLength())}
    if not codes & known:
        return content
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    kinds = [code.builtinCode for code in model.operatorCodes]
    for graph in model.subgraphs:
        _mend(graph, kinds, known, schema)
    _drop_unused_tensors(model)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def store_four_bits(content: bytes) -> bytes:
    """Returns the file with weights that lie on grids of 15 values stored in 4 bits.

    The converter knows 8 bits only, and writes such a weight with the integers `127 * k / 7`,
    rounded. The grid is found again in them, channel by channel. Only weights of CONV_2D and
    FULLY_CONNECTED are changed: the runtime has 4-bit kernels for these.

    Args:
        content: A `.tflite` file of integers.
    """
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils

    versions = {schema.BuiltinOperator.CONV_2D: 7, schema.BuiltinOperator.FULLY_CONNECTED: 10}
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    for graph in model.subgraphs:
        stored: dict[int, np.ndarray] = {}
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            index = int(operator.inputs[1]) if len(operator.inputs) > 1 else -1
            if code.builtinCode not in versions or index < 0:
                continue
            if index not in stored:
                found = _pack(model, graph.tensors[index], schema)
                if found is None:
                    continue
                stored[index] = found
            code.version = max(code.version, versions[code.builtinCode])
            if len(operator.inputs) > 2 and int(operator.inputs[2]) >= 0:
                operator.inputs[2] = _rescaled_bias(
                    model, graph, int(operator.inputs[2]), stored[index]
                )
        _drop_unused_tensors(model)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _pack(model: Any, tensor: Any, schema: Any) -> np.ndarray | None:
    """Stores a weight in 4 bits; returns by how much the step of each channel grew, or None."""
    data = model.buffers[tensor.buffer].data
    if tensor.type != schema.TensorType.INT8 or data is None or not len(data):
        return None
    values = np.frombuffer(bytes(data), np.int8).reshape(tensor.shape).astype(np.float64)
    axis = tensor.quantization.quantizedDimension
    channels = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    if len(tensor.quantization.scale) != len(channels) or np.abs(channels).max() != _BYTE:
        return None
    ends = np.array([_end_of_grid(channel) for channel in channels])
    if not ends.all() or ends.max() == 1:
        return None
    shape = [1] * values.ndim
    shape[axis] = -1
    small = np.round(values * (ends / _BYTE).reshape(shape)).astype(np.int8).ravel()
    small = np.concatenate([small, np.zeros(len(small) % 2, np.int8)]).astype(np.uint8) & 15
    buffer = type(model.buffers[0])()
    buffer.data = (small[::2] | (small[1::2] << 4)).astype(np.uint8)
    model.buffers.append(buffer)
    tensor.buffer, tensor.type = len(model.buffers) - 1, schema.TensorType.INT4
    growth = _BYTE / ends
    tensor.quantization.scale = (np.asarray(tensor.quantization.scale) * growth).astype(np.float32)
    return growth


def _end_of_grid(channel: np.ndarray) -> int:
    """Returns the largest integer of the grid of at most 15 values that holds a channel, or 0."""
    for end in range(1, _NIBBLE + 1):
        places = channel * end / _BYTE
        if np.abs(places - np.round(places)).max() <= 0.5 * end / _BYTE + 1e-9:
            return end
    return 0


def _rescaled_bias(model: Any, graph: Any, index: int, growth: np.ndarray) -> int:
    """Adds a copy of a bias for larger steps of the weights, and returns its number."""
    tensor = copy.copy(graph.tensors[index])
    tensor.quantization = copy.copy(tensor.quantization)
    values = np.frombuffer(bytes(model.buffers[tensor.buffer].data), np.int32)
    buffer = type(model.buffers[0])()
    buffer.data = np.frombuffer(np.round(values / growth).astype(np.int32).tobytes(), np.uint8)
    model.buffers.append(buffer)
    tensor.buffer = len(model.buffers) - 1
    tensor.quantization.scale = (np.asarray(tensor.quantization.scale) * growth).astype(np.float32)
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _mend(graph: Any, kinds: list[int], known: set[int], schema: Any) -> None:
    def kind(operator: Any) -> int:
        return kinds[operator.opcodeIndex]

    producers = {int(t): op for op in graph.operators for t in op.outputs}
    readers: dict[int, list[Any]] = {}
    for operator in graph.operators:
        for tensor in operator.inputs:
            readers.setdefault(int(tensor), []).append(operator)
    done = []
    for operator in graph.operators:
        if kind(operator) not in known:
            continue
        before = producers.get(int(operator.inputs[0]))
        after = readers.get(int(operator.outputs[0]), [])
        if before is None or kind(before) != schema.BuiltinOperator.DEQUANTIZE or len(after) != 1:
            continue
        if kind(after[0]) != schema.BuiltinOperator.QUANTIZE:
            continue
        types = {graph.tensors[int(t)].type for t in (before.inputs[0], after[0].outputs[0])}
        if types == {schema.TensorType.INT8}:
            operator.inputs, operator.outputs = before.inputs, after[0].outputs
            done += [id(before), id(after[0])]
    still_read = {int(t) for op in graph.operators for t in op.inputs} | set(graph.outputs)
    graph.operators = [
        op
        for op in graph.operators
        if id(op) not in done
        or (kind(op) == schema.BuiltinOperator.DEQUANTIZE and int(op.outputs[0]) in still_read)
    ]


def _drop_unused_tensors(model: Any) -> None:
    for number, graph in enumerate(model.subgraphs):
        ends = [*graph.inputs, *graph.outputs]
        used = {int(t) for op in graph.operators for t in (*op.inputs, *op.outputs)}
        used |= {int(t) for t in ends} - {-1}
        kept = [index for index in range(len(graph.tensors)) if index in used]
        new = {old: index for index, old in enumerate(kept)} | {-1: -1}
        graph.tensors = [graph.tensors[index] for index in kept]
        for operator in graph.operators:
            operator.inputs = [new[int(t)] for t in operator.inputs]
            operator.outputs = [new[int(t)] for t in operator.outputs]
        graph.inputs = [new[int(t)] for t in graph.inputs]
        graph.outputs = [new[int(t)] for t in graph.outputs]
        for signature in model.signatureDefs or []:
            if signature.subgraphIndex == number:
                for end in (*signature.inputs, *signature.outputs):
                    end.tensorIndex = new[int(end.tensorIndex)]
    used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    used |= {entry.buffer for entry in model.metadata or []}
    for index, buffer in enumerate(model.buffers):
        if index not in used:
            buffer.data = None
