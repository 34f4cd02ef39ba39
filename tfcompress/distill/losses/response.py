"""Response-based knowledge: the teacher's output distribution as the target."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfcompress.graph.canonicalize import activation_name
from tfcompress.graph.cost import plain
from tfcompress.graph.read import is_graph

LINEAR, SOFTMAX, SIGMOID = "linear", "softmax", "sigmoid"


@keras.saving.register_keras_serializable("tfcompress")
class SoftTargets(keras.losses.Loss):
    """Divergence of the student's softened outputs from the teacher's (Hinton et al. 2015).

    Computes `T^2 * KL(p_teacher || p_student)` with both distributions softened by the temperature
    T; T^2 keeps the size of the gradient independent of T. The last axis holds the classes; axes
    between it and the batch are averaged. Outputs of one unit, and outputs of a sigmoid, are
    Bernoulli distributions, one per unit, whose divergences are added.

    Logits and probabilities are told apart by the operation that makes the output: softmax or
    sigmoid, as a layer, a fused activation or a `keras.ops` node, makes probabilities, anything
    else logits. What cannot be seen in a graph (a subclassed model) must be said with
    `teacher_outputs` or `student_outputs`. Probabilities are turned back into logits, which is
    exact up to a constant.

    Args:
        temperature: T > 0; higher is softer. 1 compares the distributions as they are.
        teacher_outputs: "linear" (logits), "softmax" or "sigmoid"; None to look at the model.
        student_outputs: Likewise for the student.
        name: Name of the loss term among the metrics.
        **kwargs: Arguments of `keras.losses.Loss`.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> import numpy as np
        >>> import tfcompress as tfc
        >>> logits = np.array([[1.0, 2.0, 3.0]])
        >>> float(tfc.SoftTargets(temperature=2.0)(logits, logits))
        0.0

    References:
        Hinton, Vinyals & Dean 2015, arXiv:1503.02531.
    """

    def __init__(
        self,
        temperature: float = 3.0,
        *,
        teacher_outputs: str | None = None,
        student_outputs: str | None = None,
        name: str = "soft_targets",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        if isinstance(temperature, bool) or not temperature > 0:
            raise ValueError(f"temperature must be > 0. Received: temperature={temperature!r}")
        for argument, value in (
            ("teacher_outputs", teacher_outputs),
            ("student_outputs", student_outputs),
        ):
            if value not in (None, LINEAR, SOFTMAX, SIGMOID):
                raise ValueError(
                    f"{argument} must be None, 'linear', 'softmax' or 'sigmoid'. "
                    f"Received: {argument}={value!r}"
                )
        self.temperature = float(temperature)
        self.teacher_outputs = teacher_outputs
        self.student_outputs = student_outputs

    def for_output(self, teacher: keras.Model, student: keras.Model, index: int = 0) -> SoftTargets:
        """Returns the loss for output number `index` of two models, which it looks at.

        Raises:
            ValueError: If it cannot be seen whether a model puts out logits or probabilities.
        """
        config = self.get_config()
        for role, model in (("teacher", teacher), ("student", student)):
            key = f"{role}_outputs"
            if config[key] is None:
                config[key] = output_kind(model, index)
            if config[key] is None:
                raise ValueError(
                    f"It cannot be seen whether the {role} {model.name!r} puts out logits or "
                    "probabilities, because it is not a Functional or Sequential model. Say it: "
                    f"distillation_losses=SoftTargets({key}='linear') or 'softmax' or 'sigmoid'."
                )
        return type(self).from_config(config)

    def call(self, teacher_outputs: Any, student_outputs: Any) -> Any:
        """Returns the divergence of each sample (and position)."""
        kinds = (self.teacher_outputs, self.student_outputs)
        if student_outputs.shape[-1] == 1 or SIGMOID in kinds:
            teacher = self._bernoulli_logits(teacher_outputs, self.teacher_outputs)
            student = self._bernoulli_logits(student_outputs, self.student_outputs)
            p, one_minus_p = ops.sigmoid(teacher), ops.sigmoid(-teacher)
            divergence = p * (ops.log_sigmoid(teacher) - ops.log_sigmoid(student)) + one_minus_p * (
                ops.log_sigmoid(-teacher) - ops.log_sigmoid(-student)
            )
        else:
            teacher = ops.log_softmax(self._logits(teacher_outputs, self.teacher_outputs))
            student = ops.log_softmax(self._logits(student_outputs, self.student_outputs))
            divergence = ops.exp(teacher) * (teacher - student)
        return ops.sum(divergence, axis=-1) * self.temperature**2

    def _logits(self, outputs: Any, kind: str | None) -> Any:
        if kind == SOFTMAX:
            outputs = ops.log(ops.maximum(outputs, keras.backend.epsilon()))
        return outputs / self.temperature

    def _bernoulli_logits(self, outputs: Any, kind: str | None) -> Any:
        if kind == SIGMOID:
            epsilon = keras.backend.epsilon()
            p = ops.clip(outputs, epsilon, 1.0 - epsilon)
            outputs = ops.log(p) - ops.log1p(-p)
        return outputs / self.temperature

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "temperature": self.temperature,
            "teacher_outputs": self.teacher_outputs,
            "student_outputs": self.student_outputs,
        }


def output_kind(model: Any, index: int = 0) -> str | None:
    """Returns what makes output number `index`: "softmax", "sigmoid", else "linear".

    None if the model has no graph to look at. Quantizers, and layers that only pass values on, are
    looked through; nested models are looked into.
    """
    if not is_graph(model):
        return None
    tensor = model.outputs[index]
    while True:
        operation, node_index, tensor_index = tensor._keras_history
        if is_graph(operation):
            return output_kind(operation, tensor_index)
        layer = plain(operation)
        if _passes_values_on(layer):
            tensor = operation._inbound_nodes[node_index].input_tensors[0]
            continue
        kind = activation_name(layer) or type(layer).__name__.lower()
        return kind if kind in (SOFTMAX, SIGMOID) else LINEAR


def _passes_values_on(layer: Any) -> bool:
    return (
        getattr(layer, "is_compression_helper", False)
        or isinstance(
            layer,
            (
                keras.layers.Reshape,
                keras.layers.Flatten,
                keras.layers.Identity,
                keras.layers.Permute,
                keras.layers.Dropout,
            ),
        )
        or (isinstance(layer, keras.layers.Activation) and activation_name(layer) == LINEAR)
    )
