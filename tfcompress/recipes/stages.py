"""The stages of a recipe: the arguments of each function, with their rules.

To add a stage: a class with the function's arguments as fields, a line in `STAGES`, and in `apply`
a function that changes the model. The JSON schema and the errors follow from the class.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tfcompress.scheme import SCHEMES, QuantizationScheme, as_scheme, check_choice

Layers = str | list[str] | None
_LAYERS = Field(
    default=None, description="A glob on layer paths, or a list of them; all if left out."
)
_SEED = Field(default=0, ge=0, description="Seed of what is drawn.")


class Stage(BaseModel):
    """One stage of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    wraps: ClassVar[bool] = False

    def arguments(self) -> dict[str, Any]:
        """Returns what differs from the defaults."""
        return self.model_dump(exclude_defaults=True)


class PruneChannels(Stage):
    """Removes whole channels: smaller and faster everywhere."""

    ratio: float = Field(default=0.5, gt=0, lt=1, description="Share of the channels to remove.")
    target_macs: float | None = Field(
        default=None, gt=0, description="Instead: multiply-accumulates."
    )
    target_latency_ms: float | None = Field(
        default=None, gt=0, description="Instead: ms of one sample."
    )
    criterion: Literal["l1", "l2", "bn_gamma", "taylor", "fpgm", "random"] = "l2"
    ranking: Literal["global", "layer"] = "global"
    round_to: int = Field(default=1, ge=1, description="Channels that stay are a multiple of this.")
    layers: Layers = _LAYERS
    seed: int = _SEED


class DropLayers(Stage):
    """Removes residual blocks."""

    blocks: int | str | list[str] = Field(
        description="How many, those of least influence; or globs on their names."
    )


class ShareLayers(Stage):
    """Gives several layers one set of weights."""

    groups: list[list[str]] = Field(min_length=1, description="Paths of layers that share.")


class Factorize(Stage):
    """Replaces kernels by products of smaller ones."""

    rank: int | float | Literal["vbmf"] | dict[str, int | float | Literal["vbmf"]] = Field(
        default=0.9, description="A rank, a share of the energy, or vbmf; or these by glob."
    )
    target_macs: float | None = Field(
        default=None, gt=0, description="Instead: multiply-accumulates."
    )
    convolutions: Literal["tucker2", "spatial"] = "tucker2"
    layers: Layers = _LAYERS


class Student(Stage):
    """A smaller model of the same kind: fewer channels and blocks, separable convolutions."""

    width: float = Field(default=0.5, gt=0, le=1, description="Share of the channels that stay.")
    depth: float = Field(default=1.0, ge=0, le=1, description="Share of the blocks that stay.")
    separable: bool = False
    round_to: int = Field(default=1, ge=1, description="Channels that stay are a multiple of this.")


class FoldBatchNorm(Stage):
    """Folds BatchNormalization into the layers before it."""


class Prune(Stage):
    """Sets the smallest weights to zero in the `fit` that follows, along a cubic schedule."""

    wraps = True
    sparsity: float | dict[str, float] | Literal["keep"] | None = Field(
        default=None,
        description="Share of zeros, below 1; or these by glob; or keep those there are. That of "
        "the pattern, or 0.8, if left out.",
    )
    until: float = Field(
        default=0.6,
        ge=0,
        le=1,
        description="Share of the training steps after which all zeros are there.",
    )
    pattern: str | tuple[int, int] = Field(
        default="unstructured",
        description="unstructured; n:m such as 2:4; or blocks such as [4, 1].",
    )
    ranking: Literal["layer", "global"] = "layer"
    layers: Layers = _LAYERS


class Cluster(Stage):
    """Lets the weights of each kernel share a few values, learned in the `fit` that follows."""

    wraps = True
    number_of_clusters: int = Field(default=16, ge=2, le=128, description="Values of a kernel.")
    per_channel: bool = False
    init: Literal["kmeans++", "linear", "density"] = "kmeans++"
    assignment: Literal["hard", "soft"] = "hard"
    layers: Layers = _LAYERS


class Quantize(Stage):
    """Trains with the rounding of the file, in the `fit` that follows (QAT)."""

    wraps = True
    scheme: str | dict[str, Any] = Field(
        default="int8", description="int8, w4a8, int16x8, or the fields of a QuantizationScheme."
    )
    layers: Layers = _LAYERS
    target: str | None = Field(default=None, description="The device that the file is for.")

    @model_validator(mode="after")
    def _has_scheme(self) -> Quantize:
        as_scheme(scheme_of(self.scheme))
        return self


class Strip(Stage):
    """Bakes in what was trained: an ordinary model again."""


class Distill(BaseModel):
    """How the model that the recipe began with, or another, teaches."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    teacher: str | None = Field(
        default=None, description="A .keras file; the first model if left out."
    )
    alpha: float = Field(default=0.5, ge=0, le=1, description="Share of the teacher's loss.")
    loss: Literal[
        "SoftTargets", "DecoupledTargets", "RKDDistance", "RKDAngle", "SimilarityPreserving"
    ] = "SoftTargets"
    temperature: float | None = Field(
        default=None, gt=0, description="Of SoftTargets and DecoupledTargets; 3 and 4 if left out."
    )

    @model_validator(mode="after")
    def _has_temperature(self) -> Distill:
        if self.temperature is not None and not self.loss.endswith("Targets"):
            raise ValueError(f"{self.loss} has no temperature")
        return self


class Fit(Stage):
    """Trains with Adam and the loss that the model was compiled with, or the labels' usual one."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=3e-4, gt=0)
    decay: Literal["cosine", "constant"] = Field(
        default="cosine", description="Of the learning rate."
    )
    hold: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the training steps before the cosine begins."
    )
    distill: Distill | None = Field(default=None, description="Learn from a teacher as well.")


class Export(Stage):
    """Writes the checked file. It is the last stage."""

    scheme: str | dict[str, Any] | None = Field(
        default=None,
        description="What it was trained for, or int8, if left out; a name, auto, or the fields of "
        "a QuantizationScheme.",
    )
    target: str | None = Field(default=None, description="The device that the file is for.")
    io_dtype: Literal["float32", "int8", "uint8", "int16"] | None = None
    batch_size: int | None = Field(default=1, ge=1, description="null: open.")
    sparse: bool = False
    max_rmse: float | None = Field(default=None, gt=0, description="For auto.")
    max_drop: float | None = Field(default=None, ge=0, description="For auto.")

    @model_validator(mode="after")
    def _has_scheme(self) -> Export:
        if isinstance(self.scheme, dict):
            scheme_of(self.scheme)
        elif self.scheme not in (None, "auto", *SCHEMES):
            as_scheme(self.scheme)
        return self

    def options(self) -> dict[str, Any]:
        """Returns the arguments of `export_tflite`."""
        return self.model_dump() | {"scheme": scheme_of(self.scheme)}


def scheme_of(scheme: Any) -> Any:
    """Returns a scheme as the functions take it: fields of one as a `QuantizationScheme`."""
    if not isinstance(scheme, dict):
        return scheme
    fields = [field.name for field in dataclasses.fields(QuantizationScheme)]
    for name in scheme:
        check_choice(name, "a field of scheme", fields)
    overrides = {g: scheme_of(s) for g, s in scheme.get("overrides", {}).items()}
    return QuantizationScheme(**{**scheme, "overrides": overrides})


STAGES: dict[str, type[Stage]] = {
    "prune_channels": PruneChannels,
    "drop_layers": DropLayers,
    "share_layers": ShareLayers,
    "factorize": Factorize,
    "student": Student,
    "fold_batch_norm": FoldBatchNorm,
    "prune": Prune,
    "cluster": Cluster,
    "quantize": Quantize,
    "strip": Strip,
    "fit": Fit,
    "export": Export,
}
"""The stages by the names that recipes call them by."""


def name_of(stage: Stage) -> str:
    """Returns what recipes call a stage."""
    return next(name for name, kind in STAGES.items() if type(stage) is kind)
