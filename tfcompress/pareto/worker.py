"""What a process of a search does with a trial of the study."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from tfcompress.pareto.attempt import Attempt, Outcome, Rungs
from tfcompress.pareto.objectives import ACCURACY
from tfcompress.pareto.space import Space
from tfcompress.pareto.study import KEY, mark, mark_stopped, optuna_module
from tfcompress.pareto.words import described
from tfcompress.recipes.parse import RecipeError
from tfcompress.recipes.recipe import Recipe
from tfcompress.recipes.run import key_of


@dataclasses.dataclass
class Worker:
    """Tries the trials of a study; as a function, one in this process.

    Attributes:
        space: Makes a recipe of a trial.
        attempt: Tries a recipe.
        max_drop: The largest loss of accuracy of interest.
        console: Where to say what is tried.
    """

    space: Space
    attempt: Attempt
    max_drop: float | None
    console: Console

    def __call__(self, trial: Any) -> list[float]:
        """Returns the objectives of a trial.

        Raises:
            TrialPruned: If a finished trial dominates it.
            RuntimeError: If it failed.
        """
        try:
            outcome = self.begin(trial)
            if outcome is None:
                outcome = self.attempt.outcome(*self.recipe(trial), rungs_of(trial))
        except KeyboardInterrupt:
            mark_stopped(trial)
            raise
        self.finish(trial, outcome)
        if outcome.state == "pruned":
            raise optuna_module().TrialPruned
        if outcome.state == "failed":
            raise RuntimeError(outcome.note)
        return self.values(outcome)

    def begin(self, trial: Any) -> Outcome | None:
        """Notes the recipe of a trial; returns an outcome if there is none."""
        mark(trial)
        trial.set_user_attr("begun", time.time())
        try:
            recipe = self.space(trial)
            if not isinstance(recipe, Recipe) or recipe.export is None:
                raise RecipeError(f"space must return recipes that end in 'export', not {recipe!r}")
            recipe = recipe.for_target(self.attempt.target)
        except Exception as error:
            return Outcome("failed", note=f"{type(error).__name__}: {error}"[:500])
        key = key_of(recipe.as_dict(), self.attempt.sources, self.attempt.seed)
        trial.set_user_attr("recipe", json.loads(json.dumps(recipe.as_dict())))
        trial.set_user_attr(KEY, key)
        return None

    def recipe(self, trial: Any) -> tuple[Recipe, str]:
        """Returns the recipe of a trial that has begun, and its key."""
        return Recipe.from_dict(trial.user_attrs["recipe"]), trial.user_attrs[KEY]

    def finish(self, trial: Any, outcome: Outcome) -> None:
        """Notes what became of a trial, and says it."""
        for rung, values in outcome.rungs.items():
            trial.set_user_attr(f"rung {rung}", values)
        if outcome.note:
            trial.set_user_attr("note", outcome.note)
        if outcome.state == "pruned":
            trial.set_user_attr("values", outcome.rungs[max(outcome.rungs)])
        if outcome.state == "complete" and self.max_drop is not None:
            drop = self.attempt.judge.reference[ACCURACY] - outcome.values[ACCURACY]
            trial.set_constraint("max_drop", drop - self.max_drop)
        recipe = trial.user_attrs.get("recipe")
        name = described(Recipe.from_dict(recipe)) if recipe else "no recipe"
        measured = ", ".join(f"{k} {v:.4g}" for k, v in outcome.values.items())
        told = {"pruned": "given up", "failed": "failed"}.get(outcome.state, measured)
        seconds = time.time() - trial.user_attrs["begun"]
        self.console.print(
            f"trial {trial.number}: {name}: {told} ({seconds:.0f} s)", soft_wrap=True
        )

    def values(self, outcome: Outcome) -> list[float]:
        """Returns the objectives of a finished trial, for Optuna."""
        return [outcome.values[name] for name in self.attempt.judge.names]


def rungs_of(trial: Any) -> Rungs:
    """Returns what finds the finished trials that were measured at a rung."""

    def find(rung: int) -> Iterator[tuple[int, dict[str, float]]]:
        for other in trial.study.get_trials(deepcopy=False):
            then = other.user_attrs.get(f"rung {rung}")
            if other.state.name == "COMPLETE" and then is not None:
                yield other.number, then

    return find
