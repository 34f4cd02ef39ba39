"""What the runtime does inside of a recurrent layer, each step on a grid of its own."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from keras import ops

from tfcompress.integer.elementwise import added
from tfcompress.integer.fake_quant import fake_quant_op
from tfcompress.integer.fixed_point import (
    SIGMOID_RANGE,
    TANH_RANGE,
    Accumulator,
    accumulator_scale,
    divided,
    moved,
)
from tfcompress.integer.grid_ops import FixedFakeQuant, Requantize

_TIME_SECOND = (1, 0, 2)


_COUNTS = "counts"  # beside the inputs of the gates


@dataclasses.dataclass(frozen=True)
class Value:
    """A tensor of one pass.

    Args:
        x: The tensor.
        unit: The step of its grid, where the pass computes in integers (see `integers.py`).
        quantizer: What rounded it, if it has not a range that the runtime prescribes.
    """

    x: Any
    unit: Any = None
    quantizer: Any = None

    def places(self) -> Any:
        """Returns the integers, as floats."""
        return straight(self.x / self.unit, ops.round(self.x / self.unit))


@dataclasses.dataclass(frozen=True)
class Mask:
    """The steps of sequences that count; the others leave what is remembered as it is.

    Args:
        counts: Of shape (samples, steps), booleans.
        zeros: Whether the output is zero at the others, and not the state from before.
    """

    counts: Any
    zeros: bool


class RecurrentKernel:
    """A kernel that is rounded: the grid of each column ends at its largest weight.

    Args:
        value: Of shape (inputs, outputs).
        bias: Of shape (outputs,), if there is one.
        exact: Whether it will be multiplied by integers.
    """

    def __init__(self, value: Any, bias: Any, exact: bool) -> None:
        self.value, self.bias = value, bias
        if exact:
            self.ends = ops.max(ops.abs(value), axis=0)
            self.size = ops.where(self.ends > 0, divided(self.ends, 127), 1.0)
            self.places = straight(value / self.size, ops.round(value / self.size))
            self.offset = ops.zeros(value.shape[-1:]) if bias is None else bias


class Stepwise:
    """Rounds the results of the steps of one pass, and remembers what was rounded.

    Args:
        quantizers: Those of the steps, by name.
        rounds: Whether results are rounded: the ranges were trained. In training a tensor, 1.0 or
            0.0; then `ends` are those of all steps.
        exact: Whether they are rounded as the runtime does; then what comes in has a `unit`.
    """

    def __init__(self, quantizers: dict[str, Any], rounds: Any = True, exact: bool = False) -> None:
        self.prefix = ""
        self.held: tuple[str, ...] = ()  # the names of what is remembered, the state first
        self.count = 0  # of the steps of a sequence
        self.of_state: Any = None  # what dropout multiplies states with
        self.mask: Mask | None = None  # of the loop to come
        self._quantizers = quantizers
        self._rounds = rounds
        self._exact = exact
        self._seen: dict[str, list[Any]] = {name: [] for name in quantizers}
        self._frozen = isinstance(next(iter(quantizers.values())), FixedFakeQuant)
        self.written_out = self._frozen or any(q.observer for q in quantizers.values())
        # All at once: what is computed inside of a loop cannot be used behind it.
        self._ranges = {
            name: quantizer.qparams() if exact else quantizer.current_range()
            for name, quantizer in quantizers.items()
            if rounds is not False and not self.written_out
        }

    def kernel(self, value: Any, bias: Any = None) -> RecurrentKernel:
        """Returns a kernel to be used in every step."""
        return RecurrentKernel(value, bias, self._exact)

    def loop(
        self,
        advance: Callable[[Sequence[Value], dict[str, Value]], Sequence[Value]],
        given: dict[str, Value],
        held: Sequence[Value],
        backwards: bool,
        turned: bool | None,
    ) -> tuple[Value, Sequence[Value]]:
        """Returns the outputs of the steps of a sequence: the states; and what is remembered.

        Args:
            advance: Returns the state, and what else is remembered, of one step from those of the
                step before (nothing in the first) and from its inputs.
            given: The inputs of all steps, of shape (samples, steps, units).
            held: What is remembered from before the first step; nothing for zeros.
            backwards: Whether the last step comes first.
            turned: Whether states are returned in the opposite order; None for the last one alone.

        Returns:
            The outputs, of shape (samples, steps, units), or (samples, units) for the last alone.
            What is remembered after the last step, of shape (samples, units) each.
        """
        first = next(iter(given.values())).x
        count = self.count = first.shape[1]
        order = range(count)[::-1] if backwards else range(count)
        nothing = None
        if self.mask is not None:
            given = {**given, _COUNTS: Value(ops.expand_dims(self.mask.counts, -1))}
            zeros = [self.constant(name, ops.zeros_like(first[:, 0])) for name in self.held]
            nothing = zeros[0].x
            # On the grids that are selected from; what is put out starts at zero in any case.
            held = [*map(self.move, self.held, held), zeros[0]] if held else zeros

        def at(step: int) -> dict[str, Value]:
            # Slices, not unstack: of that, the converter leaves in float what has an unused result.
            return {name: _with(value, value.x[:, step]) for name, value in given.items()}

        # What the first step starts from may be on other grids than what the others do.
        apart = count if self.written_out else min(count, 1 + self._exact)
        states = []
        for step in order[:apart]:
            held, output = self._step(advance, held, at(step), nothing)
            states.append(output)
        unit = held[0].unit
        if apart == count:
            if turned is None:
                return Value(states[-1], unit), held
            return Value(ops.stack(states[::-1] if turned else states, axis=1), unit), held
        following = {
            name: _with(v, ops.flip(v.x[:, :-apart], 1) if backwards else v.x[:, apart:])
            for name, v in given.items()
        }
        rest, held = self._scan(advance, following, held, nothing)
        if turned is None:
            return Value(rest[-1], unit), held
        every = ops.concatenate([ops.stack(states), rest], axis=0)
        every = ops.transpose(ops.flip(every, 0) if turned else every, _TIME_SECOND)
        return Value(every, unit), held

    def _step(
        self, advance: Any, held: Sequence[Value], given: dict[str, Value], nothing: Any
    ) -> tuple[Sequence[Value], Any]:
        """Returns what is remembered after a step, and its output; `nothing` is zeros."""
        if self.mask is None:
            held = advance(held, given)
            return held, held[0].x
        counts = given.pop(_COUNTS).x
        after = [
            Value(self._chosen(name, counts, new.x, old.x), new.unit)
            for name, new, old in zip(self.held, advance(held, given), held, strict=False)
        ]
        before = held[len(after) :]  # the output, where it is not the state
        if not (before or self.mask.zeros):
            return after, after[0].x
        old = nothing if self.mask.zeros else before[0].x
        output = self._chosen(self.held[0], counts, after[0].x, old)
        return [*after, *(Value(output, after[0].unit) for _ in before)], output

    def _chosen(self, name: str, counts: Any, new: Any, old: Any) -> Any:
        """Returns one of two values on the grid of a step."""
        x = ops.where(counts, new, old)
        return self._quantizers[self.prefix + name].call(x) if self._frozen else x

    def _scan(
        self, advance: Any, given: dict[str, Value], held: Sequence[Value], nothing: Any
    ) -> tuple[Any, Sequence[Value]]:
        """Returns the outputs of further steps, by step, and what is remembered at the end."""
        learns = not isinstance(self._rounds, bool)
        names = [name for name in self._seen if learns and name.startswith(self.prefix)]
        units = [value.unit for value in held]

        def body(carried: Any, inputs: Any) -> Any:
            tensors, ends = carried
            seen, self._seen = self._seen, {name: [] for name in self._seen}
            before = [Value(x, unit) for x, unit in zip(tensors, units, strict=True)]
            inputs = {name: _with(given[name], x) for name, x in inputs.items()}
            remembered, output = self._step(advance, before, inputs, nothing)
            after = [value.x for value in remembered]
            if names:
                found, (low, high) = self.min_max(), ends
                low = ops.minimum(low, ops.stack([found[name][0] for name in names]))
                high = ops.maximum(high, ops.stack([found[name][1] for name in names]))
                ends = [ops.stop_gradient(low), ops.stop_gradient(high)]
            self._seen = seen
            return (after, ends), ([output, *after[1:]], ends)  # both alike, for ops.scan

        none = [ops.zeros((len(names),))] * (2 if names else 0)  # a range holds zero in any case
        inputs = {name: ops.transpose(value.x, _TIME_SECOND) for name, value in given.items()}
        start = [value.x for value in held]
        (last, ends), ((outputs, *_), _) = ops.scan(body, (start, none), inputs)
        for place, name in enumerate(names):
            self._seen[name] += [end[place] for end in ends]
        return outputs, [Value(x, unit) for x, unit in zip(last, units, strict=True)]

    def weighted(self, step: str, value: Value, kernel: RecurrentKernel) -> Value:
        """Returns the product with a kernel, and its bias added.

        Args:
            step: The name of the step.
            value: Of shape (..., inputs).
            kernel: What `kernel` returned.
        """
        if not self._exact:
            x = ops.matmul(value.x, kernel.value)
            return self._round(step, x if kernel.bias is None else x + kernel.bias)
        x = ops.matmul(value.places(), kernel.places) * (value.unit * kernel.size) + kernel.offset
        unit = accumulator_scale(value.unit, kernel.ends, 127, kernel.offset)
        return self._round(step, x, Accumulator(unit, kernel.offset).requantize)

    def add(self, step: str, a: Value, b: Value) -> Value:
        """Returns the sum of two values."""
        return self._sum(step, a, b, 1)

    def subtract(self, step: str, a: Value, b: Value) -> Value:
        """Returns the difference of two values."""
        return self._sum(step, a, b, -1)

    def _sum(self, step: str, a: Value, b: Value, sign: int) -> Value:
        def steps(_: Any, scale: Any) -> Any:
            return added([a.places(), sign * b.places()], [a.unit, b.unit], scale)

        return self._round(step, a.x + b.x if sign > 0 else a.x - b.x, steps)

    def multiply(self, step: str, a: Value, b: Value) -> Value:
        """Returns the product of two values."""
        return self._round(
            step, a.x * b.x, lambda x, scale: Accumulator(a.unit * b.unit).requantize(x, scale)
        )

    def scale(self, step: str, a: Value, factor: float) -> Value:
        """Returns a value times a number, which the file stores as 255 steps."""
        share = abs(factor) / 255
        return self._round(
            step, a.x * factor, lambda x, to: Accumulator(a.unit * share).requantize(x, to)
        )

    def move(self, step: str, a: Value) -> Value:
        """Returns a value of one grid on another."""
        x = Requantize.written(a.x) if self._frozen else a.x
        return self._round(step, x, lambda x, scale: moved(x, a.unit, scale))

    def sigmoid(self, a: Value) -> Value:
        """Returns the sigmoid of a value as the runtime rounds it."""
        return self._fixed(ops.sigmoid(a.x), SIGMOID_RANGE)

    def tanh(self, a: Value) -> Value:
        """Returns the hyperbolic tangent of a value as the runtime rounds it."""
        return self._fixed(ops.tanh(a.x), TANH_RANGE)

    def relu(self, a: Value) -> Value:
        """Returns what is positive of a value, on its grid."""
        x = ops.relu(a.x)
        return _with(a, a.quantizer.call(x) if self._frozen else x)

    def linear(self, a: Value) -> Value:
        """Returns a value."""
        return a

    def seen(self, state: Value) -> Value:
        """Returns a state as the recurrent kernels see it."""
        return state if self.of_state is None else Value(state.x * self.of_state)

    def constant(self, step: str, x: Any) -> Value:
        """Returns numbers on the grid of a step."""
        return self._round(step, x, lambda x, scale: ops.round(x / scale))

    def _fixed(self, x: Any, ends: tuple[float, float]) -> Value:
        rounded = fake_quant_op(x, *ends)
        unit = (ends[1] - ends[0]) / 255
        return Value(rounded if self._frozen else straight(x, rounded), unit)

    def _round(self, step: str, x: Any, steps: Callable[[Any, Any], Any] | None = None) -> Value:
        """Returns `x` rounded as a result of the step.

        Args:
            step: The name of the step.
            x: The result in floats.
            steps: Where the pass is exact, returns it as integers of a grid, not clipped.
        """
        name = self.prefix + step
        quantizer = self._quantizers[name]
        if self._frozen or quantizer.observer is not None:
            return Value(quantizer.call(x), None, quantizer)
        self._seen[name].append(x)
        if self._rounds is False:
            return Value(x)
        if steps is None or not self._exact:
            difference = ops.stop_gradient(fake_quant_op(x, *self._ranges[name]) - x)
            return Value(x + (difference if self._rounds is True else difference * self._rounds))
        scale, lowest = self._ranges[name]
        places = ops.clip(steps(x, scale), lowest, lowest + 255)
        return Value(straight(x, places * scale), scale)

    def min_max(self) -> dict[str, tuple[Any, Any]]:
        """Returns the smallest and largest value of every step."""
        return {name: _ends(values) for name, values in self._seen.items()}


def _with(value: Value, x: Any) -> Value:
    return dataclasses.replace(value, x=x)


def straight(x: Any, rounded: Any) -> Any:
    """Returns a rounded tensor with the gradient of `x`.

    Not by a function with a gradient of its own: there would be thousands of them.
    """
    return x + ops.stop_gradient(rounded - x)


def _ends(values: list[Any]) -> tuple[Any, Any]:
    if not values:
        return ops.zeros(()), ops.zeros(())
    lowest = functools.reduce(ops.minimum, map(ops.min, values))
    highest = functools.reduce(ops.maximum, map(ops.max, values))
    # Behind the rest, of which no gradient is made then.
    low, high = (ops.stop_gradient(ops.cast(end, "float32")) for end in (lowest, highest))
    return low, high
