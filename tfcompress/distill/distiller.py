"""Distiller: a model that trains a student on labels and on what a teacher knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops, tree

from tfcompress.distill.losses.response import SoftTargets


@keras.saving.register_keras_serializable("tfcompress")
class Distiller(keras.Model):
    """Trains a student with `(1 - alpha) * compiled loss + alpha * sum(w_i * L_i)`.

    Compile, fit, save and load it like any Keras model. The teacher runs once a step in inference
    mode; neither its weights nor its `trainable` flags change. `evaluate` and `predict` use the
    student alone, and so cost what the student costs. The student may be wrapped by `prune` and
    `quantize`; when training is done, `distiller.student` is the result.

    Losses that the student's layers add (regularizers, `add_loss`) count in full, whatever alpha.
    With alpha=1 neither labels nor a compiled loss are needed: `fit(x)` does.

    Args:
        teacher: A built Keras model, trained for the task.
        student: A built Keras model whose outputs have the teacher's shapes.
        distillation_losses: One loss, or a list, called with the teacher's and the student's
            outputs (and the sample weights); any `keras.losses.Loss`. None is `SoftTargets`, Hinton
            et al. 2015.
        distillation_loss_weights: A weight for each loss; None is 1 each.
        alpha: Share of the distillation losses in [0, 1]. 0 is plain training.
        temperature: Softness of the default loss; None is 3.0. With losses of your own, each
            carries its own temperature.
        name: Name of the model.
        **kwargs: Arguments of `keras.Model`.

    Raises:
        TypeError: If teacher or student is no Keras model.
        ValueError: If one is unbuilt, their outputs differ in shape, an argument is out of range,
            or logits cannot be told from probabilities (see `SoftTargets`).

    Example:
        >>> import keras, numpy as np
        >>> import tfcompress as tfc
        >>> def net(units):
        ...     return keras.Sequential(
        ...         [keras.Input((4,)), keras.layers.Dense(units), keras.layers.Dense(3)]
        ...     )
        >>> distiller = tfc.Distiller(net(16), net(2), alpha=1.0, temperature=2.0)
        >>> distiller.compile("adam")
        >>> history = distiller.fit(np.ones((8, 4)), verbose=0)  # no labels
        >>> distiller.student.count_params()
        19

    References:
        Hinton, Vinyals & Dean 2015, arXiv:1503.02531.
    """

    def __init__(
        self,
        teacher: keras.Model,
        student: keras.Model,
        distillation_losses: Any = None,
        distillation_loss_weights: Sequence[float] | float | None = None,
        *,
        alpha: float = 0.5,
        temperature: float | None = None,
        name: str = "distiller",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        for argument, model in (("teacher", teacher), ("student", student)):
            if not isinstance(model, keras.Model):
                raise TypeError(
                    f"{argument} must be a Keras 3 model. Received: {argument}={model!r} of type "
                    f"{type(model).__module__}.{type(model).__name__}"
                )
            if not model.built:
                raise ValueError(
                    f"{argument} must be built. Received: the unbuilt model {model.name!r}. Call "
                    "it once on a batch, or give it a keras.Input, first."
                )
        if teacher is student:
            raise ValueError("teacher and student are the same model object.")
        if isinstance(alpha, bool) or not 0.0 <= alpha <= 1.0:
            raise ValueError(
                "alpha must be in [0, 1]: the share of the distillation losses. "
                f"Received: alpha={alpha!r}"
            )
        if temperature is not None and distillation_losses is not None:
            raise ValueError(
                "temperature is for the default loss only; losses of your own carry theirs. "
                f"Received: temperature={temperature!r} and distillation_losses."
            )
        _check_outputs(teacher, student)
        self.teacher = teacher
        self.student = student
        self.alpha = float(alpha)
        self.temperature = temperature
        if distillation_losses is None:
            self.distillation_losses: list[Any] = [
                SoftTargets(3.0 if temperature is None else temperature)
            ]
        else:
            self.distillation_losses = (
                list(distillation_losses)
                if isinstance(distillation_losses, (list, tuple))
                else [distillation_losses]
            )
        self._default_loss = distillation_losses is None
        self.distillation_loss_weights = _check_weights(
            distillation_loss_weights, len(self.distillation_losses)
        )
        self._terms = self._per_output(teacher, student)
        self._training_now = True
        self.student_loss_tracker = keras.metrics.Mean(name="student_loss")
        self.distillation_loss_tracker = keras.metrics.Mean(name="distillation_loss")
        self.term_trackers = (
            [keras.metrics.Mean(name=loss_name) for loss_name in self._loss_names()]
            if len(self.distillation_losses) > 1
            else []
        )
        self.built = True

    def _per_output(self, teacher: keras.Model, student: keras.Model) -> list[list[Any]]:
        """Returns for each loss the callables of each output."""
        count = max(1, len(student.outputs or [])) if hasattr(student, "outputs") else 1
        terms = []
        for loss in self.distillation_losses:
            if isinstance(loss, SoftTargets):
                terms.append([loss.for_output(teacher, student, i) for i in range(count)])
            elif isinstance(loss, keras.losses.Loss):
                terms.append([loss] * count)
            else:
                raise TypeError(
                    "distillation_losses must be keras.losses.Loss objects, such as "
                    f"tfcompress.SoftTargets. Received: {loss!r}"
                )
        return terms

    def _loss_names(self) -> list[str]:
        names: list[str] = []
        for loss in self.distillation_losses:
            same = sum(n.startswith(loss.name) for n in names)
            names.append(f"{loss.name}_{same}" if same else loss.name)
        return names

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Returns the outputs of the student."""
        return self.student(inputs, training=training)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Returns the loss of a batch: the student's alone unless training."""
        self._training_now = training
        compiled = None
        if self._compile_loss is not None and y is not None:
            compiled = self._compile_loss(y, y_pred, sample_weight)
        if compiled is None and training and self.alpha < 1.0:
            raise ValueError(
                f"alpha={self.alpha} mixes in the student's own loss, but there is none: pass "
                "loss= to compile() and labels to fit(), or train with alpha=1."
            )
        parts = []
        if training and self.alpha > 0.0:
            parts.append(self.alpha * self._distillation_loss(x, y_pred, sample_weight))
        if compiled is not None:
            if training:
                self.student_loss_tracker.update_state(compiled)
            if not training or self.alpha == 0.0:
                parts.append(compiled)
            elif self.alpha < 1.0:
                parts.append((1.0 - self.alpha) * compiled)
        # As keras.Model does it, so that alpha=0 is plain training to the bit.
        parts += [self._aggregate_additional_loss(loss) for loss in self.losses]
        if len(parts) == 1:
            return parts[0]
        return ops.sum(parts) if parts else ops.zeros(())

    def _distillation_loss(self, x: Any, y_pred: Any, sample_weight: Any) -> Any:
        known = self.teacher(x, training=False)
        known = tree.flatten(tree.map_structure(ops.stop_gradient, known))
        learned = tree.flatten(y_pred)
        weights = _weights_per_output(sample_weight, len(learned))
        total = ops.zeros(())
        for index, (factor, losses) in enumerate(
            zip(self.distillation_loss_weights, self._terms, strict=True)
        ):
            term = ops.zeros(())
            for loss, teacher, student, weight in zip(losses, known, learned, weights, strict=True):
                term = term + loss(teacher, student, sample_weight=weight)
            if self.term_trackers:
                self.term_trackers[index].update_state(term)
            total = total + factor * term
        self.distillation_loss_tracker.update_state(total)
        return total

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Updates the compiled metrics where there are labels for them."""
        if y is None:
            return self.get_metrics_result()
        return super().compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def get_metrics_result(self) -> dict[str, Any]:
        """Returns the metrics; what only training measures is left out of an evaluation."""
        results = super().get_metrics_result()
        if not self._training_now:
            trackers = (
                self.student_loss_tracker,
                self.distillation_loss_tracker,
                *self.term_trackers,
            )
            for tracker in trackers:
                results.pop(tracker.name, None)
        return results

    # The teacher is saved with the distiller but takes no part in its training.

    @property
    def losses(self) -> list[Any]:
        """Losses that the student's layers added."""
        return self.student.losses

    @property
    def trainable_variables(self) -> list[Any]:
        """The student's trainable variables."""
        return self.student.trainable_variables if self.trainable else []

    @property
    def trainable_weights(self) -> list[Any]:
        """The student's trainable weights."""
        return self.student.trainable_weights if self.trainable else []

    @property
    def non_trainable_variables(self) -> list[Any]:
        """All other variables, the teacher's among them."""
        trained = {id(v) for v in self.trainable_variables}
        return [v for v in self.variables if id(v) not in trained]

    @property
    def non_trainable_weights(self) -> list[Any]:
        """All other weights, the teacher's among them."""
        trained = {id(v) for v in self.trainable_weights}
        return [v for v in self.weights if id(v) not in trained]

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        serialize = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "teacher": serialize(self.teacher),
            "student": serialize(self.student),
            "distillation_losses": None
            if self._default_loss
            else [serialize(loss) for loss in self.distillation_losses],
            "distillation_loss_weights": self.distillation_loss_weights,
            "alpha": self.alpha,
            "temperature": self.temperature,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Distiller:
        """Makes a distiller from the result of `get_config`."""
        config = dict(config)
        for key in ("teacher", "student"):
            config[key] = keras.saving.deserialize_keras_object(config[key], custom_objects)
        if config["distillation_losses"] is not None:
            config["distillation_losses"] = [
                keras.saving.deserialize_keras_object(loss, custom_objects)
                for loss in config["distillation_losses"]
            ]
        return cls(**config)


def _check_outputs(teacher: keras.Model, student: keras.Model) -> None:
    shapes = []
    for model in (teacher, student):
        if not getattr(model, "outputs", None):
            return  # a subclassed model tells its shapes only when it runs
        shapes.append([tuple(t.shape) for t in model.outputs])
    if shapes[0] != shapes[1]:
        raise ValueError(
            "teacher and student must have outputs of the same shapes. Received: teacher "
            f"{teacher.name!r} {shapes[0]}, student {student.name!r} {shapes[1]}"
        )


def _check_weights(weights: Any, count: int) -> list[float]:
    if weights is None:
        return [1.0] * count
    weights = list(weights) if isinstance(weights, (list, tuple)) else [weights]
    numbers = all(isinstance(w, (int, float)) and w >= 0 for w in weights)
    if len(weights) != count or not numbers:
        raise ValueError(
            f"distillation_loss_weights must be {count} numbers >= 0, one for each of "
            f"distillation_losses. Received: {weights!r}"
        )
    return [float(w) for w in weights]


def _weights_per_output(sample_weight: Any, count: int) -> list[Any]:
    weights = tree.flatten(sample_weight) if sample_weight is not None else [None]
    return weights * count if len(weights) == 1 else weights
