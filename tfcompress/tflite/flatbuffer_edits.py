"""Edits a file to use features of the runtime that the converter does not know."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfcompress.tensorflow_internals import flatbuffer_schema, without_copies_of_buffers

_QMAX_INT8, _QMAX_INT4 = 127, 7  # qmax of a weight with 8 and with 4 bits


def without_copies(content: bytes) -> bytes:
    """Returns the file with equal constants stored once.

    TensorFlow's own pass rewrites the whole file, and adds some bytes for each tensor. It runs only
    where merging the constants saves more than that.

    Args:
        content: A `.tflite` file.
    """
    schema = flatbuffer_schema()

    view = schema.Model.GetRootAsModel(content, 0)
    buffers = [view.Buffers(i) for i in range(view.BuffersLength())]
    by_size: dict[int, list[Any]] = {}
    for buffer in buffers:
        by_size.setdefault(buffer.DataLength(), []).append(buffer)
    saved = sum(
        size * (len(group) - len({buffer.DataAsNumpy().tobytes() for buffer in group}))
        for size, group in by_size.items()
        if size and len(group) > 1
    )
    if saved <= _BYTES_PER_BUFFER * len(buffers):
        return content
    return without_copies_of_buffers(content)


_BYTES_PER_BUFFER = 10  # bytes that rewriting a file adds for each buffer, about


def kinds_in(content: bytes) -> set[int]:
    """Returns the kinds of operations of a file, without parsing all of it."""
    view = flatbuffer_schema().Model.GetRootAsModel(content, 0)
    return {view.OperatorCodes(i).BuiltinCode() for i in range(view.OperatorCodesLength())}


def use_integer_kernels(content: bytes, kinds: Sequence[str] = ("ELU",)) -> bytes:
    """Returns the file with integer kernels for operations that the converter leaves in float.

    The converter leaves `DEQUANTIZE, ELU, QUANTIZE` as it is. The runtime has an int8 kernel that
    uses a lookup table, with the same results. Of a ReLU behind a barrier the same is left.

    Args:
        content: A `.tflite` file.
        kinds: The operations.
    """
    schema = flatbuffer_schema()
    from tensorflow.lite.tools import flatbuffer_utils

    known = {getattr(schema.BuiltinOperator, kind) for kind in kinds}
    if not kinds_in(content) & known:
        return content
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    codes_in_order = [code.builtinCode for code in model.operatorCodes]
    for graph in model.subgraphs:
        _use_integer_kernels_in(graph, codes_in_order, known, schema)
    drop_unused_tensors(model)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def store_four_bits(content: bytes) -> bytes:
    """Returns the file with weights that were quantized to 4 bits stored in 4 bits.

    The converter knows 8 bits only, and stores such a weight with the quantized values
    `127 * k / 7`, rounded. The 4-bit values `k` are recovered from them, channel by channel. Only
    weights of CONV_2D and FULLY_CONNECTED are changed: the runtime has 4-bit kernels for these.

    Args:
        content: An integer `.tflite` file.
    """
    schema = flatbuffer_schema()
    from tensorflow.lite.tools import flatbuffer_utils

    versions = {schema.BuiltinOperator.CONV_2D: 7, schema.BuiltinOperator.FULLY_CONNECTED: 10}
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    _requantize_weights(model, versions, lambda tensor: _store_as_int4(model, tensor, schema))
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def share_scales(content: bytes) -> bytes:
    """Returns the file with one scale for each kernel that was quantized per tensor.

    The converter stores such a kernel with a scale for each channel. Its option for per-tensor
    quantization has no effect where the graph holds ranges.

    Args:
        content: An integer `.tflite` file.
    """
    schema = flatbuffer_schema()
    from tensorflow.lite.tools import flatbuffer_utils

    kinds = schema.BuiltinOperator
    weighted = (kinds.CONV_2D, kinds.DEPTHWISE_CONV_2D, kinds.FULLY_CONNECTED, kinds.TRANSPOSE_CONV)
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    _requantize_weights(
        model, dict.fromkeys(weighted, 0), lambda tensor: _store_per_tensor(model, tensor, schema)
    )
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def plain_lookups(content: bytes) -> bytes:
    """Returns a float file whose lookups take indices >= 0 only.

    Keras adds the number of rows to a negative index. The converter cannot calibrate this integer
    arithmetic.

    Args:
        content: A `.tflite` file.
    """
    schema = flatbuffer_schema()
    from tensorflow.lite.tools import flatbuffer_utils

    kinds = schema.BuiltinOperator
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    codes = [code.builtinCode for code in model.operatorCodes]
    for graph in model.subgraphs:
        producers = {int(t): op for op in graph.operators for t in op.outputs}
        for operator in graph.operators:
            if codes[operator.opcodeIndex] != kinds.GATHER:
                continue
            chosen = producers.get(int(operator.inputs[1]))
            if chosen is None or codes[chosen.opcodeIndex] not in (kinds.SELECT, kinds.SELECT_V2):
                continue
            test = producers.get(int(chosen.inputs[0]))
            if test is not None and codes[test.opcodeIndex] == kinds.LESS:
                operator.inputs[1] = chosen.inputs[2]
        drop_unread(graph)
    drop_unused_codes(model)
    drop_unused_tensors(model)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def same_qparams(a: Any, b: Any) -> bool:
    """Returns whether two tensors have the same type, scales and zero points."""

    def qparams(tensor: Any) -> list[Any]:
        values = tensor.quantization.scale, tensor.quantization.zeroPoint
        return [tensor.type, *(None if value is None else list(value) for value in values)]

    return qparams(a) == qparams(b)


def drop_unread(graph: Any) -> None:
    """Removes operations whose outputs nothing reads."""
    kept: list[Any] = []
    read = {int(t) for t in graph.outputs}
    for operator in reversed(graph.operators):
        if read & {int(t) for t in operator.outputs}:
            kept.append(operator)
            read |= {int(t) for t in operator.inputs}
    graph.operators = kept[::-1]


def _requantize_weights(model: Any, versions: dict[int, int], store: Callable[[Any], Any]) -> None:
    """Requantizes the weights of some operations, and their biases to the new accumulator scales.

    Args:
        model: The file as objects. It is changed.
        versions: The operations, with the version of the kernel that supports the new form.
        store: Takes the tensor of a weight, and returns the factor by which the scale of each
            channel grew, or None if nothing was changed.
    """
    for graph in model.subgraphs:
        growths: dict[int, np.ndarray] = {}
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            index = int(operator.inputs[1]) if len(operator.inputs) > 1 else -1
            if code.builtinCode not in versions or index < 0:
                continue
            if index not in growths:
                growth = store(graph.tensors[index])
                if growth is None:
                    continue
                growths[index] = growth
            code.version = max(code.version, versions[code.builtinCode])
            bias = 2 if code.builtinCode != TRANSPOSE_CONV else 3
            if len(operator.inputs) > bias and int(operator.inputs[bias]) >= 0:
                scales = len(graph.tensors[index].quantization.scale)
                operator.inputs[bias] = _rescaled_bias(
                    model, graph, int(operator.inputs[bias]), growths[index], scales
                )
    drop_unused_tensors(model)


TRANSPOSE_CONV = 67  # its inputs are the shape, the kernel, the image and the bias


def _store_as_int4(model: Any, tensor: Any, schema: Any) -> np.ndarray | None:
    """Stores a weight in 4 bits; returns the growth of each channel's scale, or None."""
    data = model.buffers[tensor.buffer].data
    if tensor.type != schema.TensorType.INT8 or data is None or not len(data):
        return None
    values = np.frombuffer(bytes(data), np.int8).reshape(tensor.shape).astype(np.float64)
    axis = tensor.quantization.quantizedDimension
    channels = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    if len(tensor.quantization.scale) != len(channels) or np.abs(channels).max() != _QMAX_INT8:
        return None
    growth = np.array([_four_bit_growth(channel) for channel in channels])
    if not growth.all() or growth.min() == _QMAX_INT8:
        return None
    shape = [1] * values.ndim
    shape[axis] = -1
    quantized = np.round(values / growth.reshape(shape)).astype(np.int8).ravel()
    tensor.buffer = add_buffer(model, _nibbles(quantized))
    tensor.type = schema.TensorType.INT4
    # In the steps of `integer.fixed_point.weight_scale`, so that the model has the same floats.
    largest = np.asarray(tensor.quantization.scale, np.float32) * np.float32(_QMAX_INT8)
    tensor.quantization.scale = largest / np.round(_QMAX_INT8 / growth).astype(np.float32)
    return growth


def _store_per_tensor(model: Any, tensor: Any, schema: Any) -> np.ndarray | None:
    """Requantizes a weight to one scale; returns the growth of each channel's scale, or None."""
    scales = np.asarray(tensor.quantization.scale if tensor.quantization else [], np.float64)
    data = model.buffers[tensor.buffer].data
    if len(scales) < 2 or data is None or not len(data):
        return None
    raw = np.frombuffer(bytes(data), np.int8)
    is_int4 = tensor.type == schema.TensorType.INT4
    if is_int4:
        raw = np.stack([(raw << 4) >> 4, raw >> 4], 1).ravel()
    values = raw[: np.prod(tensor.shape)].reshape(tensor.shape)
    growth = scales.max() / scales
    # If the weight was quantized per tensor, each channel's largest weight is an integer multiple
    # of the common scale.
    qmax = (_QMAX_INT4 if is_int4 else _QMAX_INT8) / growth
    if np.abs(qmax - np.round(qmax)).max() > 0.01:
        return None
    shape = [1] * values.ndim
    shape[tensor.quantization.quantizedDimension] = -1
    quantized = np.round(values / growth.reshape(shape)).astype(np.int8).ravel()
    tensor.buffer = add_buffer(model, _nibbles(quantized) if is_int4 else quantized.view(np.uint8))
    tensor.quantization.scale = scales.max(keepdims=True).astype(np.float32)
    tensor.quantization.zeroPoint = tensor.quantization.zeroPoint[:1]
    return growth


def _nibbles(values: np.ndarray) -> np.ndarray:
    """Packs two 4-bit integers into a byte, the first in the lower half."""
    even = np.concatenate([values, np.zeros(len(values) % 2, np.int8)]).astype(np.uint8) & 15
    return (even[::2] | (even[1::2] << 4)).astype(np.uint8)


def add_buffer(model: Any, data: np.ndarray) -> int:
    """Adds a buffer to a file, and returns its index."""
    buffer = type(model.buffers[0])()
    buffer.data = data
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def _four_bit_growth(channel: np.ndarray) -> float:
    """Returns by how much the scale of a channel grows in 4 bits; 0 if these are too few.

    The converter gives a channel a larger scale than its weights need where its bias would not fit
    into 32 bits otherwise. Such weights hardly count beside the bias, and are rounded once more:
    kernels for 4 bits compute with 16 times the bias.
    """
    if 0 < np.abs(channel).max() < _QMAX_INT8:
        return _QMAX_INT8 / _QMAX_INT4
    for qmax in range(1, _QMAX_INT4 + 1):
        quantized = channel * qmax / _QMAX_INT8
        if np.abs(quantized - np.round(quantized)).max() <= 0.5 * qmax / _QMAX_INT8 + 1e-9:
            return _QMAX_INT8 / qmax
    return 0.0


def _rescaled_bias(model: Any, graph: Any, index: int, growth: np.ndarray, count: int) -> int:
    """Adds a copy of a bias for the larger scales of its weights, and returns its index."""
    tensor = copy.copy(graph.tensors[index])
    tensor.quantization = copy.copy(tensor.quantization)
    values = np.frombuffer(bytes(model.buffers[tensor.buffer].data), np.int32)
    rounded = np.round(values / growth).astype(np.int32)
    tensor.buffer = add_buffer(model, np.frombuffer(rounded.tobytes(), np.uint8))
    scale = (np.asarray(tensor.quantization.scale) * growth).astype(np.float32)
    tensor.quantization.scale = scale[:count]
    tensor.quantization.zeroPoint = tensor.quantization.zeroPoint[:count]
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _use_integer_kernels_in(graph: Any, kinds: list[int], known: set[int], schema: Any) -> None:
    def kind(operator: Any) -> int:
        return kinds[operator.opcodeIndex]

    producers = {int(t): op for op in graph.operators for t in op.outputs}
    consumers_of: dict[int, list[Any]] = {}
    for operator in graph.operators:
        for tensor in operator.inputs:
            consumers_of.setdefault(int(tensor), []).append(operator)
    replaced = []
    for operator in graph.operators:
        if kind(operator) not in known:
            continue
        producer = producers.get(int(operator.inputs[0]))
        consumers = consumers_of.get(int(operator.outputs[0]), [])
        if (
            producer is None
            or kind(producer) != schema.BuiltinOperator.DEQUANTIZE
            or len(consumers) != 1
        ):
            continue
        if kind(consumers[0]) != schema.BuiltinOperator.QUANTIZE:
            continue
        types = {graph.tensors[int(t)].type for t in (producer.inputs[0], consumers[0].outputs[0])}
        if types == {schema.TensorType.INT8}:
            operator.inputs, operator.outputs = producer.inputs, consumers[0].outputs
            replaced += [id(producer), id(consumers[0])]
    still_read = {int(t) for op in graph.operators for t in op.inputs} | set(graph.outputs)
    graph.operators = [
        op
        for op in graph.operators
        if id(op) not in replaced
        or (kind(op) == schema.BuiltinOperator.DEQUANTIZE and int(op.outputs[0]) in still_read)
    ]


def drop_unused_codes(model: Any) -> None:
    """Removes the codes of operations that a file no longer has."""
    used = sorted({op.opcodeIndex for graph in model.subgraphs for op in graph.operators})
    for graph in model.subgraphs:
        for operator in graph.operators:
            operator.opcodeIndex = used.index(operator.opcodeIndex)
    model.operatorCodes = [model.operatorCodes[index] for index in used]


def drop_unused_tensors(model: Any) -> None:
    """Removes tensors that no operation uses, and the data of buffers that no tensor uses."""
    for graph_index, graph in enumerate(model.subgraphs):
        graph_tensors = [*graph.inputs, *graph.outputs]
        used = {int(t) for op in graph.operators for t in (*op.inputs, *op.outputs)}
        used |= {int(t) for t in graph_tensors} - {-1}
        kept = [index for index in range(len(graph.tensors)) if index in used]
        new = {old: index for index, old in enumerate(kept)} | {-1: -1}
        graph.tensors = [graph.tensors[index] for index in kept]
        for operator in graph.operators:
            operator.inputs = [new[int(t)] for t in operator.inputs]
            operator.outputs = [new[int(t)] for t in operator.outputs]
        graph.inputs = [new[int(t)] for t in graph.inputs]
        graph.outputs = [new[int(t)] for t in graph.outputs]
        for signature in model.signatureDefs or []:
            if signature.subgraphIndex == graph_index:
                for entry in (*signature.inputs, *signature.outputs):
                    entry.tensorIndex = new[int(entry.tensorIndex)]
    used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    used |= {entry.buffer for entry in model.metadata or []}
    for index, buffer in enumerate(model.buffers):
        if index not in used:
            buffer.data = None
