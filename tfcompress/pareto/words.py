"""Recipes and objectives in a few words."""

from __future__ import annotations

from typing import Any

from tfcompress.pareto.objectives import ACCURACY
from tfcompress.recipes.recipe import Recipe
from tfcompress.recipes.stages import (
    Cluster,
    DropLayers,
    Export,
    Factorize,
    Fit,
    Prune,
    PruneChannels,
    Quantize,
    Student,
    name_of,
)


def shown(name: str, value: float | None) -> str:
    """Returns an objective as text."""
    if value is None:
        return ""
    if name == ACCURACY:
        return f"{value:.2%}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def described(recipe: Recipe) -> str:
    """Returns a recipe in a few words; `recipe.to_yaml()` has all of it."""
    return ", ".join(filter(None, map(_words, recipe.stages)))


def _words(stage: Any) -> str:
    match stage:
        case PruneChannels():
            return f"{1 - stage.ratio:.0%} of channels"
        case DropLayers():
            return f"without {stage.blocks} blocks"
        case Student():
            return _student(stage)
        case Factorize():
            return f"rank {stage.rank}"
        case Prune():
            return f"{stage.sparsity:.0%} zeros" if isinstance(stage.sparsity, float) else "zeros"
        case Cluster():
            return f"{stage.number_of_clusters} clusters"
        case Quantize():
            return f"QAT {stage.scheme}" if isinstance(stage.scheme, str) else "QAT"
        case Fit():
            return f"{stage.epochs} epochs" + (" distilled" if stage.distill else "")
        case Export(scheme=None):
            return ""
        case Export(scheme=str(scheme)):
            return f"PTQ {scheme}"
        case Export(scheme=dict(fields)):
            words = ["PTQ", "w4a8" if fields.get("weight_bits") == 4 else "int8"]
            words += ["adaround"] * (fields.get("rounding") == "adaround")
            return " ".join([*words, *["equalized"] * bool(fields.get("equalize"))])
    return name_of(stage)


def _student(stage: Student) -> str:
    words = [f"{stage.width:.0%} as wide"] * (stage.width < 1)
    words += [f"{stage.depth:.0%} as deep"] * (stage.depth < 1)
    return ", ".join([*words, *["separable"] * stage.separable])
