"""Damaged variants of a valid `.tflite` file, to see what a reader makes of them.

`mutants` is seeded and deterministic and never raises.
"""

import random
import zlib

from tensorflow.lite.python import schema_py_generated as fb

from tests.fuzzing.editing import other, pack
from tests.fuzzing.raw import raw
from tests.fuzzing.structural import (
    added,
    buffer,
    graph,
    operator,
    option,
    quant,
    shape,
    sparsity,
    stored,
)


def any_(m, r, how):
    """Any field of any table, one to four of them; or two structural kinds at once."""
    spots, queue = [], [m]
    for name in r.sample(sorted(KINDS), 2) if how == "two_kinds" else ():
        apply(m, r, name)
    for x in queue if how == "field" else ():
        spots += [(x, k) for k in sorted(vars(x))]
        queue += [
            y
            for v in vars(x).values()
            for y in (v if isinstance(v, list) else [v])
            if hasattr(y, "Pack")
        ]
    for x, k in r.sample(spots, min(len(spots), r.choice([1, 1, 4]))):
        setattr(x, k, r.choice([None, *[other(getattr(x, k), r, k)] * 3]))


KINDS = {
    f"{f.__name__}_{how}": (f, how)
    for f, hows in (
        (operator, "inputs outputs cycle twice order index code swap custom"),
        (option, "value table stablehlo"),
        (shape, "size rank signature same_bytes type types"),
        (added, "recipe flow"),
        (buffer, "size link list offset"),
        (stored, "ints arguments gone"),
        (sparsity, "table"),
        (quant, "scale zero counts axis"),
        (any_, "field two_kinds"),
        (graph, "ends parts list signature metadata names"),
        (raw, "bits words vtable vector alias length splice"),
    )
    for how in hows.split()
}


def apply(m, r, name):
    """Edits a model or bytes; bytes come back where the edit made some."""
    f, how = KINDS[name]
    made = f(m, r, how)
    if isinstance(made, tuple):
        setattr(made[0], made[1], r.choice(made[2]))
    return made if isinstance(made, bytes) else None


def _one(content, name, key):
    """One variant of a kind, or None where the kind does not apply."""
    for attempt in range(12):
        r, is_raw = random.Random(f"{key}/{name}/{attempt}"), KINDS[name][0] is raw
        try:
            m = bytearray(content) if is_raw else fb.ModelT.InitFromPackedBuf(content)
            made = apply(m, r, name) or (bytes(m) if is_raw else pack(m))
            if made not in (content, pack(fb.ModelT.InitFromPackedBuf(content))):
                return made
        except Exception:
            continue
    return None


def mutants(content: bytes, seed: int, count: int) -> list[tuple[str, bytes]]:
    """Returns `count` damaged variants of a file as (kind, bytes), kinds taking turns."""
    content, order, made, crc = bytes(content), sorted(KINDS), [], zlib.crc32(content)
    random.Random(f"order {seed} {crc}").shuffle(order)
    for i in range(count):
        turn, key = order[i % len(order) :] + order[: i % len(order)], f"{seed}/{i}/{crc}"
        tried = ((name, found) for name in turn if (found := _one(content, name, key)) is not None)
        made.append(next(tried, ("raw_cut", content[: i % (len(content) + 1)])))
    return made
