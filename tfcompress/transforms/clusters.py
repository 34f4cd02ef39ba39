"""Weight sharing: few distinct values in a weight."""

from __future__ import annotations

import itertools
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.scheme import check_choice
from tfcompress.transforms.base import WeightTransform

INITS = ("kmeans++", "linear", "density")
ASSIGNMENTS = ("hard", "soft")
MOST_CLUSTERS = 128
"""The values that tflite-micro's tables hold."""

_SAMPLE = 50_000  # weights from which k-means finds centroids


@keras.saving.register_keras_serializable("tfcompress")
class Clusters(WeightTransform):
    """Replaces each weight by the nearest of a few centroids, which are learned.

    One centroid is zero and stays zero, so that pruned weights stay pruned. Centroids move by the
    mean gradient of their weights. A stored weight has the gradient of its centroid
    (straight-through), and so may change its cluster.

    Pays in: bytes after gzip, flash after Vela's compression, and bytes of the file in
    tflite-micro's compressed form; no milliseconds.

    Args:
        number_of_clusters: Number of values, zero included, from 2 to 128.
        per_channel: Whether each output channel has centroids of its own.
        init: How centroids start: "kmeans++" by k-means, "linear" at equal distances from the
            smallest weight to the largest, "density" with as many weights at each.
        assignment: "hard", or "soft" for the gradient of a soft assignment (DKM): a weight is drawn
            towards all near centroids, by its distance to each. The values are those of "hard".

    References:
        Han et al. 2016, arXiv:1510.00149. DKM: Cho et al. 2022, arXiv:2108.12659.
    """

    order = 10
    keeps_zeros = True

    def __init__(
        self,
        number_of_clusters: int = 16,
        per_channel: bool = False,
        init: str = "kmeans++",
        assignment: str = "hard",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if isinstance(number_of_clusters, bool) or number_of_clusters not in range(
            2, MOST_CLUSTERS + 1
        ):
            raise ValueError(
                f"number_of_clusters must be a whole number from 2 to {MOST_CLUSTERS}. Received: "
                f"{number_of_clusters!r}"
            )
        self.number_of_clusters = number_of_clusters
        self.per_channel = bool(per_channel)
        self.init = check_choice(init, "init", INITS)
        self.assignment = check_choice(assignment, "assignment", ASSIGNMENTS)

    def build(self, shape: tuple[int, ...]) -> None:
        """Creates the centroids other than zero."""
        kept = {axis % len(shape) for axis in self.channel_axes} if self.per_channel else set()
        broadcast = [size if axis in kept else 1 for axis, size in enumerate(shape)]
        self.centroids = self.add_weight(
            name="centroids",
            shape=(self.number_of_clusters - 1, *broadcast),
            initializer="zeros",
        )
        # Not the optimizer's: what `update` moved centroids by.
        self.moves = self.add_weight(
            name="moves",
            shape=(self.number_of_clusters - 1, *broadcast),
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
        )

    def start(self, weight: Any) -> None:
        """Finds the centroids of a weight."""
        values = ops.convert_to_numpy(weight).astype("float64")
        shape = self.centroids.shape[1:]
        found = np.empty((self.number_of_clusters - 1, int(np.prod(shape))))
        kept = [axis for axis, size in enumerate(shape) if size > 1]
        rows = np.moveaxis(values, kept, range(len(kept))).reshape(found.shape[1], -1)
        for channel, row in enumerate(rows):
            found[:, channel] = self._found(row[row != 0])
        self.centroids.assign(found.reshape(self.centroids.shape))
        self.moves.assign(ops.zeros(self.moves.shape))

    def update(self, weight: Any) -> None:
        """Moves a centroid that has lost its weights to where most weights are.

        While a model is pruned, weights near zero become zero, and with them whole clusters.
        """
        centroids = self._sorted()
        counts = ops.stack(self._members(weight, centroids)[1])
        empty = ops.cast(ops.logical_and(counts == 0, ops.stack(centroids) != 0), "float32")
        # Of several one at a time, so that they do not end up at one place.
        chosen = empty * ops.cast(ops.cumsum(empty, axis=0) == 1, "float32")
        # A quarter of the way from the mean of the fullest cluster, other than zero, to its end.
        fullest = ops.argmax(ops.where(ops.stack(centroids) == 0, 0.0, counts), axis=0)
        ends = [*centroids[1:], centroids[-1] * 1.5]
        places = ops.stack(
            [0.75 * c + 0.25 * (c + end) / 2 for c, end in zip(centroids, ends, strict=True)]
        )
        place = ops.take_along_axis(places, ops.expand_dims(fullest, 0), axis=0)
        moves = ops.convert_to_tensor(self.moves)
        free = ops.convert_to_tensor(self.centroids) + moves
        lost = ops.sum(chosen * ops.stack(centroids), axis=0, keepdims=True)
        is_lost = ops.logical_and(free == lost, lost != 0)
        self.moves.assign(moves + ops.where(is_lost, place - free, 0.0))

    def _sorted(self) -> list[Any]:
        """Returns the centroids in order, zero among them."""
        free = ops.convert_to_tensor(self.centroids) + ops.convert_to_tensor(self.moves)
        centroids = ops.sort(ops.concatenate([free, ops.zeros_like(free[:1])]), axis=0)
        return [centroids[index] for index in range(self.number_of_clusters)]

    def call(self, weight: Any) -> Any:
        """Returns the weight with each entry at its nearest centroid."""
        centroids = self._sorted()
        if self.assignment == "soft":
            nearest = self._nearest(weight, [ops.stop_gradient(c) for c in centroids])
            soft = self._soft(weight, centroids)
            return nearest + (soft - ops.stop_gradient(soft))
        # A value has the gradient of its weight, straight through.
        return self._nearest(weight, centroids) + (weight - ops.stop_gradient(weight))

    def _nearest(self, weight: Any, centroids: list[Any]) -> Any:
        """Returns the nearest centroid of each weight; a centroid has their mean gradient."""
        fixed = [ops.stop_gradient(centroid) for centroid in centroids]
        above, members = self._members(weight, fixed)
        averaged = [
            constant + (centroid - constant) / ops.maximum(count, 1.0)
            for centroid, constant, count in zip(centroids, fixed, members, strict=True)
        ]
        nearest = averaged[0] + ops.zeros_like(weight)
        for is_above, centroid in zip(above, averaged[1:], strict=True):
            nearest = ops.where(is_above > 0, centroid, nearest)
        return nearest

    def _members(self, weight: Any, centroids: list[Any]) -> tuple[list[Any], list[Any]]:
        """Returns which weights lie above each boundary, as 0 and 1, and the size of each cluster.

        Args:
            weight: The weight.
            centroids: The centroids, in order.
        """
        axes = [axis for axis, size in enumerate(self.centroids.shape[1:]) if size == 1]
        above = [
            ops.cast(weight > (low + high) / 2, "float32")
            for low, high in itertools.pairwise(centroids)
        ]
        counts = [ops.sum(part, axis=axes, keepdims=True) for part in above]
        total = ops.sum(ops.ones_like(weight), axis=axes, keepdims=True)
        return above, [a - b for a, b in zip([total, *counts], [*counts, 0.0], strict=True)]

    def _soft(self, weight: Any, centroids: list[Any]) -> Any:
        """Returns the mean of the centroids of each weight, weighted by a softmax of distances."""
        # The mean gap between centroids is the distance at which a weight feels the next one.
        width = ops.stop_gradient(centroids[-1] - centroids[0]) / self.number_of_clusters
        temperature = ops.maximum(ops.square(width), 1e-12)
        distances = [-ops.square(weight - centroid) / temperature for centroid in centroids]
        largest = ops.stop_gradient(ops.max(ops.stack(distances), axis=0))
        shares = [ops.exp(distance - largest) for distance in distances]
        weighted = [share * c for share, c in zip(shares, centroids, strict=True)]
        return sum(weighted[1:], weighted[0]) / sum(shares[1:], shares[0])

    def _found(self, values: np.ndarray) -> np.ndarray:
        """Returns the centroids of weights other than zero, sorted."""
        count = self.number_of_clusters - 1
        distinct = np.unique(values)
        if len(distinct) <= count:
            fill = distinct[-1:] if len(distinct) else np.zeros(1)
            return np.sort(np.concatenate([distinct, np.repeat(fill, count - len(distinct))]))
        if self.init == "linear":
            return np.linspace(distinct[0], distinct[-1], count)
        if self.init == "density":
            return np.quantile(values, (np.arange(count) + 0.5) / count)
        from scipy.cluster.vq import kmeans2  # takes a while to import

        if len(values) > _SAMPLE:
            values = np.random.default_rng(0).choice(values, _SAMPLE, replace=False)
        found, _ = kmeans2(values[:, None], count, minit="++", iter=30, seed=0, missing="warn")
        return np.sort(found[:, 0])

    def report(self) -> dict[str, Any]:
        """Returns nothing: the summary has no column for it."""
        return {}

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        own = {name: getattr(self, name) for name in ("number_of_clusters", "per_channel")}
        return {**super().get_config(), **own, "init": self.init, "assignment": self.assignment}
