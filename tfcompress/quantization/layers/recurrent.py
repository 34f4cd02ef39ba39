"""LSTM, GRU and SimpleRNN as operations of the runtime, in integers.

A file holds some of the time steps in the body of a loop (`recurrent_blocks.py`). Sequences are of
any length, which must be known: the loop counts its passes.
"""

from __future__ import annotations

import warnings
from typing import Any

import keras
from keras import layers, ops, random

from tfcompress.errors import CompressionWarning
from tfcompress.graph.copies import clone_layer
from tfcompress.graph.keras_internals import inbound_nodes
from tfcompress.integer.fixed_point import TANH_RANGE
from tfcompress.integer.kernels import KERNELS
from tfcompress.quantization.activation_quantizer import ActivationQuantizer
from tfcompress.quantization.canonicalize import Rule, canonical_form
from tfcompress.quantization.layers.base import RuntimeLayer, runtime_layer
from tfcompress.quantization.layers.recurrent_cells import ACTIVATIONS, CELLS, RESULTS, STATES
from tfcompress.quantization.layers.recurrent_steps import RuntimeOps
from tfcompress.quantization.layers.recurrent_values import Mask, Value

_MERGE_RESULTS = {"ave": ("added", "merged")}


def is_known(layer: Any) -> bool:
    """Returns whether a layer is a recurrent one that operations of the runtime compute."""
    cells = [layer]
    if type(layer) is layers.Bidirectional:
        cells = [layer.forward_layer, layer.backward_layer]
    return all(
        type(cell) in RESULTS
        and not cell.stateful
        and cell.activation in ACTIVATIONS
        and getattr(cell, "recurrent_activation", keras.activations.sigmoid)
        is keras.activations.sigmoid
        for cell in cells
    )


@keras.saving.register_keras_serializable("tfcompress")
class RuntimeRecurrent(RuntimeLayer):
    """A recurrent layer, or a bidirectional pair, as operations of the runtime.

    Args:
        inner: The Keras layer, or its config; it holds the weights.
        unrolled: Whether a file holds each time step, for chips without loops.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    rounds_each_column = True

    def __init__(self, inner: Any, *, unrolled: bool = False, **kwargs: Any) -> None:
        if isinstance(inner, dict):
            inner = keras.saving.deserialize_keras_object(inner)
        self.directions = {"forward": inner}
        if isinstance(inner, layers.Bidirectional):
            self.directions = {"forward": inner.forward_layer, "backward": inner.backward_layer}
        self.result_names = tuple(
            f"{name}_{result}"
            for name, cell in self.directions.items()
            for result in RESULTS[type(cell)]
        )
        states = [
            f"{name}_{state}"
            for name, cell in self.directions.items()
            for state in STATES[type(cell)]
        ]
        outputs = [f"{name}_state" for name in self.directions]
        if getattr(inner, "merge_mode", None) is not None:
            self.result_names += _MERGE_RESULTS.get(inner.merge_mode, ("merged",))
            outputs = [*self.result_names[-1:]]
        self.output_names = (*outputs, *states) if inner.return_state else (*outputs,)
        self.fixed_ranges = {
            f"{name}_state": TANH_RANGE
            for name, cell in self.directions.items()
            if type(cell) is layers.SimpleRNN and cell.activation is keras.activations.tanh
        }
        super().__init__(**kwargs)
        self.inner, self.unrolled = inner, unrolled

    def output_quantizers(self) -> list[ActivationQuantizer]:
        """Returns the quantizers of the outputs, in this order."""
        return [self.rounding[name] for name in self.output_names]

    def build(self, input_shape: Any) -> None:
        """Creates the weights and the ranges."""
        if not self.inner.built:
            self.inner.build(input_shape)
        super().build(input_shape)

    def original_variables(self) -> list[Any]:
        """Returns the variables of the Keras layer."""
        return self.inner.variables

    def bias_parts(self) -> dict[int, int]:
        """Returns the number of gates, by `id` of the bias that concatenates theirs."""
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
        """Returns the outputs of the Keras layer, with every intermediate result quantized.

        Args:
            inputs: Sequences, of shape (samples, time steps, features).
            initial_state: The initial states, of shape (samples, units) each; for two directions
                those of the forward one first. None for zeros.
            mask: Of shape (samples, time steps); false at time steps that leave the states
                unchanged.
            training: Whether dropout is applied and ranges are learned.
        """
        if self.passes:
            return self.inner.call(inputs, initial_state=initial_state, mask=mask, training=False)
        tensors = [inputs, *keras.tree.flatten([] if initial_state is None else initial_state)]
        own = {n: q for n, q in self.rounding.items() if isinstance(q, ActivationQuantizer)}
        learned = {name: q for name, q in own.items() if q.fixed_range is None}
        # The first quantizer is that of the inputs, which every sequence has.
        first = next(iter(learned.values()), None)
        if first is None or first.observer is not None:
            runtime = RuntimeOps(self.rounding, unrolled=self.unrolled)
            outputs = self._run([*map(Value, tensors)], mask, runtime, {})
            if first is None:  # the converter needs a fake-quantization of each output
                outputs = [
                    quantizer(x)
                    for quantizer, x in zip(self.output_quantizers(), outputs, strict=True)
                ]
            return _unpack(outputs)
        trained = first.rounds()
        if training:
            runtime = RuntimeOps(self.rounding, ops.cast(trained, self.compute_dtype))
            outputs = self._run([*map(Value, tensors)], mask, runtime, self._dropout(inputs))
            for name, min_max in runtime.min_max().items():
                if name in learned:
                    learned[name].observe(*min_max)
            return _unpack(outputs)
        linked = self.linked_quantizers()
        exact = bool(linked) and all(q.exact for q in linked)

        def quantize() -> Any:
            scales = [q.qparams()[0] for q in linked[:-1]] if exact else [None] * len(tensors)
            values = [*map(Value, tensors, scales)]
            return self._run(
                values,
                mask,
                RuntimeOps(self.rounding, exact=exact, kernels=KERNELS[self.kernels]),
                {},
            )

        def untrained() -> Any:
            return self._run([*map(Value, tensors)], mask, RuntimeOps(self.rounding, False), {})

        return _unpack(ops.cond(trained, quantize, untrained))

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        """Returns the mask of the Keras layer's output."""
        return self.inner.compute_mask(inputs, previous_mask)

    def _dropout(self, inputs: Any) -> dict[str, tuple[Any, Any]]:
        """Returns the dropout masks of inputs and states by direction, one for all time steps."""

        def mask(cell: Any, rate: float, like: Any) -> Any:
            return random.dropout(ops.ones_like(like), rate, seed=cell.cell.seed_generator)

        masks = {}
        for name, cell in self.directions.items():
            state = ops.zeros((ops.shape(inputs)[0], cell.units), self.compute_dtype)
            of_input = mask(cell, cell.dropout, inputs[:, :1]) if cell.dropout else None
            rate = cell.recurrent_dropout
            masks[name] = (of_input, mask(cell, rate, state) if rate else None)
        return masks

    def _run(self, values: list[Value], mask: Any, runtime: RuntimeOps, dropout: Any) -> list[Any]:
        inputs, *initial_states = values
        each = len(initial_states) // len(self.directions)
        results: list[Value] = []
        states: list[Value] = []
        for name, cell in self.directions.items():
            runtime.prefix, runtime.state_names = f"{name}_", STATES[type(cell)]
            of_input, runtime.state_dropout = dropout.get(name, (None, None))
            x = inputs if of_input is None else Value(inputs.x * of_input)
            advance, gates = CELLS[type(cell)](cell, x, runtime)
            reverse_outputs = name == "backward" if cell.return_sequences else None
            if mask is not None:
                runtime.mask = Mask(ops.cast(mask, "bool"), cell.zero_output_for_mask)
            start, initial_states = initial_states[:each], initial_states[each:]
            output, last = runtime.loop(
                advance, gates, start, bool(cell.go_backwards), reverse_outputs
            )
            results.append(output)
            states += last[: len(runtime.state_names)]
        runtime.prefix = ""
        if getattr(self.inner, "merge_mode", None) is not None:
            results = [_merged(self.inner.merge_mode, results, runtime)]
        outputs = [*results, *states] if self.inner.return_state else results
        return [value.x for value in outputs]

    def compute_output_shape(self, input_shape: Any, initial_state_shape: Any = None) -> Any:
        """Returns the output shapes of the Keras layer."""
        return self.inner.compute_output_shape(input_shape)

    def compute_output_spec(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns the output shapes and dtype of the Keras layer."""
        shapes = self.compute_output_shape(inputs.shape)
        shapes = shapes if len(self.output_names) > 1 else [shapes]
        return _unpack([keras.KerasTensor(shape, self.compute_dtype) for shape in shapes])

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        inner = keras.saving.serialize_keras_object(self.inner)
        return {**super().get_config(), "inner": inner, "unrolled": self.unrolled}


def _unpack(outputs: Any) -> Any:
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _merged(mode: str, results: list[Value], runtime: RuntimeOps) -> Value:
    forward, backward = results
    if mode == "concat":
        parts = [runtime.requantize("merged", part) for part in (forward, backward)]
        return Value(ops.concatenate([part.x for part in parts], axis=-1), parts[0].scale)
    if mode == "mul":
        return runtime.multiply("merged", forward, backward)
    if mode == "sum":
        return runtime.add("merged", forward, backward)
    return runtime.multiply_by("merged", runtime.add("added", forward, backward), 0.5)


@canonical_form
class RecurrentInIntegers(Rule):
    """A recurrent layer on sequences of known length."""

    preferences: tuple[str, ...] = ("latency", "bytes")

    def matches(self, layer: Any) -> bool:
        """Returns whether `layer` has integer steps; warns if only its length prevents it."""
        if not (layer.built and inbound_nodes(layer) and is_known(layer)):
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
        if any(node.input_tensors[0].shape[1] is None for node in inbound_nodes(layer)):
            warnings.warn(
                f"layer {layer.name!r} stays in float: it reads sequences of unknown length. Give "
                "the input a fixed length, as in keras.Input((100, 32)); shorter sequences can be "
                "padded and masked.",
                CompressionWarning,
                stacklevel=2,
            )
            return False
        return True

    def parts(self, layer: Any) -> list[Any]:
        """Returns the layer of the runtime's operations."""
        inner, unrolled = clone_layer(layer), "exactness" in self.preferences
        return [runtime_layer(RuntimeRecurrent, layer, inner=inner, unrolled=unrolled)]


@canonical_form
class UnrolledRecurrent(RecurrentInIntegers):
    """The same with every time step in the file: chips that lack floats lack loops too."""

    preferences = ("exactness",)
