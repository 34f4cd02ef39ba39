"""Quantization of activations, with ranges learned while training."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.graph.keras_internals import first_call_in_pass, history
from tfcompress.integer.fake_quant import (
    fake_quant,
    fake_quant_learning,
    fake_quant_op,
    round_average,
    straight_through,
)
from tfcompress.integer.fixed_point import (
    Accumulator,
    divide,
    mean_of,
    range_of_qparams,
    round_averages,
)
from tfcompress.integer.kernels import KERNELS
from tfcompress.integer.producers import Product, rounded
from tfcompress.integer.trace import link_nested_models, producer_of

_MIN_WIDTH = 1e-4  # a tensor that was always zero still needs a positive scale


@keras.saving.register_keras_serializable("tfcompress")
class ActivationQuantizer(keras.layers.Layer):
    """Fake-quantizes activations as the runtime will quantize them, and learns their range.

    The range is the moving average of the batches' minima and maxima. It starts as the plain mean
    over the first batches, so it is right from the first training step on. Zero always lies inside,
    so that padding is exact. Before any training the layer returns activations unchanged. Called
    with `averaged=True`, it quantizes an average with the scale of the averaged values and learns
    nothing. With "up", ties are rounded up, as resizing does, instead of away from the middle of
    the range; with a float, as by a convolution whose weights have that scale; with an integer, as
    by XNNPACK's MEAN of so many values.

    Args:
        fixed_range: (minimum, maximum) of operations whose range is known; nothing is learned.
        bits: 8, or 16 for a range that is symmetric around zero.
        non_negative: True if the input cannot be negative; the minimum is 0 then.
        learned: Whether the range follows its gradient after the first batch (LSQ).
        symmetric: Whether the zero point is 0, as XNNPACK needs it of the second factor of a
            product of matrices.
        momentum: Weight of the past in the moving average, per training step.
        kernels: Whose rounding inference has: a key of `integer.kernels.KERNELS`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Attributes:
        observer: During calibration, a function that is called on each input, which is then
            returned unchanged; else None.
        frozen: Whether training leaves the range unchanged.
        in_floats: Whether inference rounds floats as training does, not integers as the runtime.
        producer: What computes the input, if that is known (see `integer/producers.py`).

    References:
        Jacob et al. 2018, arXiv:1712.05877; Esser et al. 2020, arXiv:1902.08153.
    """

    is_compression_helper = True
    follows = False  # whether it uses the range of another quantizer

    def __init__(
        self,
        fixed_range: tuple[float, float] | None = None,
        *,
        bits: int = 8,
        non_negative: bool = False,
        learned: bool = False,
        symmetric: bool = False,
        momentum: float = 0.99,
        kernels: str = "xnnpack",
        **kwargs: Any,
    ) -> None:
        # Ranges are float32 whatever the policy of the model; activations keep their dtype.
        kwargs["dtype"] = "float32"
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True
        self.fixed_range: tuple[float, float] | None = (
            None if fixed_range is None else (fixed_range[0], fixed_range[1])
        )
        self.bits = bits
        self.non_negative = non_negative
        self.learned = learned
        self.symmetric = symmetric
        self.momentum = momentum
        self.kernels = kernels
        self.observer: Any = None
        self.frozen = False
        self.in_floats = False
        self.producer: Any = None
        self._linked_nested_models = False

    def build(self, input_shape: Any) -> None:
        """Creates the range, and the number of batches from which it was learned."""
        if self.fixed_range is not None:
            return
        # In one variable, unless an optimizer changes the range: a model has hundreds of these.
        self._range = self.add_weight(
            name="range",
            shape=(2 if self.learned else 3,),
            initializer="zeros",
            trainable=self.learned,
            aggregation="mean",
        )
        if self.learned:
            self._batches = self.add_weight(
                name="step", shape=(1,), initializer="zeros", trainable=False, aggregation="mean"
            )

    def call(
        self, inputs: Any, training: bool | None = None, averaged: bool | str | float = False
    ) -> Any:
        """Returns the inputs, fake-quantized."""
        if not self._linked_nested_models:
            link_nested_models(self)
            self._linked_nested_models = True
        if self.observer is not None:
            if not averaged:
                self.observer(inputs)
            return inputs
        rounding: Any = round_average if averaged else fake_quant if training else fake_quant_op
        if self.learned and training and not (averaged or self.frozen):
            rounding = fake_quant_learning
        if self.fixed_range is not None:
            if not training and self.exact:
                return self._quantize_as_runtime(inputs, averaged)
            return rounding(inputs, *self.fixed_range)
        if self.bits == 16:
            rounding = functools.partial(rounding, bits=16)
        if training and not (averaged or self.frozen) and first_call_in_pass(self):
            self._observe(inputs)

        if training:
            return rounding(inputs, *self.current_range())
        state = self.state()

        def quantize() -> Any:
            if self.bits == 8 and self.exact:
                return self._quantize_as_runtime(inputs, averaged, state)
            return rounding(inputs, *self.current_range(state))

        return ops.cond(state[2] > 0, quantize, lambda: inputs)

    def skip_compression(self, kinds: tuple[type, ...] | None) -> None:
        """Returns inputs unchanged from now on, unless `kinds` is None."""
        self.observer = None if kinds is None else lambda values: None

    def rounded_average(
        self, inputs: Any, training: bool | None, averaged: bool | str | float
    ) -> Any:
        """Returns averages of quantized values, quantized with the same scale."""
        return ActivationQuantizer.call(self, inputs, training=training, averaged=averaged)

    def _quantize_as_runtime(
        self, inputs: Any, averaged: bool | str | float, state: Any = None
    ) -> Any:
        """Returns the inputs, quantized as the runtime does and dequantized."""
        scale, qmin = self.qparams(state)
        x, kernels = ops.cast(inputs, "float32"), KERNELS[self.kernels]
        if isinstance(averaged, float):
            factors = (scale, ops.convert_to_tensor(averaged, "float32"))
            quantized = Accumulator(scale * averaged, factors).requantize(x, scale, kernels)
        elif type(averaged) is int:  # no boolean
            quantized = mean_of(x / scale, averaged, -128 - qmin)
        elif averaged == "up":
            quantized = kernels.resize(x / scale, qmin + 128)
        elif averaged:
            quantized = round_averages(x / scale, qmin + 128)
        else:
            exact = keras.backend.standardize_dtype(inputs.dtype) == "float32"
            quantized = rounded(x, self.producer if exact else None, scale, kernels)
        quantized = ops.clip(quantized, qmin, qmin + 255)
        return straight_through(inputs, ops.cast(quantized * scale, inputs.dtype))

    @property
    def exact(self) -> bool:
        """Whether inference quantizes its inputs as the runtime does."""
        return self.observer is None and not self.in_floats

    def rounds(self) -> Any:
        """Returns whether values are quantized, that is, whether the range was trained."""
        return True if self.fixed_range is not None else self.step > 0

    @property
    def step(self) -> Any:
        """The number of batches from which the range was learned, as a float."""
        return self.state()[2]

    def state(self) -> list[Any]:
        """Returns minimum, maximum and the number of batches, as tensors."""
        state = ops.convert_to_tensor(self._range)
        if self.learned:
            state = ops.concatenate([state, ops.convert_to_tensor(self._batches)])
        return [*ops.unstack(state, num=3)]

    def _set_state(self, state: Any) -> None:
        """Sets minimum, maximum and the number of batches."""
        if self.learned:
            self._batches.assign(state[2:])
        self._range.assign(state[: self._range.shape[0]])

    def _numpy_state(self) -> list[Any]:
        """Returns minimum, maximum and the number of batches, as numpy scalars."""
        return [*self._range.numpy(), *(self._batches.numpy() if self.learned else ())]

    def qparams(self, state: Any = None) -> tuple[Any, Any]:
        """Returns the scale and qmin, the zero point being 0."""
        minimum, maximum = (
            ops.convert_to_tensor(bound, "float32") for bound in self.current_range(state)
        )
        scale = divide(maximum - minimum, 255.0)
        if self._is_of_product():
            scale = self.producer.adjusted(scale)
        return scale, ops.round(minimum / scale)

    def _is_of_product(self) -> bool:
        """Returns whether the scale must avoid ties of products."""
        return self.fixed_range is None and type(self.producer) is Product

    def current_range(self, state: Any = None) -> tuple[Any, Any]:
        """Returns (minimum, maximum) as tensors, or as numbers if they are fixed.

        Args:
            state: What `state` returned, if it was read already.
        """
        if self.fixed_range is not None:
            return self.fixed_range
        minimum, maximum, _ = self.state() if state is None else state
        maximum = ops.maximum(maximum, minimum + _MIN_WIDTH)
        if self.learned:
            minimum, maximum = ops.minimum(minimum, 0.0), ops.maximum(maximum, _MIN_WIDTH)
        if self.bits == 16:
            maximum = ops.maximum(-minimum, maximum)
            minimum = -maximum
        if self.symmetric:
            scale = ops.maximum(divide(-minimum, 128), divide(maximum, 127))
            minimum, maximum = -128 * scale, 127 * scale
        return minimum, maximum

    def _observe(self, inputs: Any) -> None:
        values = ops.stop_gradient(inputs)
        maximum = ops.cast(ops.max(values), "float32")
        minimum = ops.zeros(()) if self.non_negative else ops.cast(ops.min(values), "float32")
        self.observe(minimum, maximum)

    def observe(self, minimum: Any, maximum: Any) -> None:
        """Moves the range towards that of one batch.

        Args:
            minimum: The smallest value of the batch.
            maximum: The largest value of the batch.
        """
        state = self.state()
        count = state[2]
        rate = ops.maximum(1.0 - self.momentum, 1.0 / (count + 1.0))
        if self.learned:
            rate = ops.where(count > 0, 0.0, 1.0)
        old = ops.stack(state)
        observed = ops.stack([ops.minimum(minimum, 0.0), ops.maximum(maximum, 0.0), count + 1.0])
        # One overflow (float16 under loss scaling) must not ruin the range permanently.
        usable = ops.logical_and(ops.isfinite(minimum), ops.isfinite(maximum))
        rates = ops.stack([rate, rate, ops.ones_like(rate)])
        self._set_state(ops.where(usable, old + rates * (observed - old), old))

    @property
    def is_trained(self) -> bool:
        """Whether the range was learned from at least one batch (or is fixed)."""
        return self.fixed_range is not None or bool(self._numpy_state()[2] > 0)

    def range(self) -> tuple[float, float]:
        """Returns the current (minimum, maximum)."""
        if self.fixed_range is not None:
            return self.fixed_range
        minimum, maximum, _ = self._numpy_state()
        maximum = max(maximum, minimum + np.float32(_MIN_WIDTH))
        if self.learned:
            minimum, maximum = min(minimum, np.float32(0)), max(maximum, np.float32(_MIN_WIDTH))
        if self.bits == 16:
            minimum, maximum = -max(-minimum, maximum), max(-minimum, maximum)
        if self.symmetric:
            scale = max(-minimum / np.float32(128), maximum / np.float32(127))
            minimum, maximum = -128 * scale, 127 * scale
        return float(minimum), float(maximum)

    def min_max(self) -> tuple[float, float]:
        """Returns the range from which the converter computes the scale of this model."""
        minimum, maximum = map(np.float32, self.range())
        if self.fixed_range is not None or self.bits == 16:
            return float(minimum), float(maximum)
        if self._is_of_product():
            adjusted, qmin = (float(ops.convert_to_numpy(value)) for value in self.qparams())
            return range_of_qparams(adjusted, qmin)
        # The same as `qparams`, in numpy: ten times as fast for hundreds of quantizers.
        scale = (maximum - minimum) / np.float32(255)
        return range_of_qparams(float(scale), float(np.round(minimum / scale)))

    def set_range(self, minimum: float, maximum: float) -> None:
        """Sets the range, which then counts as trained."""
        minimum = 0.0 if self.non_negative else min(minimum, 0.0)
        self._set_state(
            np.array([minimum, max(maximum, 0.0), max(self._numpy_state()[2], 1)], np.float32)
        )

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape of the input."""
        return input_shape

    def compute_output_spec(
        self, inputs: Any, training: bool | None = None, averaged: bool | str | float = False
    ) -> Any:
        """Returns the shape and dtype of the input, and finds out what computes it."""
        known = history(inputs) is not None
        if known and self.bits == 8 and not averaged:
            self.producer = producer_of(inputs, self)
        return keras.KerasTensor(inputs.shape, dtype=inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "fixed_range": self.fixed_range,
            "bits": self.bits,
            "non_negative": self.non_negative,
            "learned": self.learned,
            "symmetric": self.symmetric,
            "momentum": self.momentum,
            "kernels": self.kernels,
        }
