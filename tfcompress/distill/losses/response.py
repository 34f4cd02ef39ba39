"""Response-based losses: the teacher's output distribution is the target."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfcompress.distill.features import find_layer
from tfcompress.distill.losses.base import (
    DistillationLoss,
    average,
    complain,
    positive,
    same_shape,
)
from tfcompress.graph.keras_internals import (
    output_index,
    producing_inputs,
    producing_operation,
    sublayers,
)
from tfcompress.graph.layers import activation_name, is_custom, plain
from tfcompress.graph.read import is_graph

LINEAR, SOFTMAX, SIGMOID = "linear", "softmax", "sigmoid"


class ResponseLoss(DistillationLoss):
    """Base class of the losses between the outputs of classifiers.

    Logits and probabilities are distinguished by the operation that computes the output: softmax or
    sigmoid, as a layer, a fused activation or a `keras.ops` node, gives probabilities, anything
    else logits. For a model without a graph (a subclassed one), `teacher_outputs` or
    `student_outputs` must be given. Probabilities are converted back to logits, which is exact up
    to a constant. The last axis holds the classes; axes between it and the batch are
    averaged.

    Args:
        teacher_outputs: "linear" (logits), "softmax" or "sigmoid"; None to inspect the model.
        student_outputs: Likewise for the student.
        teacher_layer: Path of the teacher's layer to compare; None for each of its outputs.
        student_layer: Path of the student's layer, such as a separate head; None likewise.
        name: Name of the loss term among the metrics.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    needs_layers = False

    def __init__(
        self,
        *,
        teacher_outputs: str | None = None,
        student_outputs: str | None = None,
        teacher_layer: str | None = None,
        student_layer: str | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher_layer, student_layer, name=name, **kwargs)
        for argument, value in (
            ("teacher_outputs", teacher_outputs),
            ("student_outputs", student_outputs),
        ):
            if value not in (None, LINEAR, SOFTMAX, SIGMOID):
                raise ValueError(
                    f"{argument} must be None, 'linear', 'softmax' or 'sigmoid'. "
                    f"Received: {argument}={value!r}"
                )
        self.teacher_outputs = teacher_outputs
        self.student_outputs = student_outputs

    def for_output(self, teacher: Any, student: keras.Model, index: int = 0) -> Any:
        """Returns the loss for output number `index` of two models, after inspecting them.

        Raises:
            ValueError: If it is unknown whether a model outputs logits or probabilities.
        """
        config = self.get_config()
        for role, model in (("teacher", teacher), ("student", student)):
            key, layer = f"{role}_outputs", config[f"{role}_layer"]
            if config[key] is None and not isinstance(model, keras.Model):
                config[key] = model.kind(layer or index)  # a cached teacher
            elif config[key] is None and layer:
                config[key] = layer_kind(find_layer(model, layer, f"{role}_layer"))
            elif config[key] is None:
                config[key] = output_kind(model, index)
            if config[key] is None:
                raise ValueError(
                    f"It cannot be seen whether the {role} {model.name!r} puts out logits or "
                    "probabilities, because it is not a Functional or Sequential model. Say it: "
                    f"distillation_losses={type(self).__name__}({key}='linear') or 'softmax' or "
                    "'sigmoid'."
                )
        self.check_kinds(config["teacher_outputs"], config["student_outputs"])
        return type(self).from_config(config)

    def check_kinds(self, teacher: str, student: str) -> None:
        """Raises ValueError for outputs that are not the same kind of distribution."""
        if {teacher, student} == {SOFTMAX, SIGMOID}:
            raise ValueError(
                f"{type(self).__name__} cannot compare a {teacher} teacher with a {student} "
                "student: one chooses among the classes, the other decides on each."
            )

    def check(self, teacher: Any, student: Any) -> None:
        """Raises ValueError unless both have the same shape."""
        if not same_shape(teacher, student):
            raise complain(self, teacher, student, "the shapes must be the same.")

    def validate_model_compatibility(self, teacher: Any, student: Any) -> None:
        """Inspects the outputs of the models, for Keras' Distiller."""
        super().validate_model_compatibility(teacher, student)
        resolved = self.for_output(teacher, student)
        self.teacher_outputs, self.student_outputs = (
            resolved.teacher_outputs,
            resolved.student_outputs,
        )

    def is_bernoulli(self, student: Any) -> bool:
        """Returns whether each unit is a separate Bernoulli distribution."""
        return student.shape[-1] == 1 or SIGMOID in (self.teacher_outputs, self.student_outputs)

    def logits(self, outputs: Any, kind: str | None) -> Any:
        """Returns the logits of a softmax."""
        if kind == SOFTMAX:
            return ops.log(ops.maximum(outputs, keras.backend.epsilon()))
        return outputs

    def bernoulli_logits(self, outputs: Any, kind: str | None) -> Any:
        """Returns the logits of sigmoids."""
        if kind == SIGMOID:
            epsilon = keras.backend.epsilon()
            p = ops.clip(outputs, epsilon, 1.0 - epsilon)
            return ops.log(p) - ops.log1p(-p)
        return outputs

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "teacher_outputs": self.teacher_outputs,
            "student_outputs": self.student_outputs,
        }


@keras.saving.register_keras_serializable("tfcompress")
class SoftTargets(ResponseLoss):
    """Divergence of the student's softened outputs from the teacher's (Hinton et al. 2015).

    Computes `T^2 * KL(p_teacher || p_student)` with both distributions softened by the temperature
    T; T^2 keeps the magnitude of the gradient independent of T. Outputs of one unit, and outputs of
    a sigmoid, are Bernoulli distributions, one per unit, whose divergences are added.

    Args:
        temperature: T > 0; higher is softer. 1 compares the distributions as they are.
        **kwargs: Arguments of `ResponseLoss`: `teacher_outputs`, `student_outputs` ("linear",
            "softmax" or "sigmoid"; None to inspect the model), `teacher_layer`, `student_layer`,
            `name`.

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

    def __init__(self, temperature: float = 3.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = positive(temperature, "temperature")

    def measure(self, teacher: Any, student: Any) -> Any:
        """Returns the divergence of each sample (and position)."""
        if self.is_bernoulli(student):
            known = self.bernoulli_logits(teacher, self.teacher_outputs) / self.temperature
            learned = self.bernoulli_logits(student, self.student_outputs) / self.temperature
            divergence = ops.sigmoid(known) * (
                ops.log_sigmoid(known) - ops.log_sigmoid(learned)
            ) + ops.sigmoid(-known) * (ops.log_sigmoid(-known) - ops.log_sigmoid(-learned))
        else:
            known = ops.log_softmax(self.logits(teacher, self.teacher_outputs) / self.temperature)
            learned = ops.log_softmax(self.logits(student, self.student_outputs) / self.temperature)
            divergence = ops.exp(known) * (known - learned)
        return ops.sum(divergence, axis=-1) * self.temperature**2

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "temperature": self.temperature}


@keras.saving.register_keras_serializable("tfcompress")
class HardTargets(ResponseLoss):
    """Cross-entropy of the student with the class that the teacher predicts.

    This is the hard-label distillation of DeiT, if `student_layer` names the head of a distillation
    token. Outputs of one unit, and of a sigmoid, are decided at probability 1/2 each.

    Args:
        **kwargs: Arguments of `ResponseLoss`.

    Example:
        >>> import numpy as np
        >>> import tfcompress as tfc
        >>> teacher, student = np.array([[5.0, 1.0]]), np.array([[0.0, 0.0]])
        >>> round(float(tfc.HardTargets()(teacher, student)), 4)  # log 2
        0.6931

    References:
        Touvron et al. 2021, arXiv:2012.12877.
    """

    def measure(self, teacher: Any, student: Any) -> Any:
        """Returns the cross-entropy of each sample (and position)."""
        if self.is_bernoulli(student):
            known = self.bernoulli_logits(teacher, self.teacher_outputs)
            learned = self.bernoulli_logits(student, self.student_outputs)
            signs = ops.where(known > 0, 1.0, -1.0)
            return -ops.sum(ops.log_sigmoid(signs * learned), axis=-1)
        learned = ops.log_softmax(self.logits(student, self.student_outputs))
        chosen = ops.one_hot(ops.argmax(teacher, axis=-1), student.shape[-1])
        return -ops.sum(chosen * learned, axis=-1)


@keras.saving.register_keras_serializable("tfcompress")
class DecoupledTargets(ResponseLoss):
    """Decoupled knowledge distillation (DKD): separate weights for the target and other classes.

    `T^2 * (target_weight * TCKD + other_weight * NCKD)`: TCKD compares the probability of the
    labelled class with that of all others together, NCKD the distributions over the others.
    `SoftTargets` is TCKD + (1 - p) * NCKD, p being the teacher's probability of the labelled class:
    the more confident the teacher, the smaller the weight of the others. Needs labels, as integers
    or one-hot.

    Args:
        temperature: T > 0.
        target_weight: Weight of TCKD, alpha in the paper.
        other_weight: Weight of NCKD, beta in the paper.
        **kwargs: Arguments of `ResponseLoss`.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> import numpy as np
        >>> import tfcompress as tfc
        >>> logits = np.array([[1.0, 2.0, 3.0]])
        >>> float(tfc.DecoupledTargets()(logits, logits, labels=np.array([2])))
        0.0

    References:
        Zhao et al. 2022, arXiv:2203.08679.
    """

    needs_labels = True

    def __init__(
        self,
        temperature: float = 4.0,
        *,
        target_weight: float = 1.0,
        other_weight: float = 8.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.temperature = positive(temperature, "temperature")
        self.target_weight = positive(target_weight, "target_weight", or_zero=True)
        self.other_weight = positive(other_weight, "other_weight", or_zero=True)

    def check_kinds(self, teacher: str, student: str) -> None:
        """Raises ValueError for sigmoids, which have no other classes."""
        if SIGMOID in (teacher, student):
            raise ValueError(
                "DecoupledTargets needs logits or a softmax over classes. Received: a "
                f"{teacher} teacher and a {student} student. Use SoftTargets."
            )

    def check(self, teacher: Any, student: Any) -> None:
        """Raises ValueError unless both have the same shape and at least three classes."""
        super().check(teacher, student)
        if student[-1] is not None and student[-1] < 3:
            raise complain(self, teacher, student, "there must be at least three classes.")

    def call(
        self, teacher: Any, student: Any, sample_weight: Any = None, labels: Any = None
    ) -> Any:
        """Returns the loss of a batch, a scalar."""
        if labels is None:
            raise ValueError("DecoupledTargets needs labels: pass y to fit().")
        known = ops.log_softmax(self.logits(teacher, self.teacher_outputs) / self.temperature)
        learned = ops.log_softmax(self.logits(student, self.student_outputs) / self.temperature)
        target = _one_hot(labels, student)
        both = [self._split(values, target) for values in (known, learned)]
        (known_target, known_others), (learned_target, learned_others) = both
        tckd = ops.sum(ops.exp(known_target) * (known_target - learned_target), axis=-1)
        nckd = ops.sum(
            (1.0 - target) * ops.exp(known_others) * (known_others - learned_others), axis=-1
        )
        values = self.target_weight * tckd + self.other_weight * nckd
        return average(values * self.temperature**2, sample_weight)

    def _split(self, log_p: Any, target: Any) -> tuple[Any, Any]:
        """Returns log of (target, all others together), and log of each other among the others."""
        own = ops.sum(target * log_p, axis=-1, keepdims=True)
        others = ops.logsumexp(ops.where(target > 0, -1e9, log_p), axis=-1, keepdims=True)
        return ops.concatenate([own, others], axis=-1), ops.where(target > 0, 0.0, log_p - others)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "temperature": self.temperature,
            "target_weight": self.target_weight,
            "other_weight": self.other_weight,
        }


def _one_hot(labels: Any, outputs: Any) -> Any:
    labels = ops.convert_to_tensor(labels)
    classes = outputs.shape[-1]
    if len(labels.shape) == len(outputs.shape) and labels.shape[-1] == classes:
        return ops.cast(labels, outputs.dtype)
    if len(labels.shape) == len(outputs.shape):
        labels = ops.squeeze(labels, axis=-1)
    return ops.one_hot(ops.cast(labels, "int32"), classes, dtype=outputs.dtype)


def output_kind(model: Any, index: int = 0) -> str | None:
    """Returns the kind of output number `index`: "softmax", "sigmoid", else "linear".

    None if the model has no graph. Quantizers, and layers that only pass values on, are skipped;
    nested models are inspected.
    """
    if not is_graph(model):
        return None
    tensor = model.outputs[index]
    while True:
        operation = producing_operation(tensor)
        if is_graph(operation):
            return output_kind(operation, output_index(tensor))
        if isinstance(operation, keras.Model) or _is_opaque(plain(operation)):
            return None
        if not _passes_values_on(plain(operation)):
            return layer_kind(operation)
        tensor = producing_inputs(tensor)[0]


def layer_kind(layer: Any) -> str:
    """Returns "softmax", "sigmoid", else "linear", for a layer."""
    layer = plain(layer)
    if isinstance(layer, keras.layers.TimeDistributed):
        layer = plain(layer.layer)
    kind = activation_name(layer) or type(layer).__name__.lower()
    return kind if kind in (SOFTMAX, SIGMOID) else LINEAR


def _is_opaque(layer: Any) -> bool:
    """Whether a custom layer has sublayers, so that its last operation is unknown."""
    return is_custom(layer) and isinstance(layer, keras.layers.Layer) and bool(sublayers(layer))


def _passes_values_on(layer: Any) -> bool:
    return (
        getattr(layer, "is_compression_helper", False)
        or type(layer).__name__ in ("Cast", "WeightedMean")  # ensemble() mixes one kind only
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
