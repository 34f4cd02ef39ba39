"""DistillationLoss: base class of the distillation losses.

Subclass `DistillationLoss` and implement `measure(teacher, student)`: both are tensors with the
batch first, the result is one value for each sample. The base class handles sample weights,
averaging and layers. A loss that compares samples with each other overrides `call` instead, and
must ignore samples of weight zero. `check` raises an error before training for shapes that do not
match. Variables are created in `build` and trained with the student. A loss with layer names gets
the outputs of these layers, others get the models' outputs.

Each loss also implements the interface of `keras.distillation.Distiller`.
"""

from __future__ import annotations

import re
from typing import Any

import keras
from keras import ops

from tfcompress.distill.features import OUTPUT, Feature

Shape = tuple[int | None, ...]


class DistillationLoss(keras.layers.Layer, keras.distillation.DistillationLoss):
    """Base class of the losses between a teacher and a student.

    Args:
        teacher_layer: Path of the teacher's layer to learn from; None for the teacher's output.
        student_layer: Path of the student's layer that learns; None for the student's output.
        name: Name of the metric; None for the class's name.
        **kwargs: Arguments of `keras.layers.Layer`.

    Example:
        >>> import keras
        >>> import tfcompress as tfc
        >>> @keras.saving.register_keras_serializable("my_package")
        ... class MeanSquares(tfc.DistillationLoss):
        ...     needs_layers = False  # compares the outputs of the models
        ...
        ...     def measure(self, teacher, student):
        ...         return keras.ops.mean(keras.ops.square(teacher - student), axis=-1)
        >>> float(MeanSquares()(keras.ops.ones((2, 3)), keras.ops.zeros((2, 3))))
        1.0
    """

    quantity = OUTPUT
    """The compared quantity of the layers: "output" or "attention"."""

    needs_layers = True
    """Whether layers must be named."""

    needs_labels = False
    """Whether `call` takes the labels, as `labels=`."""

    def __init__(
        self,
        teacher_layer: str | None = None,
        student_layer: str | None = None,
        *,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs["dtype"] = "float32"  # float16 is too coarse for differences and logarithms
        # Keras would number default names, and with them the metrics.
        super().__init__(name=name or to_snake_case(type(self).__name__), **kwargs)
        for argument, value in (("teacher_layer", teacher_layer), ("student_layer", student_layer)):
            if not (isinstance(value, str) or (value is None and not self.needs_layers)):
                raise ValueError(
                    f"{argument} must be the path of a layer, such as 'conv2d' or 'backbone/conv'. "
                    f"Received: {argument}={value!r}"
                )
        self.teacher_layer = teacher_layer
        self.student_layer = student_layer

    def features(self) -> tuple[list[Feature], list[Feature]]:
        """Returns the features of teacher and student to record; empty for their outputs."""
        return tuple(  # type: ignore[return-value]
            [Feature(path, self.quantity)] if path else []
            for path in (self.teacher_layer, self.student_layer)
        )

    def measure(self, teacher: Any, student: Any) -> Any:
        """Returns one value for each sample."""
        raise NotImplementedError

    def check(self, teacher: Any, student: Any) -> None:
        """Raises ValueError for shapes that cannot be compared."""

    def build(self, teacher_shape: Any, student_shape: Any) -> None:
        """Creates the variables, if there are any."""

    def call(self, teacher: Any, student: Any, sample_weight: Any = None) -> Any:
        """Returns the loss of a batch, a scalar."""
        return average(self.measure(teacher, student), sample_weight)

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        """Returns a scalar."""
        return keras.KerasTensor((), dtype="float32")

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        config = super().get_config()
        config.pop("dtype", None)
        return {
            **config,
            "teacher_layer": self.teacher_layer,
            "student_layer": self.student_layer,
        }

    # The interface of keras.distillation.Distiller.

    @property
    def teacher_layer_name(self) -> str | None:
        """The teacher's layer, as Keras calls it."""
        return self.teacher_layer

    @property
    def student_layer_name(self) -> str | None:
        """The student's layer, as Keras calls it."""
        return self.student_layer

    def validate_model_compatibility(self, teacher: Any, student: Any) -> None:
        """Checks the shapes and creates the variables.

        Raises:
            ValueError: If the shapes do not match, or the loss needs what Keras' Distiller lacks.
        """
        if self.needs_labels or self.quantity != OUTPUT or len(self.features()[0]) > 1:
            raise ValueError(
                f"{type(self).__name__} needs labels, attention maps or several layers, which "
                "keras.distillation.Distiller does not hand to its losses. Use "
                "tfcompress.Distiller."
            )
        shapes = [
            tuple((model.get_layer(name).output if name else model.outputs[0]).shape)
            for model, name in ((teacher, self.teacher_layer), (student, self.student_layer))
        ]
        self.prepare(*shapes)

    def validate_outputs(self, teacher_outputs: Any, student_outputs: Any) -> None:
        """Does nothing: the shapes were checked with the models."""

    def compute_loss(self, teacher_outputs: Any, student_outputs: Any, **kwargs: Any) -> Any:
        """Returns the loss of a batch."""
        return self(teacher_outputs, student_outputs)

    def prepare(self, teacher: Any, student: Any) -> None:
        """Checks the shapes of the compared tensors, and creates the variables.

        Raises:
            ValueError: If the shapes do not match.
        """
        self.check(teacher, student)
        if not self.built:  # type: ignore[has-type]
            self.build(teacher, student)
            self.built = True


def to_snake_case(name: str) -> str:
    """Returns "rkd_distance" for "RKDDistance"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def average(values: Any, sample_weight: Any = None) -> Any:
    """Averages values over the batch as Keras does: weighted sum over the number of values.

    Args:
        values: One value for each sample, or for each position of each sample.
        sample_weight: One weight for each sample, or None.
    """
    if sample_weight is not None:
        weight = of_rank(sample_weight, len(values.shape))
        # Not a plain product: infinity times a zero weight would be NaN.
        values = ops.where(weight == 0, 0.0, values * weight)
    return ops.mean(values)


def of_rank(sample_weight: Any, rank: int) -> Any:
    """Returns weights with `rank` axes: averages extra axes, adds missing ones of size 1."""
    weight = ops.cast(sample_weight, "float32")
    while len(weight.shape) > rank:
        weight = ops.mean(weight, axis=-1)
    return ops.reshape(weight, (*ops.shape(weight), *[1] * (rank - len(weight.shape))))


def complain(loss: Any, teacher: Any, student: Any, rule: str) -> ValueError:
    """Returns an error that shows both shapes."""
    return ValueError(
        f"{type(loss).__name__} cannot compare teacher_layer={loss.teacher_layer!r}, shaped "
        f"{teacher}, with student_layer={loss.student_layer!r}, shaped {student}: {rule}"
    )


def same_shape(first: Any, second: Any) -> bool:
    """Returns whether two shapes are equal where both are known, without the batch."""
    return len(first) == len(second) and all(
        a is None or b is None or a == b for a, b in zip(first[1:], second[1:], strict=True)
    )


def positive(value: Any, argument: str, or_zero: bool = False) -> float:
    """Returns a number that must be > 0 (or >= 0).

    Raises:
        ValueError: If it is not.
    """
    if isinstance(value, bool) or not (value > 0 or (or_zero and value == 0)):
        rule = ">= 0" if or_zero else "> 0"
        raise ValueError(f"{argument} must be {rule}. Received: {argument}={value!r}")
    return float(value)
