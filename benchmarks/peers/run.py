"""Runs what has no result yet, and judges each file on the same images by the same runtime.

Results are added as lines to --results, results.jsonl beside this module if it is not given; a run
that failed has the message of its error. --only takes a part of a run's name ("tune/",
"final/resnet", "steps/"); --jobs is how many run at once, each on one thread. Step times are
measured one by one, on all cores; the latency of all files last, in turns.
"""

import argparse
import concurrent.futures
import gzip
import json
import os
import pathlib
import subprocess
import tempfile
import threading
import time

import numpy as np

from benchmarks.peers import data, jobs
from benchmarks.peers.environments import python_of

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = pathlib.Path(__file__).with_name("results.jsonl")
LIMIT_S = 3600


def known(path):
    """Returns the results so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def judged(path, x, y):
    """Returns what a file is worth: accuracy on labelled samples, bytes, bytes after gzip."""
    import tfcompress as tfc

    model = tfc.TFLiteModel(path)
    content = pathlib.Path(path).read_bytes()
    predicted = np.concatenate([model.predict(part) for part in np.array_split(x, 20)])
    return {
        "accuracy": float(np.mean(predicted.reshape(len(y), -1).argmax(-1) == y)),
        "bytes": len(content),
        "gzip_bytes": len(gzip.compress(content, 9)),
    }


def file_of(job, folder):
    """Returns where the file of a job is."""
    name = job["name"].replace("/", "_").replace(" ", "_").replace(",", "")
    return folder / "files" / f"{name}.tflite"


def weights_of(job, folder):
    """Returns where the float weights are that a job starts from, or trains."""
    stage = "tune" if job["stage"] == "tune" else "final"
    return folder / f"float_{stage}_{job['net']}_{job['seed']}.npz"


def execute(job, folder):
    """Runs one job in the environment of its peer, and returns its result."""
    path = data.ready(job["data"], folder)
    (folder / "files").mkdir(exist_ok=True)
    job = {
        **job,
        "data": str(path),
        "file": str(file_of(job, folder)),
        "weights": str(weights_of(job, folder)),
    }
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    if job["stage"] != "steps":
        environment |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    with tempfile.TemporaryDirectory() as scratch:
        asked, answer = pathlib.Path(scratch, "job.json"), pathlib.Path(scratch, "answer.json")
        asked.write_text(json.dumps(job))
        module = f"benchmarks.peers.workers.{jobs.WORKERS[job['peer']]}"
        command = [python_of(folder, job["peer"]), "-m", module, asked, answer]
        log = pathlib.Path(job["file"]).with_suffix(".log")
        started = time.perf_counter()
        with log.open("w") as output:
            try:
                code = subprocess.run(
                    command,
                    cwd=ROOT,
                    env=environment,
                    timeout=LIMIT_S,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                ).returncode
            except subprocess.TimeoutExpired:
                code = f"more than {LIMIT_S} s"
        found = json.loads(answer.read_text()) if answer.exists() else {"error": f"ended: {code}"}
    found["seconds"] = time.perf_counter() - started
    if pathlib.Path(job["file"]).exists():
        *_, x, y = data.parts(path, job)
        try:
            found.update(judged(job["file"], x, y))
        except Exception as error:
            found["error"] = f"in the runtime: {type(error).__name__}: {str(error)[:500]}"
    return found


def record(job, folder, results, lock):
    """Runs a job, and adds its result to those there are."""
    result = {**job, **execute(job, folder)}
    told = result.get("error", result.get("accuracy", result.get("step_ms", "")))
    with lock:
        add(result, results)
        print(f"{job['name']}: {told}, {result['seconds']:.0f} s", flush=True)


def add(result, results):
    with results.open("a") as output:
        output.write(json.dumps(result) + "\n")


def time_files(folder, results):
    """Measures the latency of the first file of each row of a network, in turns, on one thread."""
    import tfcompress as tfc
    from tfcompress.tflite.benchmark import benchmark

    found = known(results)
    for net in jobs.DATA:
        files = {
            jobs.label(key): file_of(rows[0], folder)
            for key, rows in jobs.rows_of(found, net).items()
            if "accuracy" in rows[0]
        }
        models = {name: tfc.TFLiteModel(path) for name, path in files.items() if path.exists()}
        timed = benchmark(models, runs=400) if models else {}
        milliseconds = {name: one.median_ms for name, one in timed.items()}
        add({"stage": "latency", "name": f"latency/{net}", "net": net, "ms": milliseconds}, results)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("peers-output"))
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--only", default="")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    results = options.results.resolve()
    lock = threading.Lock()
    stages = [jobs.grid, lambda: jobs.rates(known(results))]
    for net, data_set in jobs.DATA.items():
        for seed in range(jobs.SEEDS[data_set]):
            stages.append(lambda net=net, seed=seed: jobs.finals(known(results), net, seed))
    for stage in (*stages, lambda: jobs.once(known(results)), jobs.steps):
        have = {result["name"] for result in known(results)}
        found = list(stage())
        wanted = [j for j in found if j["name"] not in have and options.only in j["name"]]
        needed = {weights_of(job, folder) for job in wanted}
        # The others start from its weights; those of another machine's results are not here.
        trains = [j for j in found if j["recipe"] == "train" and weights_of(j, folder) in needed]
        trains = [j for j in trains if not weights_of(j, folder).exists()]
        at_once = 1 if stage is jobs.steps else options.jobs
        for part in (trains, [j for j in wanted if j["recipe"] != "train"]):
            with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
                list(pool.map(lambda job: record(job, folder, results, lock), part))
    if not options.only:
        time_files(folder, results)


if __name__ == "__main__":
    main()
