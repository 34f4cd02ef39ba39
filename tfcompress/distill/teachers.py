"""Teachers of a distiller: a model, or an ensemble of models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops, tree

from tfcompress.distill.features import Feature, Recorder
from tfcompress.distill.losses.response import output_kind
from tfcompress.graph.keras_internals import input_struct
from tfcompress.graph.read import is_graph

Shape = tuple[int | None, ...]


@keras.saving.register_keras_serializable("tfcompress")
class WeightedMean(keras.layers.Layer):
    """Mean of several tensors of one shape.

    Args:
        weights_of_inputs: Weight of each tensor; normalized to a sum of 1.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    def __init__(self, weights_of_inputs: Sequence[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.weights_of_inputs = [float(w) for w in weights_of_inputs]

    def call(self, inputs: list[Any]) -> Any:
        """Returns the mean."""
        total = sum(self.weights_of_inputs)
        return sum(x * (w / total) for x, w in zip(inputs, self.weights_of_inputs, strict=True))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape of one input."""
        return input_shape[0]

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "weights_of_inputs": self.weights_of_inputs}


def ensemble(
    teachers: Sequence[keras.Model], weights: Sequence[float] | None = None
) -> keras.Model:
    """Returns one model whose outputs are the mean of several models' outputs.

    Logits are averaged as logits, probabilities as probabilities. Layers of a member are named by
    its name and their path in it: "resnet/conv1".

    Args:
        teachers: Built models with the same inputs and outputs, and different names.
        weights: Weight of each model; None for equal weights.

    Returns:
        A Functional model. It shares the members' weights.

    Raises:
        ValueError: If inputs, outputs or weights do not match, or two members have the same name.

    Example:
        >>> import keras, numpy as np
        >>> import tfcompress as tfc
        >>> nets = [
        ...     keras.Sequential(
        ...         [keras.Input((4,)), keras.layers.Dense(3, kernel_initializer=init)], name=init
        ...     )
        ...     for init in ("zeros", "ones")
        ... ]
        >>> teacher = tfc.ensemble(nets, weights=[3, 1])
        >>> teacher.predict(np.ones((1, 4)), verbose=0)
        array([[1., 1., 1.]], dtype=float32)

    References:
        You et al. 2017, KDD, Learning from Multiple Teacher Networks.
    """
    if not teachers:
        raise ValueError("teacher must be a model or a non-empty list of models. Received: []")
    weights = [1.0] * len(teachers) if weights is None else list(weights)
    if len(weights) != len(teachers) or min(weights) < 0 or sum(weights) <= 0:
        raise ValueError(
            f"weights must be {len(teachers)} numbers >= 0, one for each teacher, and not all 0. "
            f"Received: weights={weights!r}"
        )
    names = [teacher.name for teacher in teachers]
    if len(set(names)) < len(names):
        raise ValueError(f"The teachers need names of their own. Received: {names}")
    for teacher in teachers:
        if not is_graph(teacher):
            raise ValueError(
                f"Teacher {teacher.name!r} must be a Functional or Sequential model to be one of "
                "several."
            )
    first = teachers[0]
    all_shapes = [
        [tuple(t.shape) for t in (*teacher.inputs, *teacher.outputs)] for teacher in teachers
    ]
    if any(shapes != all_shapes[0] for shapes in all_shapes):
        raise ValueError(
            "The teachers must have the same shapes of inputs and outputs. Received: "
            + ", ".join(f"{n} {s}" for n, s in zip(names, all_shapes, strict=True))
        )
    kinds = [[output_kind(t, i) for i in range(len(t.outputs))] for t in teachers]
    if any(kind != kinds[0] for kind in kinds):
        raise ValueError(
            "The teachers must all put out logits, or all probabilities. Received: "
            + ", ".join(f"{n} {k}" for n, k in zip(names, kinds, strict=True))
        )
    inputs = tree.map_structure(
        lambda t: keras.Input(batch_shape=t.shape, dtype=t.dtype, name=t.name),
        first.inputs[0] if input_struct(first) is None else input_struct(first),
    )
    outputs = [teacher(inputs) for teacher in teachers]
    mean = tree.map_structure(lambda *same: WeightedMean(weights)(list(same)), *outputs)
    return keras.Model(inputs, mean, name="ensemble")


class LiveTeacher:
    """Runs the teacher in every training step.

    Args:
        model: The teacher.
        features: The features that the losses need.
    """

    def __init__(self, model: keras.Model, features: list[Feature]) -> None:
        self.model = model
        self._record = Recorder(model, features, "teacher_layer")

    def shapes(self) -> tuple[list[Shape] | None, dict[Feature, Shape]]:
        """Returns the shapes of the outputs (None if unknown) and of the features."""
        return output_shapes(self.model), self._record.shapes()

    def __call__(self, x: Any, given: Any) -> tuple[list[Any], dict[Feature, Any]]:
        """Returns outputs and features of a batch, without gradients."""
        outputs, features = self._record(x, training=False)
        stopped = tree.map_structure(ops.stop_gradient, outputs)
        return tree.flatten(stopped), {f: ops.stop_gradient(t) for f, t in features.items()}


def output_shapes(model: keras.Model) -> list[Shape] | None:
    """Returns the shapes of a model's outputs; None for a subclassed model."""
    if not getattr(model, "outputs", None):
        return None
    return [tuple(t.shape) for t in model.outputs]
