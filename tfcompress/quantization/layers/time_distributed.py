"""A layer at each time step of a sequence."""

from __future__ import annotations

from typing import Any

from keras import layers

from tfcompress.graph.copies import clone_layer
from tfcompress.graph.keras_internals import flatten_layers, inbound_nodes
from tfcompress.graph.plain_layers import FoldSteps, UnfoldSteps
from tfcompress.quantization.canonicalize import Rule, canonical_form


@canonical_form
class UnfoldDense(Rule):
    """A Dense layer at every time step is a Dense layer, which takes inputs of any rank."""

    def matches(self, layer: Any) -> bool:
        """Returns whether `layer` applies a Dense layer to time steps."""
        return type(layer) is layers.TimeDistributed and type(layer.layer) is layers.Dense

    def parts(self, layer: Any) -> list[Any]:
        """Returns the Dense layer, under the name of `layer`."""
        return [clone_layer(layer.layer, name=layer.name, trainable=layer.trainable)]


@canonical_form
class FoldTime(Rule):
    """A layer at every time step of a sequence is applied to all of them as one batch."""

    def matches(self, layer: Any) -> bool:
        """Returns whether `layer` applies one that treats samples independently to time steps."""
        if type(layer) is not layers.TimeDistributed or not layer.built or not inbound_nodes(layer):
            return False
        if any(node.arguments.kwargs.get("mask") is not None for node in inbound_nodes(layer)):
            return False
        shapes = {tuple(node.input_tensors[0].shape[1:]) for node in inbound_nodes(layer)}
        stateful = layer.layer.non_trainable_variables or flatten_layers(layer.layer)[1:]
        return len(shapes) == 1 and None not in shapes.pop() and not list(stateful)

    def parts(self, layer: Any) -> list[Any]:
        """Returns the folding, the inner layer, and the unfolding under the name of `layer`."""
        time_steps = inbound_nodes(layer)[0].input_tensors[0].shape[1]
        inner = clone_layer(layer.layer, name=f"{layer.name}_step")
        inner.trainable = layer.trainable
        return [
            FoldSteps(name=f"{layer.name}_fold", dtype=layer.dtype_policy),
            inner,
            UnfoldSteps(time_steps, name=layer.name, dtype=layer.dtype_policy),
        ]
