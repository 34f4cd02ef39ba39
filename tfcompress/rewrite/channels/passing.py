"""Rules for layers and operations without weights: activations, sums, concatenations, movement."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np

from tfcompress.graph.read import Call
from tfcompress.rewrite.channels.coupling import (
    Coupling,
    Numbers,
    Stays,
    Unresolved,
    along,
    channel_axis,
    channel_rule,
    spread,
)

_SAME = (
    "Activation ReLU LeakyReLU ELU Dropout SpatialDropout1D SpatialDropout2D SpatialDropout3D "
    "AlphaDropout GaussianDropout GaussianNoise ActivityRegularization Identity Rescaling "
    "StochasticDepth MaxPooling1D MaxPooling2D MaxPooling3D AveragePooling1D AveragePooling2D "
    "AveragePooling3D UpSampling1D UpSampling2D UpSampling3D ZeroPadding1D ZeroPadding2D "
    "ZeroPadding3D Cropping1D Cropping2D Cropping3D Resizing CenterCrop RandomFlip RandomRotation "
    "Relu Relu6 Elu LeakyRelu Selu Silu Gelu HardSilu Sigmoid HardSigmoid Softplus Softsign Tanh "
    "HardTanh Mish Negative Absolute Abs Sqrt Rsqrt Square Exp Log Cast Clip Erf Sin Cos "
    "MaxPool AveragePool Reciprocal Floor Round Sign Swish LogSigmoid Tanhshrink"
).split()


@channel_rule(*_SAME)
def _same(coupling: Coupling, call: Call, operands: list[Numbers]) -> Numbers:
    name = getattr(getattr(call.operation, "activation", None), "__name__", "")
    if "softmax" in name:
        return _softmax(coupling, call, operands)
    constants = (getattr(call.operation, entry, 0.0) for entry in ("scale", "offset"))
    if any(np.size(constant) > 1 for constant in constants):  # Rescaling, by channel
        coupling.fix(operands[0])
    return operands[0]


@channel_rule(
    *"NotEqual Equal Greater GreaterEqual Less LessEqual LogicalAnd LogicalOr LogicalNot Any All "
    "Isnan Isfinite ArgMax Argmax".split()
)
def _comparisons(coupling: Coupling, call: Call, operands: list[Numbers]) -> Numbers:
    for numbers in operands:  # the result depends on the values of the channel
        coupling.fix(numbers)
    return coupling.fixed(call.outputs[0])


@channel_rule("Softmax", "LogSoftmax")
def _softmax(coupling: Coupling, call: Call, operands: list[Numbers]) -> Numbers:
    axes = getattr(call.operation, "axis", -1)
    rank = operands[0].ndim
    axes = {axis % (rank + 1) - 1 for axis in ([axes] if isinstance(axes, int) else axes)}
    if any(operands[0].shape[axis] > 1 for axis in axes):
        coupling.fix(operands[0])  # each output channel depends on all others
    return operands[0]


@channel_rule("Matmul")
def _product(coupling: Coupling, call: Call, operands: list[Numbers]) -> Numbers:
    if len(operands) != 2 or operands[0].ndim != operands[1].ndim or operands[0].ndim < 2:
        raise Unresolved("it is no product of two tensors of the same rank")
    a, b = operands
    if a.size > max(a.shape[-2:]) or b.size > max(b.shape[-2:]):
        raise Unresolved("its channels lie along several axes of its inputs")
    if a.shape[-1] > 1 and b.shape[-2] > 1:  # the contracted axis
        coupling.couple(a.ravel(), b.ravel())
    elif a.shape[-1] > 1 or b.shape[-2] > 1:
        coupling.fix(a if a.shape[-1] > 1 else b)
    if a.shape[-2] > 1 and b.shape[-1] > 1:
        coupling.fix(a)
        coupling.fix(b)
        return coupling.fixed(call.outputs[0])
    if a.shape[-2] > 1:
        return a
    return b if b.shape[-1] > 1 else coupling.none(a.ndim)


@channel_rule("Masking", "Normalization")
def _fixed_inputs(coupling: Coupling, call: Call, operands: list[Numbers]) -> Numbers:
    coupling.fix(operands[0])  # each output channel depends on all others, or on its index
    return operands[0]


@channel_rule(
    "Add",
    "Subtract",
    "Multiply",
    "Average",
    "Maximum",
    "Minimum",
    "Divide",
    "TrueDivide",
    "Power",
    "Where",
)
def _elementwise(coupling: Coupling, call: Call, operands: list[Numbers]) -> Numbers:
    for value in keras.tree.flatten((call.args, call.kwargs)):
        if not isinstance(value, keras.KerasTensor) and np.size(value) > 1:
            raise Unresolved("it takes a constant that may differ from channel to channel")
    shapes = [tuple(tensor.shape[1:]) for tensor in call.inputs]
    rank = max(len(shape) for shape in shapes)
    if any(len(shape) != rank for shape in shapes):
        raise Unresolved("its inputs have different numbers of axes")
    result = operands[0]
    for shape, numbers in zip(shapes[1:], operands[1:], strict=True):
        result = _couple_two(coupling, result, shapes[0], numbers, shape)
        shapes[0] = tuple(b if a == 1 else a for a, b in zip(shapes[0], shape, strict=True))
    return result


def _couple_two(coupling: Coupling, a: Numbers, of_a: Any, b: Numbers, of_b: Any) -> Numbers:
    """Couples two tensors; a tensor that broadcasts along the channel axis is fixed, not coupled.

    An array of channel numbers has the size 1 both along axes of size 1 and along axes that carry
    no channels. Only the shapes distinguish the two.
    """
    axes = range(a.ndim)
    for small, of_small, large, of_large in ((a, of_a, b, of_b), (b, of_b, a, of_a)):
        if any(of_small[i] == 1 != of_large[i] and large.shape[i] > 1 for i in axes):
            coupling.fix(small)
            return large
    varying = [{i for i in axes if numbers.shape[i] > 1} for numbers in (a, b)]
    sized = [{i for i in axes if shape[i] != 1} for shape in (of_a, of_b)]
    if (varying[0] - varying[1]) & sized[1] or (varying[1] - varying[0]) & sized[0]:
        raise Unresolved("its inputs have their channels along different axes")
    coupling.couple(a, b)
    return np.broadcast_arrays(a, b)[0]


@channel_rule("Concatenate")
def _concatenate(coupling: Coupling, call: Call, operands: list[Numbers]) -> Numbers:
    rank = operands[0].ndim
    axis = call.operation.axis % (rank + 1) - 1
    if all(numbers.shape[axis] == 1 for numbers in operands) and any(n.size > 1 for n in operands):
        for numbers in operands[1:]:
            coupling.couple(operands[0], numbers)
        return operands[0]
    sizes = [tensor.shape[axis + 1] for tensor in call.inputs]
    parts = []
    for numbers, size in zip(operands, sizes, strict=True):
        if numbers.shape[axis] != size:
            raise Unresolved("its inputs have their channels along different axes")
        parts.append(numbers)
    return np.concatenate(parts, axis)


@channel_rule("Flatten", "Reshape", "Squeeze", "ExpandDims")
def _reshaped(coupling: Coupling, call: Call, operands: list[Numbers]) -> Numbers:
    before = tuple(size or 1 for size in call.inputs[0].shape[1:])
    after = tuple(size or 1 for size in call.outputs[0].shape[1:])
    if np.prod(before) != np.prod(after):
        raise Unresolved("it depends on sizes that are not known")
    numbers = np.broadcast_to(operands[0], before)
    channels_first = getattr(call.operation, "data_format", None) == "channels_first"
    if channels_first and len(before) > 1:  # Flatten puts the channels last before it flattens
        numbers = np.moveaxis(numbers, 0, -1)
    numbers = numbers.reshape(after)
    for axis in range(len(after)):
        first = np.take(numbers, [0], axis)
        if np.array_equal(np.broadcast_to(first, after), np.broadcast_to(numbers, after)):
            numbers = first
    varying = [axis for axis, size in enumerate(numbers.shape) if size > 1]
    # The last axis counts the channels, which are removed at all positions.
    for axis in varying[:-1]:
        first = np.take(numbers, [0], axis)
        coupling.couple(first, numbers)
        numbers = first
    names = [name for name in ("target_shape", "newshape") if hasattr(call.operation, name)]
    if names and varying:
        shape = getattr(call.operation, names[0])
        position = varying[-1] + (len(shape) - len(after))

        def target(stays: np.ndarray, shape: Any = shape, position: int = position) -> Any:
            size = -1 if shape[position] == -1 else int(stays.sum())
            return (*shape[:position], size, *shape[position + 1 :])

        coupling.set(call, names[0], along(numbers, varying[-1]), target)
    return numbers


@channel_rule("Permute", "Transpose")
def _permuted(coupling: Coupling, call: Call, operands: list[Numbers]) -> Numbers:
    order = getattr(call.operation, "dims", None)
    if order is None:
        order = call.operation.axes
        if order is None or order[0] != 0:
            raise Unresolved("it moves the batch")
        order = order[1:]
    return operands[0].transpose([axis % (operands[0].ndim + 1) - 1 for axis in order])


@channel_rule("GetItem")
def _slice(coupling: Coupling, call: Call, operands: list[Numbers]) -> Numbers:
    keys = call.args[1] if len(call.args) > 1 else call.kwargs["key"]
    keys = list(keys) if isinstance(keys, tuple) else [keys]
    numbers, rank = operands[0], operands[0].ndim
    if any(not (isinstance(k, (int, slice)) or k is None or k is Ellipsis) for k in keys):
        raise Unresolved("its indices are not known before it runs")
    if Ellipsis not in keys:
        keys.append(Ellipsis)
    position = keys.index(Ellipsis)
    missing = rank + 1 - sum(key is not None and key is not Ellipsis for key in keys)
    keys[position : position + 1] = [slice(None)] * missing
    if keys[0] != slice(None):
        raise Unresolved("it selects some of the samples")
    axes = [index for index, key in enumerate(keys) if key is not None]
    size = call.inputs[0].shape
    for axis, index in enumerate(axes[1:]):
        key = keys[index]
        if numbers.shape[axis] == 1 or key == slice(None):
            continue
        if isinstance(key, int) or (key.step or 1) != 1:
            coupling.fix(numbers)
            continue
        start, stop, _ = key.indices(size[axis + 1])
        channels = along(numbers, axis)
        coupling.fix(channels[start : start + 1])  # so that the slice is never empty
        bounds = channels[:start], channels[:stop]
        coupling.call_with(call, functools.partial(_remaining_slice, keys, index, bounds))
    # An axis with one channel number has it for all slices.
    selection = [
        (key if numbers.shape[axis] > 1 else 0 if isinstance(key, int) else slice(None))
        for axis, key in enumerate(key for key in keys[1:] if key is not None)
    ]
    for index, key in enumerate(keys[1:]):
        if key is None:
            selection.insert(index, None)
    return numbers[tuple(selection)]


def _remaining_slice(
    keys: list[Any], index: int, bounds: tuple[Numbers, Numbers], stays: Stays
) -> tuple[Any, ...]:
    limits = (int(stays(numbers).sum()) for numbers in bounds)
    return (*keys[:index], slice(*limits), *keys[index + 1 :])


@channel_rule("Split", "ArraySplit")
def _split(coupling: Coupling, call: Call, operands: list[Numbers]) -> list[Numbers]:
    numbers = operands[0]
    axis = call.operation.axis % (numbers.ndim + 1) - 1
    if axis < 0:
        raise Unresolved("it splits the batch")
    if numbers.shape[axis] == 1:
        return [numbers] * len(call.outputs)
    channels = along(numbers, axis)
    boundaries = np.cumsum([tensor.shape[axis + 1] for tensor in call.outputs])
    parts = np.split(channels, boundaries[:-1])
    for part in parts:
        coupling.fix(part[:1])  # so that no part is empty
    name = "indices_or_sections"
    coupling.set(
        call,
        name,
        channels,
        lambda stays: [int(stays[:boundary].sum()) for boundary in boundaries[:-1]],
    )
    return [spread(part, numbers.ndim, axis) for part in parts]


@channel_rule("Stack")
def _stacked(coupling: Coupling, call: Call, operands: list[Numbers]) -> Numbers:
    rank = operands[0].ndim
    axis = call.operation.axis % (rank + 2) - 1
    if axis < 0 or any(numbers.shape != operands[0].shape for numbers in operands):
        raise Unresolved("its inputs have their channels along different axes")
    for numbers in operands[1:]:
        coupling.couple(operands[0], numbers)
    return np.expand_dims(operands[0], axis)


@channel_rule("UnitNormalization", "Normalize")
def _of_unit_length(coupling: Coupling, call: Call, operands: list[Numbers]) -> Numbers:
    return operands[0]


@channel_rule("Constant")
def _constant(coupling: Coupling, call: Call, operands: list[Numbers]) -> Numbers:
    return coupling.fixed(call.outputs[0])


@channel_rule("RepeatVector")
def _repeated(coupling: Coupling, call: Call, operands: list[Numbers]) -> Numbers:
    return operands[0][None]


@channel_rule(
    *(f"Global{kind}Pooling{n}D" for kind in ("Average", "Max") for n in (1, 2, 3)),
)
def _pooled(coupling: Coupling, call: Call, operands: list[Numbers]) -> Numbers:
    axis = channel_axis(call.operation, operands[0])
    channels = along(operands[0], axis)
    return spread(channels, operands[0].ndim, axis) if call.operation.keepdims else channels


@channel_rule("Mean", "Max", "Min", "Sum", "Amax", "Amin", "Var", "Std")
def _reduced(coupling: Coupling, call: Call, operands: list[Numbers]) -> Numbers:
    numbers, rank = operands[0], operands[0].ndim
    axes = call.operation.axis
    axes = range(rank + 1) if axes is None else [axes] if isinstance(axes, int) else axes
    axes = {axis % (rank + 1) - 1 for axis in axes}
    if -1 in axes:
        raise Unresolved("it mixes samples")
    if any(numbers.shape[axis] > 1 for axis in axes):
        coupling.fix(numbers)  # the result depends on the number of channels
        return coupling.fixed(call.outputs[0])
    if getattr(call.operation, "keepdims", False):
        return numbers
    return numbers.reshape([n for axis, n in enumerate(numbers.shape) if axis not in axes])
