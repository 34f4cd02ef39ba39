"""Rules for layers that have weights, or a config that counts channels: one function per layer.

To add one, decorate a function with `channel_rule(YourLayer)`. It declares which axes of the
weights are channels (`coupling.use`) and which entries of the config count them (`coupling.set`),
and returns the channel numbers of the output. `tests/rewrite/channels/test_rules.py` shows how to
test it.
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


def _new_channels(coupling: Coupling, call: Call, count: int) -> Numbers:
    """Returns numbers for the output channels of a layer, fixed if its activation couples them."""
    channels = coupling.new(call, count)
    name = getattr(call.operation.activation, "__name__", "")
    if "softmax" in name or "sparsemax" in name:
        coupling.fix(channels)  # each output channel depends on all others
    if name == "glu":
        raise Unresolved("its activation combines two channels into one")
    return channels


@channel_rule("Conv1D", "Conv2D", "Conv3D")
def _convolution(coupling: Coupling, call: Call, operands: list[Numbers]) -> Numbers:
    layer = call.operation
    axis = channel_axis(layer, operands[0])
    in_channels = along(operands[0], axis)
    if layer.groups == len(in_channels) > 1:  # a depthwise convolution by another name
        out_channels = np.repeat(in_channels, layer.filters // layer.groups)
        coupling.use(call, layer.kernel, {-1: out_channels})
        coupling.use(call, layer.bias, {0: out_channels})
        coupling.set(call, "filters", out_channels)
        coupling.set(call, "groups", in_channels)
        return spread(out_channels, operands[0].ndim, axis)
    out_channels = _new_channels(coupling, call, layer.filters)
    if layer.groups > 1:
        # All groups must keep the same size: the i-th channels of all groups are coupled.
        for numbers in (in_channels, out_channels):
            by_group = numbers.reshape(layer.groups, -1)
            coupling.couple(by_group[:1], by_group)
        in_channels = in_channels[: len(in_channels) // layer.groups]
    coupling.use(call, layer.kernel, {-2: in_channels, -1: out_channels}, made=-1)
    coupling.use(call, layer.bias, {0: out_channels})
    coupling.set(call, "filters", out_channels)
    return spread(out_channels, operands[0].ndim, axis)


@channel_rule("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
def _transposed(coupling: Coupling, call: Call, operands: list[Numbers]) -> Numbers:
    layer = call.operation
    axis = channel_axis(layer, operands[0])
    in_channels = along(operands[0], axis)
    out_channels = _new_channels(coupling, call, layer.filters)
    coupling.use(call, layer.kernel, {-1: in_channels, -2: out_channels}, made=-2)
    coupling.use(call, layer.bias, {0: out_channels})
    coupling.set(call, "filters", out_channels)
    return spread(out_channels, operands[0].ndim, axis)


@channel_rule("DepthwiseConv1D", "DepthwiseConv2D")
def _depthwise(coupling: Coupling, call: Call, operands: list[Numbers]) -> Numbers:
    layer = call.operation
    axis = channel_axis(layer, operands[0])
    in_channels = along(operands[0], axis)
    out_channels = np.repeat(in_channels, layer.depth_multiplier)
    coupling.use(call, layer.kernel, {-2: in_channels})
    coupling.use(call, layer.bias, {0: out_channels})
    return spread(out_channels, operands[0].ndim, axis)


@channel_rule("SeparableConv1D", "SeparableConv2D")
def _separable(coupling: Coupling, call: Call, operands: list[Numbers]) -> Numbers:
    layer = call.operation
    axis = channel_axis(layer, operands[0])
    in_channels = along(operands[0], axis)
    out_channels = _new_channels(coupling, call, layer.filters)
    middle = np.repeat(in_channels, layer.depth_multiplier)
    coupling.use(call, layer.depthwise_kernel, {-2: in_channels})
    coupling.use(call, layer.pointwise_kernel, {-2: middle, -1: out_channels}, made=-1)
    coupling.use(call, layer.bias, {0: out_channels})
    coupling.set(call, "filters", out_channels)
    return spread(out_channels, operands[0].ndim, axis)


@channel_rule("Dense")
def _dense(coupling: Coupling, call: Call, operands: list[Numbers]) -> Numbers:
    layer, numbers = call.operation, operands[0]
    if numbers.shape[-1] == 1 and layer.kernel.shape[0] > 1:
        # It combines positions, whose channels lie along another axis.
        return numbers
    in_channels = along(numbers, numbers.ndim - 1)
    out_channels = _new_channels(coupling, call, layer.units)
    coupling.use(call, layer.kernel, {0: in_channels, 1: out_channels}, made=1)
    coupling.use(call, layer.bias, {0: out_channels})
    coupling.set(call, "units", out_channels)
    return spread(out_channels, numbers.ndim, -1)


@channel_rule("EinsumDense")
def _einsum_dense(coupling: Coupling, call: Call, operands: list[Numbers]) -> Numbers:
    layer, numbers = call.operation, operands[0]
    first, second, result = einsum_letters(layer)
    summed = [letter for letter in second if letter in first and letter not in result]
    free = [letter for letter in second if letter not in first]
    if "." in layer.equation or first[-1:] != "".join(summed) or result[-1:] != "".join(free):
        raise Unresolved(f"the equation {layer.equation!r} does more than a dense layer")
    axis, out = second.index(summed[0]), second.index(free[0])
    in_channels = along(numbers, numbers.ndim - 1)
    out_channels = _new_channels(coupling, call, layer.kernel.shape[out])
    coupling.use(call, layer.kernel, {axis: in_channels, out: out_channels}, made=out)
    if layer.bias is not None:
        if len(layer.bias.shape) != 1:
            raise Unresolved("its bias has several axes")
        coupling.use(call, layer.bias, {0: out_channels})
    shape = layer.partial_output_shape
    coupling.set(call, "output_shape", out_channels, lambda stays: (*shape[:-1], int(stays.sum())))
    return spread(out_channels, numbers.ndim, -1)


@channel_rule("Embedding")
def _embedding(coupling: Coupling, call: Call, operands: list[Numbers]) -> Numbers:
    layer, out_channels = call.operation, coupling.new(call, call.operation.output_dim)
    coupling.use(call, layer.embeddings, {1: out_channels}, made=1)
    coupling.set(call, "output_dim", out_channels)
    return spread(out_channels, operands[0].ndim + 1, -1)


@channel_rule("ReversibleEmbedding")
def _reversible(coupling: Coupling, call: Call, operands: list[Numbers]) -> Numbers:
    layer, out_channels = call.operation, coupling.new(call, call.operation.output_dim)
    coupling.use(call, layer.embeddings, {1: out_channels}, made=1)
    if not layer.tie_weights:
        coupling.use(call, layer.reverse_embeddings, {0: out_channels})
    coupling.set(call, "output_dim", out_channels)
    reverse = call.kwargs.get("reverse", call.args[1] if len(call.args) > 1 else False)
    if not reverse:
        return spread(out_channels, operands[0].ndim + 1, -1)
    coupling.couple(along(operands[0], operands[0].ndim - 1), out_channels)
    return coupling.fixed(call.outputs[0])


@channel_rule("TimeDistributed")
def _time_distributed(coupling: Coupling, call: Call, operands: list[Numbers]) -> Numbers:
    layer = call.operation.layer
    rule = rule_for(layer)
    if rule is None or len(operands) != 1 or operands[0].shape[0] != 1:
        raise Unresolved(f"no rule is known for the {type(layer).__name__} inside it")
    tensors = [
        [keras.KerasTensor((None, *t.shape[2:]), t.dtype) for t in symbolic]
        for symbolic in (call.inputs, call.outputs)
    ]
    inner_call = Call(call.path, layer, (tensors[0][0],), {}, *tensors)
    # Setting an entry drops the build config, which has the sizes before the cut.
    coupling.set(call, "layer/config/name", np.zeros(0, int), lambda stays: layer.name)
    channels = rule(_InnerCoupling(coupling, call), inner_call, [operands[0][0]])
    return channels[None]


class _InnerCoupling:
    """A coupling for the rule of an inner layer, whose config is inside that of the outer layer."""

    def __init__(self, coupling: Coupling, call: Call) -> None:
        self._coupling, self._call = coupling, call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coupling, name)

    def set(self, call: Call, entry: str, *rest: Any) -> None:
        self._coupling.set(self._call, f"layer/config/{entry}", *rest)


@channel_rule("BatchNormalization", "LayerNormalization", "RMSNormalization", "LayerScale")
def _normalization(coupling: Coupling, call: Call, operands: list[Numbers]) -> Numbers:
    layer, numbers = call.operation, operands[0]
    axis = getattr(layer, "axis", -1)
    axes = [axis] if isinstance(axis, int) else list(axis)
    rank = numbers.ndim
    positions = [a % (rank + 1) - 1 for a in axes]  # not counting the batch axis
    for variable in layer.variables:
        if len(variable.shape) == len(positions):
            varying = {i: numbers for i, a in enumerate(positions) if numbers.shape[a] > 1}
            for i in varying:
                varying[i] = along(numbers, positions[i])
            coupling.use(call, variable, varying)
    if type(layer).__name__ == "LayerScale":
        coupling.set(call, "projection_dim", along(numbers, rank - 1))
    return numbers


@channel_rule("GroupNormalization")
def _group_normalization(coupling: Coupling, call: Call, operands: list[Numbers]) -> Numbers:
    layer, numbers = call.operation, operands[0]
    channels = along(numbers, layer.axis % (numbers.ndim + 1) - 1)
    groups = len(channels) if layer.groups == -1 else layer.groups
    by_group = channels.reshape(groups, -1)
    if groups == len(channels):
        coupling.set(call, "groups", channels)
    else:
        coupling.couple(by_group[:1], by_group)  # all groups must keep the same size
    for variable in layer.variables:
        coupling.use(call, variable, {0: channels})
    return numbers


@channel_rule("PReLU")
def _prelu(coupling: Coupling, call: Call, operands: list[Numbers]) -> Numbers:
    layer, numbers = call.operation, operands[0]
    axes = {
        axis: along(numbers, axis)
        for axis, size in enumerate(layer.alpha.shape)
        if size > 1 and numbers.shape[axis] > 1
    }
    coupling.use(call, layer.alpha, axes)
    return numbers


@channel_rule("LSTM", "GRU", "SimpleRNN")
def _recurrent(coupling: Coupling, call: Call, operands: list[Numbers]) -> Any:
    layer = call.operation
    if len(operands) > 1 or layer.return_state:
        raise Unresolved("it takes or returns states")
    out_channels = _cell(coupling, call, layer, along(operands[0], 1), "")
    return spread(out_channels, 2, 1) if layer.return_sequences else out_channels


def _cell(
    coupling: Coupling, call: Call, layer: Any, in_channels: Numbers, attribute: str
) -> Numbers:
    cell = layer.cell
    out_channels = coupling.new(call, cell.units, attribute)
    gates = cell.kernel.shape[1] // cell.units
    all_gates = np.tile(out_channels, gates)
    coupling.use(call, cell.kernel, {0: in_channels, 1: all_gates}, made=1)
    coupling.use(call, cell.recurrent_kernel, {0: out_channels, 1: all_gates})
    coupling.use(call, cell.bias if cell.use_bias else None, {-1: all_gates})
    prefix = f"{attribute}/config/" if attribute else ""
    coupling.set(call, f"{prefix}units", out_channels)
    return out_channels


@channel_rule("Bidirectional")
def _bidirectional(coupling: Coupling, call: Call, operands: list[Numbers]) -> Numbers:
    layer = call.operation
    directions = (layer.forward_layer, layer.backward_layer)
    if len(operands) > 1 or layer.return_state or layer.merge_mode is None:
        raise Unresolved("it takes or returns states, or two sequences")
    names = ("layer", "backward_layer")
    out_channels = [
        _cell(coupling, call, direction, along(operands[0], 1), name)
        for direction, name in zip(directions, names, strict=True)
    ]
    # Keras requires both directions to have the same size, whatever the merge mode.
    coupling.couple(*out_channels)
    numbers = np.concatenate(out_channels) if layer.merge_mode == "concat" else out_channels[0]
    return spread(numbers, 2, 1) if directions[0].return_sequences else numbers


@channel_rule("MultiHeadAttention", "GroupedQueryAttention")
def _attention(coupling: Coupling, call: Call, operands: list[Numbers]) -> Numbers:
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
    key_heads = heads
    if grouped:
        shared = heads.reshape(layer.num_key_value_heads, -1)
        coupling.couple(shared[:, :1], shared)
        key_heads = shared[:, 0]
        coupling.set(call, "num_query_heads", heads)
        coupling.set(call, "num_key_value_heads", key_heads)
    else:
        coupling.set(call, "num_heads", heads)
    projections = attention_parts(layer)
    last = projections["attention_output"]
    out_channels = coupling.new(call, last.kernel.shape[-1])
    for part, in_channels, of_head in (
        (projections["query"], query, heads),
        (projections["key"], key, key_heads),
        (projections["value"], value, key_heads),
    ):
        coupling.use(call, part.kernel, {0: in_channels, 1: of_head}, made=1)
        coupling.use(call, part.bias, {0: of_head})
    coupling.use(call, last.kernel, {0: heads, 2: out_channels}, made=2)
    coupling.use(call, last.bias, {0: out_channels})
    if grouped or not layer.get_config().get("output_shape"):
        coupling.couple(out_channels, query)  # as many as the query has
    else:
        coupling.set(call, "output_shape", out_channels)
    return spread(out_channels, 2, 1)
