"""search: tries recipes, and keeps those that no other is better than."""

from __future__ import annotations

import os
import pathlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from rich.console import Console

from tfcompress.data import collect
from tfcompress.files import one_at_a_time
from tfcompress.graph.fingerprint import digest_of, fingerprint
from tfcompress.graph.inline import as_graph
from tfcompress.graph.read import input_specs
from tfcompress.pareto.attempt import Attempt, float_file
from tfcompress.pareto.objectives import ACCURACY, Objectives
from tfcompress.pareto.on_ray import run_on_ray
from tfcompress.pareto.result import Search, TrialResult
from tfcompress.pareto.space import Space, space_of
from tfcompress.pareto.study import (
    check_same,
    counted,
    nothing_new,
    open_study,
    take_up,
    without_repeats,
)
from tfcompress.pareto.worker import Worker
from tfcompress.recipes.losses import labels_of
from tfcompress.recipes.run import make_deterministic
from tfcompress.scheme import check_choice
from tfcompress.tune.score import Metric


def search(
    model: keras.Model,
    train: Any,
    validation: Any,
    *,
    objectives: Sequence[str] = (ACCURACY, "bytes", "latency_ms"),
    trials: int = 60,
    space: str | Space = "auto",
    storage: str | os.PathLike[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
    executor: str = "local",
    resources: Mapping[str, float] | None = None,
    budget_seconds: float | None = None,
    target: str | None = None,
    max_drop: float | None = None,
    metric: Metric | None = None,
    sampler: Any = None,
    seed: int = 0,
    verbose: bool = True,
) -> Search:
    """Searches for the recipes on the front of accuracy, bytes and latency, each with its file.

    Cheap recipes without training come first. A trial that is dominated by a finished one at a
    quarter or a half of its epochs is given up. Trials with equal beginnings share what was
    trained, and the float model, which teaches them, runs over the data once. Every file is
    exported and checked, and measured on the validation data: keep test data apart, and touch them
    once, with the file that you choose.

    Args:
        model: A trained model. It is not changed.
        train: Samples and labels to train and calibrate on.
        validation: Samples and labels to judge on.
        objectives: "accuracy" and one or more of "bytes", "gzip_bytes", "macs", "arena_bytes"
            (working memory) and "latency_ms" (one thread on this machine, in turns with the float
            file); for an Ethos-U also "flash_bytes" and "cycles", by its compiler.
        trials: How many recipes to have in the study, those of earlier runs included; fewer if the
            space has no more.
        space: "ptq" (no training), "fast" (2 epochs at most), "thorough" (8 at most; also "auto"),
            "student" (smaller models of the same kind, 16 epochs at most), or a function that takes
            an Optuna trial and returns a `Recipe`.
        storage: A journal file, the URL of a database that Optuna takes, or that of its proxy
            ("grpc://host:port"). The same call goes on with the trials that are there; several
            processes, on several machines, may work on one study. None: nothing is kept between
            runs.
        folder: Where models and files are kept, for all workers to see. None: beside the journal;
            needed with a URL.
        executor: "local" for trials in this process, "ray" for as many at once as a Ray cluster has
            room for: that of RAY_ADDRESS, or one on this machine.
        resources: What each trial gets on Ray, {"CPU": 1, "GPU": 0} if left out.
        budget_seconds: No trial is started after this time.
        target: What the files are for, as in `export_tflite`. For "tflite-micro" and sizes of
            Ethos-U, such as "ethos-u55-128", their tools measure; what cannot run there fails.
        max_drop: The loss of accuracy beyond which files are of no interest: the search keeps to
            what is within it.
        metric: A function of labels and outputs in place of accuracy; more is better.
        sampler: An Optuna sampler; None for `TPESampler`.
        seed: Seed of the sampler and of trainings.
        verbose: Whether to say what is tried.

    Returns:
        The trials, of which `front()` and `best()` choose.

    Raises:
        ImportError: If Optuna is missing, or Ray where it is asked for.
        ValueError: If the study in the storage is of another model, other data or objectives, or an
            argument is unknown; if an objective is not known for the target.

    Example:
        >>> import keras, numpy as np
        >>> import tfcompress as tfc
        >>> keras.utils.set_random_seed(0)
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
        >>> data = np.random.default_rng(0).normal(size=(64, 8)), np.arange(64) % 3
        >>> found = tfc.search(
        ...     model, data, data, objectives=("accuracy", "bytes"), trials=2, space="ptq",
        ...     verbose=False,
        ... )
        >>> len(found.trials)
        2

    References:
        Optuna: Akiba et al. 2019, arXiv:1907.10902. TPE for several objectives: Ozaki et al. 2022.
    """
    model = as_graph(model)
    specs = input_specs(model)
    arrays, y = collect(train, specs, argument="train")
    y = labels_of(arrays, y, "train")
    held_out, wanted = collect(validation, specs, argument="validation")
    wanted = labels_of(held_out, wanted, "validation")
    chosen, beginnings = space_of(space, model, target)
    check_choice(executor, "executor", ("local", "ray"))
    room = _checked_resources(resources)
    if folder is None and "://" in str(storage):
        raise ValueError(
            "A storage by URL needs folder=, where models and files are kept for all workers to "
            "see."
        )
    kept = None if storage or folder else tempfile.TemporaryDirectory()
    home = pathlib.Path(folder or (kept.name if kept else f"{storage}.files")).absolute()
    home.mkdir(parents=True, exist_ok=True)
    make_deterministic(seed)
    judge = Objectives(objectives, target, float_file(model, home), model, held_out, wanted, metric)
    with one_at_a_time(home / "study"):  # or two workers would create the tables of a database
        study = open_study(storage, judge.directions, sampler, seed)
    sources = {"model": fingerprint(model), "data": digest_of([arrays, y])}
    described = {**sources, "validation": digest_of([held_out, wanted])}
    judge.reference = check_same(
        study,
        {**described, "objectives": list(judge.names), "target": target},
        judge.reference,
    )
    attempt = Attempt(model, arrays, y, judge, home, sources, seed, target)
    worker = Worker(chosen, attempt, max_drop, Console(quiet=not verbose, stderr=True))
    take_up(study, beginnings, home)
    started = time.perf_counter()

    def more() -> bool:
        over = budget_seconds is not None and time.perf_counter() - started > budget_seconds
        return not over and counted(study) < trials and not nothing_new(study)

    if executor == "ray":
        run_on_ray(study, worker, more, room)
    else:
        while more():
            study.optimize(worker, n_trials=1, catch=(Exception,))
    results = [TrialResult.of(trial, judge.names, home, kept) for trial in without_repeats(study)]
    return Search(results, judge.names, judge.reference, study)


def _checked_resources(resources: Mapping[str, float] | None) -> dict[str, float]:
    room = {"CPU": 1.0, "GPU": 0.0, **(resources or {})}
    for kind in room:
        check_choice(kind, "a resource", ("CPU", "GPU"))
    if min(room.values()) < 0 or not any(room.values()):
        raise ValueError(f"resources are not negative, and not all 0. Received: {resources!r}")
    return room
