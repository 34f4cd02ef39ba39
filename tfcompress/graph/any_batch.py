"""Code that computes with the batch size, for batches of any size.

It is read with a stand-in for the size, a prime. What was computed from it is then replaced.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import tree

from tfcompress.graph.code_layers import Constant, RepeatForBatch
from tfcompress.graph.read import Call

_STAND_INS = (1009, 1013, 1019, 1021, 1031, 1033)
"""Batch sizes to read code with: none should divide a size of the network."""


def stand_in_for(layer: Any, shapes: Any) -> int:
    """Returns a size for a batch that divides no size of a layer or its inputs."""
    sizes = {n for shape in shapes for n in shape if n}
    sizes |= {n for weight in layer.weights for n in weight.shape}
    return next((p for p in _STAND_INS if not any(n % p == 0 for n in sizes)), _STAND_INS[0])


def _one_sample(value: Any, size: int) -> tuple[Any, int] | None:
    """Returns the entry that a constant has for each sample, and the axis; None if it has none.

    Raises:
        ValueError: If the entries differ.
    """
    shape = np.shape(value)
    axes = [axis for axis, n in enumerate(shape) if n and n % size == 0]
    if not axes:
        return None
    array = keras.ops.convert_to_numpy(value)
    one = array.take([0], axes[0])
    if len(axes) > 1 or shape[axes[0]] != size or np.any(array != one):
        raise ValueError("a constant depends on the batch")
    return one, axes[0]


def without_batch(structure: Any, size: int, like: Any) -> Any:
    """Replaces constants that have an equal entry for each sample by one that is repeated.

    Args:
        structure: Arguments of a recorded call, in a new graph.
        size: The stand-in for the batch that it was recorded with.
        like: A tensor of the new graph that has the batch.

    Raises:
        ValueError: If a constant depends on the batch otherwise.
    """

    def repeated(value: Any) -> Any:
        if isinstance(value, keras.KerasTensor) or not hasattr(value, "shape"):
            return value
        found = _one_sample(value, size)
        if found is None:
            return value
        one, axis = found
        return RepeatForBatch(axis)([Constant.of(one)(like), like])

    return tree.map_structure(repeated, structure)


def for_any_batch(call: Call, args: Any, kwargs: Any, size: int, like: Any) -> Any:
    """Emits an operation that mentions the stand-in for the batch, for a batch of any size.

    Args:
        call: The call of an operation of `keras.ops`.
        args: Its arguments in the new graph.
        kwargs: Its arguments by name in the new graph.
        size: The stand-in.
        like: A tensor of the new graph that has the batch.

    Returns:
        The output; None if the operation does not mention it.

    Raises:
        ValueError: If it depends on the batch otherwise than by repeating samples or reshaping.
    """
    if isinstance(call.operation, Constant):
        constant = call.operation
        array = np.array(constant.value, constant.number_type).reshape(constant.shape)
        return None if _one_sample(array, size) is None else without_batch(array, size, like)
    if isinstance(call.operation, keras.layers.Layer):
        return None
    name, plain = settings_of(call.operation)
    if not _mentions((plain, args, kwargs), size):
        return None
    x: Any = args[0] if args else None
    shape = list(call.outputs[0].shape)
    if name == "Reshape" and None not in shape and sum(n % size == 0 for n in shape) == 1:
        return keras.ops.reshape(x, [-1 if n % size == 0 else n for n in shape])
    alone = sum(_mentions(n, size) for n in shape) == 1 and size in shape
    axis = shape.index(size) if alone else 0
    if name in ("BroadcastTo", "Tile", "Repeat") and alone:
        one = [*shape[:axis], 1, *shape[axis + 1 :]]
        missing = len(shape) - len(x.shape)
        if missing:
            x = keras.ops.reshape(x, (*[1] * missing, *x.shape))
        if x.shape[axis] == 1:
            if list(x.shape) != one:
                if name != "BroadcastTo":
                    raise ValueError(f"{name} depends on the batch and on more")
                x = keras.ops.broadcast_to(x, one)
            return RepeatForBatch(axis)([x, like])
        if [n for i, n in enumerate(x.shape) if i != axis] == shape[:axis] + shape[axis + 1 :]:
            return x
    if (
        name == "Slice"
        and alone
        and axis == 0
        and not any(map(keras.ops.is_tensor, tree.flatten(args[1])))
    ):
        starts = list(args[1])
        if starts[0] == 0:
            ends = [slice(n, n + m) for n, m in zip(starts[1:], shape[1:], strict=True)]
            return x[(slice(None), *ends)]
    raise ValueError(f"{name} depends on the batch")


def _mentions(structure: Any, size: int) -> bool:
    """Returns whether whole numbers in a structure are multiples of the stand-in."""
    numbers = [n for n in tree.flatten(structure) if isinstance(n, int) and not isinstance(n, bool)]
    slices = [s for s in tree.flatten(structure) if isinstance(s, slice)]
    numbers += [n for s in slices for n in (s.start, s.stop) if isinstance(n, int)]
    return any(n and n % size == 0 for n in numbers)


def settings_of(operation: Any) -> Any:
    """Returns the name of the class of an operation, and what it was created with."""
    plain = {k: v for k, v in vars(operation).items() if not k.startswith("_") and k != "name"}
    return type(operation).__name__, plain
