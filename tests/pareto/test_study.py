"""One study from many processes: journal, database and proxy, also when workers are killed."""

import os
import pathlib
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np
import optuna
import pytest

import tfcompress as tfc
from tests.conftest import ROOT
from tfcompress.pareto.study import open_study, take_up

POSTGRES = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"))


@pytest.fixture(scope="module")
def database():
    """The URL of a PostgreSQL server of the tests' own, on a socket in a folder of its own."""
    if not POSTGRES:
        pytest.skip("PostgreSQL is not installed")
    home = tempfile.mkdtemp()
    user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []  # it refuses root
    if user:
        owner = pwd.getpwnam("postgres")
        os.chown(home, owner.pw_uid, owner.pw_gid)
    name = "postgres" if user else pwd.getpwuid(os.getuid()).pw_name
    quiet = {"cwd": home, "stdout": subprocess.DEVNULL, "check": True}
    subprocess.run([*user, POSTGRES[-1] / "initdb", "-D", f"{home}/data", "-A", "trust"], **quiet)
    control = [*user, POSTGRES[-1] / "pg_ctl", "-D", f"{home}/data", "-w"]
    options = f"-k {home} -c listen_addresses='' -c fsync=off"
    subprocess.run([*control, "-l", f"{home}/log", "-o", options, "start"], **quiet)
    yield f"postgresql+psycopg2://{name}@/postgres?host={home}"
    subprocess.run([*control, "-m", "immediate", "stop"], **quiet)
    shutil.rmtree(home)


def many_recipes(trial):
    """Recipes of a second or so."""
    sparsity = round(trial.suggest_float("sparsity", 0.1, 0.9), 3)
    return tfc.Recipe.from_dict(
        {
            "stages": [
                {"prune": {"sparsity": sparsity}},
                "quantize",
                {"fit": {"epochs": 1, "batch_size": 64}},
                "export",
            ]
        }
    )


SEARCH = """
import sys
sys.path.insert(0, {root!r})
import keras, numpy as np
from tests.pareto.test_study import search
with np.load("data.npz") as arrays:
    data = arrays["x"], arrays["y"]
search(keras.models.load_model("model.keras"), data, {trials}, {storage!r}, {shared!r})
"""


def search(model, data, trials, storage, shared):
    return tfc.search(
        model,
        data,
        data,
        trials=trials,
        space=many_recipes,
        storage=storage,
        folder=shared,
        objectives=("accuracy", "gzip_bytes"),
        verbose=False,
    )


def check_killed_workers(storage, shared, kills, trials, folder, model, data):
    """Kills workers at random moments, two at once, lets two go on, and counts."""
    code = SEARCH.format(root=str(ROOT), storage=storage, shared=shared, trials=trials)
    generator = np.random.default_rng(0)

    def start():
        return subprocess.Popen([sys.executable, "-c", code], cwd=folder)

    while kills > 0:
        workers = [start() for _ in range(min(kills, 2))]
        kills -= len(workers)
        time.sleep(5)  # TensorFlow is being imported
        for worker in workers:
            time.sleep(generator.uniform(0, 4))
            worker.send_signal(signal.SIGKILL)
            worker.wait()
    two = [start(), start()]
    assert [worker.wait() for worker in two] == [0, 0]
    found = search(model, data, trials, storage, shared)
    complete = [trial for trial in found.trials if trial.state == "complete"]
    assert not any(trial.state == "running" for trial in found.trials)
    # A trial that was broken is there twice: as failed, and as tried again.
    again = [trial.user_attrs.get("taken up") for trial in found.study.get_trials()]
    again = [number for number in again if number is not None]
    broken = {trial.number for trial in found.trials if trial.state == "failed"}
    assert len(set(again)) == len(again) and broken == set(again)
    assert len(complete) == len(found.trials) - len(broken) >= trials
    assert len({str(trial.recipe) for trial in complete}) == len(complete)


def test_killed_workers_lose_nothing_and_count_nothing_twice(folder, model, data, tmp_path):
    check_killed_workers(str(tmp_path / "journal.log"), None, 1, 3, folder, model, data)


@pytest.mark.slow
def test_twenty_killed_workers_on_a_journal(folder, model, data, tmp_path):
    check_killed_workers(str(tmp_path / "journal.log"), None, 20, 30, folder, model, data)


@pytest.mark.slow
def test_twenty_killed_workers_on_a_database(database, folder, model, data, tmp_path):
    check_killed_workers(database, str(tmp_path / "shared"), 20, 30, folder, model, data)


def test_a_database_and_a_proxy_hold_one_study(database, model, data, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    server = (
        f"import optuna; storage = optuna.storages.RDBStorage({database!r}); "
        f"optuna.storages.run_grpc_proxy_server(storage, host='localhost', port={port})"
    )
    first = search(model, data, 2, database, tmp_path / "shared")
    proxy = subprocess.Popen([sys.executable, "-c", server], stderr=subprocess.DEVNULL)
    try:
        optuna.storages.GrpcStorageProxy(host="localhost", port=port).wait_server_ready(timeout=60)
        more = search(model, data, 3, f"grpc://localhost:{port}", tmp_path / "shared")
    finally:
        proxy.terminate()
        proxy.wait()
    assert len(first.trials) == 2 and more.trials[:2] == first.trials and len(more.trials) == 3
    assert [trial.state for trial in more.trials] == ["complete"] * 3
    with pytest.raises(ValueError, match="needs folder="):
        search(model, data, 1, database, None)


def test_a_trial_of_another_machine_is_left_alone(tmp_path):
    study = open_study(tmp_path / "journal.log", ["maximize", "minimize"], None, 0)
    for host in ("elsewhere", None):
        trial = study.ask()
        trial.suggest_int("n", 0, 3)
        if host:
            trial.set_user_attr("worker", [host, 1, "0"])
    take_up(study, [], tmp_path)
    take_up(study, [], tmp_path)
    assert [t.state.name for t in study.get_trials()] == ["RUNNING", "FAIL", "WAITING"]
