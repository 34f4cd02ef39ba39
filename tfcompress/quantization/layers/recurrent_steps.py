"""The arithmetic of the runtime inside a recurrent layer, each result with its own scale."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from keras import ops

from tfcompress.integer.fake_quant import fake_quant_op
from tfcompress.integer.fixed_point import (
    SIGMOID_RANGE,
    TANH_RANGE,
    Accumulator,
    accumulator_scale,
)
from tfcompress.integer.grid_ops import FixedFakeQuant, Requantize
from tfcompress.integer.kernels import XNNPACK, Kernels
from tfcompress.quantization.layers.recurrent_blocks import before_loop, block_of, loop_of_blocks
from tfcompress.quantization.layers.recurrent_values import (
    Mask,
    RecurrentKernel,
    Value,
    straight_through,
    with_tensor,
)
from tfcompress.tensorflow_internals import as_graph

_SWAP_BATCH_AND_TIME = (1, 0, 2)
_FEW_TIME_STEPS = 32  # which run faster eagerly than it takes to make a graph of one


_VALID = "counts"  # the key of the mask among the inputs of the gates


class RuntimeOps:
    """The operations of one pass; it quantizes each result and records it to observe ranges.

    Args:
        quantizers: The quantizers of the results, by name of the result.
        rounds: Whether results are quantized, that is, whether the ranges were trained. In
            training a tensor, 1.0 or 0.0; `min_max` then covers all time steps.
        exact: Whether to compute in integers as the runtime does; every input then has a `scale`.
        unrolled: Whether a file holds every time step, instead of a loop.
        kernels: The kernels that round.
    """

    def __init__(
        self,
        quantizers: dict[str, Any],
        rounds: Any = True,
        exact: bool = False,
        unrolled: bool = False,
        kernels: Kernels = XNNPACK,
    ) -> None:
        self.prefix = ""
        self.state_names: tuple[str, ...] = ()  # of the recurrent states; the output comes first
        self.count = 0  # time steps of a sequence
        self.state_dropout: Any = None  # the dropout mask of the states
        self.mask: Mask | None = None  # of the next loop
        self._quantizers = quantizers
        self._rounds = rounds
        self._exact, self._kernels = exact, kernels
        self._seen: dict[str, list[Any]] = {name: [] for name in quantizers}
        self._frozen = isinstance(next(iter(quantizers.values())), FixedFakeQuant)
        self._unrolled = unrolled if self._frozen else any(q.observer for q in quantizers.values())
        # All at once: a tensor that is computed inside a loop cannot be used after it.
        self._ranges = {
            name: quantizer.qparams() if exact else quantizer.current_range()
            for name, quantizer in quantizers.items()
            if rounds is not False and not (self._frozen or self._unrolled)
        }

    def kernel(self, value: Any, bias: Any = None) -> RecurrentKernel:
        """Returns a kernel that is used in every time step."""
        return RecurrentKernel(value, bias, self._exact)

    def loop(
        self,
        advance: Callable[[Sequence[Value], dict[str, Value]], Sequence[Value]],
        inputs: dict[str, Value],
        states: Sequence[Value],
        backwards: bool,
        reverse_outputs: bool | None,
    ) -> tuple[Value, Sequence[Value]]:
        """Returns the outputs of a recurrent layer, and its states after the last time step.

        Args:
            advance: Computes one time step: returns its states from those of the previous time
                step (an empty sequence in the first) and from its inputs. The first state is the
                output.
            inputs: The inputs of all time steps, of shape (samples, time steps, units).
            states: The states before the first time step; empty for zeros.
            backwards: Whether to process the sequence from its end to its start.
            reverse_outputs: Whether to reverse the order of the outputs; None for the last one
                alone.

        Returns:
            The outputs, of shape (samples, time steps, units), or (samples, units) for the last
            alone. The states after the last time step, of shape (samples, units) each.
        """
        first = next(iter(inputs.values())).x
        count = self.count = first.shape[1]
        order = range(count)[::-1] if backwards else range(count)
        zero_output = None
        if self.mask is not None:
            inputs = {**inputs, _VALID: Value(ops.expand_dims(self.mask.valid, -1))}
            zeros = [self.constant(name, ops.zeros_like(first[:, 0])) for name in self.state_names]
            zero_output = zeros[0].x
            # A selection needs operands of equal scale. The output starts at zero in any case.
            states = (
                [*map(self.requantize, self.state_names, states), zeros[0]] if states else zeros
            )

        def at(time_step: int) -> dict[str, Value]:
            # Slices, not unstack: the converter leaves an unstack with an unused result in float.
            return {
                name: with_tensor(value, value.x[:, time_step]) for name, value in inputs.items()
            }

        # The initial states may have other scales than those of later time steps.
        unrolled_count = count if self._unrolled else min(count, 1 + self._exact)
        if self._frozen and not self._unrolled:
            unrolled_count = before_loop(count)
        outputs = []
        for time_step in order[:unrolled_count]:
            states, output = self._time_step(advance, states, at(time_step), zero_output)
            outputs.append(output)
        scale = states[0].scale
        if unrolled_count == count:
            if reverse_outputs is None:
                return Value(outputs[-1], scale), states
            return Value(
                ops.stack(outputs[::-1] if reverse_outputs else outputs, axis=1), scale
            ), states
        remaining = {
            name: with_tensor(v, v.x[:, :-unrolled_count] if backwards else v.x[:, unrolled_count:])
            for name, v in inputs.items()
        }
        if self._frozen:
            rest, states = self._blocks(
                advance, remaining, states, zero_output, backwards, reverse_outputs
            )
            if reverse_outputs is None:
                return Value(rest), states
            parts = [ops.stack(outputs[::-1] if reverse_outputs else outputs, axis=1), rest]
            return Value(ops.concatenate(parts[::-1] if reverse_outputs else parts, axis=1)), states
        if backwards:
            remaining = {name: with_tensor(v, ops.flip(v.x, 1)) for name, v in remaining.items()}
        scanned, states = self._scan(advance, remaining, states, zero_output)
        if reverse_outputs is None:
            return Value(scanned[-1], scale), states
        every = ops.concatenate([ops.stack(outputs), scanned], axis=0)
        every = ops.transpose(
            ops.flip(every, 0) if reverse_outputs else every, _SWAP_BATCH_AND_TIME
        )
        return Value(every, scale), states

    def _time_step(
        self, advance: Any, states: Sequence[Value], inputs: dict[str, Value], zero_output: Any
    ) -> tuple[Sequence[Value], Any]:
        """Returns the states after a time step, and its output."""
        if self.mask is None:
            states = advance(states, inputs)
            return states, states[0].x
        valid = inputs.pop(_VALID).x
        after = [
            Value(self._select(name, valid, new.x, old.x), new.scale)
            for name, new, old in zip(
                self.state_names, advance(states, inputs), states, strict=False
            )
        ]
        before = states[len(after) :]  # the previous output, where it differs from the state
        if not (before or self.mask.zeros):
            return after, after[0].x
        old = zero_output if self.mask.zeros else before[0].x
        output = self._select(self.state_names[0], valid, after[0].x, old)
        return [*after, *(Value(output, after[0].scale) for _ in before)], output

    def _select(self, name: str, valid: Any, new: Any, old: Any) -> Any:
        """Returns the new value where a time step is valid, else the old one."""
        x = ops.where(valid, new, old)
        return self._quantizers[self.prefix + name].call(x) if self._frozen else x

    def _blocks(
        self,
        advance: Any,
        inputs: dict[str, Value],
        states: Sequence[Value],
        zero_output: Any,
        backwards: bool,
        reverse_outputs: bool | None,
    ) -> tuple[Any, Sequence[Value]]:
        """Returns the outputs of the remaining time steps in a file, and the last states."""
        # The previous output follows the states where it differs from the first one.
        names = [*self.state_names, self.state_names[0]]

        def requantize(index: int, x: Any) -> Any:
            return self._quantizers[self.prefix + names[index]].call(x)

        def step(before: Sequence[Any], slices: dict[str, Any]) -> tuple[Sequence[Any], Any]:
            values = {name: with_tensor(inputs[name], x) for name, x in slices.items()}
            after, output = self._time_step(advance, [*map(Value, before)], values, zero_output)
            return [value.x for value in after], output

        tensors = {name: value.x for name, value in inputs.items()}
        before, size = [value.x for value in states], block_of(self.count)
        outputs, last = loop_of_blocks(
            step, tensors, before, size, requantize, backwards, reverse_outputs
        )
        return outputs, [*map(Value, last)]

    def _scan(
        self, advance: Any, inputs: dict[str, Value], states: Sequence[Value], zero_output: Any
    ) -> tuple[Any, Sequence[Value]]:
        """Returns the outputs of the remaining time steps, time first, and the last states."""
        learns = not isinstance(self._rounds, bool)
        names = [name for name in self._seen if learns and name.startswith(self.prefix)]
        scales = [value.scale for value in states]

        def body(carried: Any, slices: Any) -> Any:
            tensors, ranges = carried
            seen, self._seen = self._seen, {name: [] for name in self._seen}
            before = [Value(x, scale) for x, scale in zip(tensors, scales, strict=True)]
            slices = {name: with_tensor(inputs[name], x) for name, x in slices.items()}
            new_states, output = self._time_step(advance, before, slices, zero_output)
            after = [value.x for value in new_states]
            if names:
                observed, (minima, maxima) = self.min_max(), ranges
                minima = ops.minimum(minima, ops.stack([observed[name][0] for name in names]))
                maxima = ops.maximum(maxima, ops.stack([observed[name][1] for name in names]))
                ranges = [ops.stop_gradient(minima), ops.stop_gradient(maxima)]
            self._seen = seen
            # `ops.scan` needs outputs of the same structure as what it carries.
            return (after, ranges), ([output, *after[1:]], ranges)

        # Zeros are a neutral start: every range contains zero.
        no_ranges = [ops.zeros((len(names),))] * (2 if names else 0)
        slices = {
            name: ops.transpose(value.x, _SWAP_BATCH_AND_TIME) for name, value in inputs.items()
        }
        start = [value.x for value in states]
        scan = as_graph(ops.scan) if self.count > _FEW_TIME_STEPS else ops.scan
        (last, ranges), ((outputs, *_), _) = scan(body, (start, no_ranges), slices)
        for index, name in enumerate(names):
            self._seen[name] += [bound[index] for bound in ranges]
        return outputs, [Value(x, scale) for x, scale in zip(last, scales, strict=True)]

    def matmul(self, name: str, value: Value, kernel: RecurrentKernel) -> Value:
        """Returns the product with a kernel, plus its bias.

        Args:
            name: The name of the result.
            value: Of shape (..., inputs).
            kernel: A kernel that `kernel` returned.
        """
        if not self._exact:
            x = ops.matmul(value.x, kernel.value)
            return self._quantize(name, x if kernel.bias is None else x + kernel.bias)
        x = (
            ops.matmul(value.quantized(), kernel.quantized) * (value.scale * kernel.scale)
            + kernel.offset
        )
        scale = accumulator_scale(value.scale, kernel.max_abs, 127, kernel.offset)
        factors = (value.scale, kernel.scale)
        return self._quantize(name, x, self._accumulated(scale, factors, kernel.offset))

    def _accumulated(self, scale: Any, factors: tuple[Any, Any], offset: Any = 0.0) -> Any:
        """Returns a function that requantizes accumulators to a scale."""
        if not self._exact:
            return None
        accumulator = Accumulator(scale, factors, offset)
        return lambda x, output_scale: accumulator.requantize(x, output_scale, self._kernels)

    def add(self, name: str, a: Value, b: Value) -> Value:
        """Returns the sum of two values."""
        return self._quantize(name, a.x + b.x, self._of_two(self._kernels.add, a, b))

    def subtract(self, name: str, a: Value, b: Value) -> Value:
        """Returns the difference of two values."""
        return self._quantize(name, a.x - b.x, self._of_two(self._kernels.subtract, a, b))

    def _of_two(self, kernel: Any, a: Value, b: Value) -> Any:
        """Returns a function that computes the quantized result of a kernel for a scale."""
        return lambda _, scale: kernel([a.quantized(), b.quantized()], [a.scale, b.scale], scale)

    def multiply(self, name: str, a: Value, b: Value) -> Value:
        """Returns the product of two values."""
        scale = a.scale * b.scale if self._exact else None
        return self._quantize(name, a.x * b.x, self._accumulated(scale, (a.scale, b.scale)))

    def multiply_by(self, name: str, a: Value, factor: float) -> Value:
        """Returns a value times a constant, which the file stores as 255 times its scale."""
        factor_scale = ops.convert_to_tensor(abs(factor) / 255, "float32")
        scale = a.scale * factor_scale if self._exact else None
        factors = (a.scale, factor_scale)
        return self._quantize(name, a.x * factor, self._accumulated(scale, factors))

    def requantize(self, name: str, a: Value) -> Value:
        """Returns a value, requantized to the scale of the result `name`."""
        x = Requantize.barrier(a.x) if self._frozen else a.x
        return self._quantize(name, x, lambda x, to: self._kernels.requantize(x, a.scale, to))

    def sigmoid(self, a: Value) -> Value:
        """Returns the sigmoid of a value as the runtime quantizes it."""
        return self._activate("sigmoid", a, ops.sigmoid(a.x), SIGMOID_RANGE)

    def tanh(self, a: Value) -> Value:
        """Returns the hyperbolic tangent of a value as the runtime quantizes it."""
        return self._activate("tanh", a, ops.tanh(a.x), TANH_RANGE)

    def relu(self, a: Value) -> Value:
        """Returns the ReLU of a value, with the scale of the value."""
        x = ops.relu(a.x)
        return with_tensor(a, a.quantizer.call(x) if self._frozen else x)

    def linear(self, a: Value) -> Value:
        """Returns a value."""
        return a

    def with_dropout(self, state: Value) -> Value:
        """Returns a state as the recurrent kernels read it, with dropout."""
        return state if self.state_dropout is None else Value(state.x * self.state_dropout)

    def constant(self, name: str, x: Any) -> Value:
        """Returns a constant, quantized with the scale of the result `name`."""
        return self._quantize(name, x, lambda x, scale: ops.round(x / scale))

    def _activate(self, function: str, a: Value, x: Any, min_max: tuple[float, float]) -> Value:
        """Returns an activation, quantized to the range that the runtime prescribes."""
        scale = ops.convert_to_tensor((min_max[1] - min_max[0]) / 255, "float32")
        if not self._exact:
            rounded = fake_quant_op(x, *min_max)
            return Value(rounded if self._frozen else straight_through(x, rounded), scale)
        quantized = self._kernels.activate(function, x, a.scale, scale)
        quantized = ops.clip(quantized, *(ops.round(bound / scale) for bound in min_max))
        return Value(straight_through(x, quantized * scale), scale)

    def _quantize(
        self, name: str, x: Any, requantize: Callable[[Any, Any], Any] | None = None
    ) -> Value:
        """Returns `x`, quantized with the quantizer of the result `name`.

        Args:
            name: The name of the result.
            x: The result in floats.
            requantize: Where the pass is exact, returns the quantized values of `x` for a scale,
                not clipped.
        """
        full_name = self.prefix + name
        quantizer = self._quantizers[full_name]
        if self._frozen or quantizer.observer is not None:
            return Value(quantizer.call(x), None, quantizer)
        self._seen[full_name].append(x)
        if self._rounds is False:
            return Value(x)
        if requantize is None or not self._exact:
            difference = ops.stop_gradient(fake_quant_op(x, *self._ranges[full_name]) - x)
            return Value(x + (difference if self._rounds is True else difference * self._rounds))
        scale, qmin = self._ranges[full_name]
        quantized = ops.clip(requantize(x, scale), qmin, qmin + 255)
        return Value(straight_through(x, quantized * scale), scale)

    def min_max(self) -> dict[str, tuple[Any, Any]]:
        """Returns the minimum and maximum of every result over all time steps."""
        return {name: _min_max(values) for name, values in self._seen.items()}


def _min_max(values: list[Any]) -> tuple[Any, Any]:
    if not values:
        return ops.zeros(()), ops.zeros(())
    minimum = functools.reduce(ops.minimum, map(ops.min, values))
    maximum = functools.reduce(ops.maximum, map(ops.max, values))
    # Stop the gradient last, so that none is computed through the reductions.
    low, high = (ops.stop_gradient(ops.cast(bound, "float32")) for bound in (minimum, maximum))
    return low, high
