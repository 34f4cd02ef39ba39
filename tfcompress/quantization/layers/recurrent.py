"""LSTM, GRU and SimpleRNN in the steps of the runtime, one after the other without a loop.

The runtime cannot keep integers in a loop, so what the loop does is written out for every step of
the sequence. The weights are stored once; each step adds about 17 operations to the file of an LSTM
(about 2.5 KB), 15 to that of a GRU.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import keras
from keras import layers, ops, random

from tfcompress.errors import CompressionWarning
from tfcompress.graph.copies import clone_layer
from tfcompress.graph.keras_internals import inbound_nodes
from tfcompress.integer.fixed_point import TANH_RANGE
from tfcompress.quantization.activation_quantizer import ActivationQuantizer
from tfcompress.quantization.canonicalize import Rule, canonical_form
from tfcompress.quantization.layers.base import RuntimeLayer, runtime_layer
from tfcompress.quantization.layers.recurrent_steps import Mask, Stepwise, Value

LONGEST = 128
"""Steps of the longest sequence that is written out."""


BYTES_PER_STEP = 2500
"""What each step adds to a file, about."""


_STEPS = {
    layers.LSTM: (
        "input_i input_f input_c input_o recurrent_i recurrent_f recurrent_c recurrent_o "
        "sum_i sum_f sum_c sum_o kept added carry state"
    ).split(),
    layers.GRU: (
        "input_z input_r input_h recurrent_z recurrent_r recurrent_h sum_z sum_r reset sum_h "
        "difference mixed state"
    ).split(),
    layers.SimpleRNN: "input recurrent sum state".split(),
}


_HELD = {
    layers.LSTM: ("state", "carry"),
    layers.GRU: ("state",),
    layers.SimpleRNN: ("state",),
}
"""What each remembers from step to step."""


_ACTIVATIONS = {
    keras.activations.tanh: Stepwise.tanh,
    keras.activations.sigmoid: Stepwise.sigmoid,
    keras.activations.relu: Stepwise.relu,
    keras.activations.linear: Stepwise.linear,
}


_MERGING = {"ave": ("added", "merged")}


def understands(layer: Any) -> bool:
    """Returns whether a layer is recurrent in a way that can be written out, of any length."""
    cells = [layer]
    if type(layer) is layers.Bidirectional:
        cells = [layer.forward_layer, layer.backward_layer]
    return all(
        type(cell) in _STEPS
        and not cell.stateful
        and cell.activation in _ACTIVATIONS
        and getattr(cell, "recurrent_activation", keras.activations.sigmoid)
        is keras.activations.sigmoid
        for cell in cells
    )


@keras.saving.register_keras_serializable("tfcompress")
class RuntimeRecurrent(RuntimeLayer):
    """A recurrent layer, or two that read in both directions, without a loop.

    Args:
        inner: The Keras layer, or its config; it holds the weights.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    rounds_each_column = True

    def __init__(self, inner: Any, **kwargs: Any) -> None:
        if isinstance(inner, dict):
            inner = keras.saving.deserialize_keras_object(inner)
        self.directions = {"forward": inner}
        if isinstance(inner, layers.Bidirectional):
            self.directions = {"forward": inner.forward_layer, "backward": inner.backward_layer}
        self.steps = tuple(
            f"{name}_{step}"
            for name, cell in self.directions.items()
            for step in _STEPS[type(cell)]
        )
        states = [
            f"{name}_{held}" for name, cell in self.directions.items() for held in _HELD[type(cell)]
        ]
        outputs = [f"{name}_state" for name in self.directions]
        if getattr(inner, "merge_mode", None) is not None:
            self.steps += _MERGING.get(inner.merge_mode, ("merged",))
            outputs = [*self.steps[-1:]]
        self.returned = (*outputs, *states) if inner.return_state else (*outputs,)
        self.fixed = {
            f"{name}_state": TANH_RANGE
            for name, cell in self.directions.items()
            if type(cell) is layers.SimpleRNN and cell.activation is keras.activations.tanh
        }
        super().__init__(**kwargs)
        self.inner = inner

    def output_quantizers(self) -> list[ActivationQuantizer]:
        """Returns the quantizers of what the layer returns, in its order."""
        return [self.rounding[name] for name in self.returned]

    def build(self, input_shape: Any) -> None:
        """Creates the weights and the ranges."""
        if not self.inner.built:
            self.inner.build(input_shape)
        super().build(input_shape)

    def original_variables(self) -> list[Any]:
        """Returns the variables of the Keras layer."""
        return self.inner.variables

    def bias_parts(self) -> dict[int, int]:
        """Returns the number of gates, by `id` of the bias that holds those of all."""
        return {
            id(cell.cell.bias): cell.cell.kernel.shape[1] // cell.units
            for cell in self.directions.values()
            if cell.use_bias
        }

    def call(
        self,
        inputs: Any,
        initial_state: Any = None,
        mask: Any = None,
        training: bool | None = None,
    ) -> Any:
        """Returns what the Keras layer would, rounded on the way.

        Args:
            inputs: Sequences, of shape (samples, steps, features).
            initial_state: What is remembered from before them, of shape (samples, units) each; for
                two directions those of the first one first. None for zeros.
            mask: Of shape (samples, steps): false at steps that leave the states as they are.
            training: Whether dropout is applied and ranges are learned.
        """
        if self.passes:
            return self.inner.call(inputs, initial_state=initial_state, mask=mask, training=False)
        given = [inputs, *keras.tree.flatten([] if initial_state is None else initial_state)]
        own = {n: q for n, q in self.rounding.items() if isinstance(q, ActivationQuantizer)}
        learned = {name: q for name, q in own.items() if q.fixed_range is None}
        first = next(iter(learned.values()), None)  # of the inputs, which every sequence has
        if first is None or first.observer is not None:
            outputs = self._run([*map(Value, given)], mask, Stepwise(self.rounding), {})
            if first is None:  # the converter wants to be told
                outputs = [to(x) for to, x in zip(self.output_quantizers(), outputs, strict=True)]
            return _whole(outputs)
        trained = first.rounds()
        if training:
            steps = Stepwise(self.rounding, ops.cast(trained, self.compute_dtype))
            outputs = self._run([*map(Value, given)], mask, steps, self._dropped(inputs))
            for name, ends in steps.min_max().items():
                if name in learned:
                    learned[name].observe(*ends)
            return _whole(outputs)
        grids = self.linked_quantizers()
        exact = bool(grids) and all(q.exact for q in grids)

        def rounded() -> Any:
            units = [grid.qparams()[0] for grid in grids[:-1]] if exact else [None] * len(given)
            values = [*map(Value, given, units)]
            return self._run(values, mask, Stepwise(self.rounding, exact=exact), {})

        def untrained() -> Any:
            return self._run([*map(Value, given)], mask, Stepwise(self.rounding, False), {})

        return _whole(ops.cond(trained, rounded, untrained))

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        """Returns the mask of the Keras layer's output."""
        return self.inner.compute_mask(inputs, previous_mask)

    def _dropped(self, inputs: Any) -> dict[str, tuple[Any, Any]]:
        """Returns, by direction, what inputs and states are multiplied with: one for all steps."""

        def mask(cell: Any, rate: float, like: Any) -> Any:
            return random.dropout(ops.ones_like(like), rate, seed=cell.cell.seed_generator)

        masks = {}
        for name, cell in self.directions.items():
            state = ops.zeros((ops.shape(inputs)[0], cell.units), self.compute_dtype)
            of_input = mask(cell, cell.dropout, inputs[:, :1]) if cell.dropout else None
            rate = cell.recurrent_dropout
            masks[name] = (of_input, mask(cell, rate, state) if rate else None)
        return masks

    def _run(self, given: list[Value], mask: Any, steps: Stepwise, dropped: Any) -> list[Any]:
        inputs, *starts = given
        each = len(starts) // len(self.directions)
        results: list[Value] = []
        states: list[Value] = []
        for name, cell in self.directions.items():
            steps.prefix, steps.held = f"{name}_", _HELD[type(cell)]
            of_input, steps.of_state = dropped.get(name, (None, None))
            seen = inputs if of_input is None else Value(inputs.x * of_input)
            advance, gates = _CELLS[type(cell)](cell, seen, steps)
            turned = name == "backward" if cell.return_sequences else None
            if mask is not None:
                steps.mask = Mask(ops.cast(mask, "bool"), cell.zero_output_for_mask)
            start, starts = starts[:each], starts[each:]
            output, held = steps.loop(advance, gates, start, bool(cell.go_backwards), turned)
            results.append(output)
            states += held[: len(steps.held)]
        steps.prefix = ""
        if getattr(self.inner, "merge_mode", None) is not None:
            results = [_merged(self.inner.merge_mode, results, steps)]
        returned = [*results, *states] if self.inner.return_state else results
        return [value.x for value in returned]

    def compute_output_shape(self, input_shape: Any, initial_state_shape: Any = None) -> Any:
        """Returns the shapes that the Keras layer gives."""
        return self.inner.compute_output_shape(input_shape)

    def compute_output_spec(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns shapes and dtype that the Keras layer gives."""
        shapes = self.compute_output_shape(inputs.shape)
        shapes = shapes if len(self.returned) > 1 else [shapes]
        return _whole([keras.KerasTensor(shape, self.compute_dtype) for shape in shapes])

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        inner = keras.saving.serialize_keras_object(self.inner)
        return {**super().get_config(), "inner": inner}


def _whole(outputs: Any) -> Any:
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _inputs(
    cell: Any, x: Value, bias: Any, gates: Sequence[str], steps: Stepwise
) -> dict[str, Value]:
    """Returns what each gate gets from the inputs of all steps."""
    kernels = ops.split(ops.convert_to_tensor(cell.cell.kernel), len(gates), axis=1)
    biases = [None] * len(gates) if bias is None else ops.split(bias, len(gates))
    given = {}
    for gate, kernel, offset in zip(gates, kernels, biases, strict=True):
        given[gate] = steps.weighted(f"input{gate}", x, steps.kernel(kernel, offset))
    return given


def _lstm(cell: Any, x: Value, steps: Stepwise) -> tuple[Any, dict[str, Value]]:
    gates = ("_i", "_f", "_c", "_o")
    bias = ops.convert_to_tensor(cell.cell.bias) if cell.use_bias else None
    activated = functools.partial(_ACTIVATIONS[cell.activation], steps)
    recurrent = ops.split(ops.convert_to_tensor(cell.cell.recurrent_kernel), 4, axis=1)
    kernels = dict(zip(gates, map(steps.kernel, recurrent), strict=True))

    def advance(held: Sequence[Value], given: dict[str, Value]) -> Sequence[Value]:
        z = dict(given)
        for gate in gates if held else ():
            product = steps.weighted(f"recurrent{gate}", steps.seen(held[0]), kernels[gate])
            z[gate] = steps.add(f"sum{gate}", z[gate], product)
        to = "added" if held or steps.count > 1 else "carry"  # which may be returned
        carry = steps.multiply(to, steps.sigmoid(z["_i"]), activated(z["_c"]))
        if held:
            kept = steps.multiply("kept", steps.sigmoid(z["_f"]), held[1])
            carry = steps.add("carry", kept, carry)
        return steps.multiply("state", steps.sigmoid(z["_o"]), activated(carry)), carry

    return advance, _inputs(cell, x, bias, gates, steps)


def _gru(cell: Any, x: Value, steps: Stepwise) -> tuple[Any, dict[str, Value]]:
    gates = ("_z", "_r", "_h")
    activated = functools.partial(_ACTIVATIONS[cell.activation], steps)
    bias = after = None
    if cell.use_bias:
        bias = ops.convert_to_tensor(cell.cell.bias)
        if cell.reset_after:
            # Of the bias of the state, only the part that the reset gate multiplies stays apart.
            after = bias[1, 2 * cell.units :]
            bias = bias[0] + ops.concatenate([bias[1, : 2 * cell.units], ops.zeros_like(after)])
    kernel_z, kernel_r, kernel_h = ops.split(
        ops.convert_to_tensor(cell.cell.recurrent_kernel), 3, axis=1
    )
    update_of, reset_of = steps.kernel(kernel_z), steps.kernel(kernel_r)
    memory_of = steps.kernel(kernel_h, after)

    def advance(held: Sequence[Value], given: dict[str, Value]) -> Sequence[Value]:
        z, r, candidate = (given[gate] for gate in gates)
        seen = steps.seen(held[0]) if held else None
        if seen is not None:
            z = steps.add("sum_z", z, steps.weighted("recurrent_z", seen, update_of))
            r = steps.add("sum_r", r, steps.weighted("recurrent_r", seen, reset_of))
        reset = steps.sigmoid(r)
        memory = None
        if cell.reset_after and seen is not None:
            memory = steps.multiply("reset", reset, steps.weighted("recurrent_h", seen, memory_of))
        elif cell.reset_after and after is not None:
            bare = ops.zeros_like(candidate.x) + after
            memory = steps.multiply("reset", reset, steps.constant("recurrent_h", bare))
        elif seen is not None:
            memory = steps.weighted("recurrent_h", steps.multiply("reset", reset, seen), memory_of)
        if memory is not None:
            candidate = steps.add("sum_h", candidate, memory)
        new, update = activated(candidate), steps.sigmoid(z)
        if held:
            difference = steps.subtract("difference", held[0], new)
        else:
            difference = steps.scale("difference", new, -1.0)
        return (steps.add("state", new, steps.multiply("mixed", update, difference)),)

    return advance, _inputs(cell, x, bias, gates, steps)


def _simple(cell: Any, x: Value, steps: Stepwise) -> tuple[Any, dict[str, Value]]:
    bias = ops.convert_to_tensor(cell.cell.bias) if cell.use_bias else None
    kernel = steps.kernel(ops.convert_to_tensor(cell.cell.recurrent_kernel))

    def advance(held: Sequence[Value], given: dict[str, Value]) -> Sequence[Value]:
        z = given[""]
        if held:
            z = steps.add("sum", z, steps.weighted("recurrent", steps.seen(held[0]), kernel))
        if cell.activation is keras.activations.tanh:
            return (steps.tanh(z),)
        return (steps.move("state", _ACTIVATIONS[cell.activation](steps, z)),)

    return advance, _inputs(cell, x, bias, ("",), steps)


_CELLS = {layers.LSTM: _lstm, layers.GRU: _gru, layers.SimpleRNN: _simple}


def _merged(mode: str, results: list[Value], steps: Stepwise) -> Value:
    forward, backward = results
    if mode == "concat":
        parts = [steps.move("merged", part) for part in (forward, backward)]
        return Value(ops.concatenate([part.x for part in parts], axis=-1), parts[0].unit)
    if mode == "mul":
        return steps.multiply("merged", forward, backward)
    if mode == "sum":
        return steps.add("merged", forward, backward)
    return steps.scale("merged", steps.add("added", forward, backward), 0.5)


@canonical_form
class WriteOutLoop(Rule):
    """A recurrent layer of known, moderate length, step by step."""

    def matches(self, layer: Any) -> bool:
        """Returns whether `layer` can be written out; warns if only its length forbids it."""
        if not (layer.built and inbound_nodes(layer) and understands(layer)):
            return False
        for node in inbound_nodes(layer):
            options = {name: v for name, v in node.arguments.kwargs.items() if v is not None}
            states = [*node.arguments.args[1:], options.pop("initial_state", ())]
            if not all(isinstance(t, keras.KerasTensor) for t in keras.tree.flatten(states)):
                return False
            mask = options.pop("mask", None)
            if mask is not None and (
                keras.backend.is_float_dtype(mask.dtype) or len(mask.shape) != 2
            ):
                return False
            if len(node.arguments.args) not in (1, 2) or set(options) - {"training"}:
                return False
        lengths = {node.input_tensors[0].shape[1] for node in inbound_nodes(layer)}
        longest = max(length or LONGEST + 1 for length in lengths)
        if longest > LONGEST:
            warnings.warn(
                f"layer {layer.name!r} stays in float: it reads sequences of "
                f"{'unknown length' if None in lengths else f'{longest} steps'}, and only up to "
                f"{LONGEST} are written out in integers (about {BYTES_PER_STEP} bytes of the file "
                "for each step). Give the input a fixed, shorter length.",
                CompressionWarning,
                stacklevel=2,
            )
        return longest <= LONGEST

    def parts(self, layer: Any) -> list[Any]:
        """Returns the layer without a loop."""
        return [runtime_layer(RuntimeRecurrent, layer, inner=clone_layer(layer))]
