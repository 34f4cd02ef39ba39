"""A mask that keeps the zeros of an already pruned weight."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.transforms.base import WeightTransform


@keras.saving.register_keras_serializable("tfcompress")
class KeepZeros(WeightTransform):
    """Keeps the zeros that a weight has when it is wrapped, to train a pruned model further.

    Pays in: nothing by itself; the bytes that pruning saved are not lost again.

    References:
        Han et al. 2015, arXiv:1506.02626, section 3.3.
    """

    order = 0
    keeps_zeros = True

    def build(self, shape: tuple[int, ...]) -> None:
        """Creates the mask (all ones)."""
        self.mask = self.add_weight(
            name="mask",
            shape=shape,
            initializer="ones",
            trainable=False,
            aggregation="only_first_replica",
        )

    def start(self, weight: Any) -> None:
        """Sets the mask to the non-zero entries of the weight."""
        self.mask.assign(ops.cast(weight != 0, "float32"))

    def call(self, weight: Any) -> Any:
        """Returns the weight with the zeros kept."""
        return weight * self.mask

    def report(self) -> dict[str, Any]:
        """Returns the sparsity, which is the target as well."""
        sparsity = float(1.0 - np.mean(ops.convert_to_numpy(self.mask)))
        return {"sparsity": sparsity, "target": sparsity}
