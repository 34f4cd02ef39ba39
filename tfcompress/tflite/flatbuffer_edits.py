"""Mends in the file what the runtime knows and the converter does not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from tfcompress.tensorflow_internals import flatbuffer_schema, without_copies_of_buffers

_BYTE, _NIBBLE = 127, 7  # the largest integers of a weight with 8 and with 4 bits


def without_copies(content: bytes) -> bytes:
    """Returns the file with constants that are alike stored once.

    TensorFlow's own pass reads and writes all of every file, and what it writes is larger by some
    bytes for each tensor. Few files hold copies worth that.

    Args:
        content: A `.tflite` file.
    """
    schema = flatbuffer_schema()

    view = schema.Model.GetRootAsModel(content, 0)
    buffers = [view.Buffers(i) for i in range(view.BuffersLength())]
    of_size: dict[int, list[Any]] = {}
    for buffer in buffers:
        of_size.setdefault(buffer.DataLength(), []).append(buffer)
    spared = sum(
        size * (len(alike) - len({buffer.DataAsNumpy().tobytes() for buffer in alike}))
        for size, alike in of_size.items()
        if size and len(alike) > 1
    )
    if spared <= _PER_TENSOR * len(buffers):
        return content
    return without_copies_of_buffers(content)


_PER_TENSOR = 10  # bytes that writing a file anew costs, about, for each buffer


def use_integer_kernels(content: bytes) -> bytes:
    """Returns the file with operations on integers where it computes on floats between integers.

    The converter turns `DEQUANTIZE, ELU, QUANTIZE` into nothing better; the runtime looks the
    integer up in a table instead, which gives the same.

    Args:
        content: A `.tflite` file.
    """
    schema = flatbuffer_schema()
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
    drop_unused_tensors(model)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def store_four_bits(content: bytes) -> bytes:
    """Returns the file with weights that lie on grids of 15 values stored in 4 bits.

    The converter knows 8 bits only, and writes such a weight with the integers `127 * k / 7`,
    rounded. The grid is found again in them, channel by channel. Only weights of CONV_2D and
    FULLY_CONNECTED are changed: the runtime has 4-bit kernels for these.

    Args:
        content: A `.tflite` file of integers.
    """
    schema = flatbuffer_schema()
    from tensorflow.lite.tools import flatbuffer_utils

    versions = {schema.BuiltinOperator.CONV_2D: 7, schema.BuiltinOperator.FULLY_CONNECTED: 10}
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    _store_again(model, versions, lambda tensor: _pack(model, tensor, schema))
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def share_scales(content: bytes) -> bytes:
    """Returns the file with one scale for each kernel that lies on one grid for all channels.

    The converter gives each channel a scale of its own, which this grid holds all the same. It has
    an option for this, and does not heed it where ranges are in the graph.

    Args:
        content: A `.tflite` file of integers.
    """
    schema = flatbuffer_schema()
    from tensorflow.lite.tools import flatbuffer_utils

    kinds = schema.BuiltinOperator
    weighted = (kinds.CONV_2D, kinds.DEPTHWISE_CONV_2D, kinds.FULLY_CONNECTED, kinds.TRANSPOSE_CONV)
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    _store_again(model, dict.fromkeys(weighted, 0), lambda tensor: _shared(model, tensor, schema))
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def plain_lookups(content: bytes) -> bytes:
    """Returns a float file that looks rows up as they are numbered, from 0 on.

    Keras adds the number of rows to a negative one. The converter cannot calibrate this arithmetic
    of integers.

    Args:
        content: A `.tflite` file.
    """
    schema = flatbuffer_schema()
    from tensorflow.lite.tools import flatbuffer_utils

    kinds = schema.BuiltinOperator
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    codes = [code.builtinCode for code in model.operatorCodes]
    for graph in model.subgraphs:
        makers = {int(t): op for op in graph.operators for t in op.outputs}
        for operator in graph.operators:
            if codes[operator.opcodeIndex] != kinds.GATHER:
                continue
            chosen = makers.get(int(operator.inputs[1]))
            if chosen is None or codes[chosen.opcodeIndex] not in (kinds.SELECT, kinds.SELECT_V2):
                continue
            test = makers.get(int(chosen.inputs[0]))
            if test is not None and codes[test.opcodeIndex] == kinds.LESS:
                operator.inputs[1] = chosen.inputs[2]
        drop_unread(graph)
    drop_unused_codes(model)
    drop_unused_tensors(model)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def drop_unread(graph: Any) -> None:
    """Takes out operations whose results nothing reads."""
    kept: list[Any] = []
    read = {int(t) for t in graph.outputs}
    for operator in reversed(graph.operators):
        if read & {int(t) for t in operator.outputs}:
            kept.append(operator)
            read |= {int(t) for t in operator.inputs}
    graph.operators = kept[::-1]


def _store_again(model: Any, versions: dict[int, int], store: Callable[[Any], Any]) -> None:
    """Stores the weights of some operations anew, and their biases for the scales that they got.

    Args:
        model: The file as objects. It is changed.
        versions: The operations, with the version that knows the new form.
        store: Is given the tensor of a weight, and returns by how much the step of each channel
            grew, or None if nothing was changed.
    """
    for graph in model.subgraphs:
        stored: dict[int, np.ndarray] = {}
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            index = int(operator.inputs[1]) if len(operator.inputs) > 1 else -1
            if code.builtinCode not in versions or index < 0:
                continue
            if index not in stored:
                found = store(graph.tensors[index])
                if found is None:
                    continue
                stored[index] = found
            code.version = max(code.version, versions[code.builtinCode])
            bias = 2 if code.builtinCode != TRANSPOSE_CONV else 3
            if len(operator.inputs) > bias and int(operator.inputs[bias]) >= 0:
                scales = len(graph.tensors[index].quantization.scale)
                operator.inputs[bias] = _rescaled_bias(
                    model, graph, int(operator.inputs[bias]), stored[index], scales
                )
    drop_unused_tensors(model)


TRANSPOSE_CONV = 67  # its inputs are the shape, the kernel, the image and the bias


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
    tensor.buffer = add_buffer(model, _nibbles(small))
    tensor.type = schema.TensorType.INT4
    growth = _BYTE / ends
    tensor.quantization.scale = (np.asarray(tensor.quantization.scale) * growth).astype(np.float32)
    return growth


def _shared(model: Any, tensor: Any, schema: Any) -> np.ndarray | None:
    """Gives a weight one scale; returns by how much the step of each channel grew, or None."""
    scales = np.asarray(tensor.quantization.scale if tensor.quantization else [], np.float64)
    data = model.buffers[tensor.buffer].data
    if len(scales) < 2 or data is None or not len(data):
        return None
    raw = np.frombuffer(bytes(data), np.int8)
    four = tensor.type == schema.TensorType.INT4
    if four:
        raw = np.stack([(raw << 4) >> 4, raw >> 4], 1).ravel()
    values = raw[: np.prod(tensor.shape)].reshape(tensor.shape)
    growth = scales.max() / scales
    # On a grid of all channels, the largest weight of each is a whole number of its steps.
    ends = (_NIBBLE if four else _BYTE) / growth
    if np.abs(ends - np.round(ends)).max() > 0.01:
        return None
    shape = [1] * values.ndim
    shape[tensor.quantization.quantizedDimension] = -1
    small = np.round(values / growth.reshape(shape)).astype(np.int8).ravel()
    tensor.buffer = add_buffer(model, _nibbles(small) if four else small.view(np.uint8))
    tensor.quantization.scale = scales.max(keepdims=True).astype(np.float32)
    tensor.quantization.zeroPoint = tensor.quantization.zeroPoint[:1]
    return growth


def _nibbles(values: np.ndarray) -> np.ndarray:
    """Returns 4-bit integers two to a byte, the first in the lower half."""
    even = np.concatenate([values, np.zeros(len(values) % 2, np.int8)]).astype(np.uint8) & 15
    return (even[::2] | (even[1::2] << 4)).astype(np.uint8)


def add_buffer(model: Any, data: np.ndarray) -> int:
    """Adds bytes to a file, and returns the number of their buffer."""
    buffer = type(model.buffers[0])()
    buffer.data = data
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def _end_of_grid(channel: np.ndarray) -> int:
    """Returns the largest integer of the grid of at most 15 values that holds a channel, or 0."""
    for end in range(1, _NIBBLE + 1):
        places = channel * end / _BYTE
        if np.abs(places - np.round(places)).max() <= 0.5 * end / _BYTE + 1e-9:
            return end
    return 0


def _rescaled_bias(model: Any, graph: Any, index: int, growth: np.ndarray, scales: int) -> int:
    """Adds a copy of a bias for larger steps of the weights, and returns its number."""
    tensor = copy.copy(graph.tensors[index])
    tensor.quantization = copy.copy(tensor.quantization)
    values = np.frombuffer(bytes(model.buffers[tensor.buffer].data), np.int32)
    rounded = np.round(values / growth).astype(np.int32)
    tensor.buffer = add_buffer(model, np.frombuffer(rounded.tobytes(), np.uint8))
    steps = (np.asarray(tensor.quantization.scale) * growth).astype(np.float32)
    tensor.quantization.scale = steps[:scales]
    tensor.quantization.zeroPoint = tensor.quantization.zeroPoint[:scales]
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


def drop_unused_codes(model: Any) -> None:
    """Takes out the codes of operations that a file no longer has."""
    used = sorted({op.opcodeIndex for graph in model.subgraphs for op in graph.operators})
    for graph in model.subgraphs:
        for operator in graph.operators:
            operator.opcodeIndex = used.index(operator.opcodeIndex)
    model.operatorCodes = [model.operatorCodes[index] for index in used]


def drop_unused_tensors(model: Any) -> None:
    """Takes out tensors that no operation reads or makes, and the bytes of buffers without one."""
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
