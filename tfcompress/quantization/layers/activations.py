"""Activations: ReLU and what is fused like it, swish, hard swish, PReLU, prescribed ranges."""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import layers, ops

from tfcompress.graph.keras_internals import inbound_nodes
from tfcompress.graph.layers import activation_name
from tfcompress.integer.elementwise import (
    Addition,
    ConstantAddition,
    ElementwiseKernel,
    HardSwish,
    ParametricReLU,
    quantized_slopes,
)
from tfcompress.integer.fake_quant import fake_quant, straight_through
from tfcompress.integer.fixed_point import SIGMOID_RANGE, TANH_RANGE, scale_of_constant
from tfcompress.integer.kernels import KERNELS
from tfcompress.integer.producers import Activated, LeakyRelu, Product
from tfcompress.integer.roles import CLIP, MOVE, OUTPUT, RELU, Range, integer_layer
from tfcompress.integer.trace import quantizer_of
from tfcompress.quantization.canonicalize import Rule, canonical_form
from tfcompress.quantization.layers.base import RuntimeLayer, runtime_layer

_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805
_PRECISE = "float32" if keras.backend.backend() == "jax" else "float64"  # JAX has it off

_RANGES: dict[str, Range] = {
    "softmax": SIGMOID_RANGE,
    "sigmoid": SIGMOID_RANGE,
    "tanh": TANH_RANGE,
    "log_softmax": (-255 / 16, 0.0),
}
_ROLES = {"linear": MOVE, "relu": RELU, "relu6": RELU, "hard_tanh": CLIP}


def _relu(layer: Any) -> str:
    # The runtime has no fused activation with a slope or a threshold.
    return OUTPUT if layer.negative_slope or layer.threshold else RELU


def _clip(operation: Any) -> str:
    bounds = (operation.x_min, operation.x_max)
    numbers = all(isinstance(bound, (int, float)) for bound in bounds)
    return CLIP if numbers and bounds[0] <= 0 <= bounds[1] else OUTPUT


def _leaky(layer: Any, inputs: Sequence[Any], result: Any) -> LeakyRelu | None:
    read = quantizer_of(inputs[0]) if layer.negative_slope > 0 else None
    return None if read is None else LeakyRelu(read, layer.negative_slope)


def _activated(layer: Any, inputs: Sequence[Any], result: Any) -> Activated | None:
    name = activation_name(layer) if isinstance(layer, layers.Activation) else None
    function = name or type(layer).__name__.lower()
    read = quantizer_of(inputs[0])
    axis = getattr(layer, "axis", -1)
    if read is None or function not in ("sigmoid", "tanh", "softmax"):
        return None
    return Activated(function, read, axis) if isinstance(axis, int) else None


integer_layer("ReLU", role=_relu, int16=True)
integer_layer("Relu Relu6", role=RELU, int16=True)
integer_layer("Clip", role=_clip, int16=True)
integer_layer("LeakyReLU", int16=True, producer=_leaky)
integer_layer(
    "Activation",
    role=lambda layer: _ROLES.get(activation_name(layer) or "", OUTPUT),
    int16=lambda layer: activation_name(layer) in ("linear", "relu", "relu6", "leaky_relu"),
    fixed_range=lambda layer: _RANGES.get(activation_name(layer) or ""),
    producer=_activated,
)
integer_layer("Softmax Sigmoid", fixed_range=SIGMOID_RANGE, producer=_activated)
integer_layer("Tanh", fixed_range=TANH_RANGE, producer=_activated)
integer_layer("LogSoftmax", fixed_range=_RANGES["log_softmax"])


@keras.saving.register_keras_serializable("tfcompress")
class RuntimeSwish(RuntimeLayer):
    """`x * sigmoid(x)`: the runtime quantizes the sigmoid, then the product."""

    def producer_for(self, read: Sequence[Any]) -> Product:
        """Returns the product."""
        return Product((read[0], SIGMOID_RANGE[1] / 255))

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the product."""
        gate = ops.sigmoid(inputs)
        if self.passes:
            return inputs * gate
        if (
            training
            or not self.linked_quantizers()
            or not all(quantizer.exact for quantizer in self.linked_quantizers())
        ):
            return inputs * fake_quant(gate, *SIGMOID_RANGE)
        if self.kernels != "xnnpack":
            read, _ = self.linked_quantizers()
            kernels, unit = KERNELS[self.kernels], ops.convert_to_tensor(2**-8, "float32")
            quantized = kernels.activate("sigmoid", gate, read.qparams()[0], unit)
            return inputs * straight_through(gate, quantized * unit)
        # The runtime looks the gate up in a table. It computes that table as here, ties to even.
        power = ops.cast(ops.exp(ops.cast(ops.minimum(inputs, 80.0), _PRECISE)), "float32")
        table = ops.minimum(ops.round(power / (1 + power) * 256), 255.0) * 2**-8
        return inputs * straight_through(gate, table)


@keras.saving.register_keras_serializable("tfcompress")
class RuntimeHardSwish(RuntimeLayer):
    """The hard swish of Keras, as the runtime computes it in one of two forms.

    "kernel" is HARD_SWISH. "gate" is `x * (min(max(x + 3, 0), 6) / 6)`, a chain of operations that
    XNNPACK merges into one table.

    Args:
        form: "kernel" or "gate".
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    fixed_ranges: Mapping[str, Any] = types.MappingProxyType(
        {"shifted": (0.0, 6.0), "gate": (0.0, 1.0)}
    )

    def __init__(self, form: str = "kernel", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.form = form
        self.result_names = ("shifted", "gate") if form == "gate" else ()

    def kernels_for(self, read: Sequence[Any], result: Any) -> list[ElementwiseKernel]:
        """Returns the kernel of the whole, or that of the sum."""
        if self.form == "gate":
            return [ConstantAddition(tuple(read), self.rounding["shifted"], 3.0)]
        return [HardSwish(tuple(read), result)]

    def producer_for(self, read: Sequence[Any]) -> Product | None:
        """Returns the product with the gate."""
        return Product((read[0], self.rounding["gate"])) if self.form == "gate" else None

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the activation."""
        if self.form == "gate" and not self.passes:
            shifted = ops.relu6(inputs + 3.0)
            for kernel in () if training else self._kernels:
                shifted = kernel([inputs], shifted)
            shifted = self._quantize_result("shifted", shifted, training)
            return inputs * self._quantize_result("gate", shifted * (1 / 6), training)
        outputs = keras.activations.hard_swish(inputs)
        for kernel in () if training else self._kernels:
            outputs = kernel([inputs], outputs)
        return outputs

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "form": self.form}


@keras.saving.register_keras_serializable("tfcompress")
class RuntimeSelu(RuntimeLayer):
    """The scaled exponential unit of Keras as a sum of its positive and its negative part."""

    result_names = ("positive", "exponential", "negative")
    non_negative = ("positive",)
    fixed_ranges: Mapping[str, Any] = types.MappingProxyType(
        {"exponential": (-1.0, 0.0), "negative": (-_SELU_SCALE * _SELU_ALPHA, 0.0)}
    )

    def kernels_for(self, read: Sequence[Any], result: Any) -> list[ElementwiseKernel]:
        """Returns the sum."""
        return [Addition((self.rounding["positive"], self.rounding["negative"]), result)]

    def producer_for(self, read: Sequence[Any]) -> None:
        """Sets the producer of the positive part."""
        number_scale = float(scale_of_constant(_SELU_SCALE, 255))
        self.rounding["positive"].producer = Product((read[0], number_scale))

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the activation."""
        if self.passes:
            return ops.selu(inputs)
        positive = self._quantize_result("positive", ops.relu(inputs * _SELU_SCALE), training)
        # In the file, the range of its quantizer clips.
        exponential = ops.elu(inputs if self.lowered else ops.minimum(inputs, 0.0))
        exponential = self._quantize_result("exponential", exponential, training)
        negative = exponential * (_SELU_SCALE * _SELU_ALPHA)
        negative = self._quantize_result("negative", negative, training)
        outputs = positive + negative
        for kernel in () if training else self._kernels:
            outputs = kernel([positive, negative], outputs)
        return outputs


@keras.saving.register_keras_serializable("tfcompress")
class RuntimePReLU(RuntimeLayer):
    """The parametric ReLU of Keras with 8-bit slopes; at inference as the runtime computes it.

    Args:
        options: Constructor arguments of the Keras layer: its shared axes, and the initializer,
            regularizer and constraint of its slopes.
        form: "kernel", the integer kernel of PRELU, or "float", between two conversions.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    def __init__(self, options: dict[str, Any], form: str = "kernel", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.options, self.form = options, form
        arguments = {key: value for key, value in options.items() if key.startswith("alpha_")}
        self._like = layers.PReLU(shared_axes=options["shared_axes"], **arguments)
        self.alpha: Any = None

    def build(self, input_shape: Any) -> None:
        """Creates the slopes."""
        super().build(input_shape)
        like = self._like
        shared = [axis % len(input_shape) for axis in like.shared_axes or ()]
        self.alpha = self.add_weight(
            name="alpha",
            shape=[
                1 if axis in shared else input_shape[axis] for axis in range(1, len(input_shape))
            ],
            initializer=like.alpha_initializer,
            regularizer=like.alpha_regularizer,
            constraint=like.alpha_constraint,
        )

    def kernels_for(self, read: Sequence[Any], result: Any) -> list[ElementwiseKernel]:
        """Returns the one kernel; none where floats are quantized behind the layer."""
        if self.form == "float":
            return []
        slopes = functools.partial(ops.convert_to_tensor, self.alpha)
        return [ParametricReLU(tuple(read), result, slopes)]

    def original_variables(self) -> list[Any]:
        """Returns the slopes."""
        return [self.alpha]

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the activation."""
        alpha = ops.convert_to_tensor(self.alpha)
        if training or (self.form == "float" and not self.passes):
            slopes, scale = quantized_slopes(ops.cast(alpha, "float32"))
            alpha = straight_through(alpha, ops.cast(slopes * scale, alpha.dtype))
        # The converter recognizes a PReLU in this form.
        outputs = ops.relu(inputs) + -alpha * ops.relu(-inputs)
        for kernel in () if training else self._kernels:
            outputs = kernel([inputs], outputs)
        return outputs

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "options": self.options, "form": self.form}


@canonical_form
class ZeroSlope(Rule):
    """A leaky ReLU with a slope of zero, or too small for any quantized value, as a ReLU."""

    preferences = ("latency", "bytes")

    def matches(self, layer: Any) -> bool:
        """Returns whether `layer` is such a leaky ReLU."""
        return type(layer) is layers.LeakyReLU and 0 <= layer.negative_slope <= _LEAST_SLOPE

    def parts(self, layer: Any) -> list[Any]:
        """Returns the ReLU."""
        regularizer = layer.activity_regularizer
        return [
            layers.ReLU(name=layer.name, dtype=layer.dtype_policy, activity_regularizer=regularizer)
        ]


_LEAST_SLOPE = 1e-6


@canonical_form
class GateHardSwish(Rule):
    """Hard swish as a product with its gate, where that is faster."""

    preferences = ("latency", "bytes")

    def matches(self, layer: Any) -> bool:
        """Returns whether `layer` is nothing but this activation."""
        return type(layer) is layers.Activation and activation_name(layer) == "hard_silu"

    def parts(self, layer: Any) -> list[Any]:
        """Returns the activation of the runtime."""
        return [runtime_layer(RuntimeHardSwish, layer, form="gate")]


@canonical_form
class SplitSelu(Rule):
    """A scaled exponential unit as a sum; the runtime has no operation for it."""

    preferences = ("latency", "bytes")

    def matches(self, layer: Any) -> bool:
        """Returns whether `layer` is nothing but this activation, and has one set of scales."""
        selu = type(layer) is layers.Activation and activation_name(layer) == "selu"
        return selu and len(inbound_nodes(layer)) <= 1

    def parts(self, layer: Any) -> list[Any]:
        """Returns the activation of the runtime."""
        return [runtime_layer(RuntimeSelu, layer)]


@canonical_form
class RoundSwish(Rule):
    """`x * sigmoid(x)`, and hard swish, as the runtime quantizes them."""

    def matches(self, layer: Any) -> bool:
        """Returns whether `layer` is nothing but this activation."""
        return type(layer) is layers.Activation and activation_name(layer) in _SWISHES

    def parts(self, layer: Any) -> list[Any]:
        """Returns the activation of the runtime."""
        return [runtime_layer(_SWISHES[activation_name(layer) or ""], layer)]


@canonical_form
class RoundSlopes(Rule):
    """A parametric ReLU with 8-bit slopes, as the runtime stores them."""

    preferences: tuple[str, ...] = ("exactness",)
    form = "kernel"

    def matches(self, layer: Any) -> bool:
        """Returns whether `layer` is a parametric ReLU."""
        return type(layer) is layers.PReLU

    def parts(self, layer: Any) -> list[Any]:
        """Returns the activation of the runtime."""
        config = layer.get_config()
        names = [name for name in config if name.startswith("alpha_") or name == "shared_axes"]
        options = {name: config[name] for name in names}
        return [runtime_layer(RuntimePReLU, layer, options=options, form=self.form)]


@canonical_form
class SlopesInFloat(RoundSlopes):
    """The same, with products in float, which are faster than the integer kernel."""

    preferences = ("latency", "bytes")
    form = "float"


@canonical_form
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


_SWISHES: dict[str, type[RuntimeLayer]] = {"silu": RuntimeSwish, "hard_silu": RuntimeHardSwish}
