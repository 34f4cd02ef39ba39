"""Term: one loss of a distiller, of any kind, with the features that it needs of both models."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops, tree

from tfcompress.distill.features import Feature
from tfcompress.distill.losses.base import DistillationLoss, of_rank, same_shape
from tfcompress.distill.losses.response import ResponseLoss
from tfcompress.graph.keras_internals import mask_of

OutputsAndFeatures = tuple[Any, dict[Feature, Any]]
"""Outputs and features, or the shapes of both."""


class Term:
    """Calls a loss on the outputs or features that it compares.

    Args:
        loss: A loss of this package, of Keras, or of `keras.distillation`.
        per_output: The loss for each output; empty if `loss` compares features.
        features: The features that the loss needs of the teacher and of the student.
        name: Name of its metric.
    """

    def __init__(
        self,
        loss: Any,
        per_output: list[Any],
        features: tuple[list[Feature], list[Feature]],
        name: str,
    ) -> None:
        self.loss = loss
        self.features = features
        self.name = name
        self._per_output = per_output

    @property
    def uses_outputs(self) -> bool:
        """Whether the teacher's outputs are compared."""
        return not self.features[0]

    def __call__(
        self,
        teacher: OutputsAndFeatures,
        student: OutputsAndFeatures,
        labels: Any,
        sample_weight: Any,
        replicas: int = 1,
    ) -> Any:
        """Returns the loss of a batch, a scalar; with several replicas, the share of this one."""
        if not self._per_output:
            target, prediction = self._compared(teacher, student)
            if isinstance(sample_weight, (list, tuple, dict)):
                # There is one weight for each output. Features get the average.
                weights = [of_rank(w, 1) for w in tree.flatten(sample_weight)]
                sample_weight = sum(weights) / len(weights)
            return _call(self.loss, target, prediction, labels, sample_weight) / replicas
        loss_sum = ops.zeros(())
        count = len(self._per_output)
        if not len(teacher[0]) == len(student[0]) == count:
            raise ValueError(
                f"{self.name} compares the outputs: teacher and student must have as many. "
                f"Received: {len(teacher[0])} of the teacher, {len(student[0])} of the student. "
                "To compare layers instead, name teacher_layer and student_layer."
            )
        for loss, target, prediction, y, weight in zip(
            self._per_output,
            teacher[0],
            student[0],
            _spread(labels, count),
            _spread(sample_weight, count),
            strict=True,
        ):
            if isinstance(loss, DistillationLoss):
                weight = _masked(weight, prediction)
            value = _call(loss, target, prediction, y, weight)
            # Only keras.losses.Loss divides by the number of replicas itself.
            loss_sum = loss_sum + (
                value if isinstance(loss, keras.losses.Loss) else value / replicas
            )
        return loss_sum

    def prepare(self, teacher: OutputsAndFeatures, student: OutputsAndFeatures) -> None:
        """Checks the shapes and creates the variables, before any training.

        Raises:
            ValueError: If the shapes do not match.
        """
        if self._per_output:
            if teacher[0] is None or student[0] is None:
                return  # the shapes of a subclassed model are known only when it runs
            matches = len(teacher[0]) == len(student[0]) and all(
                same_shape(a, b) for a, b in zip(teacher[0], student[0], strict=True)
            )
            if not matches:
                raise ValueError(
                    f"{self.name} compares the outputs: teacher and student must have outputs of "
                    f"the same shapes. Received: teacher {teacher[0]}, student {student[0]}. To "
                    "compare layers instead, name teacher_layer and student_layer."
                )
            for loss, target, prediction in zip(
                self._per_output, teacher[0], student[0], strict=True
            ):
                if isinstance(loss, DistillationLoss):
                    loss.prepare(target, prediction)
        elif isinstance(self.loss, DistillationLoss):
            for (outputs, _), features, role in zip(
                (teacher, student), self.features, ("teacher", "student"), strict=True
            ):
                if not features and (outputs is None or len(outputs) != 1):
                    raise ValueError(
                        f"{type(self.loss).__name__} compares one output: name {role}_layer, "
                        f"because the {role} has "
                        + ("outputs of unknown shape." if outputs is None else f"{len(outputs)}.")
                    )
            self.loss.prepare(*self._compared(teacher, student))

    def _compared(
        self, teacher: OutputsAndFeatures, student: OutputsAndFeatures
    ) -> tuple[Any, Any]:
        return _pick(teacher, self.features[0]), _pick(student, self.features[1])


def make_terms(
    losses: list[Any], teacher: Any, student: keras.Model, *, resolve: bool = True
) -> list[Term]:
    """Returns a term for each loss.

    Args:
        losses: The losses.
        teacher: The teacher.
        student: The student.
        resolve: Whether to determine which outputs are logits.

    Raises:
        TypeError: If an entry is not a loss.
        ValueError: If the kind of an output cannot be determined.
    """
    outputs = max(1, len(getattr(student, "outputs", None) or []))
    terms: list[Term] = []
    for loss in losses:
        per_output: list[Any] = []
        features: tuple[list[Feature], list[Feature]] = ([], [])
        if isinstance(loss, DistillationLoss):
            features = loss.features()
            if isinstance(loss, ResponseLoss) and resolve:
                if not any(features):
                    per_output = [loss.for_output(teacher, student, i) for i in range(outputs)]
                else:
                    loss = loss.for_output(teacher, student)
        elif isinstance(loss, keras.distillation.DistillationLoss):
            names = [getattr(loss, f"{r}_layer_name", None) for r in ("teacher", "student")]
            features = tuple([Feature(name)] if name else [] for name in names)  # type: ignore[assignment]
            per_output = [] if any(names) else [loss] * outputs
        elif isinstance(loss, keras.losses.Loss):
            per_output = [loss] * outputs
        else:
            raise TypeError(
                "distillation_losses must be losses of tfcompress, such as SoftTargets, "
                "keras.losses.Loss or keras.distillation.DistillationLoss objects. "
                f"Received: {loss!r}"
            )
        base = getattr(loss, "name", None) or type(loss).__name__
        same = sum(t.name == base or t.name.rpartition("_")[0] == base for t in terms)
        terms.append(Term(loss, per_output, features, f"{base}_{same}" if same else base))
    return terms


def weight_now(weight: Any, step: Any) -> Any:
    """Returns the weight of a loss in a training step."""
    if not callable(weight):
        return weight
    return ops.cast(weight(ops.convert_to_tensor(step)), "float32")


def serialize_weight(weight: Any) -> Any:
    """Returns a weight in a form that can be saved.

    Raises:
        ValueError: If it is a function that is not registered in Keras.
    """
    if not callable(weight):
        return weight
    if isinstance(weight, keras.optimizers.schedules.LearningRateSchedule):
        return keras.saving.serialize_keras_object(weight)
    if keras.saving.get_registered_name(weight) == getattr(weight, "__name__", None):
        raise ValueError(
            f"The function {weight!r} in distillation_loss_weights cannot be saved. Decorate it "
            "with keras.saving.register_keras_serializable, or use a schedule of "
            "keras.optimizers.schedules."
        )
    return keras.saving.serialize_keras_object(weight)


def _pick(values: OutputsAndFeatures, features: list[Feature]) -> Any:
    outputs, features_of = values
    if not features:
        return outputs[0]
    selected = [features_of[feature] for feature in features]
    return selected[0] if len(selected) == 1 else selected


def _masked(weight: Any, outputs: Any) -> Any:
    """Returns sample weights without the positions that Keras masks, as its own losses do."""
    mask = mask_of(outputs)
    if mask is None:
        return weight
    mask = ops.cast(mask, "float32")
    mask = mask * ops.cast(ops.size(mask), "float32") / ops.maximum(ops.sum(mask), 1.0)
    return mask if weight is None else mask * of_rank(weight, len(mask.shape))


def _spread(value: Any, count: int) -> list[Any]:
    flat = tree.flatten(value) if value is not None else [None]
    return flat * count if len(flat) == 1 else flat


def _call(loss: Any, teacher: Any, student: Any, labels: Any, sample_weight: Any) -> Any:
    if isinstance(loss, DistillationLoss):
        if loss.needs_labels:
            return loss(teacher, student, sample_weight=sample_weight, labels=labels)
        return loss(teacher, student, sample_weight=sample_weight)
    if isinstance(loss, keras.losses.Loss):
        return loss(teacher, student, sample_weight=sample_weight)
    if sample_weight is not None:
        raise ValueError(
            f"keras.distillation.{type(loss).__name__} ignores sample_weight; use a loss of "
            "tfcompress, which does not, or fit without sample_weight and class_weight."
        )
    return loss.compute_loss(teacher, student)
