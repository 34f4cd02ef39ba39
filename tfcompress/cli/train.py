"""Training from the command line: a model, data and a number of epochs, no code."""

from __future__ import annotations

import json
import pathlib
import secrets
import shutil
from typing import Any

import keras
import numpy as np
from rich.console import Console

from tfcompress.data import samples, spread
from tfcompress.files import beside, check_path, locked, write_whole
from tfcompress.graph.read import input_specs
from tfcompress.graph.run import outputs_of
from tfcompress.recipes.apply import Context, apply
from tfcompress.recipes.fitting import Stopped, save_undated
from tfcompress.recipes.losses import labels_of
from tfcompress.recipes.recipe import Recipe
from tfcompress.recipes.run import Run
from tfcompress.recipes.stages import Fit
from tfcompress.tflite.run import accuracy


def train(
    model: keras.Model,
    recipe: Recipe,
    x: Any,
    y: np.ndarray | None,
    *,
    output: pathlib.Path,
    identity: dict[str, Any],
    seed: int | None,
    quiet: bool,
    validation: tuple[Any, np.ndarray | None] | None = None,
) -> dict[str, Any]:
    """Runs the stages of a recipe and saves the model; resumes an earlier run that was stopped.

    Args:
        model: A loaded model; if it was compiled, its loss is used.
        recipe: Stages without an export, at least one of them a training.
        x: Samples.
        y: Labels.
        output: File to write.
        identity: Where model and data are from: must be equal for an earlier run to be resumed.
        seed: Seed of the order of samples and of random layers; None for any.
        quiet: Whether to print nothing.
        validation: Samples and labels to measure the accuracy on as well.

    Returns:
        The results, with the keys of the JSON output.

    Raises:
        ValueError: If labels are missing, or do not fit the model.
    """
    _check_output(output)
    arrays, y = _labelled(model, x, y, "--data")
    held_out = None if validation is None else _labelled(model, *validation, "--val-data")
    epochs = sum(stage.epochs for stage in recipe.stages if isinstance(stage, Fit))
    console = Console(quiet=quiet, stderr=True)
    backup = beside(output, ".progress")
    settings = {**identity, **recipe.as_dict(), "samples": len(y), "epochs": epochs, "seed": seed}
    with locked(output), _Progress(backup, settings) as run_folder:
        if run_folder.is_resumed:
            console.print(f"Going on with the run that was stopped, from {str(backup)!r}.")
        seed = run_folder.settle_seed(seed)
        keras.utils.set_random_seed(seed)
        run = Run(
            recipe,
            model,
            arrays,
            y,
            folder=backup,
            identity=identity,
            seed=seed,
            validation=held_out,
            console=console,
            name=output.stem,
        )
        run_folder.run = run
        before = [_accuracy(model, part, run.metrics) for part in ((arrays, run.labels), held_out)]
        run.rehearse()
        console.print(f"Loss: {run.loss_name}.")
        trained = run.trained()
        after = [_accuracy(trained, part, run.metrics) for part in ((arrays, run.labels), held_out)]
        save_undated(trained, output)
    result = {
        "output": str(output),
        "epochs": epochs,
        "resumed": run_folder.is_resumed,
        "seed": seed,
        "loss_function": run.loss_name,
        **run.logs,
    }
    for name, one, other in zip(("accuracy", "val_accuracy"), before, after, strict=True):
        if one is not None and other is not None:
            result |= {f"{name}_before": one, f"{name}_after": other}
    if after[0] is not None and before[0] is not None and after[0] < before[0]:
        console.print(
            f"Warning: training made it worse: accuracy {before[0]:.2%} before and {after[0]:.2%} "
            "after, on the samples it was trained on. Try a smaller --learning-rate or more "
            "--epochs."
        )
    return result


def rewrite(
    model: keras.Model, recipe: Recipe, data: tuple[Any, Any] | None, output: pathlib.Path
) -> dict[str, Any]:
    """Runs stages without a training, and saves the model.

    Args:
        model: A loaded model.
        recipe: The stages.
        data: Samples and labels, where a stage needs them.
        output: File to write.

    Returns:
        The results, with the keys of the JSON output.
    """
    _check_output(output)
    with locked(output):
        smaller = model
        for stage in recipe.stages:
            smaller = apply(stage, smaller, Context(data))
        save_undated(smaller, output)
    before, after = model.count_params(), smaller.count_params()
    return {"output": str(output), "parameters_before": before, "parameters_after": after}


def _check_output(output: pathlib.Path) -> None:
    check_path(output)
    if output.suffix != ".keras":
        raise ValueError(f"--output must end in .keras. Received: {str(output)!r}")


def _labelled(
    model: keras.Model, x: Any, y: np.ndarray | None, argument: str
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns samples by input and their labels.

    Raises:
        ValueError: If there are no labels, or not one for each sample.
    """
    arrays = samples(x, input_specs(model), argument=argument)
    return arrays, labels_of(arrays, y, argument)


def _accuracy(
    model: keras.Model, data: tuple[dict[str, np.ndarray], np.ndarray] | None, metrics: list[Any]
) -> float | None:
    """Returns the accuracy on at most 2,000 samples; None if there are none, or no classes."""
    if data is None or not metrics or len(model.outputs) != 1:
        return None
    few = {name: spread(array, _EVALUATED) for name, array in data[0].items()}
    return accuracy(outputs_of(model, few)[0], spread(data[1], _EVALUATED))


_EVALUATED = 2000


class _Progress:
    """The folder of an unfinished run, with the settings that it was started with.

    It is removed when the run ends, and kept if the run is stopped after at least one epoch.
    """

    def __init__(self, folder: pathlib.Path, settings: dict[str, Any]) -> None:
        self._folder, self._settings = folder, settings
        self._file = folder / "settings.json"
        self.is_resumed = False
        self.run: Run | None = None

    def __enter__(self) -> _Progress:
        earlier: dict[str, Any] = {}
        kept = [*self._folder.glob("*.keras"), *self._folder.glob("*/state.npz")]
        if kept and self._file.is_file():
            earlier = json.loads(self._file.read_text())
            self.is_resumed = True
            differs = {**earlier, "seed": None} != {**self._settings, "seed": None}
            if differs or self._settings["seed"] not in (None, earlier["seed"]):
                raise ValueError(
                    "A run with other settings was stopped before its end, and is kept in "
                    f"{str(self._folder)!r}. Run it again with its settings "
                    f"({self._file.read_text()}), or delete that folder."
                )
            self._settings = earlier
        else:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir()
        return self

    def settle_seed(self, seed: int | None) -> int:
        """Returns the seed of the run: the argument, that of the stopped run, or a random one."""
        if not self.is_resumed:
            self._settings["seed"] = secrets.randbits(31) if seed is None else seed
            write_whole(self._file, json.dumps(self._settings, sort_keys=True).encode())
        return self._settings["seed"]

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        epochs_done = self.run.epochs_done if self.run else 0
        if kind is None or not (epochs_done or self.is_resumed):
            shutil.rmtree(self._folder, ignore_errors=True)  # nothing to resume
        elif issubclass(kind, KeyboardInterrupt):
            after = (
                f"after {epochs_done} of {self._settings['epochs']} epochs"
                if epochs_done
                else "again"
            )
            raise Stopped(f"Stopped {after}. Give the same command again to go on.") from error
