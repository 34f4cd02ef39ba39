"""Tries one recipe: trains it, gives it up if better ones are known, exports and measures it."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from rich.console import Console

from tfcompress.errors import CompressionWarning
from tfcompress.export.export_tflite import export_tflite
from tfcompress.files import temporary_folder, write_whole
from tfcompress.pareto.objectives import ACCURACY, Objectives, dominates
from tfcompress.pareto.space import Space
from tfcompress.pareto.study import KEY, mark, mark_stopped, optuna_module
from tfcompress.pareto.words import described
from tfcompress.recipes.parse import RecipeError
from tfcompress.recipes.recipe import Recipe
from tfcompress.recipes.run import Run, export_trained, key_of
from tfcompress.recipes.stages import Cluster, Fit, Prune

_RUNGS = (0.25, 0.5)  # shares of a recipe's epochs at which a trial may be given up

_EQUAL = 0.02  # files of one form differ by less in bytes and milliseconds


def float_file(model: keras.Model, folder: pathlib.Path) -> bytes:
    """Returns the float file of a model, made once."""
    path = folder / "float.tflite"
    if not path.exists():
        export_tflite(model, path, scheme="float32", verbose=False)
    return path.read_bytes()


@dataclasses.dataclass(frozen=True)
class Worker:
    """The objective function of the study.

    Attributes:
        space: Makes a recipe of a trial.
        model: The float model.
        arrays: Samples to train on, by input name.
        y: Their labels.
        judge: Measures files.
        folder: Where models and files are kept.
        sources: The hashes of model and data.
        seed: Seed of trainings.
        max_drop: The largest loss of accuracy of interest.
        target: What files are for.
        console: Where to say what is tried.
    """

    space: Space
    model: keras.Model
    arrays: dict[str, np.ndarray]
    y: np.ndarray
    judge: Objectives
    folder: pathlib.Path
    sources: Mapping[str, str]
    seed: int
    max_drop: float | None
    target: str | None
    console: Console

    def __call__(self, trial: Any) -> list[float]:
        """Returns the objectives of a trial.

        Raises:
            TrialPruned: If a finished trial dominates it.
        """
        mark(trial)
        started = time.perf_counter()
        try:
            recipe = self.space(trial)
            if not isinstance(recipe, Recipe) or recipe.export is None:
                raise RecipeError(f"space must return recipes that end in 'export', not {recipe!r}")
            recipe = recipe.for_target(self.target)
            key = key_of(recipe.as_dict(), self.sources, self.seed)
            trial.set_user_attr("recipe", json.loads(json.dumps(recipe.as_dict())))
            trial.set_user_attr(KEY, key)
            values = self._known(key) or self._tried(trial, recipe, key)
        except KeyboardInterrupt:
            mark_stopped(trial)
            raise
        except optuna_module().TrialPruned:
            self._say(trial, "given up", started)
            raise
        except Exception as error:
            trial.set_user_attr("note", f"{type(error).__name__}: {error}"[:500])
            self._say(trial, "failed", started)
            raise
        if self.max_drop is not None:
            drop = self.judge.reference[ACCURACY] - values[ACCURACY]
            trial.set_constraint("max_drop", drop - self.max_drop)
        self._say(trial, ", ".join(f"{k} {values[k]:.4g}" for k in self.judge.names), started)
        return [values[name] for name in self.judge.names]

    def _say(self, trial: Any, told: str, started: float) -> None:
        recipe = trial.user_attrs.get("recipe")
        name = described(Recipe.from_dict(recipe)) if recipe else "no recipe"
        seconds = time.perf_counter() - started
        self.console.print(
            f"trial {trial.number}: {name}: {told} ({seconds:.0f} s)", soft_wrap=True
        )

    def _known(self, key: str) -> dict[str, float] | None:
        """Returns the objectives of a recipe that was tried before."""
        path = self.folder / f"{key}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def _tried(self, trial: Any, recipe: Recipe, key: str) -> dict[str, float]:
        epochs = sum(stage.epochs for stage in recipe.stages if isinstance(stage, Fit))
        rungs = {max(1, round(share * epochs)): n for n, share in enumerate(_RUNGS)}

        def watch(student: keras.Model, done: int, logs: Mapping[str, float]) -> None:
            if done in rungs and done < epochs:
                self._compare(trial, recipe, student, rungs[done])

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CompressionWarning)
            run = Run(
                recipe,
                self.model,
                self.arrays,
                self.y,
                folder=self.folder,
                identity=self.sources,
                seed=self.seed,
                watch=watch,
            )
            path = self.folder / f"{key}.tflite"
            trained = run.trained()
            export_trained(recipe, trained, self.arrays, self.y, path, self.sources, self.seed)
        values = self.judge.measured(path.read_bytes(), trained)
        write_whole(self.folder / f"{key}.json", json.dumps(values).encode())
        return values

    def _compare(self, trial: Any, recipe: Recipe, student: keras.Model, rung: int) -> None:
        """Gives a trial up that a finished one dominated at the same rung.

        Its bytes after gzip are not known before all zeros are there; then it is not compared.
        """
        kinds = {type(stage) for stage in recipe.stages}
        if "gzip_bytes" in self.judge.names and kinds & {Prune, Cluster}:
            return
        with temporary_folder() as scratch:
            path = pathlib.Path(scratch, "now.tflite")
            data = None if recipe.export and recipe.export.scheme is None else self.arrays
            export_tflite(
                student,
                path,
                representative_dataset=data,
                target=self.target,
                verify=False,
                verbose=False,
            )
            now = self.judge.measured(path.read_bytes(), student)
        trial.set_user_attr(f"rung {rung}", now)
        for other in trial.study.get_trials(deepcopy=False):
            then = other.user_attrs.get(f"rung {rung}")
            finished = other.state.name == "COMPLETE" and then is not None
            if finished and dominates(then, now, self.judge.names, _EQUAL):
                trial.set_user_attr("values", now)
                trial.set_user_attr("note", f"trial {other.number} was better at rung {rung}")
                raise optuna_module().TrialPruned
