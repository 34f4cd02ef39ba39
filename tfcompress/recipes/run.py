"""Runs the stages of a recipe; what each training gave is kept, so that no work is done twice."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from rich.console import Console

from tfcompress.backup import BackupAndRestore
from tfcompress.data import collect
from tfcompress.distill.cache import cache_teacher
from tfcompress.distill.cached import CachedTeacher
from tfcompress.distill.distiller import Distiller
from tfcompress.export.export_tflite import export_tflite
from tfcompress.export.io_metadata import versions
from tfcompress.export.result import ExportResult
from tfcompress.files import beside, check_path, locked, one_at_a_time
from tfcompress.graph.clone import Rewriter
from tfcompress.graph.fingerprint import digest_of, fingerprint
from tfcompress.graph.inline import as_graph
from tfcompress.graph.read import input_specs, load_keras
from tfcompress.graph.run import packed
from tfcompress.progress import FitProgress, progress_bars
from tfcompress.recipes.apply import Context, apply, losses_of
from tfcompress.recipes.fitting import Batches, Interruptible, save_undated, seed_random_layers
from tfcompress.recipes.losses import labels_of, loss_for, usual_labels
from tfcompress.recipes.parse import RecipeError
from tfcompress.recipes.recipe import Recipe, as_dicts
from tfcompress.recipes.stages import Distill, Export, Fit
from tfcompress.tensorflow_internals import make_operations_deterministic

Watch = Callable[[keras.Model, int, Mapping[str, float]], None]
"""Called after each epoch with the model, the epochs of the recipe so far, and the metrics."""


class Run:
    """One run of a recipe on a model and data.

    After each `fit` the model is saved under a name that says all that it depends on: the model,
    the data, the seed and the stages so far. A later run with equal beginnings starts from there,
    and one that was stopped within a `fit` goes on after its last whole epoch.

    Args:
        recipe: The recipe.
        model: The trained model that it starts from; also the teacher.
        arrays: Samples by input name.
        y: Labels.
        folder: Where to keep models and the outputs of the teacher.
        identity: What says which model and data these are, as values that JSON can hold.
        seed: Seed of the order of samples and of random layers.
        validation: Samples by input name, and labels, to show metrics of after each epoch.
        console: Where to show progress.
        name: What to call the training there.
        watch: Called after each epoch; what it raises ends the run.

    Attributes:
        epochs_done: Epochs trained so far, those of earlier runs included.
        logs: The last metrics.
        labels: The labels as they are trained on.
        loss: The loss.
        loss_name: What to call it.
        metrics: The metrics that fit the labels.

    Raises:
        ValueError: If the labels do not fit the model.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: keras.Model,
        arrays: dict[str, np.ndarray],
        y: np.ndarray | None,
        *,
        folder: pathlib.Path,
        identity: Any,
        seed: int = 0,
        validation: tuple[dict[str, np.ndarray], np.ndarray] | None = None,
        console: Console | None = None,
        name: str = "training",
        watch: Watch | None = None,
    ) -> None:
        self._stages = [stage for stage in recipe.stages if not isinstance(stage, Export)]
        self._first = model
        self._arrays, self.labels = arrays, np.zeros(0) if y is None else usual_labels(y)
        self._folder, self._identity, self._seed = folder, identity, seed
        self._validation = validation
        self._console, self._name = console or Console(quiet=True), name
        self._watch = watch
        self.loss: Any = None
        self.metrics: list[Any] = []
        self.loss_name = ""
        if y is not None:
            self.loss, self.metrics, self.loss_name = loss_for(model, self.labels)
        self.epochs_done = 0
        self.logs: dict[str, float] = {}

    def trained(self) -> keras.Model:
        """Returns the model after all stages but the export."""
        first, model = self._start()
        for index in range(first, len(self._stages)):
            stage = self._stages[index]
            keras.utils.set_random_seed(self._seed + index)
            if isinstance(stage, Fit):
                with one_at_a_time(self._file(index)):  # of those that share the folder
                    model = self._fit(model, stage, index)
            else:
                model = apply(stage, model, self._known(model, index))
        return model

    def rehearse(self) -> None:
        """Runs all stages without training, so that what a late one refuses is refused at once."""
        model = self._first
        for index, stage in enumerate(self._stages):
            if not isinstance(stage, Fit):
                model = apply(stage, model, self._known(model, index))

    def _start(self) -> tuple[int, keras.Model]:
        """Returns the stage to begin with and the model to begin from."""
        for index in reversed(range(len(self._stages))):
            if isinstance(self._stages[index], Fit) and self._file(index).is_file():
                done = [s.epochs for s in self._stages[: index + 1] if isinstance(s, Fit)]
                self.epochs_done = sum(done)
                return index + 1, load_keras(self._file(index))
        return 0, self._first

    def _key(self, index: int) -> str:
        return key_of(as_dicts(self._stages[: index + 1]), self._identity, self._seed)

    def _file(self, index: int) -> pathlib.Path:
        return self._folder / f"{self._key(index)}.keras"

    def _known(self, model: keras.Model, index: int) -> Context:
        fits = (stage for stage in self._stages[index:] if isinstance(stage, Fit))
        following = next(fits, None)
        steps = following.epochs * self._steps(following) if following else 0
        return Context((packed(model, self._arrays), self.labels), steps)

    def _steps(self, stage: Fit) -> int:
        return math.ceil(len(self.labels) / stage.batch_size)

    def _fit(self, model: keras.Model, stage: Fit, index: int) -> keras.Model:
        if self._file(index).is_file():  # another process has trained it
            self.epochs_done += stage.epochs
            return load_keras(self._file(index))
        if model is self._first:
            model = Rewriter().run(model)
        steps, state = self._steps(stage), self._folder / self._key(index)
        trainee, cache = model, None
        if stage.distill:
            cache = self._teacher(stage.distill)
            trainee = Distiller(cache, model, losses_of(stage.distill), alpha=stage.distill.alpha)
        rate: Any = stage.learning_rate
        if stage.decay == "cosine":
            held = int(stage.hold * stage.epochs * steps)  # a warm-up from the rate to itself
            rate = keras.optimizers.schedules.CosineDecay(
                rate, stage.epochs * steps - held, warmup_target=rate, warmup_steps=held
            )
        trainee.compile(keras.optimizers.Adam(rate), self.loss, metrics=self.metrics)
        seed = self._seed + index
        seed_random_layers(model, seed)
        batches = Batches(model, self._arrays, self.labels, stage.batch_size, seed, cache)
        backup = BackupAndRestore(state, delete_checkpoint=False)
        before = self.epochs_done

        def told(epoch: int, logs: Mapping[str, float]) -> None:
            self.epochs_done = before + epoch + 1
            if self._watch is not None:
                self._watch(model, self.epochs_done, logs)

        with progress_bars(self._console) as progress:
            trainee.fit(
                batches,
                epochs=stage.epochs,
                shuffle=False,  # the batches define the order
                verbose=0,
                validation_data=self._validation_batches(model, stage.batch_size),
                callbacks=[
                    backup,
                    FitProgress(progress, self._name, stage.epochs, steps),
                    Interruptible(steps, batches),
                    keras.callbacks.LambdaCallback(on_epoch_end=told),
                ],
            )
        self.epochs_done, self.logs = before + stage.epochs, backup.logs
        save_undated(model, self._file(index))
        shutil.rmtree(state)
        return model

    def _validation_batches(self, model: keras.Model, batch_size: int) -> Batches | None:
        if self._validation is None:
            return None
        return Batches(model, *self._validation, batch_size, 0)

    def _teacher(self, distill: Distill) -> CachedTeacher:
        """Returns the outputs of the teacher, which is run once over the data."""
        teacher = load_keras(distill.teacher) if distill.teacher else self._first
        name = key_of(self._identity, distill.teacher, distill.loss)
        data = (packed(teacher, self._arrays), self.labels)
        folder = self._folder / f"teacher-{name}"
        with one_at_a_time(folder):
            return cache_teacher(teacher, data, folder, losses_of(distill), verbose=False)


def key_of(*parts: Any) -> str:
    """Returns a hash of values that JSON can hold, short enough for names of files."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def run_recipe(
    recipe: Recipe | str | pathlib.Path,
    model: keras.Model,
    data: Any,
    path: str | os.PathLike[str],
    *,
    validation: Any = None,
    seed: int = 0,
    verbose: bool = True,
    expected: Mapping[str, str] | None = None,
) -> ExportResult:
    """Runs the stages of a recipe, and writes the checked file with the recipe inside.

    A run that was stopped, even killed, goes on where it was when it is started again with the same
    arguments; until it is done its state is in a hidden folder beside `path`. Two runs on one
    machine with the same versions write the same bytes: operations of TensorFlow are made
    deterministic, until the process ends. What a late stage refuses is refused before the first
    training.

    Args:
        recipe: A recipe, or what `Recipe.from_yaml` takes.
        model: A trained model. It is not changed.
        data: Samples and labels, in any form that `export_tflite` takes; labels only if a stage
            trains.
        path: The `.tflite` file to write.
        validation: Samples and labels; their accuracy is shown after each epoch.
        seed: Seed of the order of samples and of random layers.
        verbose: Whether to show progress.
        expected: The hashes of model and data that are the only ones allowed, by "model" and
            "data", as in the metadata of a file.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: If there is no such recipe.
        RecipeError: If the recipe has a mistake, or no export.
        ValueError: If the data do not fit the model, or a stage does not.

    Example:
        >>> import keras, numpy as np, tempfile
        >>> import tfcompress as tfc
        >>> keras.utils.set_random_seed(0)
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
        >>> x, y = np.random.default_rng(0).normal(size=(64, 8)), np.arange(64) % 3
        >>> path = tempfile.mkdtemp() + "/model.tflite"
        >>> tfc.run_recipe("qat-int8", model, (x, y), path, verbose=False).scheme
        'int8'
    """
    if not isinstance(recipe, Recipe):
        recipe = Recipe.from_yaml(recipe)
    if recipe.export is None:
        raise RecipeError("The recipe has no export: it writes no file. Add 'export' as its last.")
    target = check_path(path, ".tflite")
    model = as_graph(model)
    specs = input_specs(model)
    arrays, y = collect(data, specs)
    held_out = None
    if any(isinstance(stage, Fit) for stage in recipe.stages):
        y = labels_of(arrays, y, "data")
        if validation is not None:
            others, labels = collect(validation, specs, argument="validation")
            held_out = others, labels_of(others, labels, "validation")
    make_deterministic(seed)
    sources = {"model": fingerprint(model), "data": digest_of([arrays, [] if y is None else y])}
    for name, value in sources.items():
        if expected is not None and expected[name] != value:
            raise ValueError(f"The {name} is not the one that the file was made with.")
    folder = beside(target, ".progress")
    with locked(target):
        folder.mkdir(exist_ok=True)
        current = Run(
            recipe,
            model,
            arrays,
            y,
            folder=folder,
            identity=sources,
            seed=seed,
            validation=held_out,
            console=Console(quiet=not verbose, stderr=True),
            name=target.stem,
        )
        current.rehearse()
        result = export_trained(recipe, current.trained(), arrays, y, target, sources, seed)
        shutil.rmtree(folder)
    return result


def export_trained(
    recipe: Recipe,
    model: keras.Model,
    arrays: dict[str, np.ndarray],
    y: np.ndarray | None,
    path: pathlib.Path,
    sources: Mapping[str, str],
    seed: int,
) -> ExportResult:
    """Writes what a recipe has trained, with all that is needed to make it again.

    Args:
        recipe: The recipe, which ends in an export.
        model: The model after its other stages.
        arrays: The samples of the training, by input name.
        y: Their labels.
        path: The file to write.
        sources: The hashes of the first model and of the data.
        seed: The seed of the run.
    """
    told = {**recipe.as_dict(), **sources, "seed": seed, "versions": surroundings()}
    options = recipe.export.options() if recipe.export else {}
    return export_tflite(
        model,
        path,
        representative_dataset=arrays if y is None else (arrays, y),
        metadata={"recipe": told},
        verbose=False,
        **options,
    )


def make_deterministic(seed: int) -> None:
    """Makes everything that is drawn and computed the same in each run, until the process ends."""
    keras.utils.set_random_seed(seed)
    if keras.backend.backend() == "tensorflow":
        make_operations_deterministic()


def surroundings() -> dict[str, str]:
    """Returns what the bytes of a file depend on besides the recipe, the model and the data."""
    packages = versions("tfcompress", "tensorflow", "keras", "numpy")
    packages["litert"] = importlib.metadata.version("ai-edge-litert")
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    cores = len(affinity(0)) if affinity else os.cpu_count()
    machine = f"{platform.machine()}, {cores} cores"
    return {**packages, "python": platform.python_version(), "machine": machine}
