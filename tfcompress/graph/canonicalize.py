"""Canonical forms: one layer rewritten as several simpler ones with the same result.

Quantizers stand between operations, so what hides several operations in one layer is split first.
A rule turns a plain Keras layer into a chain of plain layers and says which variable is which; the
wrapped model keeps the config of the original beside the parts, and `strip` puts it back. To add a
rule, append it to `RULES`; `tests/graph/test_canonicalize.py` checks each for equal outputs.
"""

from __future__ import annotations

from typing import Any

import keras

from tfcompress.graph.clone import clone_layer


class Rule:
    """One reversible rewriting of a layer.

    Attributes:
        name: Identifies the rule in saved models; never change it.
    """

    name: str

    def matches(self, layer: Any) -> bool:
        """Returns whether the rule rewrites `layer`."""
        raise NotImplementedError

    def parts(self, layer: Any) -> list[Any]:
        """Returns the unbuilt layers that do the same one after the other."""
        raise NotImplementedError

    def variables(self, parts: list[Any]) -> list[Any]:
        """Returns the variables of the built parts in the order of the original's."""
        return [variable for part in parts for variable in part.variables]


class SplitActivation(Rule):
    """A layer with a fused activation becomes the linear layer and an Activation layer."""

    name = "split_activation"
    _layers = (
        keras.layers.Dense,
        keras.layers.EinsumDense,
        keras.layers.Conv1D,
        keras.layers.Conv2D,
        keras.layers.Conv3D,
        keras.layers.Conv1DTranspose,
        keras.layers.Conv2DTranspose,
        keras.layers.Conv3DTranspose,
        keras.layers.DepthwiseConv1D,
        keras.layers.DepthwiseConv2D,
        keras.layers.SeparableConv1D,
        keras.layers.SeparableConv2D,
    )

    def matches(self, layer: Any) -> bool:
        """Returns whether `layer` is a Keras layer with a Keras activation other than linear."""
        return type(layer) in self._layers and activation_name(layer) not in (None, "linear")

    def parts(self, layer: Any) -> list[Any]:
        """Returns the linear layer, under the same name, and the activation."""
        activation = layer.get_config()["activation"]
        return [
            # Activity regularizers act on the layer's output, which is now the activation's.
            clone_layer(layer, activation="linear", activity_regularizer=None),
            keras.layers.Activation(
                activation,
                name=f"{layer.name}_activation",
                dtype=layer.dtype_policy,
                activity_regularizer=layer.activity_regularizer,
            ),
        ]


class PoolGlobally(Rule):
    """A global average of an image of known size becomes an average pooling over all of it.

    TFLite computes the first as MEAN, which its kernels round differently by a step, and the second
    as AVERAGE_POOL_2D, which they all round alike.
    """

    name = "pool_globally"

    def matches(self, layer: Any) -> bool:
        """Returns whether `layer` averages images of one known size, channels last."""
        if type(layer) is not keras.layers.GlobalAveragePooling2D or not layer._inbound_nodes:
            return False
        shapes = {tuple(node.input_tensors[0].shape[1:]) for node in layer._inbound_nodes}
        return (
            layer.data_format == "channels_last" and len(shapes) == 1 and None not in shapes.pop()
        )

    def parts(self, layer: Any) -> list[Any]:
        """Returns the pooling, under the same name, and a reshape to what the layer returns."""
        height, width, channels = layer._inbound_nodes[0].input_tensors[0].shape[1:]
        shape = (1, 1, channels) if layer.keepdims else (channels,)
        return [
            keras.layers.AveragePooling2D(
                (height, width), name=layer.name, dtype=layer.dtype_policy
            ),
            keras.layers.Reshape(shape, name=f"{layer.name}_reshape", dtype=layer.dtype_policy),
        ]


RULES: list[Rule] = [SplitActivation(), PoolGlobally()]


def activation_name(layer: Any) -> str | None:
    """Returns the name of a layer's Keras activation, or None if it has none or one of its own."""
    activation = getattr(layer, "activation", None)
    name = getattr(activation, "__name__", None)
    try:
        known = name is not None and keras.activations.get(name) is activation
    except ValueError:
        return None
    return name if known else None


def rule_for(layer: Any) -> Rule | None:
    """Returns the rule that rewrites `layer`, if any."""
    return next((rule for rule in RULES if rule.matches(layer)), None)


def rule_named(name: str) -> Rule:
    """Returns a rule by the name under which a saved model knows it."""
    return next(rule for rule in RULES if rule.name == name)
