"""Unstructured magnitude pruning as a weight transform."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.transforms.base import WeightTransform
from tfcompress.transforms.schedules import ConstantSparsity, SparsitySchedule, check_sparsity


def as_schedule(sparsity: Any) -> SparsitySchedule:
    """Turns a number into a constant schedule from step 0; lets a schedule through."""
    if isinstance(sparsity, SparsitySchedule):
        return sparsity
    return ConstantSparsity(check_sparsity(sparsity, "sparsity"), begin_step=0)


@keras.saving.register_keras_serializable("tfcompress")
class MagnitudeMask(WeightTransform):
    """Sets the weights of smallest magnitude to zero, as many as the schedule asks for.

    The stored weight keeps its value under the mask, so a pruned weight comes back if the others
    shrink below it before the next update. Ties are broken by position: of `n` weights exactly
    `floor(sparsity * n + 1/2)` are zero.

    Pays in: bytes after gzip, or with the runtime's sparse format; no milliseconds on x86.

    Args:
        schedule: A `SparsitySchedule`, or a number in [0, 1) for a constant sparsity from step 0.
    """

    order = 0
    keeps_zeros = True

    def __init__(self, schedule: SparsitySchedule | float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.schedule = as_schedule(schedule)

    def build(self, shape: tuple[int, ...]) -> None:
        """Creates the mask (all ones) and the step counter."""
        self.mask = self.add_weight(
            name="mask",
            shape=shape,
            initializer="ones",
            trainable=False,
            aggregation="only_first_replica",
        )
        self.step = self.add_weight(
            name="step",
            shape=(),
            dtype="int32",
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
        )

    def update(self, weight: Any) -> None:
        """Recomputes the mask if the schedule says so, and counts the step."""
        step = ops.convert_to_tensor(self.step)
        mask = ops.cond(
            self.schedule.updates_at(step),
            lambda: self._rank(weight, self.schedule.sparsity(step)),
            lambda: ops.convert_to_tensor(self.mask),
        )
        self.mask.assign(mask)
        self.step.assign(step + 1)

    def call(self, weight: Any) -> Any:
        """Returns the weight with the pruned entries at zero."""
        return weight * self.mask

    @staticmethod
    def _rank(weight: Any, sparsity: Any) -> Any:
        magnitude = ops.reshape(ops.abs(weight), (-1,))
        pruned = ops.floor(sparsity * magnitude.shape[0] + 0.5)
        rank = ops.argsort(ops.argsort(magnitude))
        kept = ops.cast(rank, "int32") >= ops.cast(pruned, "int32")
        return ops.reshape(ops.cast(kept, "float32"), weight.shape)

    def unfinished(self) -> str | None:
        """Says so if the step that reaches the target has not been trained."""
        step = int(ops.convert_to_numpy(self.step))
        if step > self.schedule.settled_step or self.schedule.target == 0:
            return None
        return (
            f"its pruning schedule reaches {self.schedule.target:.0%} at step "
            f"{self.schedule.settled_step}, but only {step} steps were trained"
        )

    def report(self) -> dict[str, Any]:
        """Returns the sparsity now, the target and the step."""
        mask = ops.convert_to_numpy(self.mask)
        return {
            "sparsity": float(1.0 - np.mean(mask)),
            "target": self.schedule.target,
            "step": int(ops.convert_to_numpy(self.step)),
        }

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        config = super().get_config()
        config["schedule"] = keras.saving.serialize_keras_object(self.schedule)
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> MagnitudeMask:
        """Makes a mask from the result of `get_config`."""
        config = dict(config)
        config["schedule"] = keras.saving.deserialize_keras_object(config["schedule"])
        return cls(**config)
