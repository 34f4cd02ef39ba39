"""bake: the trained model as plain float layers for the converter, with ranges as constants."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import layers, ops, tree

from tfcompress.graph.clone import Rewriter
from tfcompress.graph.copies import clone_layer
from tfcompress.graph.cost import TRANSPOSED, plain
from tfcompress.graph.read import Call, Graph, is_graph, walk_layers
from tfcompress.wrap.activations import ActivationQuantizer
from tfcompress.wrap.canonicalize import KERNELS
from tfcompress.wrap.clipping import clipped_by_grid, on_wide_grid
from tfcompress.wrap.fixed import FixedFakeQuant, GridCrossing, grid_of_table
from tfcompress.wrap.forms import (
    HALF,
    NORMALIZED,
    Affine,
    Flat,
    SummingLayerNormalization,
    affine_of,
    apart,
    as_flat,
    clip_ends,
    fits_affine,
    in_float32,
    in_order,
    in_two_axes,
    is_affine,
    normalized,
    pooled_in_turns,
    settled,
    uneven,
)
from tfcompress.wrap.integers import Sum
from tfcompress.wrap.one_channel import as_image_layer, in_an_image, puts_out_one_channel
from tfcompress.wrap.precision import AwayFromZero
from tfcompress.wrap.recurrent import RuntimeRecurrent, unrolled
from tfcompress.wrap.roles import (
    CLIP,
    JOIN,
    LINEAR,
    MOVE,
    NORMALIZATION,
    PAIR,
    RELU,
    SUM,
    TABLE,
    augments,
    is_float,
    is_joined,
    padded_with,
    role,
    rounds_weights,
)
from tfcompress.wrap.runtime import RuntimeLayer
from tfcompress.wrap.samples import InputSamples
from tfcompress.wrap.scalings import constant_operand, operand_of
from tfcompress.wrap.sources import grid_behind, grid_of, known_sums
from tfcompress.wrap.strip import baked_values, quantizers
from tfcompress.wrap.wrapper import CompressionWrapper, variable_name
from tfcompress.wrap.written import written_form


def bake(model: keras.Model, *, wide: bool = False) -> keras.Model:
    """Returns a float32 model that computes what the trained one does, ready for conversion.

    Args:
        model: A Sequential or Functional model, wrapped or not.
        wide: Whether activations will be of 16 bits: then recurrent layers become a copy of their
            cell for each step, and normalizations what has kernels for these.

    Returns:
        A model of plain layers, with weights as they are used (pruned, on their grids).
    """
    rounds = any(rounds_weights(layer) for _, layer in walk_layers(model))
    baking = _Bake(rounds or bool(quantizers(model)), wide, known_sums(model))
    baking.outer = {id(tensor) for tensor in model.inputs}
    return baking.run(model)


class _Bake(Rewriter):
    sequential_class = keras.Model  # a layer may be written as operations, which are no layers

    def __init__(self, rounds: bool, wide: bool, sums: dict[int, Sum]) -> None:
        super().__init__()
        self.outer: set[int] = set()
        self._rounds = rounds
        self._wide = wide
        self._values: dict[int, Any] = {}
        self._sums = sums
        self._totals: dict[int, Sum] = {}  # of the layers made
        self._negative: dict[int, Any] = {}
        self._producers: dict[int, Call] = {}
        self._names: dict[str, int] = {}

    def value_of(self, variable: Any) -> Any:
        if isinstance(variable, np.ndarray):
            return variable
        values = self._negative if id(variable) in self._negative else self._values
        value = ops.convert_to_tensor(values.get(id(variable), variable))
        if self._rounds and variable_name(variable) in ("bias", "beta") and len(value.shape) == 1:
            return ops.convert_to_tensor(uneven(ops.convert_to_numpy(value)), value.dtype)
        return value

    def input_like(self, tensor: Any) -> Any:
        if id(tensor) in self.outer or tensor.dtype not in HALF:
            return super().input_like(tensor)
        return clone_layer(tensor._keras_history.operation, dtype="float32").output

    def clone(self, operation: Any, /, **overrides: Any) -> Any:
        if isinstance(operation, layers.Layer):
            policy = in_float32(operation.dtype_policy)
            if policy != operation.dtype_policy:
                overrides.setdefault("dtype", policy)
        if self._wide and isinstance(operation, (layers.RNN, layers.Bidirectional)):
            overrides.update(unrolled(operation.get_config()))
        normalizes = type(operation) is layers.LayerNormalization
        if self._rounds and normalizes and not getattr(operation, "rms_scaling", False):
            return self.once(operation, lambda: self._summing(operation))
        return super().clone(operation, **overrides)

    def _summing(self, layer: Any) -> Any:
        config = {**layer.get_config(), "dtype": "float32"}
        summing = SummingLayerNormalization.from_config(config)
        self.carry(layer, summing)
        return summing

    def leave(self, model: keras.Model, path: str, outputs: list[Any]) -> list[Any]:
        return [settled(output) for output in outputs]

    def visit_model(self, graph: Graph, call: Call, args: Any, kwargs: Any) -> Any:
        args, kwargs = tree.map_structure(settled, (args, kwargs))
        return super().visit_model(graph, call, args, kwargs)

    def visit(self, graph: Graph, call: Call, args: Any, kwargs: Any) -> Any:
        operation = call.operation
        quantizer = isinstance(operation, ActivationQuantizer)
        self._producers.update((id(output), call) for output in call.outputs)
        handed_on = quantizer and operation.follows and not call.kwargs.get("averaged")
        if isinstance(operation, (InputSamples, AwayFromZero)) or handed_on:
            return args[0]
        if augments(operation):
            dtype = call.outputs[0].dtype
            return args[0] if args[0].dtype == dtype else ops.cast(args[0], dtype)
        layer = plain(operation)
        total = self._sums.get(id(operation))
        if total is not None and total.wrapper is not None:
            summed = self.once(operation, lambda: self._summed(total))
            return summed(*map(settled, args), **kwargs)
        if isinstance(operation, CompressionWrapper):
            self._values.update(baked_values(operation))
        if self._wide and type(layer) in NORMALIZED:
            return normalized(layer, args[0])
        left_out = type(layer) in KERNELS and not rounds_weights(operation)
        if self._rounds and left_out and self._reads_integers(call):
            args, kwargs = tree.map_structure(settled, (args, kwargs))
            return layer.activation(ops.negative(self._in_float(layer)(*args, **kwargs)))
        if role(layer) == NORMALIZATION and self._is_folded(call):
            return operand_of(args, kwargs)
        if self._rounds and role(layer) == NORMALIZATION and is_affine(layer):
            made = self._affine(graph, call, layer, operand_of(args, kwargs))
            if made is not None:
                return made
        deferred = bool(args) and isinstance(args[0], (Flat, Affine))
        if role(layer) in (RELU, CLIP) and self._rounds and clipped_by_grid(graph, call):
            # The grid ends where the clipping does, or before; one of 16 bits at both ends alike.
            if role(layer) == CLIP and not (on_wide_grid(graph, call) and clip_ends(layer)[0] == 0):
                return args[0]
            relu = self.once(layer, lambda: layers.ReLU(name=layer.name, dtype="float32"))
            return as_flat(args[0]).then(relu) if deferred else relu(args[0])
        if deferred and role(layer) == RELU:
            return as_flat(args[0]).then(self.clone(layer))
        if deferred and quantizer:
            made = as_flat(args[0]).then(self._fixed(operation))
            return made.restore(made.image)
        args, kwargs = tree.map_structure(settled, (args, kwargs))
        if isinstance(operation, GridCrossing):
            return GridCrossing.written(args[0])
        if quantizer:
            return self._fixed(operation)(*args, **kwargs)
        joins = call.inputs if role(layer) == JOIN else []
        crossings = [found for t in joins if (found := self._crossing(t))]
        across = any(map(self._reads_integers, crossings))
        if (crossings or any(map(self._is_moved, joins))) and (joined := grid_behind(graph, call)):
            # Of another grid, the converter does not put these on the grid of the result by itself,
            # or does so before what moves them about, for all that read them.
            old = {id(new): t for t, new in zip(call.inputs, _floats((args, kwargs)), strict=True)}

            def put(t: Any) -> Any:
                if is_float(t) and self._is_moved(old[id(t)]):
                    return self._fixed(joined)(GridCrossing.written(t))
                enters = is_float(t) and (across or self._crossing(old[id(t)]))
                return self._fixed(joined)(t) if enters else t

            args, kwargs = tree.map_structure(put, (args, kwargs))
        if role(layer) == PAIR:
            args, kwargs = self._apart(call, args, kwargs)
        if self._rounds and role(layer) == LINEAR:
            kernel, bias = getattr(layer, "kernel", None), getattr(layer, "bias", None)
            made = in_two_axes(layer, args[0], self._values.get(id(kernel), kernel), bias)
            if made is not None:
                return made
        if puts_out_one_channel(layer):
            return self.once(layer, lambda: self._over_two_axes(layer))(*args, **kwargs)
        if ordered := in_order(layer):
            changed, axes, self._values[id(layer.bias)] = ordered
            made = ops.transpose(self.clone(layer, **changed)(*args, **kwargs), axes)
            return layer.activation(made) if layer.activation else made
        if self._sums_matrices(call):
            return apart(*tree.flatten(args))
        lowest = type(layer).__name__ == "Pad" and padded_with(layer) == -np.inf
        if lowest and isinstance(grid := grid_of(call.inputs[0]), ActivationQuantizer):
            made = ops.pad(args[0], layer.pad_width, constant_values=grid.ends()[0])
            return self._fixed(grid)(made)
        pooled = pooled_in_turns(layer, args[0]) if args else None
        written = written_form(layer, integers=self._rounds or self._wide)
        if pooled is not None:
            outputs = pooled
        elif written and all(isinstance(arg, keras.KerasTensor) for arg in args):
            outputs = written(layer, *args, **kwargs)
        else:
            outputs = self._called(layer, args, kwargs)
        on_table = role(operation) == TABLE and rounds_weights(operation)
        if not self._rounds or not on_table or is_joined(graph, call.outputs[0]):
            return outputs
        return self.once(operation, lambda: grid_of_table(operation))(outputs)

    def _affine(self, graph: Graph, call: Call, layer: Any, value: Any) -> Affine | Flat | None:
        """Returns the result of scaling each channel in a form of its own, if it should have one.

        Behind a weighted sum it should not: the converter puts it into the weights.
        """
        if isinstance(value, Affine):
            return self._exactly(call.operation, value.then(*affine_of(layer)))
        if isinstance(value, Flat):
            if isinstance(layer, layers.BatchNormalization):
                return value.then(self.clone(layer, axis=-1))
            return None
        producer = self._producers.get(id(call.inputs[0]))
        if producer is not None:
            fused = role(producer.operation) in (LINEAR, NORMALIZATION)
            plain_numbers = isinstance(layer, layers.Rescaling) or constant_operand(layer)
            if fused and plain_numbers and fits_affine(value):
                scale, offset = affine_of(layer)
                channels = np.broadcast_to(offset, value.shape[-1]).astype(np.float32)
                return value * scale.astype(np.float32) + uneven(channels)
            if fused or is_graph(producer.operation):
                return None
        if not keras.backend.is_float_dtype(value.dtype) or not fits_affine(value):
            return None
        count = self._names.get(layer.name, 0)
        self._names[layer.name] = count + 1
        name = f"{layer.name}_{count}" if count else layer.name
        return self._exactly(call.operation, Affine(value, *affine_of(layer), name=name))

    def _exactly(self, operation: Any, affine: Affine) -> Affine:
        """Returns the result of all scalings up to the last as the model rounds it."""
        total = self._sums.get(id(operation))
        if total is None:
            return affine
        scale, offset, _ = total.constants()
        return dataclasses.replace(affine, scale=scale, offset=offset)

    def _is_folded(self, call: Call) -> bool:
        """Returns whether a normalization is in the weights of the sum before it."""
        producer = self._made_by(call.inputs[0], NORMALIZATION)
        total = None if producer is None else self._sums.get(id(producer.operation))
        return total is not None and call.operation in total.scalings

    def _summed(self, total: Sum) -> Any:
        """Returns the layer of a sum with what scales its channels in its weights."""
        layer = total.wrapper.layer
        # Without a bias, the converter leaves a transposed convolution and a ReLU in float.
        biased = layer.use_bias or bool(total.scalings) or isinstance(layer, TRANSPOSED)
        single = puts_out_one_channel(layer)
        folded = as_image_layer(layer, biased) if single else clone_layer(layer, use_bias=biased)
        self.carry(total.wrapper, folded)
        self._totals[id(folded)] = total
        return in_an_image(layer, folded) if single else folded

    def _over_two_axes(self, layer: Any) -> Any:
        image_layer = as_image_layer(layer, layer.use_bias)
        self.carry(layer, image_layer)
        return in_an_image(layer, image_layer)

    def _called(self, layer: Any, args: Any, kwargs: Any) -> Any:
        if not isinstance(layer, RuntimeLayer):
            return self.clone(layer)(*args, **kwargs)

        def frozen() -> Any:
            new = layer.frozen()
            self.carry(layer, new)
            return new

        return self.once(layer, frozen)(*args, **kwargs)

    def match(self, old: Any, new: Any) -> Any:
        total = self._totals.get(id(new))
        if total is not None:
            kernel, offset, unit = total.constants()
            pairs = [(kernel, new.variables[0])]
            if new.use_bias:
                offset = np.broadcast_to(offset, new.bias.shape)
                if isinstance(new, TRANSPOSED) and not offset.any():
                    offset = offset + unit * 2**-10  # rounded to zero
                pairs.append((uneven(offset), new.bias))
            return pairs
        if isinstance(old, RuntimeLayer):
            return zip(old.constants(), new.original_variables(), strict=True)
        return super().match(old, new)

    def _sums_matrices(self, call: Call) -> bool:
        """Returns whether a call adds matrices of 16 bits."""
        made = [self._producers[id(t)].operation for t in call.inputs if id(t) in self._producers]
        wide = any(getattr(operation, "bits", 8) == 16 for operation in made)
        ranks = [len(tensor.shape) for tensor in call.inputs]
        return wide and role(call.operation) == SUM and ranks == [2, 2]

    def _apart(self, call: Call, args: Any, kwargs: Any) -> Any:
        """Returns the operands of a difference or product, told apart if they share a grid.

        The converter moves reshapes of such tensors (what a nested model returns of two images)
        behind the operation, and loses the grid of the result.
        """
        grid, *others = map(grid_of, call.inputs)
        first, *rest = _floats((args, kwargs))
        alike = others == [grid] and first is not rest[0] and first.shape == rest[0].shape
        if not alike or not isinstance(grid, ActivationQuantizer):
            return args, kwargs
        walled = self._fixed(grid)(GridCrossing.written(first))
        return tree.map_structure(lambda t: walled if t is first else t, (args, kwargs))

    def _is_moved(self, tensor: Any) -> bool:
        """Returns whether a tensor comes from a grid of its own, moved about or looped over."""
        producer = self._made_by(tensor, MOVE)
        made = producer and plain(producer.operation)
        moved = producer is not self._producers.get(id(tensor))
        kinds = (RuntimeRecurrent, ActivationQuantizer) if moved else RuntimeRecurrent
        return isinstance(made, kinds)

    def _crossing(self, tensor: Any) -> Call | None:
        """Returns the crossing that a tensor comes from, moved about or not, if there is one."""
        producer = self._made_by(tensor, MOVE)
        return producer if isinstance(getattr(producer, "operation", None), GridCrossing) else None

    def _made_by(self, tensor: Any, passed: str) -> Call | None:
        """Returns the call that made a tensor, before operations of the role `passed`."""
        producer = self._producers.get(id(tensor))
        while producer is not None and role(producer.operation) == passed:
            producer = self._producers.get(id(producer.inputs[0]))
        return producer

    def _reads_integers(self, call: Call) -> bool:
        """Returns whether what an operation is called on comes from a grid, moved about or not."""
        producer = self._made_by(call.inputs[0], MOVE)
        # Without a producer, it is the input of a nested model, which may be on one.
        if producer is None:
            return True
        kinds = (ActivationQuantizer, RuntimeLayer)
        return isinstance(plain(producer.operation), kinds) or role(producer.operation) == TABLE

    def _in_float(self, layer: Any) -> Any:
        """Returns a weighted sum that was left out of quantization, with its sign turned.

        The converter rounds weights between integers, but cannot turn a sign in integers.
        """
        for variable in layer.variables:
            value = ops.convert_to_tensor(self._values.get(id(variable), variable))
            self._negative[id(variable)] = -1.0 * value
        return self.clone(layer, activation="linear")

    def _fixed(self, quantizer: ActivationQuantizer) -> FixedFakeQuant:
        bits, name = quantizer.bits, quantizer.name
        return self.once(quantizer, lambda: FixedFakeQuant(*quantizer.ends(), bits, name=name))


def _floats(given: Any) -> list[Any]:
    return [value for value in tree.flatten(given) if isinstance(value, keras.KerasTensor)]
