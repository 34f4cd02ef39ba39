"""Sparsity schedules: the share of zeros in a weight at each training step."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


def check_sparsity(value: Any, argument: str) -> float:
    """Returns `value` as a float in [0, 1) or raises a ValueError that names `argument`."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0.0 <= value < 1.0:
        raise ValueError(
            f"{argument} must be a number in [0, 1): the share of weights set to zero. "
            f"Received: {argument}={value!r}"
        )
    return float(value)


class SparsitySchedule:
    """Base of the schedules: the sparsity at each step, and the steps at which masks change.

    Args:
        begin_step: First step (a training pass, counted from 0) at which weights are pruned.
        end_step: Last such step; -1 means pruning never ends.
        frequency: Masks are recomputed every `frequency` steps from `begin_step` on, and at
            `end_step`, so that the target is reached whatever the frequency.
    """

    def __init__(self, begin_step: int, end_step: int, frequency: int) -> None:
        for name, value in (
            ("begin_step", begin_step),
            ("end_step", end_step),
            ("frequency", frequency),
        ):
            if isinstance(value, bool) or int(value) != value:
                raise ValueError(f"{name} must be a whole number of steps. Received: {value!r}")
        if begin_step < 0:
            raise ValueError(f"begin_step must be >= 0. Received: begin_step={begin_step}")
        if end_step != -1 and end_step < begin_step:
            raise ValueError(
                "end_step must be -1 (never ends) or >= begin_step. "
                f"Received: begin_step={begin_step}, end_step={end_step}"
            )
        if frequency < 1:
            raise ValueError(f"frequency must be >= 1. Received: frequency={frequency}")
        self.begin_step = int(begin_step)
        self.end_step = int(end_step)
        self.frequency = int(frequency)

    def sparsity(self, step: Any) -> Any:
        """Returns the sparsity from `step` on, a float32 scalar."""
        raise NotImplementedError

    def updates_at(self, step: Any) -> Any:
        """Returns whether masks are recomputed at `step`, a boolean scalar."""
        due = ops.equal(ops.mod(step - self.begin_step, self.frequency), 0)
        if self.end_step >= 0:
            due = ops.logical_or(due, ops.equal(step, self.end_step))
            due = ops.logical_and(due, ops.less_equal(step, self.end_step))
        return ops.logical_and(due, ops.greater_equal(step, self.begin_step))

    @property
    def target(self) -> float:
        """The sparsity that the schedule ends with."""
        raise NotImplementedError

    @property
    def settled_step(self) -> int:
        """The step at which the mask reaches the target."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            "begin_step": self.begin_step,
            "end_step": self.end_step,
            "frequency": self.frequency,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SparsitySchedule:
        """Creates a schedule from the result of `get_config`."""
        return cls(**config)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


@keras.saving.register_keras_serializable("tfcompress")
class ConstantSparsity(SparsitySchedule):
    """Prunes to one sparsity from `begin_step` on.

    Args:
        target_sparsity: Share of the weights set to zero, in [0, 1).
        begin_step: First step at which weights are pruned.
        end_step: Last step at which masks are recomputed; -1 means no end.
        frequency: Steps between two computations of the masks.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> import tfcompress as tfc
        >>> tfc.ConstantSparsity(0.5, begin_step=0).target
        0.5
    """

    def __init__(
        self, target_sparsity: float, begin_step: int, end_step: int = -1, frequency: int = 100
    ) -> None:
        super().__init__(begin_step, end_step, frequency)
        self.target_sparsity = check_sparsity(target_sparsity, "target_sparsity")

    def sparsity(self, step: Any) -> Any:
        """Returns the target sparsity, whatever the step."""
        return ops.convert_to_tensor(self.target_sparsity, "float32")

    @property
    def target(self) -> float:
        """The sparsity that the schedule ends with."""
        return self.target_sparsity

    @property
    def settled_step(self) -> int:
        """The step at which the mask reaches the target."""
        return self.begin_step

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {"target_sparsity": self.target_sparsity, **super().get_config()}


@keras.saving.register_keras_serializable("tfcompress")
class PolynomialDecay(SparsitySchedule):
    """Raises the sparsity along a polynomial (Zhu & Gupta 2017, arXiv:1710.01878).

    At step t the sparsity is `final + (initial - final) * (1 - p) ** power` with
    `p = clip((t - begin_step) / (end_step - begin_step), 0, 1)`.

    Args:
        initial_sparsity: Sparsity at `begin_step`, in [0, 1).
        final_sparsity: Sparsity at `end_step`, in [0, 1).
        begin_step: First step at which weights are pruned.
        end_step: Step at which the final sparsity is reached; must lie after `begin_step`.
        power: Exponent of the polynomial; 3 prunes fast at first and slowly at the end.
        frequency: Steps between two computations of the masks.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> import tfcompress as tfc
        >>> schedule = tfc.PolynomialDecay(0.0, 0.8, begin_step=0, end_step=100)
        >>> round(float(schedule.sparsity(50)), 3)
        0.7
    """

    def __init__(
        self,
        initial_sparsity: float,
        final_sparsity: float,
        begin_step: int,
        end_step: int,
        power: float = 3,
        frequency: int = 100,
    ) -> None:
        super().__init__(begin_step, end_step, frequency)
        if self.end_step <= self.begin_step:
            raise ValueError(
                "end_step must be greater than begin_step: the sparsity rises between the two. "
                f"Received: begin_step={begin_step}, end_step={end_step}"
            )
        if not power > 0:
            raise ValueError(f"power must be > 0. Received: power={power!r}")
        self.initial_sparsity = check_sparsity(initial_sparsity, "initial_sparsity")
        self.final_sparsity = check_sparsity(final_sparsity, "final_sparsity")
        self.power = power

    def sparsity(self, step: Any) -> Any:
        """Returns the sparsity of the closed form at `step`, a float32 scalar."""
        done = ops.cast(step - self.begin_step, "float32") / (self.end_step - self.begin_step)
        left = 1.0 - ops.clip(done, 0.0, 1.0)
        return self.final_sparsity + (self.initial_sparsity - self.final_sparsity) * ops.power(
            left, float(self.power)
        )

    @property
    def target(self) -> float:
        """The sparsity that the schedule ends with."""
        return self.final_sparsity

    @property
    def settled_step(self) -> int:
        """The step at which the mask reaches the target."""
        return self.end_step

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            "initial_sparsity": self.initial_sparsity,
            "final_sparsity": self.final_sparsity,
            "power": self.power,
            **super().get_config(),
        }
