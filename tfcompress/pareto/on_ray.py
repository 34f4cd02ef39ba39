"""Trials of a search on Ray: this process asks and tells the study, Ray places what it asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tfcompress.pareto.attempt import RUNGS, Attempt, Outcome
from tfcompress.pareto.study import mark_stopped, optuna_module
from tfcompress.pareto.worker import Worker, rungs_of
from tfcompress.recipes.recipe import Recipe
from tfcompress.recipes.run import make_deterministic

_TRIES = 3
"""How often what a dead process left is begun again; a recipe that kills its process ends here."""


def ray_module() -> Any:
    """Returns Ray.

    Raises:
        ImportError: If it is missing.
    """
    try:
        import ray  # an extra
    except ImportError as error:
        raise ImportError("executor='ray' needs Ray: pip install tfcompress[ray].") from error
    return ray


def run_on_ray(
    study: Any, worker: Worker, more: Callable[[], bool], resources: Mapping[str, float]
) -> None:
    """Tries trials on all of a Ray cluster, that of RAY_ADDRESS or one on this machine.

    Args:
        study: The study.
        worker: Begins and ends trials.
        more: Whether to begin another trial.
        resources: What each trial gets: "CPU" and "GPU".
    """
    ray, states = ray_module(), optuna_module().trial.TrialState
    here = not ray.is_initialized()
    if here:
        ray.init(log_to_driver=False, logging_level="ERROR")
    cores = max(1, int(resources["CPU"]))
    threads = {"TF_NUM_INTRAOP_THREADS": str(cores), "TF_NUM_INTEROP_THREADS": "1"}
    remote = ray.remote(
        num_cpus=resources["CPU"],
        num_gpus=resources["GPU"],
        max_retries=_TRIES,
        runtime_env={"env_vars": threads | {"TF_CPP_MIN_LOG_LEVEL": "3"}},
    )(_tried)
    shared = ray.put(worker.attempt)
    pending: dict[Any, Any] = {}
    over = False

    def end(trial: Any, outcome: Outcome) -> None:
        nonlocal over
        worker.finish(trial, outcome)
        try:
            if outcome.state == "complete":
                study.tell(trial, worker.values(outcome))
            else:
                study.tell(trial, state=states.PRUNED if outcome.state == "pruned" else states.FAIL)
        except RuntimeError as error:
            if "Study.stop" not in str(error):
                raise
            over = True  # a sampler with a finite grid says so, after the trial was told

    try:
        while True:
            room = _places(ray.cluster_resources(), resources)
            while len(pending) < room and not over and more():
                trial = study.ask()
                refused = worker.begin(trial)
                if refused is not None:
                    end(trial, refused)
                    continue
                recipe, key = worker.recipe(trial)
                find = rungs_of(trial)
                rungs = {rung: list(find(rung)) for rung in range(len(RUNGS))}
                pending[remote.remote(shared, recipe.as_dict(), key, rungs)] = trial
            if not pending:
                return
            for done in ray.wait(list(pending))[0]:
                end(pending.pop(done), _outcome(ray, done))
    except KeyboardInterrupt:
        for unfinished, trial in pending.items():
            ray.cancel(unfinished, force=True)
            mark_stopped(trial)
            study.tell(trial, state=states.FAIL)
        raise
    finally:
        if here:
            ray.shutdown()


def _places(cluster: Mapping[str, float], resources: Mapping[str, float]) -> int:
    """Returns how many trials a cluster has room for: one, where it has yet to grow."""
    rooms = [cluster.get(kind, 0) / needed for kind, needed in resources.items() if needed]
    return max(1, int(min(rooms, default=1)))


def _outcome(ray: Any, done: Any) -> Outcome:
    try:
        return ray.get(done)
    except ray.exceptions.RayError as error:
        return Outcome("failed", note=f"{type(error).__name__}: {error}"[:500])


def _tried(
    attempt: Attempt,
    recipe: dict[str, Any],
    key: str,
    rungs: Mapping[int, list[tuple[int, dict[str, float]]]],
) -> Outcome:
    """Tries a recipe in a process of Ray's.

    Args:
        attempt: What all trials have in common.
        recipe: The recipe as a dict.
        key: Its hash.
        rungs: The finished trials at each rung, as they were when this one was placed.
    """
    attempt.folder.mkdir(parents=True, exist_ok=True)
    make_deterministic(attempt.seed)
    return attempt.outcome(Recipe.from_dict(recipe), key, lambda rung: rungs[rung])
