"""Magnitude pruning as a weight transform."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.scheme import check_choice
from tfcompress.transforms.base import WeightTransform
from tfcompress.transforms.patterns import as_pattern
from tfcompress.transforms.schedules import ConstantSparsity, SparsitySchedule, check_sparsity

_POINTS = 33  # sparsities with a stored share of the weight; linear interpolation between them


def as_schedule(sparsity: Any) -> SparsitySchedule:
    """Turns a number into a constant schedule from step 0; returns schedules unchanged."""
    if isinstance(sparsity, SparsitySchedule):
        return sparsity
    return ConstantSparsity(check_sparsity(sparsity, "sparsity"), begin_step=0)


@keras.saving.register_keras_serializable("tfcompress")
class MagnitudeMask(WeightTransform):
    """Sets the weights of smallest magnitude to zero, as many as the schedule requires.

    The stored weight keeps its value under the mask, so a pruned weight comes back if the others
    shrink below it before the next update. Ties are broken by position. Of `n` weights (or
    blocks) `floor(sparsity * n + 1/2)` are zero, but one always stays.

    Pays in: bytes after gzip, or with the runtime's sparse format; no milliseconds on x86.

    Args:
        schedule: A `SparsitySchedule`, or a number in [0, 1) for a constant sparsity from step 0.
        pattern: "unstructured", "n:m" or the (rows, columns) of blocks; see `prune`.
        ranking: "layer", or "global": then `allocate` sets the share of this weight in the sparsity
            of the schedule.

    References:
        N:M: Zhou et al. 2021, arXiv:2102.04010. Blocks: Gray et al. 2017.
    """

    order = 0
    keeps_zeros = True

    def __init__(
        self,
        schedule: SparsitySchedule | float,
        pattern: Any = "unstructured",
        ranking: str = "layer",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.schedule = as_schedule(schedule)
        self.pattern: Any = as_pattern(pattern)
        self.ranking = check_choice(ranking, "ranking", ("layer", "global"))
        fixed = self.pattern.sparsity
        if fixed is not None and abs(self.schedule.target - fixed) > 1e-6:
            raise ValueError(
                f"pattern={self.pattern.spec!r} ends with a sparsity of {fixed:.4g}. Received: one "
                f"of {self.schedule.target:.4g}. Leave sparsity out, or pass a schedule that ends "
                f"with {fixed:.4g}."
            )
        if fixed is not None and ranking == "global":
            raise ValueError(
                f"ranking='global' is not possible with pattern={self.pattern.spec!r}, which fixes "
                "the sparsity of every weight. Use ranking='layer'."
            )

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
        if self.ranking == "global":
            self.shares = self.add_weight(
                name="shares",
                shape=(_POINTS,),
                initializer=lambda shape, dtype=None: self.levels,
                trainable=False,
                aggregation="only_first_replica",
            )

    def allocate(self, shares: np.ndarray) -> None:
        """Sets the sparsity of this weight for each sparsity of the whole model.

        Args:
            shares: Sparsities of this weight, one for each of `levels`.
        """
        self.shares.assign(shares)

    @property
    def levels(self) -> np.ndarray:
        """The sparsities of the whole model for which `allocate` gets shares."""
        return np.linspace(0, self.schedule.target, _POINTS)

    def scores(self, weight: Any) -> Any:
        """Returns the magnitudes that are ranked, flat."""
        return self.pattern.scores(weight, self.input_axis, self.output_axis)

    def update(self, weight: Any) -> None:
        """Recomputes the mask at steps of the schedule, and counts the training step."""
        step = ops.convert_to_tensor(self.step)
        mask = ops.cond(
            self.schedule.updates_at(step),
            lambda: self._mask(weight, self.schedule.sparsity(step)),
            lambda: ops.convert_to_tensor(self.mask),
        )
        self.mask.assign(mask)
        self.step.assign(step + 1)

    def call(self, weight: Any) -> Any:
        """Returns the weight with the pruned entries at zero."""
        return weight * self.mask

    def _mask(self, weight: Any, sparsity: Any) -> Any:
        if self.ranking == "global" and self.schedule.target > 0:
            position = sparsity / self.schedule.target * (_POINTS - 1)
            # Linear interpolation: each level has a triangular weight.
            weights = ops.maximum(1 - ops.abs(position - np.arange(_POINTS, dtype="float32")), 0)
            sparsity = ops.sum(weights * ops.convert_to_tensor(self.shares))
        return self.pattern.mask(weight, sparsity, self.input_axis, self.output_axis)

    def unfinished(self) -> str | None:
        """Returns a message if the training step that reaches the target is still to come."""
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
        target = self.schedule.target
        if self.ranking == "global":
            target = float(ops.convert_to_numpy(self.shares)[-1])
        return {
            "sparsity": float(1.0 - np.mean(mask)),
            "target": target,
            "step": int(ops.convert_to_numpy(self.step)),
        }

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        config = super().get_config()
        config["schedule"] = keras.saving.serialize_keras_object(self.schedule)
        config["pattern"] = self.pattern.spec
        config["ranking"] = self.ranking
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> MagnitudeMask:
        """Creates a mask from the result of `get_config`."""
        config = dict(config)
        config["schedule"] = keras.saving.deserialize_keras_object(config["schedule"])
        return cls(**config)
