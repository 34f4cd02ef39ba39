"""Feature-based losses: inner layers of the teacher are the target. Channels last."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tfcompress.distill.features import ATTENTION, Feature
from tfcompress.distill.losses.base import DistillationLoss, complain, positive, same_shape
from tfcompress.graph.keras_internals import takes_training


@keras.saving.register_keras_serializable("tfcompress")
class FeatureMatching(DistillationLoss):
    """Distance of the student's features from the teacher's (FitNets, Romero et al. 2015).

    If the student's features have another width, a projector maps them to the teacher's width. It
    is trained with the student, but is not part of it.

    Args:
        teacher_layer: Path of the teacher's layer.
        student_layer: Path of the student's layer, of the same height and width.
        distance: "mse", or "cosine": 1 - cos of the feature vectors, which ignores their length.
        projector: "auto" learns a linear map of the channels where widths differ; None never; a
            layer of your own maps the student's features to the teacher's shape.
        name: Name of the loss term among the metrics.
        **kwargs: Arguments of `keras.layers.Layer`.

    Raises:
        ValueError: If an argument is unknown.

    Example:
        >>> import numpy as np
        >>> import tfcompress as tfc
        >>> loss = tfc.FeatureMatching("encoder", "encoder")
        >>> float(loss(np.ones((2, 4)), np.zeros((2, 4))))
        1.0

    References:
        Romero et al. 2015, arXiv:1412.6550; Sun et al. 2019, arXiv:1908.09355 (hidden states).
    """

    def __init__(
        self,
        teacher_layer: str,
        student_layer: str,
        *,
        distance: str = "mse",
        projector: Any = "auto",
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher_layer, student_layer, name=name, **kwargs)
        if distance not in ("mse", "cosine"):
            raise ValueError(f"distance must be 'mse' or 'cosine'. Received: distance={distance!r}")
        if projector not in (None, "auto") and not isinstance(projector, keras.layers.Layer):
            raise ValueError(
                f"projector must be 'auto', None or a layer. Received: projector={projector!r}"
            )
        self.distance = distance
        self.projector = None if isinstance(projector, str) else projector
        self._learn_width = projector == "auto"
        self._shapes: list[list[Any]] = []

    def check(self, teacher: Any, student: Any) -> None:
        """Raises ValueError if no projector makes the shapes equal."""
        shapes = [list(teacher[1:]), list(student[1:])]
        if self._shapes not in ([], shapes):
            raise ValueError(
                f"{self.name!r} was made to compare {self._shapes[0]} with {self._shapes[1]}, and "
                f"now gets {shapes[0]} and {shapes[1]}. Make a new loss for each Distiller."
            )
        width, fix = teacher[-1], f"projector=keras.layers.Dense({teacher[-1]})"
        if isinstance(self.projector, keras.layers.Layer):
            student = tuple(self.projector.compute_output_shape(student))
        elif self._learn_width:
            student = (*student[:-1], width)
        if same_shape(teacher, student):
            return
        if len(teacher) == 4 and len(student) == 4 and not same_shape(teacher[:-1], student[:-1]):
            fix = (
                f"projector=keras.Sequential([keras.layers.Resizing({teacher[1]}, {teacher[2]}), "
                f"keras.layers.Conv2D({width}, 1)])"
            )
        elif len(teacher) != len(student):
            fix = f"a projector that gives {teacher[1:]}, or layers of the same rank"
        raise complain(self, teacher, student, f"the shapes must be the same. Use {fix}.")

    def build(self, teacher_shape: Any, student_shape: Any) -> None:
        """Creates the projector if one is needed."""
        self._shapes = [list(teacher_shape[1:]), list(student_shape[1:])]
        if self._learn_width and teacher_shape[-1] != student_shape[-1]:
            self.projector = keras.layers.Dense(
                teacher_shape[-1], use_bias=False, dtype="float32", name="projector"
            )
        if self.projector is not None and not self.projector.built:
            self.projector.build(student_shape)

    def measure(self, teacher: Any, student: Any) -> Any:
        """Returns the distance of each sample."""
        if self.projector is not None:
            # Losses run outside of the call context of Keras, which would pass `training`.
            options = {"training": True} if takes_training(self.projector) else {}
            student = ops.cast(self.projector(student, **options), teacher.dtype)
        if self.distance == "cosine":
            values = 1.0 - ops.sum(ops.normalize(teacher) * ops.normalize(student), axis=-1)
        else:
            values = ops.square(teacher - student)
        return ops.mean(ops.reshape(values, (ops.shape(values)[0], -1)), axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        config = None if self.projector is None else keras.layers.serialize(self.projector)
        return {
            **super().get_config(),
            "distance": self.distance,
            "projector": "auto" if self._learn_width else config,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> FeatureMatching:
        """Makes a loss from the result of `get_config`."""
        projector = config.get("projector")
        if isinstance(projector, dict):
            config = {**config, "projector": keras.layers.deserialize(projector)}
        return cls(**config)


@keras.saving.register_keras_serializable("tfcompress")
class AttentionTransfer(DistillationLoss):
    """Difference of the spatial activation maps (Zagoruyko & Komodakis 2017).

    The spatial map of a layer is the mean over its channels of |x| ** power, scaled to length 1.
    Widths may differ, height and width may not.

    Args:
        teacher_layer: Path of the teacher's layer.
        student_layer: Path of the student's layer.
        power: Exponent p of the map.
        name: Name of the loss term among the metrics.
        **kwargs: Arguments of `keras.layers.Layer`.

    Example:
        >>> import numpy as np
        >>> import tfcompress as tfc
        >>> x = np.random.default_rng(0).normal(size=(2, 7, 7, 16))
        >>> float(tfc.AttentionTransfer("block3", "block3")(x, 2 * x[..., :16]))
        0.0

    References:
        Zagoruyko & Komodakis 2017, arXiv:1612.03928.
    """

    def __init__(
        self,
        teacher_layer: str,
        student_layer: str,
        *,
        power: float = 2.0,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher_layer, student_layer, name=name, **kwargs)
        self.power = positive(power, "power")

    def check(self, teacher: Any, student: Any) -> None:
        """Raises ValueError unless both are images of the same size."""
        if len(teacher) < 3 or not same_shape(teacher[:-1], student[:-1]):
            raise complain(
                self, teacher, student, "both must have positions, and as many (widths may differ)."
            )

    def measure(self, teacher: Any, student: Any) -> Any:
        """Returns the mean squared difference of the maps of each sample."""
        return ops.mean(ops.square(self._map(teacher) - self._map(student)), axis=-1)

    def _map(self, features: Any) -> Any:
        energy = ops.mean(ops.power(ops.abs(features), self.power), axis=-1)
        return ops.normalize(ops.reshape(energy, (ops.shape(energy)[0], -1)), axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "power": self.power}


@keras.saving.register_keras_serializable("tfcompress")
class AttentionMaps(DistillationLoss):
    """Mean squared difference of the attention maps of two MultiHeadAttention layers.

    The maps are those after the softmax (TinyBERT uses the scores before it, which differ by a
    constant for each query that the softmax cancels). If the numbers of heads differ, the means
    over the heads are compared. Fused attention kernels do not compute the maps, so the layer is
    slower in training.

    Args:
        teacher_layer: Path of the teacher's attention layer.
        student_layer: Path of the student's.
        name: Name of the loss term among the metrics.
        **kwargs: Arguments of `keras.layers.Layer`.

    Example:
        >>> import numpy as np
        >>> import tfcompress as tfc
        >>> maps = np.full((2, 4, 8, 8), 1 / 8)
        >>> float(tfc.AttentionMaps("attention", "attention")(maps, maps))
        0.0

    References:
        Jiao et al. 2020, arXiv:1909.10351.
    """

    quantity = ATTENTION

    def check(self, teacher: Any, student: Any) -> None:
        """Raises ValueError unless both have equal numbers of queries and keys."""
        if not same_shape((None, *teacher[2:]), (None, *student[2:])):
            raise complain(self, teacher, student, "queries and keys must be as many.")

    def measure(self, teacher: Any, student: Any) -> Any:
        """Returns the difference of each sample."""
        if teacher.shape[1] != student.shape[1]:
            teacher, student = ops.mean(teacher, axis=1), ops.mean(student, axis=1)
        values = ops.square(teacher - student)
        return ops.mean(ops.reshape(values, (ops.shape(values)[0], -1)), axis=-1)


@keras.saving.register_keras_serializable("tfcompress")
class FSP(DistillationLoss):
    """Difference of the flow between two layers (Yim et al. 2017).

    The flow is the matrix of inner products of the channels of an earlier and a later layer, over
    all positions. Where the earlier layer has more positions, it is max-pooled to those of the
    later one. The widths of the student's layers must be the teacher's.

    Args:
        teacher_layers: Paths of the teacher's earlier and later layer.
        student_layers: Paths of the student's.
        name: Name of the loss term among the metrics.
        **kwargs: Arguments of `keras.layers.Layer`.

    Raises:
        ValueError: If these are not two paths each.

    Example:
        >>> import tfcompress as tfc
        >>> loss = tfc.FSP(("stem", "block1"), ("stem", "block1"))

    References:
        Yim et al. 2017, CVPR, A Gift from Knowledge Distillation.
    """

    needs_layers = False

    def __init__(
        self,
        teacher_layers: Sequence[str],
        student_layers: Sequence[str],
        *,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        for argument, paths in (
            ("teacher_layers", teacher_layers),
            ("student_layers", student_layers),
        ):
            if isinstance(paths, str) or len(paths) != 2:
                raise ValueError(
                    f"{argument} must be two paths of layers, the earlier one first. "
                    f"Received: {argument}={paths!r}"
                )
        self.teacher_layers = tuple(teacher_layers)
        self.student_layers = tuple(student_layers)

    def features(self) -> tuple[list[Feature], list[Feature]]:
        """Returns the features of teacher and student to record."""
        return [Feature(p) for p in self.teacher_layers], [Feature(p) for p in self.student_layers]

    def check(self, teacher: Any, student: Any) -> None:
        """Raises ValueError unless the layers are images and the widths are the same."""
        for shapes in (teacher, student):
            early, late = shapes
            if len(early) != 4 or len(late) != 4:
                raise self._complain(teacher, student, "all must be images (rank 4).")
            if None in (*early[1:], *late[1:]) or early[1] % late[1] or early[2] % late[2]:
                raise self._complain(
                    teacher,
                    student,
                    "the size of an earlier layer must be a multiple of the later one's.",
                )
        if [s[-1] for s in teacher] != [s[-1] for s in student]:
            raise self._complain(teacher, student, "the widths must be the same.")

    def _complain(self, teacher: Any, student: Any, rule: str) -> ValueError:
        return ValueError(
            f"FSP cannot compare teacher_layers={self.teacher_layers}, shaped {teacher}, with "
            f"student_layers={self.student_layers}, shaped {student}: {rule}"
        )

    def measure(self, teacher: Any, student: Any) -> Any:
        """Returns the mean squared difference of the flows of each sample."""
        return ops.mean(ops.square(_flow(*teacher) - _flow(*student)), axis=(1, 2))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        config = super().get_config()
        for key in ("teacher_layer", "student_layer"):
            config.pop(key)
        return {
            **config,
            "teacher_layers": list(self.teacher_layers),
            "student_layers": list(self.student_layers),
        }


def _flow(early: Any, late: Any) -> Any:
    factors = (early.shape[1] // late.shape[1], early.shape[2] // late.shape[2])
    if factors != (1, 1):
        early = ops.max_pool(early, factors, factors)
    positions = late.shape[1] * late.shape[2]
    return ops.einsum("bhwm,bhwn->bmn", early, late) / positions


def tinybert_losses(
    teacher_attention: Sequence[str],
    student_attention: Sequence[str],
    teacher_hidden: Sequence[str],
    student_hidden: Sequence[str],
) -> list[DistillationLoss]:
    """Returns the losses of TinyBERT's Transformer distillation: maps and hidden states.

    Layer i of m student layers learns from layer i * n / m of n teacher layers, counted from 1.

    Args:
        teacher_attention: Paths of the teacher's attention layers, first to last.
        student_attention: Paths of the student's.
        teacher_hidden: Paths of the layers whose outputs are the teacher's hidden states.
        student_hidden: Paths of the student's.

    Returns:
        One loss for each student layer, to pass as `distillation_losses`.

    Raises:
        ValueError: If a student has more layers than its teacher.

    Example:
        >>> import tfcompress as tfc
        >>> losses = tfc.tinybert_losses(["a1", "a2"], ["b1"], ["h1", "h2"], ["g1"])
        >>> [(loss.teacher_layer, loss.student_layer) for loss in losses]
        [('a2', 'b1'), ('h2', 'g1')]

    References:
        Jiao et al. 2020, arXiv:1909.10351.
    """
    losses: list[DistillationLoss] = []
    for kind, teacher, student in (
        (AttentionMaps, teacher_attention, student_attention),
        (FeatureMatching, teacher_hidden, student_hidden),
    ):
        if len(student) > len(teacher):
            raise ValueError(
                f"The student has {len(student)} layers to learn from {len(teacher)} of the "
                "teacher; it must have as many or fewer."
            )
        for index, student_path in enumerate(student):
            teacher_path = teacher[math.ceil((index + 1) * len(teacher) / len(student)) - 1]
            losses.append(kind(teacher_path, student_path))
    return losses
