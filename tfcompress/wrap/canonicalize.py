"""Canonical forms: one layer rewritten as several simpler ones with the same result.

Quantizers stand between operations, so what hides several operations in one layer is split first.
A rule turns a plain Keras layer into a chain of layers: plain ones, or those of `runtime.py`, which
round as the runtime does inside. The wrapped model keeps the config of the original beside the
parts, and `strip` puts it back. To add a rule, append it to `RULES`;
`tests/wrap/test_canonicalize.py` checks each for equal outputs.
"""

from __future__ import annotations

import warnings
from typing import Any

import keras
from keras import layers

from tfcompress.errors import CompressionWarning
from tfcompress.graph.copies import clone_layer
from tfcompress.wrap.parts import ChannelScale, FoldSteps, UnfoldSteps
from tfcompress.wrap.recurrent import BYTES_PER_STEP, LONGEST, RuntimeRecurrent, understands
from tfcompress.wrap.runtime import (
    RuntimeHardSwish,
    RuntimeLayer,
    RuntimeMerge,
    RuntimeNormalization,
    RuntimePReLU,
    RuntimeSwish,
)

KERNELS = (
    layers.Dense,
    layers.EinsumDense,
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv3D,
    layers.Conv1DTranspose,
    layers.Conv2DTranspose,
    layers.Conv3DTranspose,
    layers.DepthwiseConv1D,
    layers.DepthwiseConv2D,
    layers.SeparableConv1D,
    layers.SeparableConv2D,
)
"""The layers that are a weighted sum with an activation behind it."""


class Rule:
    """One reversible rewriting of a layer."""

    def matches(self, layer: Any) -> bool:
        """Returns whether the rule rewrites `layer`."""
        raise NotImplementedError

    def parts(self, layer: Any) -> list[Any]:
        """Returns the unbuilt layers that do the same one after the other.

        Their variables, one layer after the other, are those of the original in its order.
        """
        raise NotImplementedError


class SplitActivation(Rule):
    """A layer with a fused activation becomes the linear layer and an Activation layer."""

    def matches(self, layer: Any) -> bool:
        """Returns whether `layer` is a Keras layer with a Keras activation other than linear."""
        return type(layer) in KERNELS and activation_name(layer) not in (None, "linear")

    def parts(self, layer: Any) -> list[Any]:
        """Returns the linear layer, under the same name, and the activation."""
        activation = layer.get_config()["activation"]
        return [
            # Activity regularizers act on the layer's output, which is now the activation's.
            clone_layer(layer, activation="linear", activity_regularizer=None),
            layers.Activation(
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

    def matches(self, layer: Any) -> bool:
        """Returns whether `layer` averages images of one known size, channels last."""
        if type(layer) is not layers.GlobalAveragePooling2D or not layer._inbound_nodes:
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
            layers.AveragePooling2D((height, width), name=layer.name, dtype=layer.dtype_policy),
            layers.Reshape(shape, name=f"{layer.name}_reshape", dtype=layer.dtype_policy),
        ]


class SplitSeparable(Rule):
    """A separable convolution becomes its two halves, with a rounding between them."""

    def matches(self, layer: Any) -> bool:
        """Returns whether `layer` is a separable convolution without constraints."""
        kinds = (layers.SeparableConv1D, layers.SeparableConv2D)
        if type(layer) not in kinds or activation_name(layer) != "linear":
            return False
        return not (layer.depthwise_constraint or layer.pointwise_constraint)

    def parts(self, layer: Any) -> list[Any]:
        """Returns the depthwise and, under the layer's name, the pointwise convolution."""
        one = layer.rank == 1
        return [
            (layers.DepthwiseConv1D if one else layers.DepthwiseConv2D)(
                layer.kernel_size,
                strides=layer.strides,
                padding=layer.padding,
                depth_multiplier=layer.depth_multiplier,
                data_format=layer.data_format,
                dilation_rate=layer.dilation_rate,
                use_bias=False,
                depthwise_initializer=layer.depthwise_initializer,
                depthwise_regularizer=layer.depthwise_regularizer,
                name=f"{layer.name}_depthwise",
                dtype=layer.dtype_policy,
                trainable=layer.trainable,
            ),
            (layers.Conv1D if one else layers.Conv2D)(
                layer.filters,
                1,
                data_format=layer.data_format,
                use_bias=layer.use_bias,
                kernel_initializer=layer.pointwise_initializer,
                kernel_regularizer=layer.pointwise_regularizer,
                bias_initializer=layer.bias_initializer,
                bias_regularizer=layer.bias_regularizer,
                bias_constraint=layer.bias_constraint,
                activity_regularizer=layer.activity_regularizer,
                name=layer.name,
                dtype=layer.dtype_policy,
                trainable=layer.trainable,
            ),
        ]


class RoundSwish(Rule):
    """`x * sigmoid(x)`, and hard swish, as the runtime rounds them."""

    def matches(self, layer: Any) -> bool:
        """Returns whether `layer` is nothing but this activation."""
        return type(layer) is layers.Activation and activation_name(layer) in _SWISHES

    def parts(self, layer: Any) -> list[Any]:
        """Returns the activation of the runtime."""
        return [_runtime(_SWISHES[activation_name(layer) or ""], layer)]


class RoundSlopes(Rule):
    """A parametric ReLU with the slopes that the runtime keeps, of 8 bits."""

    def matches(self, layer: Any) -> bool:
        """Returns whether `layer` is a parametric ReLU."""
        return type(layer) is layers.PReLU

    def parts(self, layer: Any) -> list[Any]:
        """Returns the activation of the runtime."""
        config = layer.get_config()
        names = [name for name in config if name.startswith("alpha_") or name == "shared_axes"]
        return [_runtime(RuntimePReLU, layer, options={name: config[name] for name in names})]


class SplitHardSigmoid(Rule):
    """`min(max(x / 6 + 1 / 2, 0), 1)` as a scaling, which is fused, and a clipping."""

    def matches(self, layer: Any) -> bool:
        """Returns whether `layer` is nothing but this activation."""
        return type(layer) is layers.Activation and activation_name(layer) == "hard_sigmoid"

    def parts(self, layer: Any) -> list[Any]:
        """Returns the scaling and the clipping."""
        return [
            layers.Rescaling(1 / 6, 0.5, name=f"{layer.name}_scaled", dtype=layer.dtype_policy),
            layers.ReLU(
                max_value=1.0,
                name=layer.name,
                dtype=layer.dtype_policy,
                activity_regularizer=layer.activity_regularizer,
            ),
        ]


class MergePairwise(Rule):
    """A merge of several tensors, two at a time; and sums, which the runtime rounds its own way."""

    def matches(self, layer: Any) -> bool:
        """Returns whether the runtime takes several steps, or rounds as no float would."""
        counts = {len(node.input_tensors) for node in layer._inbound_nodes}
        if type(layer) not in _MERGES or len(counts) != 1:
            return False
        return min(counts) > (2 if type(layer) is layers.Multiply else 1)

    def parts(self, layer: Any) -> list[Any]:
        """Returns the merge of the runtime."""
        count = len(layer._inbound_nodes[0].input_tensors)
        return [_runtime(RuntimeMerge, layer, how=_MERGES[type(layer)], count=count)]


class NormalizeInIntegers(Rule):
    """Layer, RMS and group normalization in the steps of the runtime."""

    def matches(self, layer: Any) -> bool:
        """Returns whether `layer` normalizes the last axis, or groups of it at known positions."""
        if not layer.built or type(layer) not in _NORMALIZATIONS:
            return False
        shape = layer.get_build_config()["input_shape"]
        axis = layer.axis[0] if isinstance(layer.axis, (list, tuple)) else layer.axis
        several = isinstance(layer.axis, (list, tuple)) and len(layer.axis) > 1
        if several or axis % len(shape) != len(shape) - 1 or shape[-1] is None:
            return False
        if type(layer) is not layers.GroupNormalization:
            return True
        return None not in shape[1:] and not (layer.gamma_constraint or layer.beta_constraint)

    def parts(self, layer: Any) -> list[Any]:
        """Returns the normalization of the runtime."""
        config = layer.get_config()
        rms = type(layer) is layers.RMSNormalization or config.get("rms_scaling", False)
        groups = config.get("groups", 0)
        if groups == -1:  # Keras: instance normalization
            groups = layer.get_build_config()["input_shape"][-1]
        scale = config.get("scale", True)
        center = config.get("center", False) and not rms
        normalized = RuntimeNormalization(
            groups,
            layer.epsilon,
            not rms,
            name=f"{layer.name}_normalized" if scale or center else layer.name,
            dtype=layer.dtype_policy,
        )
        if not (scale or center):
            return [normalized]
        kept = {k: v for k, v in config.items() if k.startswith(("gamma_", "beta_"))}
        return [normalized, _runtime(ChannelScale, layer, center=center, scale=scale, options=kept)]


class UnfoldDense(Rule):
    """A Dense layer applied to every step of a sequence is a Dense layer, which takes any rank."""

    def matches(self, layer: Any) -> bool:
        """Returns whether `layer` applies a Dense layer to steps."""
        return type(layer) is layers.TimeDistributed and type(layer.layer) is layers.Dense

    def parts(self, layer: Any) -> list[Any]:
        """Returns the Dense layer under the name of the whole."""
        return [clone_layer(layer.layer, name=layer.name, trainable=layer.trainable)]


class FoldTime(Rule):
    """A layer applied to every step of a sequence is applied to all of them as one batch."""

    def matches(self, layer: Any) -> bool:
        """Returns whether `layer` applies another, which knows nothing of its batch, to steps."""
        if type(layer) is not layers.TimeDistributed or not layer.built or not layer._inbound_nodes:
            return False
        if any(node.arguments.kwargs.get("mask") is not None for node in layer._inbound_nodes):
            return False
        shapes = {tuple(node.input_tensors[0].shape[1:]) for node in layer._inbound_nodes}
        stateful = layer.layer.non_trainable_variables or layer.layer._flatten_layers(False, True)
        return len(shapes) == 1 and None not in shapes.pop() and not list(stateful)

    def parts(self, layer: Any) -> list[Any]:
        """Returns the fold, the layer inside, and the unfolding under the name of the whole."""
        steps = layer._inbound_nodes[0].input_tensors[0].shape[1]
        inner = clone_layer(layer.layer, name=f"{layer.name}_step")
        inner.trainable = layer.trainable
        return [
            FoldSteps(name=f"{layer.name}_fold", dtype=layer.dtype_policy),
            inner,
            UnfoldSteps(steps, name=layer.name, dtype=layer.dtype_policy),
        ]


class WriteOutLoop(Rule):
    """A recurrent layer of known, moderate length, step by step."""

    def matches(self, layer: Any) -> bool:
        """Returns whether `layer` can be written out; warns if only its length forbids it."""
        if not (layer.built and layer._inbound_nodes and understands(layer)):
            return False
        for node in layer._inbound_nodes:
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
        lengths = {node.input_tensors[0].shape[1] for node in layer._inbound_nodes}
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
        return [_runtime(RuntimeRecurrent, layer, inner=clone_layer(layer))]


_SWISHES: dict[str, type[RuntimeLayer]] = {"silu": RuntimeSwish, "hard_silu": RuntimeHardSwish}
_MERGES = {layers.Add: "add", layers.Average: "average", layers.Multiply: "multiply"}
_NORMALIZATIONS = (
    layers.LayerNormalization,
    layers.RMSNormalization,
    layers.GroupNormalization,
)

RULES: list[Rule] = [
    SplitActivation(),
    SplitSeparable(),
    PoolGlobally(),
    RoundSwish(),
    RoundSlopes(),
    SplitHardSigmoid(),
    MergePairwise(),
    NormalizeInIntegers(),
    UnfoldDense(),
    FoldTime(),
    WriteOutLoop(),
]


def _runtime(kind: Any, layer: Any, **kwargs: Any) -> Any:
    return kind(name=layer.name, dtype=layer.dtype_policy, trainable=layer.trainable, **kwargs)


def activation_name(layer: Any) -> str | None:
    """Returns the name of a layer's Keras activation, or None if it has none or one of its own."""
    activation = getattr(layer, "activation", None)
    name = getattr(activation, "__name__", None)
    try:
        known = name is not None and keras.activations.get(name) is activation
    except ValueError:
        return None
    return name if known else None


def parts_of(layer: Any) -> list[Any] | None:
    """Returns what a layer becomes by the rules, which apply to the parts again, or None."""
    rule = next((rule for rule in RULES if rule.matches(layer)), None)
    if rule is None:
        return None
    return [final for part in rule.parts(layer) for final in parts_of(part) or [part]]


def original_variables(parts: list[Any]) -> list[Any]:
    """Returns those variables of built parts that the layer has, in its order."""
    return [
        variable
        for part in parts
        for variable in (
            part.original_variables() if isinstance(part, RuntimeLayer) else part.variables
        )
    ]
