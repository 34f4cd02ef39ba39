"""Which runs there are: a grid that tunes each recipe, and final runs with the best settings."""

import collections
import itertools

EPOCHS = {"tune": 6, "fashion": 6, "digits": 20}
"""Of all stages of compression together; the float networks were trained for twice as many."""
IMAGES = {"tune": 5_000, "fashion": 10_000, "digits": 2_400}
"""In an epoch, so that recipes of several stages can divide one pass over Fashion-MNIST."""
FLOAT = {"rate": 3e-3, "schedule": "cosine"}
RATES, SHARES = (3e-3, 1e-3), (1 / 3, 2 / 3)
SCHEDULES = ("cosine", "constant", "late cosine")
"""The last is constant for the share, and decays from there; it needs one. They are tuned at the
first of the rates."""
DATA = {"resnet": "fashion", "mobilenet": "fashion", "ds_cnn": "digits"}
SEEDS = {"fashion": 3, "digits": 5}
WORKERS = {
    "tfcompress": "tfcompress",
    "tfmot": "tfmot",
    "keras": "keras3",
    "qkeras": "qkeras3",
    "mct": "mct",
    "inc": "inc",
    "nncf": "nncf",
}

# What is trained: (peer, recipe, whether the first stage has a share, sparsities of the ResNet,
# teacher). The two smaller networks have the first of the sparsities only.
TRAINED = [
    ("tfmot", "QAT", False, (None,), False),
    ("tfmot", "prune, PTQ", True, (0.8, 0.9), False),
    ("tfmot", "PCQAT", True, (0.8, 0.9), False),
    ("tfcompress", "QAT", False, (None,), False),
    ("tfcompress", "prune + QAT", True, (0.8, 0.9), False),
    ("tfcompress", "prune + cluster + QAT", True, (0.8, 0.9), False),
    ("tfcompress", "prune + cluster + QAT", True, (0.8, 0.9), True),
]
TRAINED_ONCE = [
    ("tfmot", "PQAT", True, (0.9,), False),
    ("tfmot", "CQAT", True, (None,), False),
    ("tfcompress", "cluster + QAT", False, (None,), False),
    ("qkeras", "QAT", False, (None,), False),
    ("mct", "QAT", False, (None,), False),
    ("nncf", "QAT", False, (None,), False),
    ("keras", "distillation, PTQ", False, (None,), False),
]
"""Likewise, by the first seed of the ResNet only."""
UNTRAINED = [
    ("keras", "float"),
    ("keras", "PTQ"),
    ("keras", "dynamic"),
    ("keras", "litert-quantizer PTQ"),
    ("keras", "quantize int8"),
    ("keras", "quantize int4"),
    ("keras", "quantize float8"),
    ("keras", "quantize gptq"),
    ("tfcompress", "float"),
    ("tfcompress", "PTQ"),
    ("tfmot", "PTQ"),
    ("mct", "PTQ"),
    ("inc", "PTQ"),
    ("nncf", "PTQ"),
]
TUNED = [
    ("tfmot", "QAT"),
    ("tfmot", "prune, PTQ"),
    ("tfmot", "PCQAT"),
    ("tfcompress", "QAT"),
    ("tfcompress", "prune + QAT"),
    ("tfcompress", "prune + cluster + QAT"),
]
INHERITED = {"PQAT": "PCQAT", "CQAT": "PCQAT", "cluster + QAT": "QAT", "distillation, PTQ": "QAT"}
"""Whose settings a recipe has that is not tuned; a teacher changes none, and other peers have those
of tfmot's QAT."""
TUNED_AT = 0.9
"""The sparsity at which recipes that prune are tuned."""
STEPS = ("tfcompress", "tfmot", "qkeras", "mct", "nncf")


def job(peer, recipe, net, seed, stage, settings=None, **more):
    """Returns one run, with a name of its own."""
    data = DATA[net]
    told = [peer, recipe, *(f"{k}={v}" for k, v in more.items() if v)]
    if stage == "tune":
        told += [f"{k}={v:.2g}" if isinstance(v, float) else v for k, v in settings.items()]
    name = "/".join([stage, net, str(seed), " ".join(map(str, told))])
    return {
        "name": name,
        "peer": peer,
        "recipe": recipe,
        "net": net,
        "data": data,
        "seed": seed,
        "stage": stage,
        "epochs": EPOCHS["tune" if stage == "tune" else data],
        "images": IMAGES["tune" if stage == "tune" else data],
        "settings": settings or {},
        **more,
    }


def float_job(net, seed, stage):
    """Returns the run that trains a float network."""
    run = job("keras", "train", net, seed, stage, FLOAT)
    return {**run, "epochs": 2 * run["epochs"]}


def grid():
    """Yields the runs that tune schedule and share of a recipe, after that of its float network."""
    yield float_job("resnet", 0, "tune")
    for peer, recipe, shared, sparsities, teacher in TRAINED:
        if (peer, recipe) in TUNED and not teacher:
            for schedule, share in itertools.product(SCHEDULES, SHARES if shared else (None,)):
                if share or schedule != "late cosine":
                    settings = {"rate": RATES[0], "schedule": schedule}
                    settings |= {"share": share} if share else {}
                    yield tuning(peer, recipe, settings, any(sparsities))


def rates(results):
    """Yields the runs that tune the learning rate, with the best schedule and share."""
    prunes = {(peer, recipe): any(sparsities) for peer, recipe, _, sparsities, _ in TRAINED}
    for (peer, recipe), settings in best(results).items():
        for rate in RATES:
            yield tuning(peer, recipe, {**settings, "rate": rate}, prunes[peer, recipe])


def tuning(peer, recipe, settings, prunes):
    """Returns a run of the grid."""
    sparsity = TUNED_AT if prunes else None
    return job(peer, recipe, "resnet", 0, "tune", settings, sparsity=sparsity)


def best(results):
    """Returns the settings of each (peer, recipe) that were best on the validation images."""
    found = {}
    for result in results:
        if result["stage"] == "tune" and result["recipe"] != "train" and "accuracy" in result:
            key = result["peer"], result["recipe"]
            if key not in found or result["accuracy"] > found[key]["accuracy"]:
                found[key] = result
    return {key: result["settings"] for key, result in found.items()}


def key_of(result):
    """Returns what a row of the tables is about."""
    return (result["peer"], result["recipe"], result.get("sparsity"), bool(result.get("teacher")))


def label(key):
    """Returns what to call a row."""
    peer, recipe, sparsity, teacher = key
    parts = [peer, recipe, f"{sparsity:.0%} zeros" if sparsity else "", "distilled" * teacher]
    return ", ".join(filter(None, parts))


def rows_of(results, net):
    """Returns the final results of a network by row."""
    rows = collections.defaultdict(list)
    for result in results:
        if result["stage"] == "final" and result["net"] == net and result["recipe"] != "train":
            rows[key_of(result)].append(result)
    return rows


def finals(results, net, seed):
    """Yields the runs of a network and seed with the best settings, its float network first.

    What failed on the first seed is not run on others.
    """
    settings = best(results)
    failed = {(r["net"], key_of(r)) for r in results if r["stage"] == "final" and "error" in r}
    yield float_job(net, seed, "final")
    for peer, recipe in UNTRAINED:
        found = job(peer, recipe, net, seed, "final")
        if seed == 0 or (net, key_of(found)) not in failed:
            yield found
    yield from trained(settings, TRAINED, net, seed)


def once(results):
    """Yields the runs of what is trained once."""
    return trained(best(results), TRAINED_ONCE, "resnet", 0)


def trained(settings, rows, net, seed):
    """Yields the runs that train, with the best settings."""
    for peer, recipe, _, sparsities, teacher in rows:
        tuned = peer, INHERITED.get(recipe, recipe)
        chosen = settings.get(tuned) or settings[("tfmot", "QAT")]
        for sparsity in sparsities if net == "resnet" else sparsities[:1]:
            more = {"sparsity": sparsity, "teacher": teacher}
            yield job(peer, recipe, net, seed, "final", chosen, **more)


def steps():
    """Yields the runs that measure a training step, in three processes each."""
    for seed in range(3):
        for net in ("resnet", "mobilenet"):
            for peer in STEPS:
                yield job(peer, "steps", net, seed, "steps", process=seed)
