"""Sparsity patterns: unstructured, n of m, blocks."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import numpy as np
from keras import ops

from tfcompress.backends import bits_of


@dataclasses.dataclass(frozen=True)
class Unstructured:
    """Every weight is pruned by itself."""

    spec: Any = "unstructured"
    sparsity: float | None = None

    def scores(self, weight: Any, input_axis: int | None, output_axis: int) -> Any:
        """Returns the magnitudes that are ranked, flat: one for each unit that is pruned as one."""
        return ops.reshape(ops.abs(weight), (-1,))

    def mask(self, weight: Any, sparsity: Any, input_axis: int | None, output_axis: int) -> Any:
        """Returns 0 for the smallest `sparsity` of the weights and 1 for the others."""
        kept = _kept(self.scores(weight, input_axis, output_axis), sparsity)
        return ops.reshape(kept, weight.shape)


@dataclasses.dataclass(frozen=True)
class NOfM:
    """At most `n` of every `m` consecutive weights along the input channels are not zero."""

    n: int
    m: int

    @property
    def spec(self) -> str:
        """The pattern as it is written, such as "2:4"."""
        return f"{self.n}:{self.m}"

    @property
    def sparsity(self) -> float:
        """The final sparsity of the pattern."""
        return 1 - self.n / self.m

    def mask(self, weight: Any, sparsity: Any, input_axis: int | None, output_axis: int) -> Any:
        """Returns 0 for the `m * sparsity` smallest of each group and 1 for the others.

        The last group of each row may be shorter; it keeps as many as the others.
        """
        if input_axis is None:
            return ops.ones(weight.shape, "float32")
        rows = ops.moveaxis(ops.abs(weight), input_axis, -1)
        count = rows.shape[-1]
        padding = -count % self.m
        # The padding counts as smallest, so it is pruned before any weight.
        padded = ops.pad(rows, [(0, 0)] * (len(rows.shape) - 1) + [(0, padding)], "constant", -1.0)
        groups = ops.reshape(padded, (-1, self.m))
        pruned = ops.floor(sparsity * self.m + 0.5)
        rank = ops.argsort(ops.argsort(groups, axis=-1), axis=-1)
        kept = ops.cast(ops.cast(rank, "float32") >= pruned, "float32")
        kept = ops.reshape(kept, padded.shape)[..., :count]
        return ops.moveaxis(kept, -1, input_axis)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Blocks of `rows` inputs by `columns` outputs are pruned as one, by their mean magnitude.

    A kernel is seen as a matrix: every input (of a convolution, every position of its window and
    input channel) by output channel. Blocks at the far edges may be smaller.
    """

    rows: int
    columns: int
    sparsity: float | None = None

    @property
    def spec(self) -> tuple[int, int]:
        """The pattern as it is written."""
        return self.rows, self.columns

    def scores(self, weight: Any, input_axis: int | None, output_axis: int) -> Any:
        """Returns the mean magnitude of each block, flat."""
        matrix, down, across = self._matrix(ops.abs(weight), output_axis)
        sums = ops.sum(ops.reshape(matrix, (down, self.rows, across, self.columns)), axis=(1, 3))
        count, width = (
            math.prod(weight.shape) // weight.shape[output_axis],
            weight.shape[output_axis],
        )
        heights = np.minimum(self.rows, count - self.rows * np.arange(down))
        widths = np.minimum(self.columns, width - self.columns * np.arange(across))
        sizes = np.outer(heights, widths).astype("float32")
        return ops.reshape(sums / sizes, (-1,))

    def mask(self, weight: Any, sparsity: Any, input_axis: int | None, output_axis: int) -> Any:
        """Returns 0 for the weights of the smallest `sparsity` of the blocks and 1 for others."""
        kept = _kept(self.scores(weight, input_axis, output_axis), sparsity)
        shape = np.moveaxis(np.empty(weight.shape, bool), output_axis, -1).shape
        down, across = -(-math.prod(shape[:-1]) // self.rows), -(-shape[-1] // self.columns)
        kept = ops.reshape(kept, (down, across))
        expanded = ops.repeat(ops.repeat(kept, self.rows, axis=0), self.columns, axis=1)
        expanded = expanded[: math.prod(shape[:-1]), : shape[-1]]
        return ops.moveaxis(ops.reshape(expanded, shape), -1, output_axis)

    def _matrix(self, weight: Any, output_axis: int) -> tuple[Any, int, int]:
        moved = ops.moveaxis(weight, output_axis, -1)
        matrix = ops.reshape(moved, (-1, moved.shape[-1]))
        padding = [-size % block for size, block in zip(matrix.shape, self.spec, strict=True)]
        matrix = ops.pad(matrix, [(0, count) for count in padding])
        return matrix, matrix.shape[0] // self.rows, matrix.shape[1] // self.columns


Pattern = Unstructured | NOfM | Blocks


def as_pattern(pattern: Any) -> Pattern:
    """Returns the pattern that an argument specifies.

    Args:
        pattern: "unstructured", "n:m" such as "2:4", or the (rows, columns) of blocks.

    Raises:
        ValueError: If it is none of these.
    """
    if isinstance(pattern, Pattern):
        return pattern
    if isinstance(pattern, (tuple, list, np.ndarray)):
        pattern = tuple(n.item() if isinstance(n, np.integer) else n for n in pattern)
    if isinstance(pattern, str) and pattern == "unstructured":
        return Unstructured()
    if isinstance(pattern, str) and (match := re.fullmatch(r"(\d+):(\d+)", pattern)):
        n, m = map(int, match.groups())
        if 1 <= n < m:
            return NOfM(n, m)
    if isinstance(pattern, (tuple, list)) and len(pattern) == 2:
        whole = all(isinstance(size, int) and not isinstance(size, bool) for size in pattern)
        if whole and min(pattern) >= 1:
            return Blocks(*pattern) if max(pattern) > 1 else Unstructured()
    raise ValueError(
        "pattern must be 'unstructured', 'n:m' with 1 <= n < m (n of every m weights stay, such as "
        f"'2:4'), or a pair of block sizes such as (4, 1). Received: pattern={pattern!r}"
    )


def _kept(scores: Any, sparsity: Any) -> Any:
    """Returns 0 for the smallest scores and 1 for the others; at least one is 1.

    Ties are broken by position. The limit is found by bisection, for which a sort is many times too
    slow where there are millions.
    """
    pruned = ops.minimum(ops.floor(sparsity * scores.shape[0] + 0.5), float(scores.shape[0] - 1))
    pruned = ops.cast(pruned, "int32")
    bits = bits_of(ops.cast(scores, "float32"))  # in the order of the scores, as none is negative

    def halve(_: Any, ends: tuple[Any, Any]) -> tuple[Any, Any]:
        low, high = ends
        middle = low + (high - low) // 2
        beyond = ops.sum(ops.cast(bits <= middle, "int32")) > pruned
        return ops.where(beyond, low, middle), ops.where(beyond, middle, high)

    ends = ops.convert_to_tensor(-1, "int32"), ops.convert_to_tensor(2**31 - 2, "int32")
    _, limit = ops.fori_loop(0, 31, halve, ends)
    equal = ops.cast(bits == limit, "int32")
    first = pruned - ops.sum(ops.cast(bits < limit, "int32"))  # of the equal ones are pruned
    kept = ops.logical_or(bits > limit, ops.cumsum(equal) * equal > first)
    return ops.cast(kept, "float32")
