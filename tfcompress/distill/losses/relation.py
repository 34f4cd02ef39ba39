"""Relation-based losses: they compare the relations between the samples of a batch.

Features may have any shape and width: each sample is flattened to one vector. Samples of weight
zero are ignored.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfcompress.distill.losses.base import DistillationLoss, of_rank

_TINY = 1e-12


class RelationLoss(DistillationLoss):
    """Base class of the losses that compare samples with each other; layers are optional.

    Args:
        teacher_layer: Path of the teacher's layer; None for its output.
        student_layer: Path of the student's layer; None for its output.
        name: Name of the loss term among the metrics.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    needs_layers = False

    def call(self, teacher: Any, student: Any, sample_weight: Any = None) -> Any:
        """Returns the loss of a batch, a scalar."""
        size = ops.shape(student)[0]
        weight = ops.ones((size,))
        if sample_weight is not None:
            weight = of_rank(sample_weight, 1)
        vectors = []
        for features in (teacher, student):
            flat = ops.reshape(features, (size, -1))
            # Values of a sample of weight zero, even NaN, must not reach any sum.
            vectors.append(ops.where(weight[:, None] == 0, 0.0, flat))
        return self.relate(vectors[0], vectors[1], weight)

    def relate(self, teacher: Any, student: Any, weight: Any) -> Any:
        """Returns the loss of two matrices of vectors (batch, width) with a weight for each row."""
        raise NotImplementedError


@keras.saving.register_keras_serializable("tfcompress")
class RKDDistance(RelationLoss):
    """Difference of the distances between samples, over their mean (Park et al. 2019).

    The Huber loss of the distances in the student's and in the teacher's space, each divided by its
    mean over the batch.

    Args:
        **kwargs: `teacher_layer` and `student_layer`, paths of embeddings; None for the outputs.

    Example:
        >>> import numpy as np
        >>> import tfcompress as tfc
        >>> x = np.random.default_rng(0).normal(size=(8, 5))
        >>> round(float(tfc.RKDDistance()(x, 3 * x)), 6)
        0.0

    References:
        Park et al. 2019, arXiv:1904.05068.
    """

    def relate(self, teacher: Any, student: Any, weight: Any) -> Any:
        """Returns the loss."""
        pairs = weight[:, None] * weight[None, :]
        scaled = []
        for vectors in (teacher, student):
            distances = _distances(vectors)
            counted = pairs * ops.cast(distances > 0, "float32")
            mean = ops.sum(pairs * distances) / ops.maximum(ops.sum(counted), _TINY)
            scaled.append(distances / ops.maximum(mean, _TINY))
        return _mean_of_pairs(pairs * _huber(scaled[0] - scaled[1]), weight)


@keras.saving.register_keras_serializable("tfcompress")
class RKDAngle(RelationLoss):
    """Difference of the angles that triples of samples form (Park et al. 2019).

    The Huber loss of the cosines of the angles at each sample between each two others. Memory grows
    with the cube of the batch: 4 MB for 100 samples.

    Args:
        **kwargs: `teacher_layer` and `student_layer`, paths of embeddings; None for the outputs.

    Example:
        >>> import numpy as np
        >>> import tfcompress as tfc
        >>> x = np.random.default_rng(0).normal(size=(8, 5))
        >>> round(float(tfc.RKDAngle()(x, 3 * x + 1)), 6)
        0.0

    References:
        Park et al. 2019, arXiv:1904.05068.
    """

    def relate(self, teacher: Any, student: Any, weight: Any) -> Any:
        """Returns the loss."""
        cosines = []
        for vectors in (teacher, student):
            edges = vectors[None, :, :] - vectors[:, None, :]
            length = ops.sqrt(ops.maximum(ops.sum(edges**2, axis=-1, keepdims=True), _TINY))
            cosines.append(ops.einsum("ijd,ikd->ijk", edges / length, edges / length))
        triples = weight[:, None, None] * weight[None, :, None] * weight[None, None, :]
        values = triples * _huber(cosines[0] - cosines[1])
        return ops.sum(values) / ops.cast(ops.shape(weight)[0], "float32") ** 3


@keras.saving.register_keras_serializable("tfcompress")
class SimilarityPreserving(RelationLoss):
    """Difference of the similarities between the samples of a batch (Tung & Mori 2019).

    The similarities are the inner products of the features, each row scaled to length 1.

    Args:
        **kwargs: `teacher_layer` and `student_layer`, paths of layers; None for the outputs.

    Example:
        >>> import numpy as np
        >>> import tfcompress as tfc
        >>> x = np.random.default_rng(0).normal(size=(8, 7, 7, 5))
        >>> round(float(tfc.SimilarityPreserving()(x, 3 * x)), 6)
        0.0

    References:
        Tung & Mori 2019, arXiv:1907.09682.
    """

    def relate(self, teacher: Any, student: Any, weight: Any) -> Any:
        """Returns the loss."""
        pairs = weight[:, None] * weight[None, :]
        grams = []
        for vectors in (teacher, student):
            gram = pairs * ops.matmul(vectors, ops.transpose(vectors))
            length = ops.sqrt(ops.maximum(ops.sum(gram**2, axis=-1, keepdims=True), _TINY))
            grams.append(gram / length)
        return _mean_of_pairs((grams[0] - grams[1]) ** 2, weight)


def _distances(vectors: Any) -> Any:
    """Returns the Euclidean distances; exact 0 where they are 0, with finite gradients."""
    squares = ops.sum(vectors**2, axis=-1)
    squared = (
        squares[:, None] + squares[None, :] - 2.0 * ops.matmul(vectors, ops.transpose(vectors))
    )
    different = 1.0 - ops.eye(ops.shape(vectors)[0])
    near = ops.maximum(squared * different, _TINY)
    return ops.where(near > _TINY, ops.sqrt(near), 0.0)


def _huber(difference: Any) -> Any:
    size = ops.abs(difference)
    return ops.where(size < 1.0, 0.5 * difference**2, size - 0.5)


def _mean_of_pairs(values: Any, weight: Any) -> Any:
    return ops.sum(values) / ops.cast(ops.shape(weight)[0], "float32") ** 2
