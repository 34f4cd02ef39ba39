"""Placement of activation quantizers: the rewriting that follows the table of `roles.py`."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from itertools import zip_longest
from typing import Any

import keras

from tfcompress.graph.layers import KERNELS, is_float, plain
from tfcompress.graph.read import (
    Call,
    Graph,
    called_once,
    layer_name,
    layer_names,
    walk_layers,
)
from tfcompress.integer.role_queries import (
    BINARY,
    adds_tensors,
    is_identity,
    is_joined,
    is_one_relu,
    is_second_factor,
    is_unjoined_input,
    quantizes_weights,
)
from tfcompress.integer.roles import (
    AVERAGE,
    COMPARE,
    FUSES,
    JOIN,
    MOVE,
    PRECISE,
    RELU,
    TABLE,
    augments,
    fixed_range,
    has_int16_kernels,
    role,
)
from tfcompress.quantization.activation_quantizer import ActivationQuantizer
from tfcompress.quantization.emit_quantizers import EmitQuantizers
from tfcompress.quantization.following_quantizer import FollowingQuantizer
from tfcompress.quantization.index_tensors import index_tensors, makes_indices, reads_indices
from tfcompress.quantization.input_samples import MOST_SAMPLES, InputSamples, samples_to_keep
from tfcompress.quantization.kept_in_float import precise_calls, steep_inputs
from tfcompress.quantization.layers.merge import RuntimeMerge
from tfcompress.quantization.layers.recurrent import RuntimeRecurrent
from tfcompress.quantization.quantized_models import ChainedModel, QuantizedModel
from tfcompress.quantization.tensor_state import TensorState
from tfcompress.wrap.wrapper import CompressionWrapper


class PlaceQuantizers(EmitQuantizers):
    """Inserts activation quantizers into a model whose weights are wrapped already.

    The wrapped layers move into the new model: the old one must not be used any more.

    Args:
        selected: Paths of the operations to quantize, or None for all. What the runtime fuses into
            a selected operation is quantized with it.
        left_out: Paths of layers that stay float in any case, with what would be fused into them.
        int16: Paths of layers that compute on int16 activations where there are kernels for it.
        learned: Whether ranges follow their gradient instead of the observed values.
    """

    sequential_class = ChainedModel
    keep_samples = MOST_SAMPLES
    prefer = "latency"

    def __init__(
        self,
        selected: set[str] | None,
        *,
        left_out: Collection[str] = (),
        int16: Collection[str] = (),
        learned: bool = False,
    ) -> None:
        super().__init__(learned)
        self._selected = selected
        self._left_out, self._int16 = left_out, int16
        self._quantized: dict[tuple[int, int], Any] = {}
        self._entered: dict[int, list[TensorState]] = {}
        self._model_states: dict[int, list[TensorState]] = {}
        self._relus: dict[int, ActivationQuantizer] = {}
        self._indices: set[int] = set()
        self._once: set[int] = set()
        self._precise: set[int] = set()

    def run(self, model: keras.Model) -> keras.Model:
        """Returns the model with quantizers placed."""
        self._names.update((path.split("/")[-1], 1) for path, _ in walk_layers(model))
        self._indices, self._once = index_tensors(model), called_once(model)
        new = super().run(model)
        new.output_names = layer_names(new.outputs)
        return new

    def class_for(self, model: keras.Model) -> type[keras.Model]:
        """Returns a class that keeps the names of outputs."""
        chosen = super().class_for(model)
        return QuantizedModel if chosen.__module__.startswith("keras.") else chosen

    def enter(self, model: keras.Model, path: str, inputs: list[Any]) -> list[Any]:
        """Keeps samples of the outermost inputs; inputs of nested models are quantized already."""
        self._precise |= precise_calls(self._graphs[id(model)])
        if path:
            for tensor, state in zip_longest(inputs, self._entered[id(model)][: len(inputs)]):
                self._note(tensor, state or TensorState(quantized=True))
            return inputs
        capacity = min(self.keep_samples, samples_to_keep([tensor.shape for tensor in inputs]))
        kept = []
        for old, tensor in zip(model.inputs, inputs, strict=True):
            keeper = InputSamples(capacity, self.prefer, name=self._name(f"{tensor.name}_samples"))
            symmetric = self._is_symmetric(self._graphs[id(model)], old)
            kept.append(self._note(keeper(tensor), TensorState(symmetric=symmetric)))
        return kept

    def leave(self, model: keras.Model, path: str, outputs: list[Any]) -> list[Any]:
        """Stores the states of a nested model's outputs for its calls."""
        self._model_states[id(model)] = [self._state(tensor) for tensor in outputs]
        return outputs

    def visit_model(self, graph: Graph, call: Call, args: Any, kwargs: Any) -> Any:
        """Calls a nested model on quantized inputs, and quantizes its pending outputs."""
        if self._selected is None or any(p.startswith(call.path + "/") for p in self._selected):
            flat = keras.tree.flatten((args, kwargs))
            inputs = [t for t in flat if isinstance(t, keras.KerasTensor)]
            int16 = any(path.startswith(call.path + "/") for path in self._int16)
            inputs = [
                t if id(inside) in self._indices else self._quantize_if_float(t, int16)
                for t, inside in zip_longest(inputs, call.operation.inputs)
            ]
            # Every call of the model uses the bits of the inputs of its first call.
            once = id(call.operation) in self._once
            entered = [self._state(t).entering(once) for t in inputs]
            entered = self._entered.setdefault(id(call.operation), entered)
            ready = iter(
                self._quantize(t, state.bits if state.quantized else 0)
                for t, state in zip(inputs, entered, strict=True)
            )
            args, kwargs = keras.tree.map_structure(
                lambda t: next(ready) if isinstance(t, keras.KerasTensor) else t, (args, kwargs)
            )
        self._entered.setdefault(id(call.operation), [])
        outputs = super().visit_model(graph, call, args, kwargs)
        emitted = []
        states = self._model_states[id(call.operation)]
        for old, new, state in zip(call.outputs, keras.tree.flatten(outputs), states, strict=True):
            emitted.append(self._close(graph, call, old, self._note(new, state.leaving())))
        return emitted

    def visit(self, graph: Graph, call: Call, args: Any, kwargs: Any) -> Any:
        """Calls an operation and quantizes its inputs and outputs by the rules."""
        moves = isinstance(call.operation, CompressionWrapper)
        operation = (self.move if moves else self.clone)(call.operation)
        precise = id(call) in self._precise
        if adds_tensors(call) and not precise:
            operation = self.once(call, lambda: self._addition(call.operation))
            args, kwargs = ([*args, *kwargs.values()],), {}
        inputs = [t for t in keras.tree.flatten((args, kwargs)) if is_float(t)]
        fused = any(self._state(t).pending for t in inputs)
        kind = MOVE if is_identity(call) else role(call.operation)
        if call.path in self._left_out or self._in_float(kind, inputs):
            if not isinstance(call.operation, KERNELS):  # which the lowering handles
                args, kwargs = keras.tree.map_structure(self._leave_integers, (args, kwargs))
            outputs = operation(*args, **kwargs)
            for new in keras.tree.flatten(outputs):
                self._note(new, TensorState(floating=kind))
            return outputs
        if not fused and self._selected is not None and call.path not in self._selected:
            # The runtime moves and averages integers as integers, selected or not.
            stays = kind in (MOVE, AVERAGE) and all(self._state(t).quantized for t in inputs)
            if not (stays and inputs):
                return operation(*args, **kwargs)
        bits = self._bits(call, kind)
        exactly = augments(call.operation) or precise or reads_indices(call, self._indices)
        exactly = exactly or (
            kind == COMPARE and all(is_unjoined_input(graph, t) for t in call.inputs)
        )
        steep = {id(t) for t in steep_inputs(call)}
        old = iter([t for t in call.inputs if is_float(t)])
        args, kwargs = keras.tree.map_structure(
            lambda t: (
                self._operand(t, call, kind, bits, exactly and id(next(old)) in steep)
                if is_float(t)
                else t
            ),
            (args, kwargs),
        )
        inputs = [t for t in keras.tree.flatten((args, kwargs)) if is_float(t)]
        if kind == AVERAGE and self._state(inputs[0]).quantizer is None:
            # Its quantizer belongs to another model, whose layers cannot be called in this one.
            args, kwargs = keras.tree.map_structure(
                lambda t: self._follow(t) if is_float(t) else t, (args, kwargs)
            )
            inputs = [t for t in keras.tree.flatten((args, kwargs)) if is_float(t)]
        states = [self._state(t) for t in inputs]
        emitted = []
        for old, new in zip(
            call.outputs, keras.tree.flatten(operation(*args, **kwargs)), strict=True
        ):
            if not is_float(new) or makes_indices(call, self._indices):
                pass
            elif kind == MOVE and exactly and not (augments(call.operation) or states[0].quantized):
                # Else the converter would quantize the whole tensor that this is a part of.
                new = self._close(graph, call, old, self._note(self._requantize(new), states[0]))
            else:
                new = self._emit(graph, call, kind, bits or 8, states, old, new)
            emitted.append(new)
        return emitted

    def _follow(self, tensor: Any) -> Any:
        """Returns a tensor with the quantizer of another model, for an average with that scale."""
        state = self._state(tensor)
        if state.leader is None:
            return self._new_quantizer(self._note(self._requantize(tensor), state), state.bits)
        name = self._name(f"{layer_name(tensor)}_quantizer")
        return self._apply(FollowingQuantizer(name=name), tensor, state)

    def _addition(self, operation: Any) -> RuntimeMerge:
        """Returns the layer that replaces a `keras.ops.add`, to add as the runtime does."""
        return RuntimeMerge("add", 2, operation=operation.name, name=self._name(operation.name))

    def _in_float(self, kind: str, inputs: list[Any]) -> bool:
        """Returns whether an operation is fused into one that was left out."""
        before = [self._state(t).floating for t in inputs]
        return bool(before) and all(kind in FUSES.get(role or "", ()) for role in before)

    def _bits(self, call: Call, kind: str) -> int | None:
        """Returns the bits of an operation's inputs and outputs; None to keep those of inputs."""
        alone = type(call.operation).__name__ in BINARY and len(call.inputs) < 2  # 8-bit constant
        if not has_int16_kernels(call.operation) or alone:
            return 8
        if kind in (MOVE, AVERAGE):
            return None
        return 16 if call.path in self._int16 else 8

    def _quantize_if_float(self, tensor: Any, int16: bool) -> Any:
        """Returns a quantized tensor as it is, and any other one quantized."""
        state = self._state(tensor)
        return self._quantize(tensor, state.bits if state.quantized else 16 if int16 else 8)

    def _operand(self, tensor: Any, call: Call, kind: str, bits: int | None, exactly: bool) -> Any:
        """Returns a tensor as an operation reads it; `exactly` if it must stay unquantized."""
        state = self._state(tensor)
        if kind == PRECISE and exactly:
            return self._note(self._away_from_zero(tensor, state), state)
        if state.pending or (exactly and not state.quantized):
            return tensor
        if kind == JOIN and state.quantized and state.bits != bits:
            # Joined operands are quantized with the scale of the result.
            return self._note(self._requantize(tensor), TensorState(JOIN))
        if bits is None:
            return self._quantize_if_float(tensor, call.path in self._int16)
        return self._quantize(tensor, bits)

    def _emit(
        self,
        graph: Graph,
        call: Call,
        kind: str,
        bits: int,
        states: list[TensorState],
        old: Any,
        new: Any,
    ) -> Any:
        if any(state.pending in FUSES for state in states):
            bits = states[0].bits
        if kind == MOVE and states:
            # Dropout multiplies values in training alone; at inference it returns its input.
            return self._note(new, states[0])
        layer = plain(call.operation)
        if kind == AVERAGE and states and states[0].quantizer is not None:
            self._note(new, states[0])
            resized = isinstance(layer, (keras.layers.UpSampling2D, keras.layers.Resizing))
            ties = "up" if resized else getattr(layer, "averages", True)
            return self._apply(states[0].quantizer, new, states[0], averaged=ties)
        prescribed = fixed_range(layer)
        if prescribed is not None:
            name = self._name(f"{layer.name}_quantizer")
            quantizer = ActivationQuantizer(prescribed, name=name)
            return self._apply(quantizer, new, TensorState(non_negative=prescribed[0] == 0))
        if isinstance(layer, RuntimeRecurrent):
            return self._note(new, TensorState(quantized=True))  # by its own quantizers
        if kind == TABLE and quantizes_weights(call.operation):
            joined = self._is_joined(graph, old)
            if joined and id(call.operation) not in self._once:
                new = self._requantize(new)  # all lookups in a table share one scale
            return self._note(new, TensorState(JOIN if joined else None, quantized=not joined))
        positive = kind == RELU or (kind == JOIN and all(s.non_negative for s in states))
        state = TensorState(kind if kind in FUSES else None, bits=bits, non_negative=positive)
        return self._close(graph, call, old, self._note(new, state))

    def _close(self, graph: Graph, call: Call, old: Any, new: Any) -> Any:
        """Quantizes a new tensor, unless the only operation that reads it is fused with it."""
        state = self._state(new)
        if state.quantized or not is_float(new):
            return new
        if self._is_symmetric(graph, old):
            state = dataclasses.replace(state, symmetric=True)
            self._note(new, state)
        readers = graph.consumers.get(id(old), [])
        leaves = id(old) in graph.outputs
        if state.pending:
            if leaves and not readers and graph.path:
                return new  # decided where the nested model is called
            fused = readers and all(self._fuses(state.pending, reader) for reader in readers)
            if not leaves and fused and (len(readers) == 1 or is_one_relu(graph, readers)):
                return new
        precise = {
            id(r) in self._precise and any(old is t for t in steep_inputs(r)) for r in readers
        }
        if readers and not leaves and precise == {True}:
            return new
        if role(call.operation) != JOIN and state.bits == 8 and self._is_joined(graph, old):
            return self._note(new, dataclasses.replace(state, pending=JOIN))
        if role(call.operation) == RELU and is_one_relu(graph, graph.consumers[id(call.inputs[0])]):
            return self._quantize_alike(new, id(call.inputs[0]), plain(call.operation).name)
        return self._quantize(new, state.bits, plain(call.operation).name)

    def _is_symmetric(self, graph: Graph, tensor: Any) -> bool:
        """Returns whether a product of matrices is fast only with this zero point 0."""
        return self.prefer != "exactness" and is_second_factor(graph, tensor)

    def _quantize_alike(self, new: Any, key: int, name: str) -> Any:
        """Returns the result of a ReLU, with one quantizer for all ReLUs of the same tensor."""
        state = self._state(new)
        if key in self._relus:
            return self._apply(self._relus[key], new, state)
        new = self._quantize(new, state.bits, name)
        if (quantizer := self._state(new).quantizer) is not None:
            self._relus[key] = quantizer
        return new

    def _fuses(self, pending: str, reader: Call) -> bool:
        return role(reader.operation) in FUSES.get(pending, ())

    def _quantize(self, tensor: Any, bits: int, name: str | None = None) -> Any:
        """Returns the tensor with so many bits, quantized or requantized if necessary."""
        state = self._state(tensor)
        if not (is_float(tensor) and bits) or (state.quantized and bits == state.bits):
            return tensor
        key = id(tensor), bits
        if key not in self._quantized:
            if state.quantized:
                name = name or layer_name(tensor)
                tensor = self._note(
                    self._requantize(tensor), dataclasses.replace(state, quantized=False)
                )
            self._quantized[key] = self._new_quantizer(tensor, bits, name)
        return self._quantized[key]

    def _leave_integers(self, tensor: Any) -> Any:
        """Returns a tensor as the input of an operation in float; a barrier keeps that in float."""
        return (
            self._requantize(tensor)
            if is_float(tensor) and self._state(tensor).quantized
            else tensor
        )

    def _is_joined(self, graph: Graph, tensor: Any) -> bool:
        """Returns whether a concatenation of quantized values is the only reader of a tensor."""
        readers = graph.consumers.get(id(tensor), [])
        return is_joined(graph, tensor) and all(r.path not in self._left_out for r in readers)
