"""Which runs there are: a grid that tunes each recipe, and final runs with the best settings."""

import itertools

EPOCHS = {"tune": 12, "fashion": 6, "digits": 20}
"""Of the float network, and again of all stages of compression together. The 10,000 images of the
grid are read twice as often, so that schedules have steps to work in."""
FLOAT = {"rate": 3e-3, "schedule": "cosine"}
RATES, SHARES = (3e-3, 1e-3, 3e-4), (1 / 3, 2 / 3)
SCHEDULES = ("cosine", "constant", "late cosine")
"""The last is constant for the share, and decays from there; it needs one."""
SPARSITIES = {"PCQAT": (0.8, 0.85, 0.9), "prune + cluster + QAT": (0.8, 0.85, 0.9)}
"""Of the final runs of the ResNet, whose front is compared; 0.8 and 0.9 for others that prune. The
two smaller networks have 0.8 only."""
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

# What is trained: (peer, recipe, whether the first stage has a share, whether it prunes, teacher).
TRAINED = [
    ("tfmot", "QAT", False, False, False),
    ("tfmot", "prune, PTQ", True, True, False),
    ("tfmot", "PQAT", True, True, False),
    ("tfmot", "PCQAT", True, True, False),
    ("tfmot", "CQAT", True, False, False),
    ("tfcompress", "QAT", False, False, False),
    ("tfcompress", "prune + QAT", True, True, False),
    ("tfcompress", "prune + QAT", True, True, True),
    ("tfcompress", "prune + cluster + QAT", True, True, False),
    ("tfcompress", "prune + cluster + QAT", True, True, True),
    ("tfcompress", "cluster + QAT", False, False, False),
    ("qkeras", "QAT", False, False, False),
    ("mct", "QAT", False, False, False),
    ("nncf", "QAT", False, False, False),
    ("keras", "distillation, PTQ", False, False, False),
]
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
    ("tfmot", "PQAT"),
    ("tfmot", "PCQAT"),
    ("tfcompress", "QAT"),
    ("tfcompress", "prune + QAT"),
    ("tfcompress", "prune + cluster + QAT"),
]
INHERITED = {"CQAT": "PCQAT", "cluster + QAT": "QAT", "distillation, PTQ": "QAT"}
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
        "settings": settings or {},
        **more,
    }


def floats():
    """Returns the runs that train the float networks."""
    yield job("keras", "train", "resnet", 0, "tune", FLOAT)
    for net, data in DATA.items():
        for seed in range(SEEDS[data]):
            yield job("keras", "train", net, seed, "final", FLOAT)


def grid():
    """Returns the runs that tune a recipe."""
    for peer, recipe, shared, prunes, teacher in TRAINED:
        if (peer, recipe) not in TUNED or teacher:
            continue
        shares = SHARES if shared else (None,)
        for rate, schedule, share in itertools.product(RATES, SCHEDULES, shares):
            if schedule == "late cosine" and not share:
                continue
            settings = {"rate": rate, "schedule": schedule}
            if share:
                settings["share"] = share
            sparsity = TUNED_AT if prunes else None
            yield job(peer, recipe, "resnet", 0, "tune", settings, sparsity=sparsity)


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


def finals(results, seed):
    """Yields the runs of one seed with the best settings.

    What failed on the first seed is not run on others, nor are trainings by peers that are tuned on
    nothing.
    """
    settings = best(results)
    failed = {
        (r["net"], key_of(r)) for r in results if r["stage"] == "final" and "accuracy" not in r
    }
    for net, data in DATA.items():
        for found in finals_of(settings, net, seed) if seed < SEEDS[data] else ():
            untuned = found["settings"] and found["peer"] not in ("tfcompress", "tfmot")
            if seed == 0 or not (untuned or (net, key_of(found)) in failed):
                yield found


def finals_of(settings, net, seed):
    """Yields the runs of one network and seed."""
    for peer, recipe in UNTRAINED:
        yield job(peer, recipe, net, seed, "final")
    for peer, recipe, _, prunes, teacher in TRAINED:
        tuned = peer, INHERITED.get(recipe, recipe)
        chosen = settings.get(tuned) or settings.get(("tfmot", "QAT"))
        if chosen is None:
            continue  # the grid was not run yet
        sparsities = (None,)
        if prunes:
            sparsities = SPARSITIES.get(recipe, (0.8, 0.9)) if net == "resnet" else (0.8,)
        for sparsity in sparsities:
            more = {"sparsity": sparsity, "teacher": teacher}
            yield job(peer, recipe, net, seed, "final", chosen, **more)


def steps():
    """Returns the runs that measure a training step, in five processes each."""
    for seed in range(5):
        for net in ("resnet", "mobilenet"):
            for peer in STEPS:
                yield job(peer, "steps", net, seed % SEEDS["fashion"], "steps", process=seed)
