"""A table of recipes, each trained once, and samplers that search it again and again.

python -m benchmarks.search_table train      # adds to search_table.jsonl beside this file
python -m benchmarks.search_table replay     # 20 seeds of each sampler, from the table alone

A training that was stopped goes on; with --parts 2 --part 0 and 1, two processes share it.
The network is the ResNet of 78,426 parameters, trained on 8,000 of the images that ship with the
package; recipes train on 1,000 of them, and are judged on the other 2,000. Hypervolume is that of
accuracy, and of the logarithms of bytes after gzip and latency, beyond a point that is fixed: 10
points below the float net, its bytes and its latency.
"""

import argparse
import itertools
import json
import math
import pathlib
import tempfile

RESULTS = pathlib.Path(__file__).with_name("search_table.jsonl")
OBJECTIVES = ("accuracy", "gzip_bytes", "latency_ms")
CHOICES = {
    "scheme": ["int8", "w4a8"],
    "channels": [0.0, 0.25, 0.5],
    "sparsity": [0.0, 0.5, 0.8, 0.9],
    "clusters": [0, 16],
    "epochs": [1, 3],
    "alpha": [0.0, 0.5],
    "learning_rate": [1e-3, 3e-3],
}
"""384 recipes."""
BATCH, SEEDS, TRIALS, MANY = 64, 20, 60, 180


def recipe_of(chosen):
    """Returns the recipe of a row of the table."""
    import tfcompress as tfc

    fit = {k: chosen[k] for k in ("epochs", "learning_rate")} | {"batch_size": BATCH}
    if chosen["alpha"]:
        fit["distill"] = {"alpha": chosen["alpha"]}
    stages, last = [], fit
    if chosen["channels"]:
        stages += [{"prune_channels": {"ratio": chosen["channels"], "round_to": 4}}, {"fit": fit}]
    if chosen["sparsity"]:
        until = 1 / 3
        sparsity = {"sparsity": chosen["sparsity"], "until": until, "ranking": "global"}
        stages.append({"prune": sparsity})
        last = {**fit, "hold": until}
    if chosen["clusters"]:
        stages.append({"cluster": {"number_of_clusters": chosen["clusters"]}})
    stages += [{"quantize": {"scheme": chosen["scheme"]}}, {"fit": last}, "export"]
    return tfc.Recipe.from_dict({"stages": stages})


def known():
    """Returns the rows of the table, and the float net's."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    rows = {row.pop("name"): row for row in map(json.loads, lines)}
    return rows, rows.pop("float", None)


def name_of(chosen):
    return " ".join(f"{key}={chosen[key]:g}" if key != "scheme" else chosen[key] for key in CHOICES)


def all_choices():
    """Yields the choices of every row."""
    for values in itertools.product(*CHOICES.values()):
        yield dict(zip(CHOICES, values, strict=True))


def add(name, values):
    with RESULTS.open("a") as output:
        output.write(json.dumps({"name": name, **values}) + "\n")


def train(folder, part, parts):
    """Trains what the table lacks, or every so manieth of it."""
    import keras

    from tfcompress.demo.data import load
    from tfcompress.demo.models import resnet
    from tfcompress.files import one_at_a_time
    from tfcompress.pareto.attempt import Attempt, float_file
    from tfcompress.pareto.objectives import Objectives
    from tfcompress.recipes.run import key_of, make_deterministic

    make_deterministic(0)
    folder.mkdir(parents=True, exist_ok=True)
    data = load()
    arrays, y = {"image": data.x_train[:1000]}, data.y_train[:1000]
    path = folder / "float.keras"
    with one_at_a_time(path):
        if not path.exists():
            model = resnet((16, 32, 64))
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(keras.optimizers.Adam(3e-3), loss)
            model.fit(data.x_train[:8000], data.y_train[:8000], batch_size=64, epochs=6, verbose=0)
            model.save(path)
    model = keras.saving.load_model(path)
    print(f"{model.count_params():,} parameters")
    held_out = {"image": data.x_train[8000:10000]}, data.y_train[8000:10000]
    judge = Objectives(OBJECTIVES, None, float_file(model, folder), model, *held_out, None)
    with one_at_a_time(path):
        rows, reference = known()
        if reference is None:
            add("float", judge.reference)
    judge.reference = reference or judge.reference
    attempt = Attempt(model, arrays, y, judge, folder, {"model": "table", "data": "table"}, 0, None)
    for index, chosen in enumerate(all_choices()):
        name = name_of(chosen)
        if index % parts != part or name in rows:
            continue
        recipe = recipe_of(chosen)
        outcome = attempt.outcome(
            recipe, key_of(recipe.as_dict(), attempt.sources, 0), lambda _: ()
        )
        print(name, outcome.values or outcome.note, flush=True)
        add(name, outcome.values or {"note": outcome.note})


def replay():
    """Prints the hypervolume that each sampler reaches, as a ratio to random search."""
    import numpy as np
    import optuna

    from tfcompress.pareto.study import open_study

    rows, reference = known()
    print(f"{len(rows)} recipes; float {reference}")
    worst = np.array(
        [0.1, 0.0, 0.0]
    )  # loss of accuracy, and logarithms of ratios to the float file

    def point(values):
        """Returns the losses of a row: less is better."""
        costs = [math.log(values[name] / reference[name]) for name in OBJECTIVES[1:]]
        return np.array([reference["accuracy"] - values["accuracy"], *costs])

    def volume(seed, sampler, counts):
        study = open_study(None, ["maximize", "minimize", "minimize"], sampler, seed)
        points, found = {}, []
        while len(points) < max(counts) and len(study.trials) < 20 * max(counts):
            trial = study.ask()
            chosen = {k: trial.suggest_categorical(k, v) for k, v in CHOICES.items()}
            values = rows[name_of(chosen)]
            if "note" in values:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                continue
            study.tell(trial, [values[name] for name in OBJECTIVES])
            points[name_of(chosen)] = point(values)
            while len(found) < len(counts) and len(points) >= counts[len(found)]:
                found.append(_hypervolume(np.array(list(points.values())), worst))
        return found + [_hypervolume(np.array(list(points.values())), worst)] * (
            len(counts) - len(found)
        )

    samplers = {
        "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
        "TPE (the default)": lambda seed: None,
        "NSGA-II": lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=20),
    }
    best = _hypervolume(np.array([point(v) for v in rows.values() if "note" not in v]), worst)
    print("| sampler | 60 recipes | times random | 180 recipes | share of the table's, at 60 |")
    print("|---" * 5 + "|")
    for name, make in samplers.items():
        found = np.array([volume(seed, make(seed), (TRIALS, MANY)) for seed in range(SEEDS)])
        if name == "random":
            base = found.mean(0)
        few, many = (f"{v.mean():.4f} (deviation {v.std():.4f})" for v in found.T)
        mean = found[:, 0].mean()
        print(f"| {name} | {few} | {mean / base[0]:.2f} | {many} | {mean / best:.1%} |")


def _hypervolume(points, worst):
    """Returns the volume that points dominate below the worst point, by Optuna's algorithm."""
    from optuna._hypervolume import compute_hypervolume

    inside = points[(points < worst).all(1)]
    return float(compute_hypervolume(inside, worst)) if len(inside) else 0.0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("train", "replay"))
    parser.add_argument("--folder", type=pathlib.Path, default=None)
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1)
    options = parser.parse_args()
    if options.step == "replay":
        replay()
    else:
        folder = options.folder or pathlib.Path(tempfile.gettempdir(), "search_table")
        train(folder, options.part, options.parts)


if __name__ == "__main__":
    main()
