"""Layer, group and RMS normalization in integers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from tfcompress.graph.layers import keras_name
from tfcompress.graph.plain_layers import ChannelScale, RootMeanSquare
from tfcompress.integer.affine import is_affine
from tfcompress.integer.elementwise import (
    ElementwiseKernel,
    Subtraction,
)
from tfcompress.integer.fixed_point import inverse_root
from tfcompress.integer.grid_ops import FixedFakeQuant
from tfcompress.integer.producers import InverseRoot, Mean, Product
from tfcompress.integer.roles import NORMALIZATION, OUTPUT, Range, integer_layer
from tfcompress.quantization.canonicalize import Rule, canonical_form
from tfcompress.quantization.layers.base import RuntimeLayer, runtime_layer

_UNIT_RANGE = (-1.0, 127 / 128)

FEWEST_ROOTS = 16  # of a sample, from which on a table is faster than RSQRT


def has_unit_length(operation: Any) -> bool:
    """Returns whether an operation scales vectors along one axis to a length of one."""
    known = keras_name(operation) in ("UnitNormalization", "Normalize")
    one = known and len(keras.tree.flatten(operation.axis)) == 1
    return one and getattr(operation, "order", 2) == 2


def _unit_range(operation: Any) -> Range | None:
    return _UNIT_RANGE if has_unit_length(operation) else None


integer_layer(
    "BatchNormalization Rescaling Normalization",
    role=lambda layer: NORMALIZATION if is_affine(layer) else OUTPUT,
    int16=True,
)
integer_layer("ChannelScale", role=NORMALIZATION, int16=True)
integer_layer("UnitNormalization Normalize", fixed_range=_unit_range)


@keras.saving.register_keras_serializable("tfcompress")
class RuntimeNormalization(RuntimeLayer):
    """Layer or group normalization in integers, without scale and offset.

    Means are matrix products with a column of equal weights, which the runtime accumulates exactly.
    The inverse of the deviation is looked up in a table.

    Args:
        groups: Number of groups of channels, each normalized over all positions; 0 for a layer
            normalization, over the last axis alone.
        epsilon: A constant added to the variance.
        subtract_mean: False for RMS normalization.
        form: How the inverse of the deviation is computed: "kernel" by RSQRT, or "float" between
            two conversions, where there are many; XNNPACK makes a table of these three.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    non_negative = ("squares", "variance", "inverse")

    def __init__(
        self,
        groups: int,
        epsilon: float,
        subtract_mean: bool = True,
        form: str = "kernel",
        **kwargs: Any,
    ) -> None:
        self.form = form
        self.groups, self.epsilon, self.subtract_mean = groups, epsilon, subtract_mean
        self.propagates_mask = subtract_mean  # RMSNormalization drops them
        centering = ("mean", "centered") if subtract_mean else ()
        self.result_names = (*centering, "squares", "variance", "inverse")
        super().__init__(**kwargs)

    def kernels_for(self, read: Sequence[Any], result: Any) -> list[ElementwiseKernel]:
        """Returns the subtraction of the mean."""
        if not self.subtract_mean:
            return []
        return [Subtraction((read[0], self.rounding["mean"]), self.rounding["centered"])]

    def producer_for(self, read: Sequence[Any]) -> Product:
        """Returns the product of the centered values and the inverse of the deviation."""
        quantizers = self.rounding
        centered = quantizers["centered"] if self.subtract_mean else read[0]
        if self.subtract_mean:
            quantizers["mean"].producer = Mean(read[0], self._size)
        quantizers["squares"].producer = Product((centered, centered))
        quantizers["variance"].producer = Mean(quantizers["squares"], self._size, self.epsilon)
        if not (self.form == "float" and self._count >= FEWEST_ROOTS):
            quantizers["inverse"].producer = InverseRoot(quantizers["variance"])
        return Product((centered, quantizers["inverse"]))

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the normalized inputs."""
        x = ops.cast(inputs, "float32")  # squares overflow float16
        shape = inputs.shape
        if self.groups:
            part = shape[-1] // self.groups
            positions = math.prod(shape[1:-1])
            x = ops.reshape(x, (-1, positions, self.groups, part))
            x = ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (-1, self.groups, positions * part))
        if self.subtract_mean:
            mean = self._quantize_result("mean", self._mean(x), training)
            centered = x - mean
            for kernel in () if training else self._kernels:
                centered = kernel([x, mean], centered)
            x = self._quantize_result("centered", centered, training)
        squares = self._quantize_result("squares", x * x, training)
        variance = self._quantize_result("variance", self._mean(squares, self.epsilon), training)
        if not self.passes:  # a variance below half its scale is quantized to 0, without inverse
            variance = ops.maximum(variance, self._scale_of("variance"))
        inverse = ops.rsqrt(variance) if self.lowered else inverse_root(variance)
        inverse = self._quantize_result("inverse", inverse, training)
        x = x * inverse
        if self.groups:
            x = ops.reshape(x, (-1, self.groups, positions, part))
            x = ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (-1, *shape[1:]))
        return ops.cast(x, inputs.dtype)

    def build(self, input_shape: Any) -> None:
        """Creates the ranges."""
        super().build(input_shape)
        positions = math.prod(input_shape[1:-1]) if self.groups else 1
        self._size = positions * (input_shape[-1] // max(self.groups, 1))
        rows = input_shape[1:-1]
        self._count = self.groups or (0 if None in rows else math.prod(rows))

    def _mean(self, x: Any, offset: float = 0.0) -> Any:
        count = x.shape[-1]
        column = ops.convert_to_tensor(np.full((count, 1), 1 / count, "float32"), dtype=x.dtype)
        return ops.matmul(x, column) + offset

    def _scale_of(self, name: str) -> Any:
        quantizer = self.rounding[name]
        if isinstance(quantizer, FixedFakeQuant):
            return (quantizer.maximum - quantizer.minimum) / 255
        return ops.maximum(quantizer.state()[1] / 255, 1e-12)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "groups": self.groups,
            "epsilon": self.epsilon,
            "subtract_mean": self.subtract_mean,
            "form": self.form,
        }


@canonical_form
class NormalizeInIntegers(Rule):
    """Layer, RMS and group normalization as operations of the runtime."""

    preferences: tuple[str, ...] = ("exactness",)
    form = "kernel"

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
        rms = type(layer) in (layers.RMSNormalization, RootMeanSquare) or config.get(
            "rms_scaling", False
        )
        groups = config.get("groups", 0)
        if groups == -1:  # Keras: instance normalization
            groups = layer.get_build_config()["input_shape"][-1]
        scale = config.get("scale", type(layer) is not RootMeanSquare)
        center = config.get("center", False) and not rms
        normalized = RuntimeNormalization(
            groups,
            layer.epsilon,
            not rms,
            self.form,
            name=f"{layer.name}_normalized" if scale or center else layer.name,
            dtype=layer.dtype_policy,
        )
        if not (scale or center):
            return [normalized]
        kept = {k: v for k, v in config.items() if k.startswith(("gamma_", "beta_"))}
        return [
            normalized,
            runtime_layer(ChannelScale, layer, center=center, scale=scale, options=kept),
        ]


@canonical_form
class NormalizeWithTable(NormalizeInIntegers):
    """The same, with a table in place of RSQRT, whose kernel is slow."""

    preferences = ("latency", "bytes")
    form = "float"


_NORMALIZATIONS = (
    layers.LayerNormalization,
    layers.RMSNormalization,
    layers.GroupNormalization,
    RootMeanSquare,
)
