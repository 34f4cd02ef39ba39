"""Layers that compute what the runtime computes inside one Keras layer, rounding included.

Where the runtime takes several operations for what Keras does in one, each of them rounds. Training
has to see that, so `quantize` puts such a layer in the place of the one from Keras (the rules are
in `canonicalize.py`), with quantizers inside, and `strip` puts the original back.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from tfcompress.graph.copies import clone_layer
from tfcompress.wrap.activations import ActivationQuantizer, fake_quant
from tfcompress.wrap.fixed import FixedFakeQuant
from tfcompress.wrap.integers import InverseRoot, Mean, Product, straight_through
from tfcompress.wrap.kernels import (
    Addition,
    HardSwish,
    Kernel,
    ParametricReLU,
    Subtraction,
    rounded_slopes,
)
from tfcompress.wrap.stepwise import SIGMOID_RANGE

_PRECISE = "float32" if keras.backend.backend() == "jax" else "float64"  # JAX has it off


@dataclasses.dataclass
class _Links:
    """Quantizers around a layer, by `id` of the one behind it.

    In a class of its own, so that Keras does not count them to the layer.
    """

    grids: dict[int, tuple[Any, ...]] = dataclasses.field(default_factory=dict)


class RuntimeLayer(layers.Layer):
    """A layer that computes in the steps of the runtime, and keeps a range for each.

    Attributes:
        rounding: The quantizers of the steps, by name; `fixed` are the ranges that are known.
    """

    steps: tuple[str, ...] = ()
    non_negative: tuple[str, ...] = ()
    fixed: Mapping[str, tuple[float, float]] = types.MappingProxyType({})
    hands_masks_on = True
    passes = False  # whether it computes as the Keras layer does

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        self.rounding: dict[str, Any] = {}
        self._links = _Links()
        self._kernels: list[Kernel] = []

    def link(self, read: Sequence[Any], result: Any) -> Any:
        """Tells the layer which quantizers its inputs come from, and which one its output goes to.

        Args:
            read: A quantizer for each input; None where it is not known.
            result: The quantizer.

        Returns:
            The source of the output, if what the layer returns says all about its integers.
        """
        known = None not in read and self.compute_dtype == "float32"
        self._links.grids[id(result)] = (*read, result) if known else ()
        self._kernels = self.kernels_for(read, result) if self.grids() else []
        return self.source_for(read) if self.grids() else None

    # Methods, no properties: Keras takes what attributes hold for parts of the layer, and saves it.

    def grids(self) -> tuple[Any, ...]:
        """Returns the quantizers around the layer, inputs first; none if it follows no kernels."""
        found = list(self._links.grids.values())
        return found[0] if len(found) == 1 else ()  # called on other grids elsewhere, none

    def linked_variables(self) -> list[Any]:
        """Returns the variables of these quantizers, which its kernels read."""
        return [variable for grid in self.grids() for variable in grid.variables]

    def kernels_for(self, read: Sequence[Any], result: Any) -> list[Kernel]:
        """Returns the kernels that the layer has to follow at inference, by these quantizers."""
        return []

    def source_for(self, read: Sequence[Any]) -> Any:
        """Returns the source of the output, if there is one, and sets those of the steps."""
        return None

    def build(self, input_shape: Any) -> None:
        """Creates the ranges."""
        if self.rounding:  # those of `frozen`
            return
        self.rounding = {
            step: ActivationQuantizer(
                self.fixed.get(step), non_negative=step in self.non_negative, name=step
            )
            for step in self.steps
        }
        for quantizer in self.rounding.values():
            quantizer.build(())
            quantizer.built = True

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape of the input."""
        return input_shape

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        """Returns the mask that the Keras layer hands on; of several inputs, if all carry one."""
        masks = previous_mask if isinstance(previous_mask, (list, tuple)) else [previous_mask]
        if not self.hands_masks_on or any(mask is None for mask in masks):
            return None
        return functools.reduce(ops.logical_or, masks)

    def original_variables(self) -> list[Any]:
        """Returns the variables that the Keras layer has as well, in its order."""
        return []

    def constants(self) -> list[Any]:
        """Returns the values of these variables that the converter should see."""
        return self.original_variables()

    def frozen(self) -> RuntimeLayer:
        """Returns a copy in which the ranges are constants, for conversion."""
        copy = clone_layer(self, dtype="float32")
        copy.rounding = {
            name: FixedFakeQuant(*quantizer.ends(), name=name)
            for name, quantizer in self.rounding.items()
        }
        return copy

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments, under any dtype policy."""
        return super().get_config()

    def _rounded(self, step: str, x: Any, training: bool | None) -> Any:
        quantizer = self.rounding[step]
        if isinstance(quantizer, FixedFakeQuant):
            return quantizer.call(x)
        return quantizer(x, training=training)


@keras.saving.register_keras_serializable("tfcompress")
class RuntimeSwish(RuntimeLayer):
    """`x * sigmoid(x)`: the runtime rounds the sigmoid, then the product."""

    def source_for(self, read: Sequence[Any]) -> Product:
        """Returns the product."""
        return Product((read[0], SIGMOID_RANGE[1] / 255))

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the product."""
        gate = ops.sigmoid(inputs)
        if self.passes:
            return inputs * gate
        if training or not self.grids() or not all(grid.exact for grid in self.grids()):
            return inputs * fake_quant(gate, *SIGMOID_RANGE)
        # The runtime looks the gate up in a table, which it computes in this way, ties to even.
        power = ops.cast(ops.exp(ops.cast(ops.minimum(inputs, 80.0), _PRECISE)), "float32")
        table = ops.minimum(ops.round(power / (1 + power) * 256), 255.0) * 2**-8
        return inputs * straight_through(gate, table)


@keras.saving.register_keras_serializable("tfcompress")
class RuntimeHardSwish(RuntimeLayer):
    """The hard swish of Keras; at inference in the steps of the runtime."""

    def kernels_for(self, read: Sequence[Any], result: Any) -> list[Kernel]:
        """Returns the one kernel."""
        return [HardSwish(tuple(read), result)]

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the activation."""
        outputs = keras.activations.hard_swish(inputs)
        for kernel in () if training else self._kernels:
            outputs = kernel([inputs], outputs)
        return outputs


@keras.saving.register_keras_serializable("tfcompress")
class RuntimePReLU(RuntimeLayer):
    """The parametric ReLU of Keras, with slopes of 8 bits; at inference in the runtime's steps.

    Args:
        options: What the layer of Keras is made with: its shared axes, and what its slopes start
            from, are regularized and constrained by.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    def __init__(self, options: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.options = options
        given = {key: value for key, value in options.items() if key.startswith("alpha_")}
        self._like = layers.PReLU(shared_axes=options["shared_axes"], **given)
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

    def kernels_for(self, read: Sequence[Any], result: Any) -> list[Kernel]:
        """Returns the one kernel."""
        slopes = functools.partial(ops.convert_to_tensor, self.alpha)
        return [ParametricReLU(tuple(read), result, slopes)]

    def original_variables(self) -> list[Any]:
        """Returns the slopes."""
        return [self.alpha]

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the activation."""
        alpha = ops.convert_to_tensor(self.alpha)
        if training:
            slopes, step = rounded_slopes(ops.cast(alpha, "float32"))
            alpha = straight_through(alpha, ops.cast(slopes * step, alpha.dtype))
        # In the form that the converter knows.
        outputs = ops.relu(inputs) + -alpha * ops.relu(-inputs)
        for kernel in () if training else self._kernels:
            outputs = kernel([inputs], outputs)
        return outputs

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "options": self.options}


@keras.saving.register_keras_serializable("tfcompress")
class RuntimeMerge(RuntimeLayer):
    """A sum, mean or product of several tensors: the runtime takes two at a time.

    Args:
        how: "add", "average" or "multiply".
        count: How many tensors.
        operation: The name of the operation of `keras.ops` that this stands for; None for a layer.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    def __init__(
        self, how: str, count: int, *, operation: str | None = None, **kwargs: Any
    ) -> None:
        self.how, self.count, self.operation = how, count, operation
        self.hands_masks_on = operation is None
        rounded = count - 1 if how == "average" else count - 2
        self.steps = tuple(f"first_{number + 2}" for number in range(rounded))
        super().__init__(**kwargs)

    def kernels_for(self, read: Sequence[Any], result: Any) -> list[Kernel]:
        """Returns the additions of a sum."""
        between = [self.rounding[step] for step in self.steps]
        grids = zip([read[0], *between], read[1:], [*between, result], strict=True)
        return [Addition((a, b), to) for a, b, to in grids] if self.how == "add" else []

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the merged tensor."""
        merge = ops.multiply if self.how == "multiply" else ops.add
        merged, *rest = inputs
        for number, other in enumerate(rest):
            before, merged = merged, merge(merged, other)
            if self._kernels and not training:
                merged = self._kernels[number]([before, other], merged)
            if number < len(self.steps):
                merged = self._rounded(self.steps[number], merged, training)
        return merged * (1 / self.count) if self.how == "average" else merged

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape that all inputs are broadcast to."""
        return sum(keras.KerasTensor(shape) for shape in input_shape).shape

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        own = {"how": self.how, "count": self.count, "operation": self.operation}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("tfcompress")
class RuntimeNormalization(RuntimeLayer):
    """Layer or group normalization in integers, without scale and offset.

    Means are products with a column of equal weights, which the runtime adds up exactly; the
    inverse of the deviation is looked up in a table.

    Args:
        groups: Groups that the channels are normalized in, all positions together; 0 for a layer
            normalization, of the last axis alone.
        epsilon: What is added to the variance.
        subtract_mean: False for RMS normalization.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    non_negative = ("squares", "variance", "inverse")

    def __init__(
        self,
        groups: int,
        epsilon: float,
        subtract_mean: bool = True,
        **kwargs: Any,
    ) -> None:
        self.groups, self.epsilon, self.subtract_mean = groups, epsilon, subtract_mean
        self.hands_masks_on = subtract_mean  # RMSNormalization drops them
        centering = ("mean", "centered") if subtract_mean else ()
        self.steps = (*centering, "squares", "variance", "inverse")
        super().__init__(**kwargs)

    def kernels_for(self, read: Sequence[Any], result: Any) -> list[Kernel]:
        """Returns the subtraction of the mean."""
        if not self.subtract_mean:
            return []
        return [Subtraction((read[0], self.rounding["mean"]), self.rounding["centered"])]

    def source_for(self, read: Sequence[Any]) -> Product:
        """Returns the product of the centered values and the inverse of the deviation."""
        steps = self.rounding
        centered = steps["centered"] if self.subtract_mean else read[0]
        if self.subtract_mean:
            steps["mean"].source = Mean(read[0], self._size)
        steps["squares"].source = Product((centered, centered))
        steps["variance"].source = Mean(steps["squares"], self._size, self.epsilon)
        steps["inverse"].source = InverseRoot(steps["variance"])
        return Product((centered, steps["inverse"]))

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the normalized inputs."""
        x = ops.cast(inputs, "float32")  # squares leave the range of float16
        shape = inputs.shape
        if self.groups:
            part = shape[-1] // self.groups
            places = math.prod(shape[1:-1])
            x = ops.reshape(x, (-1, places, self.groups, part))
            x = ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (-1, self.groups, places * part))
        if self.subtract_mean:
            mean = self._rounded("mean", self._mean(x), training)
            centered = x - mean
            for kernel in () if training else self._kernels:
                centered = kernel([x, mean], centered)
            x = self._rounded("centered", centered, training)
        squares = self._rounded("squares", x * x, training)
        variance = self._rounded("variance", self._mean(squares, self.epsilon), training)
        if not self.passes:  # a variance below half a step is rounded to zero: it has no inverse
            variance = ops.maximum(variance, self._step_of("variance"))
        inverse = ops.rsqrt(variance)
        inverse = self._rounded("inverse", inverse, training)
        x = x * inverse
        if self.groups:
            x = ops.reshape(x, (-1, self.groups, places, part))
            x = ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (-1, *shape[1:]))
        return ops.cast(x, inputs.dtype)

    def build(self, input_shape: Any) -> None:
        """Creates the ranges."""
        super().build(input_shape)
        places = math.prod(input_shape[1:-1]) if self.groups else 1
        self._size = places * (input_shape[-1] // max(self.groups, 1))

    def _mean(self, x: Any, offset: float = 0.0) -> Any:
        count = x.shape[-1]
        column = ops.convert_to_tensor(np.full((count, 1), 1 / count, "float32"), dtype=x.dtype)
        return ops.matmul(x, column) + offset

    def _step_of(self, name: str) -> Any:
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
        }
