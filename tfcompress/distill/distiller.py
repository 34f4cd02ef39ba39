"""Distiller: a model that trains a student on labels and on the outputs of a teacher."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops, tree

from tfcompress.distill.cached import CachedTeacher, split_batch
from tfcompress.distill.features import Feature, Recorder
from tfcompress.distill.losses.base import DistillationLoss
from tfcompress.distill.losses.response import SoftTargets
from tfcompress.distill.teachers import LiveTeacher, ensemble, output_shapes
from tfcompress.distill.terms import Term, make_terms, serialize_weight, weight_now
from tfcompress.graph.keras_internals import allow_non_tensor_arguments, compiled_loss


@keras.saving.register_keras_serializable("tfcompress")
class Distiller(keras.Model):
    """Trains a student with `(1 - alpha) * compiled loss + alpha * sum(w_i * L_i)`.

    Compile, fit, save and load it like any Keras model. Teacher and student each run once per step,
    for any number of losses. The teacher runs in inference mode; neither its weights nor its
    `trainable` flags change. `evaluate` and `predict` run the student only. The student may be
    wrapped by `prune` and `quantize`; when training is done, `distiller.student` is the result.
    Every loss is also a metric, and so are `student_loss` and `distillation_loss`.

    Losses that the student's layers add (regularizers, `add_loss`) count in full, whatever alpha.
    With alpha=1, neither labels nor a compiled loss are needed: `fit(x)` is enough.

    Args:
        teacher: A built Keras model, trained for the task; a list of them, whose outputs are
            averaged (see `ensemble`); or the `CachedTeacher` that `cache_teacher` returns.
        student: A built Keras model.
        distillation_losses: One loss or a list: the losses of this package, any `keras.losses.Loss`
            on the outputs, and those of `keras.distillation`. None is `SoftTargets`, Hinton et al.
            2015.
        distillation_loss_weights: A weight for each loss: a number, a
            `keras.optimizers.schedules.LearningRateSchedule`, or a function of the training step,
            a tensor (compare it with `keras.ops.where`, not `if`). None is 1 each.
        alpha: Share of the distillation losses in [0, 1]. 0 is plain training.
        temperature: Softness of the default loss; None is 3.0. With losses of your own, each
            carries its own temperature.
        name: Name of the model.
        **kwargs: Arguments of `keras.Model`.

    Raises:
        TypeError: If teacher or student is not a Keras model.
        ValueError: If one is not built, their outputs differ in shape, an argument is out of range,
            or logits cannot be distinguished from probabilities (see `SoftTargets`).

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
        teacher: Any,
        student: keras.Model,
        distillation_losses: Any = None,
        distillation_loss_weights: Sequence[float | Callable[[Any], Any]] | float | None = None,
        *,
        alpha: float = 0.5,
        temperature: float | None = None,
        name: str = "distiller",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        # Teacher and student convert the dtype of their inputs themselves.
        self._convert_input_args = False
        allow_non_tensor_arguments(self)
        if isinstance(teacher, (list, tuple)):
            teacher = teacher[0] if len(teacher) == 1 else ensemble(teacher)
        cached = isinstance(teacher, CachedTeacher)
        models = [("student", student)] if cached else [("teacher", teacher), ("student", student)]
        for argument, model in models:
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
            raise ValueError(
                "teacher and student are the same model object. For self-distillation, teach a "
                "copy: keras.models.clone_model(teacher)."
            )
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
        self.teacher = teacher
        self.student = student
        self.alpha = float(alpha)
        self.temperature = temperature
        self._default_loss = distillation_losses is None
        if distillation_losses is None:
            distillation_losses = SoftTargets(3.0 if temperature is None else temperature)
        if not isinstance(distillation_losses, (list, tuple)):
            distillation_losses = [distillation_losses]
        self.distillation_losses = list(distillation_losses)
        self.distillation_loss_weights = _check_weights(
            distillation_loss_weights, len(self.distillation_losses)
        )
        self._plan = _Plan(teacher, student, self.distillation_losses)
        self._training_now = True
        self.student_loss_tracker = keras.metrics.Mean(name="student_loss")
        self.distillation_loss_tracker = keras.metrics.Mean(name="distillation_loss")
        self.term_trackers = (
            [keras.metrics.Mean(name=term.name) for term in self._plan.terms]
            if len(self.distillation_losses) > 1
            else []
        )
        self.built = True

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Returns the outputs of the student."""
        inputs, _ = split_batch(inputs)
        if not training or self.alpha == 0.0:
            return self.student(inputs, training=training)
        # Keras calls `call` before `compute_loss`, on the same thread.
        outputs, _pass.features = self._plan.record(inputs, training=True)
        return outputs

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Returns the loss of a batch: that of the student only, unless training."""
        self._training_now = training
        compiled = None
        loss = compiled_loss(self)
        if loss is not None and y is not None:
            compiled = loss(y, y_pred, sample_weight)
        if compiled is None and training and self.alpha < 1.0:
            raise ValueError(
                f"alpha={self.alpha} mixes in the student's own loss, but there is none: pass "
                "loss= to compile() and labels to fit(), or train with alpha=1."
            )
        parts = []
        if training and self.alpha > 0.0:
            parts.append(self.alpha * self._distillation_loss(x, y, y_pred, sample_weight))
        if compiled is not None:
            if training:
                self.student_loss_tracker.update_state(compiled * self._replicas())
            if not training or self.alpha == 0.0:
                parts.append(compiled)
            elif self.alpha < 1.0:
                parts.append((1.0 - self.alpha) * compiled)
        # As in keras.Model, so that alpha=0 is bit-exact plain training.
        added = self.losses if training else self.student.losses
        parts += [self._aggregate_additional_loss(loss) for loss in added]
        if len(parts) == 1:
            return parts[0]
        return ops.sum(parts) if parts else ops.zeros(())

    def _distillation_loss(self, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> Any:
        outputs, features = self._plan.teacher(*split_batch(x))
        if not isinstance(y_pred, dict):
            names = getattr(self.student, "output_names", [])
            y, sample_weight = (
                [v[n] for n in names] if isinstance(v, dict) and set(v) == set(names) else v
                for v in (y, sample_weight)
            )
        student_values = (tree.flatten(y_pred), vars(_pass).pop("features", {}))
        loss = ops.zeros(())
        step = self.optimizer.iterations
        replicas = self._replicas()
        for index, (weight, term) in enumerate(
            zip(self.distillation_loss_weights, self._plan.terms, strict=True)
        ):
            value = term((outputs, features), student_values, y, sample_weight, replicas)
            if self.term_trackers:
                self.term_trackers[index].update_state(value * replicas)
            loss = loss + weight_now(weight, step) * value
        self.distillation_loss_tracker.update_state(loss * replicas)
        return loss

    def _replicas(self) -> int:
        """Returns the number of replicas of a training step; Keras adds their losses."""
        return getattr(getattr(self, "distribute_strategy", None), "num_replicas_in_sync", 1)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Updates the compiled metrics where there are labels for them."""
        if y is None:
            return self.get_metrics_result()
        return super().compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def get_metrics_result(self) -> dict[str, Any]:
        """Returns the metrics; an evaluation omits those that only training updates."""
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

    # The teacher is saved with the distiller but not trained; projectors are trained.

    def _trained(self) -> list[Any]:
        losses = self.distillation_losses if self.alpha > 0.0 else []
        return [self.student, *(loss for loss in losses if isinstance(loss, DistillationLoss))]

    @property
    def losses(self) -> list[Any]:
        """Losses that the layers of the student and of projectors added."""
        return [loss for part in self._trained() for loss in part.losses]

    @property
    def output_names(self) -> Any:
        """Names of the student's outputs, for losses and labels by name."""
        return self.student.output_names

    @property
    def trainable_variables(self) -> list[Any]:
        """The trainable variables of the student and of projectors."""
        if not self.trainable:
            return []
        return [v for part in self._trained() for v in part.trainable_variables]

    @property
    def trainable_weights(self) -> list[Any]:
        """The trainable weights of the student and of projectors."""
        if not self.trainable:
            return []
        return [v for part in self._trained() for v in part.trainable_weights]

    @property
    def non_trainable_variables(self) -> list[Any]:
        """All other variables, including the teacher's."""
        trained = {id(v) for v in self.trainable_variables}
        return [v for v in self.variables if id(v) not in trained]

    @property
    def non_trainable_weights(self) -> list[Any]:
        """All other weights, including the teacher's."""
        trained = {id(v) for v in self.trainable_weights}
        return [v for v in self.weights if id(v) not in trained]

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        serialize = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "teacher": self.teacher.path
            if isinstance(self.teacher, CachedTeacher)
            else serialize(self.teacher),
            "student": serialize(self.student),
            "distillation_losses": None
            if self._default_loss
            else [serialize(loss) for loss in self.distillation_losses],
            "distillation_loss_weights": [
                serialize_weight(w) for w in self.distillation_loss_weights
            ],
            "alpha": self.alpha,
            "temperature": self.temperature,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Distiller:
        """Makes a distiller from the result of `get_config`."""
        config = dict(config)
        if isinstance(config["teacher"], str):
            config["teacher"] = CachedTeacher(config["teacher"])
        for key in ("teacher", "student"):
            if isinstance(config[key], dict):
                config[key] = keras.saving.deserialize_keras_object(config[key], custom_objects)
        config["distillation_loss_weights"] = [
            keras.saving.deserialize_keras_object(w, custom_objects) if isinstance(w, dict) else w
            for w in config["distillation_loss_weights"]
        ]
        if config["distillation_losses"] is not None:
            config["distillation_losses"] = [
                keras.saving.deserialize_keras_object(loss, custom_objects)
                for loss in config["distillation_losses"]
            ]
        return cls(**config)


_pass = threading.local()  # features of the student's current pass on this thread


class _Plan:
    """The losses of a distiller, resolved for its models; Keras must not track it.

    Raises:
        TypeError: If an entry is not a loss.
        ValueError: If a layer does not exist, or shapes do not match.
    """

    def __init__(self, teacher: Any, student: keras.Model, losses: list[Any]) -> None:
        self.terms: list[Term] = make_terms(losses, teacher, student)
        required: tuple[list[Feature], list[Feature]] = ([], [])
        for term in self.terms:
            for collected, new in zip(required, term.features, strict=True):
                collected += new
        self.record = Recorder(student, required[1], "student_layer")
        if isinstance(teacher, CachedTeacher):
            self.teacher: Any = teacher
            teacher.check_features(required[0], any(t.uses_outputs for t in self.terms))
        else:
            self.teacher = LiveTeacher(teacher, required[0])
        teacher_outputs, teacher_features = self.teacher.shapes()
        student_outputs, student_features = output_shapes(student), self.record.shapes()
        for term in self.terms:
            term.prepare((teacher_outputs, teacher_features), (student_outputs, student_features))


def _check_weights(weights: Any, count: int) -> list[Any]:
    if weights is None:
        return [1.0] * count
    weights = list(weights) if isinstance(weights, (list, tuple)) else [weights]
    usable = all(callable(w) or (isinstance(w, (int, float)) and w >= 0) for w in weights)
    if len(weights) != count or not usable:
        raise ValueError(
            f"distillation_loss_weights must be {count} numbers >= 0, schedules or functions of "
            f"the step, one for each of distillation_losses. Received: {weights!r}"
        )
    return [w if callable(w) else float(w) for w in weights]
