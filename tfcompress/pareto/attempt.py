"""Tries one recipe: trains it, gives it up if better ones are known, exports and measures it."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import warnings
from collections.abc import Callable, Iterable, Mapping

import keras
import numpy as np

from tfcompress.errors import CompressionWarning
from tfcompress.export.export_tflite import export_tflite
from tfcompress.files import temporary_folder, write_whole
from tfcompress.pareto.objectives import Objectives, dominates
from tfcompress.recipes.recipe import Recipe
from tfcompress.recipes.run import Run, export_trained
from tfcompress.recipes.stages import Cluster, Fit, Prune

RUNGS = (0.25, 0.5)  # shares of a recipe's epochs at which a trial may be given up

_EQUAL = 0.02  # files of one form differ by less in bytes and milliseconds

Rungs = Callable[[int], Iterable[tuple[int, Mapping[str, float]]]]
"""Returns the finished trials that were measured at a rung: their numbers and objectives there."""


class _Dominated(Exception):
    """A finished trial was better half of the way."""


@dataclasses.dataclass
class Outcome:
    """What became of a recipe.

    Attributes:
        state: "complete", "pruned" or "failed", as in `TrialResult`.
        values: Its objectives, where it is complete.
        note: Why it is not.
        rungs: Its objectives on the way, by rung.
    """

    state: str
    values: dict[str, float] = dataclasses.field(default_factory=dict)
    note: str = ""
    rungs: dict[int, dict[str, float]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Attempt:
    """What trials of one search have in common, wherever they run.

    Attributes:
        model: The float model.
        arrays: Samples to train on, by input name.
        y: Their labels.
        judge: Measures files.
        folder: Where models and files are kept.
        sources: The hashes of model and data.
        seed: Seed of trainings.
        target: What files are for.
    """

    model: keras.Model
    arrays: dict[str, np.ndarray]
    y: np.ndarray
    judge: Objectives
    folder: pathlib.Path
    sources: Mapping[str, str]
    seed: int
    target: str | None

    def outcome(self, recipe: Recipe, key: str, rungs: Rungs) -> Outcome:
        """Tries a recipe, if it was not tried before.

        Args:
            recipe: The recipe.
            key: Its hash, with everything that it depends on.
            rungs: Other trials on their way.
        """
        told: dict[int, dict[str, float]] = {}
        try:
            values = self._known(key) or self._measured(recipe, key, rungs, told)
        except _Dominated as better:
            return Outcome("pruned", note=str(better), rungs=told)
        except Exception as error:
            return Outcome("failed", note=f"{type(error).__name__}: {error}"[:500], rungs=told)
        return Outcome("complete", values, rungs=told)

    def _known(self, key: str) -> dict[str, float] | None:
        """Returns the objectives of a recipe that was tried before."""
        path = self.folder / f"{key}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def _measured(
        self, recipe: Recipe, key: str, rungs: Rungs, told: dict[int, dict[str, float]]
    ) -> dict[str, float]:
        epochs = sum(stage.epochs for stage in recipe.stages if isinstance(stage, Fit))
        places = {max(1, round(share * epochs)): n for n, share in enumerate(RUNGS)}

        def watch(student: keras.Model, done: int, logs: Mapping[str, float]) -> None:
            if done in places and done < epochs:
                self._compare(recipe, student, places[done], rungs, told)

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

    def _compare(
        self,
        recipe: Recipe,
        student: keras.Model,
        rung: int,
        rungs: Rungs,
        told: dict[int, dict[str, float]],
    ) -> None:
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
        told[rung] = now
        for number, then in rungs(rung):
            if dominates(then, now, self.judge.names, _EQUAL):
                raise _Dominated(f"trial {number} was better at rung {rung}")


def float_file(model: keras.Model, folder: pathlib.Path) -> bytes:
    """Returns the float file of a model, made once."""
    path = folder / "float.tflite"
    if not path.exists():
        export_tflite(model, path, scheme="float32", verbose=False)
    return path.read_bytes()
