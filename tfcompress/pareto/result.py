"""What a search found: its trials, its front, and the files of both."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np

from tfcompress.files import check_path, replacing, save_figure, write_whole
from tfcompress.measure.report import cost_axis
from tfcompress.pareto.objectives import ACCURACY, dominates
from tfcompress.pareto.search_page import search_page
from tfcompress.pareto.study import KEY
from tfcompress.pareto.words import described, shown
from tfcompress.recipes.recipe import Recipe
from tfcompress.scheme import check_choice
from tfcompress.tables import as_text, table


@dataclasses.dataclass(frozen=True)
class TrialResult:
    """One recipe that was tried.

    Attributes:
        number: Its number.
        recipe: The recipe.
        state: "complete", "pruned" (better ones were known when a part of it had been trained),
            "failed", or "running".
        values: Its objectives by name, of the exported file; those of a pruned trial are of the
            file at that time.
        note: Why it was pruned or failed.
        file: The checked file of a complete trial.
        folder: What keeps the file of a search without a storage, as long as this object lives.
    """

    number: int
    recipe: Recipe
    state: str
    values: dict[str, float]
    note: str = ""
    file: str | None = None
    folder: Any = dataclasses.field(default=None, repr=False, compare=False)

    @classmethod
    def of(
        cls, trial: Any, names: Sequence[str], folder: pathlib.Path, kept: Any = None
    ) -> TrialResult:
        """Returns what Optuna keeps of a trial.

        Args:
            trial: The trial.
            names: The names of the objectives.
            folder: Where the files are.
            kept: What keeps this folder.
        """
        attributes = trial.user_attrs
        state = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}.get(trial.state.name)
        values = dict(zip(names, trial.values or (), strict=False)) or attributes.get("values", {})
        file = folder / f"{attributes.get(KEY)}.tflite"
        return cls(
            trial.number,
            Recipe.from_dict(attributes.get("recipe", {"stages": []})),
            state or "running",
            values,
            attributes.get("note", ""),
            str(file) if state == "complete" else None,
            kept,
        )

    def export(self, path: Any) -> str:
        """Copies the file, which has its recipe inside, and returns its path."""
        if self.file is None:
            raise ValueError(f"Trial {self.number} is {self.state}: it has no file.")
        target = check_path(path, ".tflite")
        with replacing(target) as part:
            shutil.copyfile(self.file, part)
        return str(target)


@dataclasses.dataclass(frozen=True)
class Search:
    """The trials of a search.

    Attributes:
        trials: All of them, in order.
        names: The names of the objectives.
        reference: The objectives of the float file, without those that only a device has.
        study: The Optuna study, for its own tools.
    """

    trials: list[TrialResult]
    names: tuple[str, ...]
    reference: dict[str, float]
    study: Any = dataclasses.field(repr=False, compare=False)

    @property
    def costs(self) -> list[str]:
        """The objectives of which less is better."""
        return [name for name in self.names if name != ACCURACY]

    @property
    def complete(self) -> list[TrialResult]:
        """The trials that have a file."""
        return [trial for trial in self.trials if trial.state == "complete"]

    def front(self, names: Sequence[str] | None = None) -> list[TrialResult]:
        """Returns the trials that no other is better than in every objective, the best first.

        Args:
            names: The objectives that count; None for all.
        """
        chosen = tuple(names or self.names)
        complete = self.complete
        best = [
            trial
            for trial in complete
            if not any(dominates(other.values, trial.values, chosen) for other in complete)
        ]
        return sorted(best, key=lambda trial: -trial.values[ACCURACY])

    def best(self, *, max_drop: float = 0.01, minimize: str | None = None) -> TrialResult:
        """Returns the cheapest of the trials that lose no more accuracy than allowed.

        Args:
            max_drop: The largest allowed loss, as a share: 0.01 is one point.
            minimize: The cost; None for the first of the objectives that is one.

        Raises:
            ValueError: If no trial is accurate enough, or the cost was not measured.
        """
        cost = check_choice(minimize or self.costs[0], "minimize", self.costs)
        floor = self.reference[ACCURACY] - max_drop
        enough = [trial for trial in self.complete if trial.values[ACCURACY] >= floor]
        if not enough:
            nearest = max((t.values[ACCURACY] for t in self.complete), default=float("nan"))
            raise ValueError(
                f"No trial loses at most {max_drop:.2%}: the float model has "
                f"{self.reference[ACCURACY]:.2%}, the most accurate of {len(self.complete)} trials "
                f"{nearest:.2%}. Allow more (max_drop=), or go on with more trials."
            )
        return min(enough, key=lambda trial: (trial.values[cost], -trial.values[ACCURACY]))

    def importances(self, name: str = ACCURACY) -> dict[str, float]:
        """Returns how much each choice of the space mattered for an objective (fANOVA's trees).

        Args:
            name: The objective.
        """
        import optuna  # an extra

        index = self.names.index(check_choice(name, "name", self.names))
        sign = -1 if name == ACCURACY else 1  # importance for low values
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "PedAnova.*low `target` values")
            return optuna.importance.get_param_importances(
                self.study, target=lambda trial: sign * trial.values[index]
            )

    def write_front(self, folder: Any) -> list[str]:
        """Writes the files of the front and their recipes into a folder, and returns their paths.

        Args:
            folder: Created if it does not exist.
        """
        home = pathlib.Path(folder)
        home.mkdir(parents=True, exist_ok=True)
        written = []
        for trial in self.front():
            written.append(trial.export(home / f"trial{trial.number}.tflite"))
            trial.recipe.to_yaml(home / f"trial{trial.number}.yaml")
        return written

    def as_dict(self) -> dict[str, Any]:
        """Returns the trials as values that JSON can hold."""
        front = {trial.number for trial in self.front()}
        trials = [
            {
                "number": trial.number,
                "recipe": trial.recipe.as_dict(),
                "state": trial.state,
                "values": trial.values,
                "note": trial.note,
                "front": trial.number in front,
            }
            for trial in self.trials
        ]
        return {"objectives": list(self.names), "float": self.reference, "trials": trials}

    def __rich__(self) -> Any:
        header = ("trial", "recipe", *self.names, "")
        rows = [("float", "", *(shown(n, self.reference.get(n)) for n in self.names), "")]
        front = {trial.number for trial in self.front()}
        for trial in sorted(self.trials, key=lambda t: -t.values.get(ACCURACY, -np.inf)):
            values = [shown(n, trial.values.get(n)) for n in self.names]
            state = trial.state if trial.state != "complete" else ""
            note = "on the front" if trial.number in front else state
            rows.append((str(trial.number), described(trial.recipe), *values, note))
        return table("search", header, rows)

    def __str__(self) -> str:
        return as_text(self.__rich__())

    def plot(self, path: Any = None, cost: str | None = None) -> Any:
        """Draws accuracy over a cost, the front as a line; writes a picture if a path is given.

        Args:
            path: The picture.
            cost: The cost; None for the first of the objectives that is one.
        """
        chosen = check_choice(cost or self.costs[0], "cost", self.costs)
        figure = matplotlib.figure.Figure((6, 4.2), layout="constrained")
        axes = figure.subplots()
        for trials, style in ((self.complete, "o"), (self.front((ACCURACY, chosen)), "o-")):
            points = sorted((t.values[chosen], 100 * t.values[ACCURACY]) for t in trials)
            label = f"{len(trials)} trials" if style == "o" else "front"
            axes.plot(*zip(*points, strict=True) if points else ([], []), style, label=label)
        shown_costs = [trial.values[chosen] for trial in self.complete]
        if chosen in self.reference:
            shown_costs.append(self.reference[chosen])
            axes.plot(shown_costs[-1], 100 * self.reference[ACCURACY], "k*", label="float")
        if shown_costs:
            cost_axis(axes, shown_costs)
        axes.set_xlabel(chosen)
        axes.set_ylabel("accuracy, %")
        axes.grid(alpha=0.25)
        axes.legend()
        if path is not None:
            save_figure(figure, path, 100)
        return figure

    def to_html(self, path: Any) -> None:
        """Writes a page that needs no other file: the front, importances, every recipe.

        Args:
            path: The `.html` file.
        """
        write_whole(check_path(path), search_page(self).encode())
