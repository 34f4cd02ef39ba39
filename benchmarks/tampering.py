"""How many tampered files the check lets through, and how many good ones it refuses.

Run by hand: python -m benchmarks.tampering [--count 30] [--seed 0]
"""

from __future__ import annotations

import argparse
import collections
import tempfile
import time

from rich.console import Console

from tests.tampering import held_out, kinds
from tests.tampering.subjects import SCHEMES, Subject, subjects
from tfcompress.tables import table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=30, help="mutants of each file and generator")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.perf_counter()
    columns = ["file", "own error", "mutants", "refused", "let through", "of more than 5%"]
    rows = []
    total: collections.Counter[str] = collections.Counter()
    slipped = []
    for make in subjects():
        for scheme in SCHEMES:
            with tempfile.TemporaryDirectory() as folder:
                one = Subject(make, scheme, folder, options.seed)
            total["good files"] += 1
            total["good files refused"] += one.refuses(one.content)
            mutants = kinds.mutants(one.content, options.seed, options.count)
            mutants += held_out.mutants(one.content, options.seed, options.count)
            refused = sum(one.refuses(content) for _, content in mutants)
            wrong = [(k, e) for k, e in ((k, one.slips(c)) for k, c in mutants) if e is not None]
            slipped += [(one.name, kind, round(error, 4)) for kind, error in wrong]
            total["mutants"] += len(mutants)
            total["mutants refused"] += refused
            passed = len(mutants) - refused
            rows.append(
                (one.name, f"{one.own_error:.4f}", len(mutants), refused, passed, len(wrong))
            )
    Console(width=120).print(table("tampered files", columns, rows))
    for name, kind, error in slipped:
        print(f"let through: {name}, {kind}, off by {error}")
    print(
        f"{total['mutants']} mutants, {total['mutants refused']} refused; let through, more than "
        f"5% off: {len(slipped)}; {total['good files refused']} of {total['good files']} good "
        f"files refused; {time.perf_counter() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
