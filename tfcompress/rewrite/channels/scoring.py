"""Importance scores of units of coupled channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.rewrite.channels.coupling import Coupling, Use

Criterion = str | Callable[[np.ndarray], Any]

CRITERIA = ("l1", "l2", "bn_gamma", "taylor", "fpgm", "random")


def unit_scores(
    model: keras.Model, coupling: Coupling, criterion: Criterion, data: Any = None, seed: int = 0
) -> np.ndarray:
    """Returns a score for each unit; the units with the lowest scores are removed first.

    A unit has slices in several weights: in the kernels that produce its channels, in the kernels
    that consume them, and in normalizations. The score is the mean over these slices, each relative
    to the mean of its weight, so that scores can be compared between layers.

    Args:
        model: The model.
        coupling: Its channels and their coupling.
        criterion: One of `CRITERIA`, or a function (see `prune_channels`).
        data: For "taylor": (inputs, labels or None) by batch.
        seed: For "random".

    Raises:
        ValueError: If "bn_gamma" is asked of channels without a BatchNormalization.
    """
    if criterion == "random":
        return np.random.default_rng(seed).random(coupling.units)
    gradients = _gradients(model, coupling, data) if criterion == "taylor" else None
    score_sum, count = np.zeros(coupling.units), np.zeros(coupling.units)
    for use in coupling.uses.values():
        value = ops.convert_to_numpy(use.variable).astype(np.float64)
        gamma = use.variable.name == "gamma" and value.ndim == 1
        for axis, numbers in use.axes.items():
            if gradients is not None:
                if use.made == axis or not (gamma or value.ndim > 1):
                    continue  # behind a normalization, the scale of output channels does not matter
                scores = gradients[id(use.variable), axis]
            else:
                scores = _scores(criterion, value, axis, use, gamma)
                if scores is None:
                    continue
                scores = scores / (scores.mean() or 1.0)
            units = coupling.unit_of(numbers)
            np.add.at(score_sum, units, scores)
            np.add.at(count, units, 1)
    if criterion == "bn_gamma":
        _check_gamma(coupling, count)
    if gradients is not None:
        if not score_sum.any():
            raise ValueError(
                "criterion='taylor': the loss on data does not depend on any weight. Give other "
                "samples, or labels."
            )
        return score_sum
    return score_sum / np.maximum(count, 1)


def _scores(
    criterion: Criterion, value: np.ndarray, axis: int, use: Use, gamma: bool
) -> np.ndarray | None:
    rows = np.moveaxis(value, axis, 0).reshape(value.shape[axis], -1)
    if criterion == "bn_gamma":
        return np.abs(value) if gamma else None
    if criterion == "fpgm":
        if use.made != axis:
            return None
        squares = np.sum(rows**2, 1)
        distances = squares[:, None] + squares[None, :] - 2 * rows @ rows.T
        return np.sqrt(np.maximum(distances, 0)).sum(1)
    if value.ndim < 2 and not gamma:
        return None
    if not isinstance(criterion, str):
        return _user_scores(criterion, rows)
    return np.abs(rows).sum(1) if criterion == "l1" else np.sqrt(np.sum(rows**2, 1))


def _user_scores(criterion: Callable[[np.ndarray], Any], rows: np.ndarray) -> np.ndarray:
    """Returns the scores that a user-defined criterion returns."""
    scores = np.asarray(criterion(rows.copy()), np.float64)
    usable = scores.shape == rows.shape[:1] and np.isfinite(scores).all() and (scores >= 0).all()
    if not usable:
        raise ValueError(
            f"criterion must return a finite score >= 0 for each of {len(rows)} channels. "
            f"Received: an array of the shape {scores.shape}: {scores!r}"
        )
    return scores


def _check_gamma(coupling: Coupling, count: np.ndarray) -> None:
    without = [group.layers[0] for group in coupling.groups if not count[group.units].all()]
    if without:
        raise ValueError(
            "criterion='bn_gamma' needs a BatchNormalization with a scale behind every layer to be "
            f"pruned. Without one: {', '.join(without[:5])}. Name the others in layers=, or take "
            "criterion='l2'."
        )


def _gradients(model: keras.Model, coupling: Coupling, data: Any) -> dict[tuple[int, int], Any]:
    """Returns, by weight and axis, the mean over batches of |sum of weight times gradient|."""
    import tensorflow as tf

    importance: dict[tuple[int, int], Any] = {}
    uses = list(coupling.uses.values())
    variables = [use.variable.value for use in uses]
    for inputs, labels in data:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            loss = _loss(model(inputs, training=False), labels)
        gradients = tape.gradient(loss, variables, unconnected_gradients="zero")
        for use, gradient in zip(uses, gradients, strict=True):
            gradient = tf.convert_to_tensor(gradient)  # that of an embedding is sparse
            product = gradient.numpy() * ops.convert_to_numpy(use.variable)
            for axis in use.axes:
                others = tuple(i for i in range(product.ndim) if i != axis)
                key = id(use.variable), axis
                importance[key] = importance.get(key, 0) + np.abs(product.sum(others)) / len(data)
    return importance


def _loss(outputs: Any, labels: Any) -> Any:
    """Returns the loss of a batch; without labels, the model's own predictions are the labels."""
    outputs = keras.tree.flatten(outputs)[0]
    classes = len(outputs.shape) == 2 and outputs.shape[1] > 1
    if labels is None and not classes:
        return ops.mean(ops.square(outputs))
    if labels is None:
        labels = ops.argmax(outputs, -1)
    labels = ops.convert_to_tensor(labels)
    if keras.backend.is_float_dtype(labels.dtype):
        return ops.mean(ops.square(outputs - labels))
    if not classes:
        are_probabilities = bool(ops.all((outputs >= 0) & (outputs <= 1)))
        labels = ops.reshape(ops.cast(labels, outputs.dtype), ops.shape(outputs))
        return ops.mean(keras.losses.binary_crossentropy(labels, outputs, not are_probabilities))
    class_sums = ops.sum(outputs, -1)
    probabilities = bool(ops.all(outputs >= 0)) and bool(ops.all(ops.abs(class_sums - 1) < 1e-3))
    return ops.mean(
        keras.losses.sparse_categorical_crossentropy(labels, outputs, not probabilities)
    )
