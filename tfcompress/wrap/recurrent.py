"""LSTM, GRU and SimpleRNN in the steps of the runtime, one after the other without a loop.

The runtime cannot keep integers in a loop, so what the loop does is written out for every step of
the sequence. The weights are stored once; each step adds about 17 operations to the file of an LSTM
(about 2.5 KB), 15 to that of a GRU.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops, random

from tfcompress.wrap.activations import ActivationQuantizer, FixedFakeQuant, round_onto
from tfcompress.wrap.runtime import SIGMOID_RANGE, RuntimeLayer

TANH_RANGE = (-1.0, 127 / 128)
"""What the runtime prescribes for the result of a tanh."""

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
    layers.SimpleRNN: "input recurrent sum".split(),
}


def understands(layer: Any) -> bool:
    """Returns whether a layer is recurrent in a way that can be written out, of any length."""
    cells = [layer]
    if type(layer) is layers.Bidirectional:
        cells = [layer.forward_layer, layer.backward_layer]
        if layer.merge_mode is None or layer.return_state:
            return False
    return all(
        type(cell) in _STEPS
        and not (cell.return_state or cell.stateful)
        and cell.activation is keras.activations.tanh
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
        super().__init__(**kwargs)
        self.supports_masking = False
        self.inner = inner

    def build(self, input_shape: Any) -> None:
        """Creates the weights and the ranges."""
        if not self.inner.built:
            self.inner.build(input_shape)
        super().build(input_shape)

    def original_variables(self) -> list[Any]:
        """Returns the variables of the Keras layer."""
        return self.inner.variables

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns what the Keras layer would, rounded on the way."""
        quantizers = [q for q in self.rounding.values() if isinstance(q, ActivationQuantizer)]
        if not quantizers or quantizers[0].observer is not None:
            return self._run(inputs, _Rounding(self.rounding), {})
        trained = ops.convert_to_tensor(quantizers[-1].step) > 0
        dropped = self._dropped(inputs) if training else {}

        def run(rounds: bool) -> Any:
            rounding = _Rounding(self.rounding, rounds)
            outputs = self._run(inputs, rounding, dropped)
            return outputs, rounding.ends()

        outputs, ends = ops.cond(trained, lambda: run(True), lambda: run(False))
        if training:
            for name, quantizer in self.rounding.items():
                quantizer.observe(*ends[name])
        return outputs

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

    def _run(self, inputs: Any, rounding: _Rounding, dropped: Any) -> Any:
        results = []
        for name, cell in self.directions.items():
            rounding.prefix = f"{name}_"
            of_input, rounding.of_state = dropped.get(name, (None, None))
            # What two directions end with is rounded where it is put together.
            rounding.rounds_last = len(self.directions) == 1 or cell.return_sequences
            given = inputs if of_input is None else inputs * of_input
            states = _RUN[type(cell)](cell, given, bool(cell.go_backwards), rounding)
            if not cell.return_sequences:
                results.append(states[-1])
                continue
            if name == "backward":
                states = states[::-1]
            results.append(ops.stack(states, axis=1))
        return results[0] if len(results) == 1 else _merged(self.inner.merge_mode, *results)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape that the Keras layer gives."""
        return self.inner.compute_output_shape(input_shape)

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns shape and dtype that the Keras layer gives."""
        return keras.KerasTensor(self.compute_output_shape(inputs.shape), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        inner = keras.saving.serialize_keras_object(self.inner)
        return {**super().get_config(), "inner": inner}


class _Rounding:
    """Rounds the steps of one pass, and remembers what was rounded."""

    def __init__(self, quantizers: dict[str, Any], rounds: bool = True) -> None:
        self.prefix = ""
        self.rounds_last = True
        self.of_state: Any = None  # what dropout multiplies states with
        self._quantizers = quantizers
        self._rounds = rounds
        self._seen: dict[str, list[Any]] = {name: [] for name in quantizers}
        self._ranges: dict[str, Any] = {}
        self._frozen = isinstance(next(iter(quantizers.values())), FixedFakeQuant)

    def __call__(self, step: str, x: Any) -> Any:
        """Returns `x` rounded as a result of the step."""
        name = self.prefix + step
        quantizer = self._quantizers[name]
        if self._frozen or quantizer.observer is not None:
            return quantizer(x)
        self._seen[name].append(x)
        if not self._rounds:
            return x
        if name not in self._ranges:
            self._ranges[name] = quantizer.current_range()
        return self._straight(x, self._ranges[name])

    def state(self, x: Any, last: bool) -> Any:
        """Returns a state, rounded unless it is the last and what follows rounds it."""
        return self("state", x) if self.rounds_last or not last else x

    def seen(self, state: Any) -> Any:
        """Returns a state as the recurrent kernels see it."""
        return state if self.of_state is None else state * self.of_state

    def sigmoid(self, x: Any) -> Any:
        """Returns the sigmoid of `x` as the runtime rounds it."""
        return self._straight(ops.sigmoid(x), SIGMOID_RANGE)

    def tanh(self, x: Any) -> Any:
        """Returns the hyperbolic tangent of `x` as the runtime rounds it."""
        return self._straight(ops.tanh(x), TANH_RANGE)

    def _straight(self, x: Any, ends: Any) -> Any:
        rounded = round_onto(x, *ends)
        # Not by a function with a gradient of its own: there would be thousands of them.
        return rounded if self._frozen else x + ops.stop_gradient(rounded - x)

    def ends(self) -> dict[str, tuple[Any, Any]]:
        """Returns the smallest and largest value of every step."""
        return {name: _ends(values) for name, values in self._seen.items()}


def _ends(values: list[Any]) -> tuple[Any, Any]:
    if not values:
        return ops.zeros(()), ops.zeros(())
    together = ops.cast(ops.stop_gradient(ops.stack(values)), "float32")
    return ops.min(together), ops.max(together)


def _inputs(
    cell: Any, x: Any, bias: Any, gates: tuple[str, ...], backwards: bool, rounding: _Rounding
) -> dict[str, list[Any]]:
    """Returns what each gate gets from the inputs, by step: one product for all steps."""
    units = cell.units
    result = {}
    for number, gate in enumerate(gates):
        part = slice(number * units, (number + 1) * units)
        products = ops.matmul(x, ops.convert_to_tensor(cell.cell.kernel)[:, part])
        if bias is not None:
            products = products + bias[part]
        products = rounding(f"input{gate}", products)
        # Slices, not unstack: of that, the converter leaves in float what has an unused result.
        steps = [products[:, step] for step in range(x.shape[1])]
        result[gate] = steps[::-1] if backwards else steps
    return result


def _lstm(cell: Any, x: Any, backwards: bool, rounding: _Rounding) -> list[Any]:
    gates = ("_i", "_f", "_c", "_o")
    bias = ops.convert_to_tensor(cell.cell.bias) if cell.use_bias else None
    given = _inputs(cell, x, bias, gates, backwards, rounding)
    recurrent = ops.split(ops.convert_to_tensor(cell.cell.recurrent_kernel), 4, axis=1)
    states: list[Any] = []
    carry = None
    for step in range(x.shape[1]):
        z = {}
        for gate, kernel in zip(gates, recurrent, strict=True):
            z[gate] = given[gate][step]
            if states:
                seen = rounding.seen(states[-1])
                product = rounding(f"recurrent{gate}", ops.matmul(seen, kernel))
                z[gate] = rounding(f"sum{gate}", z[gate] + product)
        added = rounding("added", rounding.sigmoid(z["_i"]) * rounding.tanh(z["_c"]))
        if carry is None:
            carry = added
        else:
            kept = rounding("kept", rounding.sigmoid(z["_f"]) * carry)
            carry = rounding("carry", kept + added)
        output = rounding.sigmoid(z["_o"]) * rounding.tanh(carry)
        states.append(rounding.state(output, step == x.shape[1] - 1))
    return states


def _gru(cell: Any, x: Any, backwards: bool, rounding: _Rounding) -> list[Any]:
    gates = ("_z", "_r", "_h")
    units = cell.units
    bias = after = None
    if cell.use_bias:
        bias = ops.convert_to_tensor(cell.cell.bias)
        if cell.reset_after:
            # Of the bias of the state, only the part that the reset gate multiplies stays apart.
            after = bias[1, 2 * units :]
            bias = bias[0] + ops.concatenate([bias[1, : 2 * units], ops.zeros_like(after)])
    given = _inputs(cell, x, bias, gates, backwards, rounding)
    kernel_z, kernel_r, kernel_h = ops.split(
        ops.convert_to_tensor(cell.cell.recurrent_kernel), 3, axis=1
    )
    states: list[Any] = []
    for step in range(x.shape[1]):
        z, r, candidate = (given[gate][step] for gate in gates)
        if states:
            seen = rounding.seen(states[-1])
            z = rounding("sum_z", z + rounding("recurrent_z", ops.matmul(seen, kernel_z)))
            r = rounding("sum_r", r + rounding("recurrent_r", ops.matmul(seen, kernel_r)))
        reset = rounding.sigmoid(r)
        memory = None
        if cell.reset_after and (states or after is not None):
            memory = ops.matmul(seen, kernel_h) if states else ops.zeros_like(candidate)
            memory = memory if after is None else memory + after
            memory = rounding("reset", reset * rounding("recurrent_h", memory))
        elif states:
            memory = rounding("reset", reset * seen)
            memory = rounding("recurrent_h", ops.matmul(memory, kernel_h))
        if memory is not None:
            candidate = rounding("sum_h", candidate + memory)
        new, update = rounding.tanh(candidate), rounding.sigmoid(z)
        difference = states[-1] - new if states else -1.0 * new
        mixed = rounding("mixed", update * rounding("difference", difference))
        states.append(rounding.state(new + mixed, step == x.shape[1] - 1))
    return states


def _simple(cell: Any, x: Any, backwards: bool, rounding: _Rounding) -> list[Any]:
    bias = ops.convert_to_tensor(cell.cell.bias) if cell.use_bias else None
    given = _inputs(cell, x, bias, ("",), backwards, rounding)[""]
    kernel = ops.convert_to_tensor(cell.cell.recurrent_kernel)
    states: list[Any] = []
    for z in given:
        if states:
            product = rounding("recurrent", ops.matmul(rounding.seen(states[-1]), kernel))
            z = rounding("sum", z + product)
        states.append(rounding.tanh(z))
    return states


_RUN = {layers.LSTM: _lstm, layers.GRU: _gru, layers.SimpleRNN: _simple}


def _merged(mode: str, forward: Any, backward: Any) -> Any:
    if mode == "concat":
        return ops.concatenate([forward, backward], axis=-1)
    if mode == "mul":
        return forward * backward
    return (forward + backward) * (0.5 if mode == "ave" else 1.0)


def unrolled(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the entries of a config to change so that no loop is left in the layer."""
    changed: dict[str, Any] = {"unroll": True} if "unroll" in config else {}
    for name in ("layer", "backward_layer"):
        inner = config.get(name)
        if isinstance(inner, dict) and "unroll" in inner.get("config", {}):
            changed[name] = {**inner, "config": {**inner["config"], "unroll": True}}
    return changed
