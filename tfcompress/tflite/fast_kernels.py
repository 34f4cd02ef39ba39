"""Replaces operations that XNNPACK does not take, or computes slowly, by equal ones that are fast.

What each costs is in docs/operations.md. The replacements compute the same integers as the
quantization-aware model; where the arithmetic of an operation changes, the model has that of the
replacement.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from tfcompress.quantization.layers.normalization import FEWEST_ROOTS
from tfcompress.quantization.layers.pooling import EXACT_FACTORS, FACTOR_SCALE
from tfcompress.scheme import PREFERENCES
from tfcompress.tensorflow_internals import flatbuffer_schema
from tfcompress.tflite import fast_convolutions as _registers_them  # noqa: F401
from tfcompress.tflite.fast_file import REPLACEMENTS, FastFile, replaces
from tfcompress.tflite.flatbuffer_edits import (
    drop_unused_codes,
    drop_unused_tensors,
    kinds_in,
)
from tfcompress.tflite.parts import FAST_FLOAT

_FEWEST_PROBABILITIES = 4096  # of a sample; the softmax of a classifier stays in integers


def use_fast_kernels(content: bytes, prefer: str = "latency") -> bytes:
    """Returns an integer file with fast operations in place of equal slow ones.

    Args:
        content: A `.tflite` file.
        prefer: The `prefer` of the scheme.
    """
    kinds = flatbuffer_schema().BuiltinOperator
    replacements = {
        getattr(kinds, kind): replacement
        for kind, (replacement, preferences) in REPLACEMENTS.items()
        if prefer in preferences
    }
    if not kinds_in(content) & replacements.keys():
        return content
    file = FastFile(content, prefer)
    changed = False
    for graph in file.model.subgraphs:
        file.graph = graph
        operators: list[Any] = []
        for operator in graph.operators:
            rule = replacements.get(file.kind(operator))
            new = rule(file, operator) if rule else None
            changed |= new is not None
            operators += [operator] if new is None else new
        graph.operators = operators
    if not changed:
        return content
    drop_unused_codes(file.model)
    drop_unused_tensors(file.model)
    from tensorflow.lite.tools import flatbuffer_utils

    return bytes(flatbuffer_utils.convert_object_to_bytearray(file.model))


@replaces("RELU", "RELU6", preferences=PREFERENCES)
def _add_zero(file: FastFile, operator: Any) -> list[Any] | None:
    """A ReLU that nothing fuses with becomes a sum with zero, fused with a ReLU."""
    (source,), (output,) = operator.inputs, operator.outputs
    if not file.is_int8(source, output):
        return None
    quantization = copy.copy(file.tensor(source).quantization)
    ratio = quantization.scale[0] / file.tensor(output).quantization.scale[0]
    if not 2**-10 <= ratio < 2**8:  # what XNNPACK computes
        return None
    quantization.zeroPoint = np.zeros(1, np.int64)
    zero = file.new_tensor(
        int(source), np.zeros(1, np.int8), name=b"zero", shape=[], quantization=quantization
    )
    functions = file.schema.ActivationFunctionType
    six = file.kind(operator) == file.kinds.RELU6
    return [
        file.operator(
            "ADD",
            [int(source), zero],
            [int(output)],
            2,
            fusedActivationFunction=functions.RELU6 if six else functions.RELU,
        )
    ]


@replaces("MUL", preferences=PREFERENCES)
def _store_exact_factors(file: FastFile, operator: Any) -> list[Any] | None:
    """Factors that are multiples of a scale are stored with it; the converter chooses another."""
    for position, index in enumerate(operator.inputs):
        name = (file.tensor(index).name or b"").decode()
        if not (EXACT_FACTORS in name and file.is_int8(index) and file.data(index)):
            continue
        tensor = file.tensor(index)
        old = tensor.quantization
        values = np.frombuffer(file.data(index), np.int8).astype(np.float64)
        values = (values - old.zeroPoint[0]) * old.scale[0]
        quantization = copy.copy(old)
        quantization.scale = np.array([FACTOR_SCALE], np.float32)
        quantization.zeroPoint = np.zeros(1, np.int64)
        exact = np.round(values / FACTOR_SCALE).astype(np.int8)
        operator.inputs = [int(t) for t in operator.inputs]
        operator.inputs[position] = file.new_tensor(int(index), exact, quantization=quantization)
        return [operator]
    return None


@replaces("MAXIMUM", "MINIMUM")
def _with_number(file: FastFile, operator: Any) -> list[Any] | None:
    """An extreme of a tensor and one number is computed in float: this keeps XNNPACK's part whole.

    Of two tensors it stays: its kernel is fast.
    """
    counts = [np.prod(file.tensor(t).shape) for t in operator.inputs if file.data(t)]
    return _in_float(file, operator) if counts == [1] else None


@replaces(
    *("ABS", "EXP", "GELU", "L2_NORMALIZATION", "LOG", "PRELU", "RSQRT", "SOFTMAX"),
    "SQUARED_DIFFERENCE",
)
def _in_float(file: FastFile, operator: Any) -> list[Any] | None:
    """Functions without int8 kernel in XNNPACK are computed in float, between two conversions.

    Of functions of one number, XNNPACK makes a table when it opens the file, conversions included.
    """
    output = int(operator.outputs[0])
    if not file.is_int8(*operator.inputs, output):
        return None
    fewest = {file.kinds.RSQRT: FEWEST_ROOTS, file.kinds.SOFTMAX: _FEWEST_PROBABILITIES}
    if np.prod(file.tensor(output).shape[1:]) < fewest.get(file.kind(operator), 0):
        return None
    before, inputs = [], []
    for index in map(int, operator.inputs):
        values = None
        if file.data(index):
            quantization = file.tensor(index).quantization
            zero_point, scale = int(quantization.zeroPoint[0]), np.float32(quantization.scale[0])
            values = np.frombuffer(file.data(index), np.int8).astype(np.float32)
            values = (values - np.float32(zero_point)) * scale
        inputs.append(_float_copy(file, index, values))
        if values is None:
            before.append(file.operator("DEQUANTIZE", [index], [inputs[-1]], 2))
    result = _float_copy(file, output, None)
    operator.inputs, operator.outputs = inputs, [result]
    return [*before, operator, file.operator("QUANTIZE", [result], [output], 1)]


def _float_copy(file: FastFile, index: int, values: np.ndarray | None) -> int:
    name = (file.tensor(index).name or b"") + FAST_FLOAT.encode()
    kind = file.schema.TensorType.FLOAT32
    return file.new_tensor(index, values, name=name, type=kind, quantization=None)


@replaces("STRIDED_SLICE", preferences=("latency",))
def _keep_axes(file: FastFile, operator: Any) -> list[Any] | None:
    """A slice that drops an axis, such as a time step, becomes a slice and a reshape."""
    options, (output,) = operator.builtinOptions, operator.outputs
    others = options.newAxisMask or options.ellipsisMask
    if others or not options.shrinkAxisMask or not file.is_int8(int(operator.inputs[0])):
        return None
    if not file.is_sized(int(operator.inputs[0]), int(output)):
        return None
    begin, end, strides = (file.data(t) for t in operator.inputs[1:4])
    if not (begin and end) or set(np.frombuffer(strides, np.int32)) != {1}:
        return None
    kept = [int(n) for n in file.tensor(output).shape]
    bounds = [np.frombuffer(values, np.int32).copy() for values in (begin, end)]
    for axis, length in enumerate(file.tensor(operator.inputs[0]).shape):
        if options.shrinkAxisMask >> axis & 1:
            kept.insert(axis, 1)
            bounds[0][axis] %= length  # without the mask, the end of -1 would be 0
            bounds[1][axis] = bounds[0][axis] + 1
    sliced = file.new_tensor(int(output), shape=kept)  # with its name
    new = copy.copy(operator)
    new.inputs = [int(t) for t in operator.inputs]
    for position, (index, values) in enumerate(zip(operator.inputs[1:3], bounds, strict=True), 1):
        if values.tobytes() != file.data(index):
            new.inputs[position] = file.new_tensor(int(index), values)
    new.builtinOptions = copy.copy(options)
    new.builtinOptions.shrinkAxisMask = 0
    new.outputs = [sliced]
    return [new, file.reshape(sliced, int(output))]
