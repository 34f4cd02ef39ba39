"""The loss to train a model with: the one it was compiled with, or the usual one of its labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tfcompress.graph.keras_internals import loss_argument, producing_inputs, producing_operation
from tfcompress.graph.read import is_graph


def labels_of(arrays: Mapping[str, np.ndarray], y: Any, argument: str) -> np.ndarray:
    """Returns the labels of samples, one for each.

    Raises:
        ValueError: If there are none, or too few.
    """
    if y is None:
        raise ValueError(
            f"{argument} holds no labels, which training needs: 'y' in an .npz file, subfolders as "
            "classes, or a function that returns (x, y)."
        )
    count = len(next(iter(arrays.values())))
    if len(y) != count:
        raise ValueError(f"{argument} holds {count} samples but {len(y)} labels.")
    return np.asarray(y)


def usual_labels(y: np.ndarray) -> np.ndarray:
    """Converts labels to integers if they are whole numbers stored as floats."""
    return y.astype(np.int64) if y.dtype.kind == "f" and np.all(y == np.round(y)) else y


def loss_for(model: keras.Model, y: np.ndarray) -> tuple[Any, list[Any], str]:
    """Returns the loss the model was compiled with, or a default, its metrics and its name.

    Raises:
        ValueError: If the labels do not fit the outputs.
    """
    compiled_loss = loss_argument(model)
    if len(model.outputs) != 1:
        if compiled_loss:
            return compiled_loss, [], "of the model"
        raise ValueError(
            f"model {model.name!r} has {len(model.outputs)} outputs and was saved without a loss. "
            "Compile it before you save it."
        )
    shape = tuple(model.outputs[0].shape[1:])
    units = shape[-1] if shape else 1
    are_classes = y.shape[1:] in (shape[:-1], (*shape[:-1], 1))
    if units > 1 and are_classes and y.dtype.kind in "biu" and not 0 <= y.min() <= y.max() < units:
        raise ValueError(
            f"Labels must be 0 to {units - 1}, as the model has {units} outputs. Received: labels "
            f"from {int(y.min())} to {int(y.max())}."
        )
    if compiled_loss:
        return compiled_loss, ["accuracy"] if y.dtype.kind in "biu" else [], "of the model"
    logits = {"from_logits": not _ends_in_probabilities(model)}
    are_binary = bool(np.isin(y, (0, 1)).all())
    if units > 1 and are_classes and y.dtype.kind in "biu":
        loss: Any = keras.losses.SparseCategoricalCrossentropy(**logits)
        return loss, ["accuracy"], "sparse categorical crossentropy"
    if y.shape[1:] not in (shape, shape[:-1] if units == 1 else shape):
        raise ValueError(
            f"Labels of the shape {y.shape[1:]} do not fit outputs of the shape {shape}. Give a "
            "number of a class or a row of the outputs' shape for each sample, or save the model "
            "compiled with its loss."
        )
    if units > 1 and np.allclose(y.sum(-1), 1) and y.min() >= 0:
        loss = keras.losses.CategoricalCrossentropy(**logits)
        return loss, ["accuracy"], "categorical crossentropy"
    if are_binary:
        return keras.losses.BinaryCrossentropy(**logits), ["accuracy"], "binary crossentropy"
    return keras.losses.MeanSquaredError(), [], "mean squared error"


def _ends_in_probabilities(model: keras.Model) -> bool:
    tensor = model.outputs[0]
    while True:
        operation = producing_operation(tensor)
        inner = getattr(operation, "layer", operation)
        if is_graph(inner):
            tensor = inner.outputs[0]
        elif type(inner).__name__ in _KEEP_VALUES or getattr(inner, "is_compression_helper", False):
            tensor = producing_inputs(tensor)[0]
        else:
            break
    activation = getattr(inner, "activation", None)
    return getattr(activation, "__name__", type(inner).__name__.lower()) in ("softmax", "sigmoid")


_KEEP_VALUES = ("Reshape", "Flatten", "Dropout", "Identity", "Permute")
