"""The loop of a recurrent layer in a file: some time steps in each pass.

The converter keeps integers inside the body of a loop, but what a pass hands to the next is in
floats. One time step in each pass would spend its time on that; all time steps unrolled would make
a large file, which is slow as well, because the processor's caches do not hold its operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from keras import ops

_SIZES = range(5, 9)  # larger blocks are no faster
_FIRST = 2  # The first time step may have no states, and both may read states of other scales.


def block_of(count: int) -> int:
    """Returns the time steps in each pass over a sequence of `count`, 0 for no loop.

    It leaves few time steps that do not fit into passes, which are unrolled before the loop.
    """
    size = min(_SIZES, key=lambda size: (count - _FIRST) % size + size)
    return size if count - _FIRST >= 2 * size else 0


def before_loop(count: int) -> int:
    """Returns the number of time steps before the loop."""
    size = block_of(count)
    return _FIRST + (count - _FIRST) % size if size else count


def loop_of_blocks(
    advance: Callable[[Sequence[Any], dict[str, Any]], tuple[Sequence[Any], Any]],
    inputs: Mapping[str, Any],
    states: Sequence[Any],
    size: int,
    requantize: Callable[[int, Any], Any],
    backwards: bool,
    reverse_outputs: bool | None,
) -> tuple[Any, Sequence[Any]]:
    """Returns the outputs of time steps, and the states after them.

    Args:
        advance: Returns the states after a time step and its output, from the states before and the
            inputs of the time step.
        inputs: Tensors of shape (samples, time steps, units).
        states: Tensors of shape (samples, units). The first is quantized like the output.
        size: The time steps of a pass; they divide those of the inputs.
        requantize: Quantizes the state of an index; a value that is quantized keeps its value.
        backwards: Whether to process the time steps from the last to the first.
        reverse_outputs: Whether the output of the time step that is processed first comes last;
            None for the output of the last time step alone.
    """
    first = next(iter(inputs.values()))
    passes = first.shape[1] // size
    blocks = {name: ops.reshape(x, (-1, passes, size, *x.shape[2:])) for name, x in inputs.items()}

    def body(index: Any, outputs: Any, *carried: Any) -> tuple[Any, ...]:
        position = passes - 1 - index if backwards else index
        block = {name: ops.take(x, position, axis=1) for name, x in blocks.items()}
        after: Sequence[Any] = [requantize(i, x) for i, x in enumerate(carried)]
        collected = []
        for step in range(size)[::-1] if backwards else range(size):
            after, output = advance(after, {name: x[:, step] for name, x in block.items()})
            collected.append(output)
        if reverse_outputs is None:
            return (index + 1, collected[-1], *after)
        ordered = ops.stack(collected[::-1] if reverse_outputs else collected, axis=1)
        place = [0, passes - 1 - index if reverse_outputs else index, 0, 0]
        return (index + 1, ops.slice_update(outputs, place, ordered[:, None]), *after)

    # What the outputs hold at first is overwritten: something that the file need not store.
    start = states[0]
    if reverse_outputs is not None:
        start = requantize(0, ops.tile(start[:, None, None], (1, passes, size, 1)))
    _, outputs, *last = ops.while_loop(
        lambda index, *_: index < passes, body, (np.int32(0), start, *states)
    )
    outputs = requantize(0, outputs)
    if reverse_outputs is not None:
        outputs = ops.reshape(outputs, (-1, passes * size, outputs.shape[-1]))
    return outputs, [requantize(i, x) for i, x in enumerate(last)]
