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
from tfcompress.integer.fixed_point import averages, divided, range_of_qparams
from tfcompress.integer.producers import rounded
from tfcompress.integer.trace import producer_of, tell_nested_models

_NARROWEST = 1e-4  # a tensor that was always zero still needs a grid of some width


@keras.saving.register_keras_serializable("tfcompress")
class ActivationQuantizer(keras.layers.Layer):
    """Rounds activations onto the grid the runtime will use, and learns its range.

    The range is the moving average of the batches' minima and maxima. It starts as the plain mean
    over the first batches, so it is right from the first step on; zero always lies inside, so that
    padding is exact. Before any training the layer hands activations through unchanged. Called
    with `averaged=True`, it rounds an average back onto the grid of the values averaged and learns
    nothing; "up" says that ties are rounded up, as resizing does, and not away from the middle.

    Args:
        fixed_range: (minimum, maximum) of operations whose range is known; nothing is learned.
        bits: 8, or 16 for a grid that is symmetric around zero.
        non_negative: True if the input cannot be negative; its minimum is 0 then.
        learned: Whether the range follows its gradient after the first batch (LSQ).
        momentum: Weight of the past in the moving average, per step.
        **kwargs: Arguments of `keras.layers.Layer`.

    Attributes:
        observer: While a model is calibrated, a function that is given what comes in, which is
            then handed on as it is; else None.
        frozen: Whether the range stays as it is in training.
        in_floats: Whether inference, too, rounds floats as training does.
        source: What computes the input, if that is known (see `integers.py`).

    References:
        Jacob et al. 2018, arXiv:1712.05877; Esser et al. 2020, arXiv:1902.08153.
    """

    is_compression_helper = True
    follows = False  # whether it has the range of another

    def __init__(
        self,
        fixed_range: tuple[float, float] | None = None,
        *,
        bits: int = 8,
        non_negative: bool = False,
        learned: bool = False,
        momentum: float = 0.99,
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
        self.momentum = momentum
        self.observer: Any = None
        self.frozen = False
        self.in_floats = False
        self.producer: Any = None
        self._told = False

    def build(self, input_shape: Any) -> None:
        """Creates the range, and the number of batches that it was learned from."""
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

    def call(self, inputs: Any, training: bool | None = None, averaged: bool | str = False) -> Any:
        """Returns the inputs, rounded onto the grid."""
        if not self._told:
            tell_nested_models(self)
            self._told = True
        if self.observer is not None:
            if not averaged:
                self.observer(inputs)
            return inputs
        rounding: Any = round_average if averaged else fake_quant if training else fake_quant_op
        if self.learned and training and not (averaged or self.frozen):
            rounding = fake_quant_learning
        if self.fixed_range is not None:
            if not training and self.exact:
                return self._in_integers(inputs, averaged)
            return rounding(inputs, *self.fixed_range)
        if self.bits == 16:
            rounding = functools.partial(rounding, bits=16)
        if training and not (averaged or self.frozen) and first_call_in_pass(self):
            self._observe(inputs)

        if training:
            return rounding(inputs, *self.current_range())
        state = self.state()

        def rounded() -> Any:
            if self.bits == 8 and self.exact:
                return self._in_integers(inputs, averaged, state)
            return rounding(inputs, *self.current_range(state))

        return ops.cond(state[2] > 0, rounded, lambda: inputs)

    def skip_compression(self, kinds: tuple[type, ...] | None) -> None:
        """Hands on what comes in from now on, unless `kinds` is None."""
        self.observer = None if kinds is None else lambda values: None

    def rounded_average(self, inputs: Any, training: bool | None, averaged: bool | str) -> Any:
        """Returns averages of values on the grid, rounded back onto it."""
        return ActivationQuantizer.call(self, inputs, training=training, averaged=averaged)

    def _in_integers(self, inputs: Any, averaged: bool | str, state: Any = None) -> Any:
        """Returns the inputs as the runtime rounds them."""
        scale, lowest = self.qparams(state)
        x = ops.cast(inputs, "float32")
        if averaged:
            steps = averages(x / scale, 0.0 if averaged == "up" else lowest + 128)
        else:
            exact = keras.backend.standardize_dtype(inputs.dtype) == "float32"
            steps = rounded(x, self.producer if exact else None, scale)
        steps = ops.clip(steps, lowest, lowest + 255)
        return straight_through(inputs, ops.cast(steps * scale, inputs.dtype))

    @property
    def exact(self) -> bool:
        """Whether inference rounds what it is given, and as the runtime does."""
        return self.observer is None and not self.in_floats

    def rounds(self) -> Any:
        """Returns whether values are rounded: the range was trained."""
        return True if self.fixed_range is not None else self.step > 0

    @property
    def step(self) -> Any:
        """The number of batches that the range was learned from, as a float."""
        return self.state()[2]

    def state(self) -> list[Any]:
        """Returns minimum, maximum and the number of batches, as tensors."""
        state = ops.convert_to_tensor(self._range)
        if self.learned:
            state = ops.concatenate([state, ops.convert_to_tensor(self._batches)])
        return [*ops.unstack(state, num=3)]

    def _learn(self, state: Any) -> None:
        """Sets minimum, maximum and the number of batches."""
        if self.learned:
            self._batches.assign(state[2:])
        self._range.assign(state[: self._range.shape[0]])

    def _numbers(self) -> list[Any]:
        """Returns minimum, maximum and the number of batches, as numpy has them."""
        return [*self._range.numpy(), *(self._batches.numpy() if self.learned else ())]

    def qparams(self, state: Any = None) -> tuple[Any, Any]:
        """Returns the step and the lowest integer, the real zero being the integer 0."""
        low, high = (ops.convert_to_tensor(end, "float32") for end in self.current_range(state))
        scale = divided(high - low, 255.0)
        return scale, ops.round(low / scale)

    def current_range(self, state: Any = None) -> tuple[Any, Any]:
        """Returns (minimum, maximum) as tensors, or as numbers if they are fixed.

        Args:
            state: What `state` returned, if it was read already.
        """
        if self.fixed_range is not None:
            return self.fixed_range
        minimum, maximum, _ = self.state() if state is None else state
        # A tensor that was always zero still needs a grid of some width.
        maximum = ops.maximum(maximum, minimum + _NARROWEST)
        if self.learned:
            minimum, maximum = ops.minimum(minimum, 0.0), ops.maximum(maximum, _NARROWEST)
        if self.bits == 16:
            maximum = ops.maximum(-minimum, maximum)
            minimum = -maximum
        return minimum, maximum

    def _observe(self, inputs: Any) -> None:
        values = ops.stop_gradient(inputs)
        highest = ops.cast(ops.max(values), "float32")
        lowest = ops.zeros(()) if self.non_negative else ops.cast(ops.min(values), "float32")
        self.observe(lowest, highest)

    def observe(self, lowest: Any, highest: Any) -> None:
        """Moves the range towards the ends of one batch.

        Args:
            lowest: The smallest value.
            highest: The largest value.
        """
        state = self.state()
        step = state[2]
        rate = ops.maximum(1.0 - self.momentum, 1.0 / (step + 1.0))
        if self.learned:
            rate = ops.where(step > 0, 0.0, 1.0)
        old = ops.stack(state)
        observed = ops.stack([ops.minimum(lowest, 0.0), ops.maximum(highest, 0.0), step + 1.0])
        # One overflow (float16 under loss scaling) must not spoil the range for good.
        usable = ops.logical_and(ops.isfinite(lowest), ops.isfinite(highest))
        rates = ops.stack([rate, rate, ops.ones_like(rate)])
        self._learn(ops.where(usable, old + rates * (observed - old), old))

    @property
    def is_trained(self) -> bool:
        """Whether the range was learned from at least one batch (or is fixed)."""
        return self.fixed_range is not None or bool(self._numbers()[2] > 0)

    def range(self) -> tuple[float, float]:
        """Returns (minimum, maximum) as they are now."""
        if self.fixed_range is not None:
            return self.fixed_range
        low, high, _ = self._numbers()
        high = max(high, low + np.float32(_NARROWEST))
        if self.learned:
            low, high = min(low, np.float32(0)), max(high, np.float32(_NARROWEST))
        if self.bits == 16:
            low, high = -max(-low, high), max(-low, high)
        return float(low), float(high)

    def min_max(self) -> tuple[float, float]:
        """Returns the range from which the converter makes the grid of the model."""
        low, high = map(np.float32, self.range())
        if self.fixed_range is not None or self.bits == 16:
            return float(low), float(high)
        # What `grid` says, in numpy: for hundreds of quantizers it is ten times as fast.
        scale = (high - low) / np.float32(255)
        return range_of_qparams(float(scale), float(np.round(low / scale)))

    def set_range(self, minimum: float, maximum: float) -> None:
        """Sets the range, which counts as trained then."""
        low = 0.0 if self.non_negative else min(minimum, 0.0)
        self._learn(np.array([low, max(maximum, 0.0), max(self._numbers()[2], 1)], np.float32))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape of the input."""
        return input_shape

    def compute_output_spec(
        self, inputs: Any, training: bool | None = None, averaged: bool | str = False
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
            "momentum": self.momentum,
        }
