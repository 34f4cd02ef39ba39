"""Rules of the layers that have weights, or a config that counts channels: one function for each.

To add one, decorate a function with `channel_rule(YourLayer)`: it declares where channels lie in
the weights (`coupling.use`), which entries of the config count them (`coupling.set`), and returns
the numbers of the output. `tests/rewrite/channels/test_rules.py` shows how to test it.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

from tfcompress.graph.keras_internals import attention_parts
from tfcompress.graph.layers import einsum_letters
from tfcompress.graph.read import Call
from tfcompress.rewrite.channels.coupling import (
    Coupling,
    Numbers,
    Unresolved,
    along,
    channel_axis,
    channel_rule,
    rule_for,
    spread,
)


def _made(coupling: Coupling, call: Call, count: int) -> Numbers:
    """Returns numbers for the channels that a layer makes, which an activation may tie together."""
    made = coupling.new(call, count)
    name = getattr(call.operation.activation, "__name__", "")
    if "softmax" in name or "sparsemax" in name:
        coupling.fix(made)  # each depends on all others
    if name == "glu":
        raise Unresolved("its activation makes one channel of two")
    return made


@channel_rule("Conv1D", "Conv2D", "Conv3D")
def _convolution(coupling: Coupling, call: Call, given: list[Numbers]) -> Numbers:
    layer = call.operation
    axis = channel_axis(layer, given[0])
    inputs = along(given[0], axis)
    if layer.groups == len(inputs) > 1:  # a depthwise convolution by another name
        made = np.repeat(inputs, layer.filters // layer.groups)
        coupling.use(call, layer.kernel, {-1: made})
        coupling.use(call, layer.bias, {0: made})
        coupling.set(call, "filters", made)
        coupling.set(call, "groups", inputs)
        return spread(made, given[0].ndim, axis)
    made = _made(coupling, call, layer.filters)
    if layer.groups > 1:
        # Each group has kernels of its own for as many inputs: places in the groups go together.
        for numbers in (inputs, made):
            places = numbers.reshape(layer.groups, -1)
            coupling.couple(places[:1], places)
        inputs = inputs[: len(inputs) // layer.groups]
    coupling.use(call, layer.kernel, {-2: inputs, -1: made}, made=-1)
    coupling.use(call, layer.bias, {0: made})
    coupling.set(call, "filters", made)
    return spread(made, given[0].ndim, axis)


@channel_rule("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
def _transposed(coupling: Coupling, call: Call, given: list[Numbers]) -> Numbers:
    layer = call.operation
    axis = channel_axis(layer, given[0])
    inputs, made = along(given[0], axis), _made(coupling, call, layer.filters)
    coupling.use(call, layer.kernel, {-1: inputs, -2: made}, made=-2)
    coupling.use(call, layer.bias, {0: made})
    coupling.set(call, "filters", made)
    return spread(made, given[0].ndim, axis)


@channel_rule("DepthwiseConv1D", "DepthwiseConv2D")
def _depthwise(coupling: Coupling, call: Call, given: list[Numbers]) -> Numbers:
    layer = call.operation
    axis = channel_axis(layer, given[0])
    inputs = along(given[0], axis)
    made = np.repeat(inputs, layer.depth_multiplier)
    coupling.use(call, layer.kernel, {-2: inputs})
    coupling.use(call, layer.bias, {0: made})
    return spread(made, given[0].ndim, axis)


@channel_rule("SeparableConv1D", "SeparableConv2D")
def _separable(coupling: Coupling, call: Call, given: list[Numbers]) -> Numbers:
    layer = call.operation
    axis = channel_axis(layer, given[0])
    inputs, made = along(given[0], axis), _made(coupling, call, layer.filters)
    middle = np.repeat(inputs, layer.depth_multiplier)
    coupling.use(call, layer.depthwise_kernel, {-2: inputs})
    coupling.use(call, layer.pointwise_kernel, {-2: middle, -1: made}, made=-1)
    coupling.use(call, layer.bias, {0: made})
    coupling.set(call, "filters", made)
    return spread(made, given[0].ndim, axis)


@channel_rule("Dense")
def _dense(coupling: Coupling, call: Call, given: list[Numbers]) -> Numbers:
    layer, numbers = call.operation, given[0]
    if numbers.shape[-1] == 1 and layer.kernel.shape[0] > 1:
        # It mixes positions, of which all have the same channels along another axis.
        return numbers
    inputs, made = along(numbers, numbers.ndim - 1), _made(coupling, call, layer.units)
    coupling.use(call, layer.kernel, {0: inputs, 1: made}, made=1)
    coupling.use(call, layer.bias, {0: made})
    coupling.set(call, "units", made)
    return spread(made, numbers.ndim, -1)


@channel_rule("EinsumDense")
def _einsum_dense(coupling: Coupling, call: Call, given: list[Numbers]) -> Numbers:
    layer, numbers = call.operation, given[0]
    first, second, result = einsum_letters(layer)
    summed = [letter for letter in second if letter in first and letter not in result]
    free = [letter for letter in second if letter not in first]
    if "." in layer.equation or first[-1:] != "".join(summed) or result[-1:] != "".join(free):
        raise Unresolved(f"the equation {layer.equation!r} does more than a dense layer")
    axis, out = second.index(summed[0]), second.index(free[0])
    inputs = along(numbers, numbers.ndim - 1)
    made = _made(coupling, call, layer.kernel.shape[out])
    coupling.use(call, layer.kernel, {axis: inputs, out: made}, made=out)
    if layer.bias is not None:
        if len(layer.bias.shape) != 1:
            raise Unresolved("its bias has several axes")
        coupling.use(call, layer.bias, {0: made})
    shape = layer.partial_output_shape
    coupling.set(call, "output_shape", made, lambda stays: (*shape[:-1], int(stays.sum())))
    return spread(made, numbers.ndim, -1)


@channel_rule("Embedding")
def _embedding(coupling: Coupling, call: Call, given: list[Numbers]) -> Numbers:
    layer, made = call.operation, coupling.new(call, call.operation.output_dim)
    coupling.use(call, layer.embeddings, {1: made}, made=1)
    coupling.set(call, "output_dim", made)
    return spread(made, given[0].ndim + 1, -1)


@channel_rule("ReversibleEmbedding")
def _reversible(coupling: Coupling, call: Call, given: list[Numbers]) -> Numbers:
    layer, made = call.operation, coupling.new(call, call.operation.output_dim)
    coupling.use(call, layer.embeddings, {1: made}, made=1)
    if not layer.tie_weights:
        coupling.use(call, layer.reverse_embeddings, {0: made})
    coupling.set(call, "output_dim", made)
    reverse = call.kwargs.get("reverse", call.args[1] if len(call.args) > 1 else False)
    if not reverse:
        return spread(made, given[0].ndim + 1, -1)
    coupling.couple(along(given[0], given[0].ndim - 1), made)
    return coupling.fixed(call.outputs[0])


@channel_rule("TimeDistributed")
def _at_each_step(coupling: Coupling, call: Call, given: list[Numbers]) -> Numbers:
    layer = call.operation.layer
    rule = rule_for(layer)
    if rule is None or len(given) != 1 or given[0].shape[0] != 1:
        raise Unresolved(f"no rule is known for the {type(layer).__name__} inside it")
    ends = [
        [keras.KerasTensor((None, *t.shape[2:]), t.dtype) for t in tensors]
        for tensors in (call.inputs, call.outputs)
    ]
    step = Call(call.path, layer, (ends[0][0],), {}, *ends)
    # Its config tells the sizes that it was built for, which are not kept when an entry is set.
    coupling.set(call, "layer/config/name", np.zeros(0, int), lambda stays: layer.name)
    made = rule(_Inside(coupling, call), step, [given[0][0]])
    return made[None]


class _Inside:
    """A coupling for the rule of a layer inside another: its config is inside, too."""

    def __init__(self, coupling: Coupling, call: Call) -> None:
        self._coupling, self._call = coupling, call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coupling, name)

    def set(self, call: Call, entry: str, *rest: Any) -> None:
        self._coupling.set(self._call, f"layer/config/{entry}", *rest)


@channel_rule("BatchNormalization", "LayerNormalization", "RMSNormalization", "LayerScale")
def _normalization(coupling: Coupling, call: Call, given: list[Numbers]) -> Numbers:
    layer, numbers = call.operation, given[0]
    axis = getattr(layer, "axis", -1)
    axes = [axis] if isinstance(axis, int) else list(axis)
    rank = numbers.ndim
    places = [a % (rank + 1) - 1 for a in axes]  # without the batch
    for variable in layer.variables:
        if len(variable.shape) == len(places):
            varying = {i: numbers for i, a in enumerate(places) if numbers.shape[a] > 1}
            for i in varying:
                varying[i] = along(numbers, places[i])
            coupling.use(call, variable, varying)
    if type(layer).__name__ == "LayerScale":
        coupling.set(call, "projection_dim", along(numbers, rank - 1))
    return numbers


@channel_rule("GroupNormalization")
def _group_normalization(coupling: Coupling, call: Call, given: list[Numbers]) -> Numbers:
    layer, numbers = call.operation, given[0]
    inputs = along(numbers, layer.axis % (numbers.ndim + 1) - 1)
    groups = len(inputs) if layer.groups == -1 else layer.groups
    places = inputs.reshape(groups, -1)
    if groups == len(inputs):
        coupling.set(call, "groups", inputs)
    else:
        coupling.couple(places[:1], places)  # as many in each group
    for variable in layer.variables:
        coupling.use(call, variable, {0: inputs})
    return numbers


@channel_rule("PReLU")
def _prelu(coupling: Coupling, call: Call, given: list[Numbers]) -> Numbers:
    layer, numbers = call.operation, given[0]
    axes = {
        axis: along(numbers, axis)
        for axis, size in enumerate(layer.alpha.shape)
        if size > 1 and numbers.shape[axis] > 1
    }
    coupling.use(call, layer.alpha, axes)
    return numbers


@channel_rule("LSTM", "GRU", "SimpleRNN")
def _recurrent(coupling: Coupling, call: Call, given: list[Numbers]) -> Any:
    layer = call.operation
    if len(given) > 1 or layer.return_state:
        raise Unresolved("it is given or returns states")
    made = _cell(coupling, call, layer, along(given[0], 1), "")
    return spread(made, 2, 1) if layer.return_sequences else made


def _cell(coupling: Coupling, call: Call, layer: Any, inputs: Numbers, what: str) -> Numbers:
    cell = layer.cell
    made = coupling.new(call, cell.units, what)
    gates = cell.kernel.shape[1] // cell.units
    every = np.tile(made, gates)
    coupling.use(call, cell.kernel, {0: inputs, 1: every}, made=1)
    coupling.use(call, cell.recurrent_kernel, {0: made, 1: every})
    coupling.use(call, cell.bias if cell.use_bias else None, {-1: every})
    prefix = f"{what}/config/" if what else ""
    coupling.set(call, f"{prefix}units", made)
    return made


@channel_rule("Bidirectional")
def _bidirectional(coupling: Coupling, call: Call, given: list[Numbers]) -> Numbers:
    layer = call.operation
    inner = (layer.forward_layer, layer.backward_layer)
    if len(given) > 1 or layer.return_state or layer.merge_mode is None:
        raise Unresolved("it is given or returns states, or two sequences")
    names = ("layer", "backward_layer")
    made = [
        _cell(coupling, call, one, along(given[0], 1), name)
        for one, name in zip(inner, names, strict=True)
    ]
    # Keras takes the two to be of one size, whatever is done with what they return.
    coupling.couple(*made)
    numbers = np.concatenate(made) if layer.merge_mode == "concat" else made[0]
    return spread(numbers, 2, 1) if inner[0].return_sequences else numbers


@channel_rule("MultiHeadAttention", "GroupedQueryAttention")
def _attention(coupling: Coupling, call: Call, given: list[Numbers]) -> Numbers:
    layer = call.operation
    tensors = [t for t in (*call.args[:3], *(call.kwargs.get(n) for n in ("value", "key")))]
    tensors = [t for t in tensors if isinstance(t, keras.KerasTensor)]
    if len(tensors) < 2 or len(layer.get_config().get("output_shape") or ()) > 1:
        raise Unresolved("its arguments are not query, value and key")
    if layer.get_config().get("use_gate"):
        raise Unresolved("it has a gate")
    numbers = [along(coupling.tensors[id(t)], 1) for t in tensors]
    query, value, key = numbers[0], numbers[1], numbers[-1]
    grouped = isinstance(layer, layers.GroupQueryAttention)
    heads = coupling.new(call, layer.num_query_heads if grouped else layer.num_heads, "heads")
    pairs = heads
    if grouped:
        shared = heads.reshape(layer.num_key_value_heads, -1)
        coupling.couple(shared[:, :1], shared)
        pairs = shared[:, 0]
        coupling.set(call, "num_query_heads", heads)
        coupling.set(call, "num_key_value_heads", pairs)
    else:
        coupling.set(call, "num_heads", heads)
    projections = attention_parts(layer)
    last = projections["attention_output"]
    made = coupling.new(call, last.kernel.shape[-1])
    for part, inputs, of_head in (
        (projections["query"], query, heads),
        (projections["key"], key, pairs),
        (projections["value"], value, pairs),
    ):
        coupling.use(call, part.kernel, {0: inputs, 1: of_head}, made=1)
        coupling.use(call, part.bias, {0: of_head})
    coupling.use(call, last.kernel, {0: heads, 2: made}, made=2)
    coupling.use(call, last.bias, {0: made})
    if grouped or not layer.get_config().get("output_shape"):
        coupling.couple(made, query)  # as many as the query has
    else:
        coupling.set(call, "output_shape", made)
    return spread(made, 2, 1)
