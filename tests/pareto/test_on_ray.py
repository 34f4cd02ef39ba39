"""A search on Ray: the same files as in this process, also when a worker is killed."""

import os
import pathlib
import signal
import threading
import time

import pytest

from tests.pareto.test_search import searched

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster():
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def kill_a_worker(killed):
    deadline = time.monotonic() + 120
    while not killed and time.monotonic() < deadline:
        for process in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
            try:
                works = process.read_bytes().startswith(b"ray::_tried")
            except OSError:  # it has ended
                continue
            if works and not killed:
                os.kill(int(process.parent.name), signal.SIGKILL)
                killed.append(process.parent.name)
        time.sleep(0.05)


def test_a_search_on_ray_finds_what_a_search_here_does(cluster, model, data, tmp_path):
    """Although one of its workers is killed: Ray does its trial again."""
    here, killed = searched(model, data, 2), []
    killer = threading.Thread(target=kill_a_worker, args=(killed,))
    killer.start()
    there = searched(model, data, 2, executor="ray", storage=tmp_path / "journal.log")
    killer.join()
    assert killed and [trial.state for trial in there.trials] == ["complete"] * 2
    for trial in there.trials:
        (same,) = [other for other in here.trials if other.recipe == trial.recipe]
        assert pathlib.Path(same.file).read_bytes() == pathlib.Path(trial.file).read_bytes()
        assert same.values == trial.values


def test_wrong_resources(model, data):
    with pytest.raises(ValueError, match="a resource must be one of 'CPU', 'GPU'"):
        searched(model, data, 1, executor="ray", resources={"TPU": 1})
    with pytest.raises(ValueError, match="not all 0"):
        searched(model, data, 1, executor="ray", resources={"CPU": 0})
    with pytest.raises(ValueError, match="executor must be one of"):
        searched(model, data, 1, executor="rey")
