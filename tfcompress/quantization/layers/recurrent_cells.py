"""The cells of LSTM, GRU and SimpleRNN as operations of the runtime."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import keras
from keras import layers, ops

from tfcompress.quantization.layers.recurrent_steps import RuntimeOps
from tfcompress.quantization.layers.recurrent_values import Value

RESULTS = {
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
"""Names of the quantized results of each cell, which are also the names of their quantizers."""


STATES = {
    layers.LSTM: ("state", "carry"),
    layers.GRU: ("state",),
    layers.SimpleRNN: ("state",),
}
"""The recurrent states of each cell; the first one is its output."""


ACTIVATIONS = {
    keras.activations.tanh: RuntimeOps.tanh,
    keras.activations.sigmoid: RuntimeOps.sigmoid,
    keras.activations.relu: RuntimeOps.relu,
    keras.activations.linear: RuntimeOps.linear,
}


def _inputs(
    cell: Any, x: Value, bias: Any, gates: Sequence[str], runtime: RuntimeOps
) -> dict[str, Value]:
    """Returns the input product of each gate, for all time steps."""
    kernels = ops.split(ops.convert_to_tensor(cell.cell.kernel), len(gates), axis=1)
    biases = [None] * len(gates) if bias is None else ops.split(bias, len(gates))
    gate_inputs = {}
    for gate, kernel, offset in zip(gates, kernels, biases, strict=True):
        gate_inputs[gate] = runtime.matmul(f"input{gate}", x, runtime.kernel(kernel, offset))
    return gate_inputs


def _lstm(cell: Any, x: Value, runtime: RuntimeOps) -> tuple[Any, dict[str, Value]]:
    gates = ("_i", "_f", "_c", "_o")
    bias = ops.convert_to_tensor(cell.cell.bias) if cell.use_bias else None
    activated = functools.partial(ACTIVATIONS[cell.activation], runtime)
    recurrent = ops.split(ops.convert_to_tensor(cell.cell.recurrent_kernel), 4, axis=1)
    kernels = dict(zip(gates, map(runtime.kernel, recurrent), strict=True))

    def advance(states: Sequence[Value], inputs: dict[str, Value]) -> Sequence[Value]:
        z = dict(inputs)
        for gate in gates if states else ():
            product = runtime.matmul(
                f"recurrent{gate}", runtime.with_dropout(states[0]), kernels[gate]
            )
            z[gate] = runtime.add(f"sum{gate}", z[gate], product)
        # The only product of a single time step is the carry, which may be an output.
        name = "added" if states or runtime.count > 1 else "carry"
        carry = runtime.multiply(name, runtime.sigmoid(z["_i"]), activated(z["_c"]))
        if states:
            kept = runtime.multiply("kept", runtime.sigmoid(z["_f"]), states[1])
            carry = runtime.add("carry", kept, carry)
        return runtime.multiply("state", runtime.sigmoid(z["_o"]), activated(carry)), carry

    return advance, _inputs(cell, x, bias, gates, runtime)


def _gru(cell: Any, x: Value, runtime: RuntimeOps) -> tuple[Any, dict[str, Value]]:
    gates = ("_z", "_r", "_h")
    activated = functools.partial(ACTIVATIONS[cell.activation], runtime)
    bias = recurrent_bias = None
    if cell.use_bias:
        bias = ops.convert_to_tensor(cell.cell.bias)
        if cell.reset_after:
            # Only the part of the recurrent bias that the reset gate multiplies stays separate.
            recurrent_bias = bias[1, 2 * cell.units :]
            bias = bias[0] + ops.concatenate(
                [bias[1, : 2 * cell.units], ops.zeros_like(recurrent_bias)]
            )
    kernel_z, kernel_r, kernel_h = ops.split(
        ops.convert_to_tensor(cell.cell.recurrent_kernel), 3, axis=1
    )
    update_kernel, reset_kernel = runtime.kernel(kernel_z), runtime.kernel(kernel_r)
    memory_kernel = runtime.kernel(kernel_h, recurrent_bias)

    def advance(states: Sequence[Value], inputs: dict[str, Value]) -> Sequence[Value]:
        z, r, candidate = (inputs[gate] for gate in gates)
        state = runtime.with_dropout(states[0]) if states else None
        if state is not None:
            z = runtime.add("sum_z", z, runtime.matmul("recurrent_z", state, update_kernel))
            r = runtime.add("sum_r", r, runtime.matmul("recurrent_r", state, reset_kernel))
        reset = runtime.sigmoid(r)
        memory = None
        if cell.reset_after and state is not None:
            memory = runtime.multiply(
                "reset", reset, runtime.matmul("recurrent_h", state, memory_kernel)
            )
        elif cell.reset_after and recurrent_bias is not None:
            bias_alone = ops.zeros_like(candidate.x) + recurrent_bias
            memory = runtime.multiply("reset", reset, runtime.constant("recurrent_h", bias_alone))
        elif state is not None:
            memory = runtime.matmul(
                "recurrent_h", runtime.multiply("reset", reset, state), memory_kernel
            )
        if memory is not None:
            candidate = runtime.add("sum_h", candidate, memory)
        new, update = activated(candidate), runtime.sigmoid(z)
        if states:
            difference = runtime.subtract("difference", states[0], new)
        else:
            difference = runtime.multiply_by("difference", new, -1.0)
        return (runtime.add("state", new, runtime.multiply("mixed", update, difference)),)

    return advance, _inputs(cell, x, bias, gates, runtime)


def _simple(cell: Any, x: Value, runtime: RuntimeOps) -> tuple[Any, dict[str, Value]]:
    bias = ops.convert_to_tensor(cell.cell.bias) if cell.use_bias else None
    kernel = runtime.kernel(ops.convert_to_tensor(cell.cell.recurrent_kernel))

    def advance(states: Sequence[Value], inputs: dict[str, Value]) -> Sequence[Value]:
        z = inputs[""]
        if states:
            z = runtime.add(
                "sum", z, runtime.matmul("recurrent", runtime.with_dropout(states[0]), kernel)
            )
        if cell.activation is keras.activations.tanh:
            return (runtime.tanh(z),)
        return (runtime.requantize("state", ACTIVATIONS[cell.activation](runtime, z)),)

    return advance, _inputs(cell, x, bias, ("",), runtime)


CELLS = {layers.LSTM: _lstm, layers.GRU: _gru, layers.SimpleRNN: _simple}
