"""Which recipes a search tries: presets, or a function of an Optuna trial."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import keras

from tfcompress.devices.for_target import scheme_for
from tfcompress.recipes.recipe import Recipe
from tfcompress.recipes.stages import (
    Cluster,
    Distill,
    DropLayers,
    Export,
    Factorize,
    Fit,
    Prune,
    PruneChannels,
    Quantize,
    Stage,
    Student,
)
from tfcompress.rewrite.depth import residual_blocks
from tfcompress.scheme import check_choice

Space = Callable[[Any], Recipe]
"""Takes an Optuna trial and returns a recipe that ends in an export."""

PRESETS = ("auto", "ptq", "fast", "thorough", "student")
BATCH = 64
_RISE = 1 / 3  # the share of a training in which zeros appear, at the full learning rate
_EPOCHS = {"fast": (1, 2), "thorough": (2, 4, 8), "student": (4, 8, 16)}


def space_of(
    space: str | Space, model: keras.Model, target: str | None = None
) -> tuple[Space, list[dict[str, Any]]]:
    """Returns a space, and the choices to begin with: the cheapest, and those known to be good.

    Args:
        space: A name of `PRESETS` ("auto" is "thorough"), or a function of a trial.
        model: The model, whose blocks can be dropped.
        target: What files are for, which may not have all schemes.
    """
    if callable(space):
        return space, []
    check_choice(space, "space", PRESETS)
    if space == "ptq":
        schemes = _schemes(target, "int8", "w4a8", "float16", "dynamic_int8")
        return _Untrained(schemes), [{"scheme": "int8", "rounding": "nearest", "equalize": False}]
    epochs = _EPOCHS["thorough" if space == "auto" else space]
    blocks = len(residual_blocks(model))
    untrained = {"training": False, "scheme": "int8", "rounding": "nearest"}
    plain = {"training": True, **_PLAIN, "epochs": epochs[-1]}
    schemes = _schemes(target, "int8", "w4a8")
    if space == "student":
        like = {"width": 1.0, "depth": 1.0, "separable": False}
        half, separable = {"width": 0.5}, {"separable": True}
        return _Students(epochs, blocks, schemes), [
            untrained,
            {**plain, **like, **half},
            {**plain, **like, **separable},
            {**plain, **like, **half, **separable},
        ]
    uncut = {"channels": 0.0, "blocks": 0, "energy": 1.0}
    return _Trained(epochs, min(blocks, 4), schemes), [
        untrained,
        {**plain, **uncut},
        {**plain, **uncut, "sparsity": 0.8, "clusters": 16},
        {**plain, **uncut, "channels": 0.5},
    ]


_PLAIN = {
    "sparsity": 0.0,
    "clusters": 0,
    "scheme": "int8",
    "alpha": 0.5,
    "temperature": 3.0,
    "learning_rate": 1e-3,
}


def _schemes(target: str | None, *names: str) -> list[str]:
    """Returns those of the schemes that a target computes with."""
    found = []
    for name in names:
        with contextlib.suppress(ValueError):
            if target is not None:
                scheme_for(name, target)
            found.append(name)
    return found


class _Untrained:
    """Recipes of an export alone."""

    def __init__(self, schemes: list[str]) -> None:
        self._schemes = schemes

    def __call__(self, trial: Any) -> Recipe:
        scheme = trial.suggest_categorical("scheme", self._schemes)
        if scheme in ("float16", "dynamic_int8"):
            return Recipe((Export(scheme=scheme),))
        chosen = {"weight_bits": 4 if scheme == "w4a8" else 8}
        chosen["rounding"] = trial.suggest_categorical("rounding", ["nearest", "adaround"])
        chosen["equalize"] = trial.suggest_categorical("equalize", [False, True])
        return Recipe((Export(scheme=chosen),))


class _Trained:
    """Recipes of up to two trainings: of what is left after cutting, and of the quantized rest."""

    def __init__(self, epochs: tuple[int, ...], blocks: int, schemes: list[str]) -> None:
        self._epochs, self._blocks, self._schemes = epochs, blocks, schemes

    def __call__(self, trial: Any) -> Recipe:
        scheme = trial.suggest_categorical("scheme", self._schemes)
        if not trial.suggest_categorical("training", [True, False]):
            rounding = trial.suggest_categorical("rounding", ["nearest", "adaround"])
            bits = 4 if scheme == "w4a8" else 8
            return Recipe((Export(scheme={"weight_bits": bits, "rounding": rounding}),))
        epochs = trial.suggest_categorical("epochs", list(self._epochs))
        rate = trial.suggest_float("learning_rate", 1e-4, 3e-3, log=True)
        alpha = round(trial.suggest_float("alpha", 0.0, 0.9, step=0.1), 1)
        temperature = trial.suggest_categorical("temperature", [1.0, 3.0, 6.0])
        distill = Distill(alpha=alpha, temperature=temperature) if alpha else None
        cuts = self._cuts(trial)
        stages: list[Stage] = [*cuts]
        fit = Fit(epochs=epochs, batch_size=BATCH, learning_rate=rate, distill=distill)
        last = fit
        if cuts:
            stages.append(fit)
        sparsity = trial.suggest_categorical("sparsity", [0.0, 0.5, 0.7, 0.8, 0.85, 0.9])
        clusters = trial.suggest_categorical("clusters", [0, 8, 16, 32])
        if sparsity:
            stages.append(Prune(sparsity=sparsity, until=_RISE, ranking="global"))
            last = fit.model_copy(update={"hold": _RISE})
        if clusters:
            stages.append(Cluster(number_of_clusters=clusters))
        return Recipe((*stages, Quantize(scheme=scheme), last, Export()))

    def _cuts(self, trial: Any) -> list[Stage]:
        ratio = trial.suggest_float("channels", 0.0, 0.75, step=0.125)
        blocks = trial.suggest_int("blocks", 0, self._blocks) if self._blocks else 0
        energy = trial.suggest_categorical("energy", [1.0, 0.95, 0.9, 0.8])
        cuts: list[Stage] = []
        if blocks:
            cuts.append(DropLayers(blocks=blocks))
        if ratio:
            cuts.append(PruneChannels(ratio=ratio, round_to=4))
        if energy < 1:
            cuts.append(Factorize(rank=energy))
        return cuts


class _Students(_Trained):
    """The same, of smaller models of the same kind."""

    def _cuts(self, trial: Any) -> list[Stage]:
        width = trial.suggest_float("width", 0.25, 1.0, step=0.125)
        depth = trial.suggest_float("depth", 0.0, 1.0, step=0.25) if self._blocks else 1.0
        separable = trial.suggest_categorical("separable", [False, True])
        if width == depth == 1 and not separable:
            return []
        return [Student(width=width, depth=depth, separable=separable, round_to=4)]
