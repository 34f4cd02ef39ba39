"""Optuna's study: its storage, what it belongs to, and trials that a process left behind."""

from __future__ import annotations

import os
import pathlib
import socket
import urllib.parse
import warnings
from typing import Any

from tfcompress.files import is_running, one_at_a_time

KEY = "key"  # attribute of a trial: the hash of its recipe
_WORKER, _STOPPED, _TAKEN = "worker", "stopped", "taken up"
_REPEATS = 30
_HEARTBEAT_S = 60


def optuna_module() -> Any:
    """Returns Optuna, which says nothing but warnings.

    Raises:
        ImportError: If it is missing.
    """
    try:
        import optuna  # an extra
    except ImportError as error:
        raise ImportError("search() needs Optuna: pip install tfcompress[search].") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def open_study(
    storage: str | os.PathLike[str] | None, directions: list[str], sampler: Any, seed: int
) -> Any:
    """Opens a study, or creates it.

    Args:
        storage: None, the URL of a database or of Optuna's proxy, or the path of a journal.
        directions: "maximize" or "minimize" for each objective.
        sampler: None for `TPESampler`.
        seed: The seed of this.
    """
    optuna = optuna_module()
    if storage is None:
        opened = None
    elif str(storage).startswith("grpc://"):
        address = urllib.parse.urlsplit(str(storage))
        opened = optuna.storages.GrpcStorageProxy(host=address.hostname, port=address.port)
    elif "://" in str(storage):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            opened = optuna.storages.RDBStorage(
                str(storage), heartbeat_interval=_HEARTBEAT_S, heartbeat_stale_trial_callback=_again
            )
    else:
        backend = optuna.storages.journal.JournalFileBackend(str(storage))
        opened = optuna.storages.JournalStorage(backend)
    if sampler is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)
    return optuna.create_study(
        storage=opened,
        study_name="tfcompress",
        load_if_exists=True,
        directions=directions,
        sampler=sampler,
    )


def check_same(
    study: Any, description: dict[str, Any], first: dict[str, float]
) -> dict[str, float]:
    """Notes what a study is about, or checks it; returns the objectives of its float file.

    Args:
        study: The study.
        description: What must be the same whenever it is gone on with.
        first: The objectives of the float file, as measured now.

    Raises:
        ValueError: If the study is of another model, other data or other objectives.
    """
    before = study.user_attrs.get("about")
    if before is None:
        study.set_user_attr("about", description)
        study.set_user_attr("float", first)
        return first
    for name, value in description.items():
        if before[name] != value:
            raise ValueError(
                f"The study in the storage is of other {name}. Name another storage, or delete it "
                "and its folder."
            )
    return study.user_attrs["float"]


def take_up(study: Any, beginnings: list[dict[str, Any]], folder: pathlib.Path) -> None:
    """Queues the first trials of a new study, and those that a stopped process left unfinished.

    Args:
        study: The study.
        beginnings: Choices of the first trials.
        folder: A folder that all workers on this study share.
    """
    optuna = optuna_module()
    with one_at_a_time(folder / "study"):  # or two workers would queue the same
        if not study.get_trials():
            for choices in beginnings:
                study.enqueue_trial(choices)
        for trial in study.get_trials():
            left = trial.state.name == "RUNNING" and not _is_alive(trial.user_attrs.get(_WORKER))
            if left:
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            stopped = trial.state.name == "FAIL" and trial.user_attrs.get(_STOPPED)
            numbers = [t.user_attrs.get(_TAKEN) for t in study.get_trials()]
            if (left or stopped) and trial.number not in numbers:
                _again(study, trial)


def _again(study: Any, trial: Any) -> None:
    """Queues a trial that was left unfinished."""
    study.enqueue_trial(trial.params, user_attrs={_TAKEN: trial.number})


def counted(study: Any) -> int:
    """Returns the number of recipes that are tried or being tried."""
    trials = study.get_trials(deepcopy=False)
    again = {trial.user_attrs.get(_TAKEN) for trial in trials}
    begun = [t for t in trials if t.state.name != "WAITING" and t.number not in again]
    return len({trial.user_attrs.get(KEY, trial.number) for trial in begun})


def nothing_new(study: Any) -> bool:
    """Returns whether the last trials were all of recipes that had been tried, as in small spaces.

    A sampler proposes what was good again, which costs nothing and counts for nothing.
    """
    keys = [trial.user_attrs.get(KEY, trial.number) for trial in study.get_trials(deepcopy=False)]
    return len(keys) > _REPEATS and set(keys[-_REPEATS:]) <= set(keys[:-_REPEATS])


def without_repeats(study: Any) -> list[Any]:
    """Returns the trials, without those whose recipe had been tried to its end."""
    found, known = [], set()
    for trial in study.get_trials(deepcopy=False):
        key = trial.user_attrs.get(KEY)
        if trial.state.name != "COMPLETE" or key not in known:
            found.append(trial)
        if trial.state.name == "COMPLETE":
            known.add(key)
    return found


def mark(trial: Any) -> None:
    """Notes which process works on a trial."""
    trial.set_user_attr(_WORKER, [socket.gethostname(), os.getpid(), _started(os.getpid())])


def mark_stopped(trial: Any) -> None:
    """Notes that a trial was stopped, so that it is tried again."""
    trial.set_user_attr(_STOPPED, True)


def _is_alive(worker: Any) -> bool:
    """Returns whether the process of a trial may still work on it."""
    if worker is None:
        return False
    host, process, started = worker
    return host != socket.gethostname() or _started(process) == started


def _started(process: int) -> str:
    """Returns when a process of this machine started, in ticks where known; "" if there is none."""
    try:
        content = pathlib.Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return "" if pathlib.Path("/proc/self/stat").exists() or not is_running(process) else "runs"
    return content.rpartition(")")[2].split()[19]
