# ruff: noqa: SIM115
"""Runs damaged `.tflite` files through tfcompress in child processes and lists the bad ends.

    python -m tests.fuzzing.run -n 50 --seed 7                # 50 variants of every base file
    python -m tests.fuzzing.run -n 50 --seed 7 BASE.tflite    # of these files
    python -m tests.fuzzing.run --replay fuzz-bad/*.tflite

A batch is one process. Where it dies, the file that it was at is run alone; where that one is fine
alone, all before it are, one by one. Python and tfcompress are those that run this script.
"""

from __future__ import annotations

import argparse
import collections
import glob
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback

from tests.fuzzing.bases import make
from tests.fuzzing.kinds import mutants

DOCUMENTED = ("ValueError", "TypeError", "FileNotFoundError", "ExportError")
POLL = 0.02


def calls(tfc, content, delegates):
    """The calls under test as (name, function of what the first returned)."""
    import numpy as np

    def samples(info):
        shape = [2, *(min(max(int(d), 1), 512) for d in info.shape[1:])] if len(info.shape) else [2]
        if int(np.prod(shape, dtype=object)) > 1 << 22:
            return None
        if np.dtype(info.dtype).kind not in "fiub":
            return np.zeros(shape, info.dtype)
        return np.random.default_rng(0).integers(0, 3, shape).astype("float32")

    def predict(model):
        x = [samples(info) for info in model.inputs]
        if any(v is None for v in x):
            return None
        return lambda: model.predict(tuple(x) if len(x) != 1 else x[0])

    yield "inspect", lambda _: lambda: tfc.inspect_tflite(content)
    yield "load", lambda _: lambda: tfc.TFLiteModel(content, delegates=delegates)
    yield "benchmark", lambda model: lambda: model.benchmark(runs=1, warmup=0)
    yield "predict", predict


def child(listing, first, last, log, delegates):
    """Runs some files, and writes down what it is at."""
    import tfcompress as tfc

    names = json.load(open(listing))
    with open(log, "w", buffering=1) as out:
        for i in range(first, last):
            content, ends, model = open(names[i], "rb").read(), {}, None
            with open("/proc/self/clear_refs", "w") as f:
                f.write("5")  # the peak of memory starts anew
            for stage, prepare in calls(tfc, content, delegates):
                print(f"at {i} {stage}", file=out)
                if stage in ("benchmark", "predict") and model is None:
                    continue
                try:
                    call = prepare(model)
                except Exception:  # this script's own trouble with odd inputs
                    call = None
                if call is None:
                    ends[stage] = "not tried"
                    continue
                try:
                    result = call()
                    ends[stage] = "fine"
                    model = result if stage == "load" else model
                except BaseException as error:
                    kin = [c.__name__ for c in type(error).__mro__]
                    good = any(k in DOCUMENTED for k in kin)
                    at = traceback.extract_tb(error.__traceback__)[-1]
                    where = f"{os.path.basename(at.filename)}:{at.lineno}"
                    ends[stage] = f"{'ok' if good else 'BAD'} {kin[0]} {where}: {str(error)[:90]!r}"
            del model
            peak = next(x for x in open("/proc/self/status") if x.startswith("VmHWM")).split()[1]
            print(f"end {i} {json.dumps([ends, int(peak) // 1024])}", file=out)
        print("done", file=out)


class Runner:
    """Runs batches and keeps how each file ended."""

    def __init__(self, names, options, folder):
        self.names, self.options, self.folder = names, options, folder
        self.listing = os.path.join(folder, "names.json")
        json.dump(names, open(self.listing, "w"))
        self.ends, self.notes = {}, {}

    def process(self, first, last):
        """Runs files first to last; returns what went wrong as (index, stage, what), or None."""
        log, err = os.path.join(self.folder, "log"), os.path.join(self.folder, "err")
        open(log, "w").close()
        command = [
            sys.executable,
            "-m",
            "tests.fuzzing.run",
            "--child",
            self.listing,
            str(first),
            str(last),
            log,
            str(int(self.options.delegates)),
        ]
        env = dict(os.environ)
        if self.options.guard:
            env |= {
                "LD_PRELOAD": "libc_malloc_debug.so.0",
                "MALLOC_CHECK_": "3",
                "MALLOC_PERTURB_": "165",
            }
        with open(err, "w") as errors:
            p = subprocess.Popen(
                command, stdout=errors, stderr=errors, env=env, start_new_session=True
            )
        line, since, what, size = "", time.monotonic(), None, -1
        while p.poll() is None:
            time.sleep(POLL)
            if os.path.getsize(log) != size:
                size, new = os.path.getsize(log), self.last(log)
                if new.split()[:2] != line.split()[:2]:
                    line, since = new, time.monotonic()
            rss = self.rss(p.pid)
            if rss > self.options.mib:
                what = f"memory {rss} MiB"
            elif time.monotonic() - since > self.options.seconds:
                what = f"hang (CPU {self.cpu(p.pid):.0f} s)"
            if what:
                os.killpg(p.pid, signal.SIGKILL)
                p.wait()
        for row in open(log):
            if row.startswith("end "):
                _, i, content = row.split(" ", 2)
                self.ends[int(i)] = json.loads(content)
        tail = open(err, errors="replace").read().strip().splitlines()[-1:]
        row = self.last(log)
        if p.returncode == 0 and row == "done" and not what:
            return None
        if not what:
            code = p.returncode
            name = signal.Signals(-code).name if code < 0 else f"exit {code}"
            what = f"{name} {' '.join(tail)[:80]}".strip()
        if row.startswith("at "):
            return int(row.split()[1]), row.split()[2], what
        return (int(row.split()[1]) if row.startswith("end ") else last - 1), "after", what

    @staticmethod
    def last(log):
        """The last whole line of a log."""
        rows = open(log).read().rsplit("\n", 1)[0].splitlines()
        return rows[-1] if rows else ""

    @staticmethod
    def rss(pid):
        """The peak of memory of a process, in MiB."""
        try:
            rows = [x for x in open(f"/proc/{pid}/status") if x.startswith("VmHWM")]
            return int(rows[0].split()[1]) // 1024 if rows else 0
        except OSError:
            return 0

    @staticmethod
    def cpu(pid):
        """Seconds of CPU that a process had."""
        try:
            fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except OSError:
            return -1.0

    def run(self, first, last):
        """Runs files first to last, whatever becomes of them."""
        while first < last:
            trouble = self.process(first, last)
            if trouble is None:
                return
            at, stage, what = trouble
            if last - first == 1 or what.startswith("hang"):
                self.notes[at] = f"{stage}: {what}"
            else:
                again = self.process(at, at + 1)
                self.notes[at] = f"{again[1]}: {again[2]}" if again else ""
                for i in range(first, at) if not again else ():
                    alone = self.process(i, i + 1)
                    if alone:
                        self.notes[i] = f"{alone[1]}: {alone[2]}"
                if not again and not any(self.notes.get(i) for i in range(first, at)):
                    self.notes[at] = f"{stage}: {what} (only after files {first}..{at - 1})"
            first = at + 1


def main():
    """Makes variants, runs them, and prints what ended badly."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bases", nargs="*", help="base files")
    parser.add_argument("-n", "--count", type=int, default=20, help="variants of each base file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--mib", type=int, default=2048)
    parser.add_argument("--kinds", default="", help="only kinds that contain this")
    parser.add_argument("--bad", default="fuzz-bad", help="folder of files that ended badly")
    parser.add_argument("--replay", action="store_true", help="the files are run as they are")
    parser.add_argument("--guard", action="store_true", help="check the heap (slower)")
    parser.add_argument("--no-delegates", dest="delegates", action="store_false")
    parser.add_argument("--verbose", action="store_true", help="print how every file ended")
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryDirectory() as folder:
        bases = options.bases or [*glob.glob("tflite_models/*.tflite"), *make(folder)]
        names, kinds, origin = [], [], []
        if options.replay:
            names, kinds, origin = bases, ["replay"] * len(bases), list(bases)
        for base in bases if not options.replay else ():
            made = mutants(open(base, "rb").read(), options.seed, options.count)
            stem = os.path.splitext(os.path.basename(base))[0]
            for i, (kind, content) in enumerate(made):
                if options.kinds in kind:
                    name = os.path.join(folder, f"{stem}-s{options.seed}-{i}-{kind}.tflite")
                    open(name, "wb").write(content)
                    names.append(name), kinds.append(kind), origin.append(f"{stem} #{i}")
        runner = Runner(names, options, folder)
        for first in range(0, len(names), options.batch):
            runner.run(first, min(len(names), first + options.batch))
        return show(runner, names, kinds, origin, options)


def show(runner, names, kinds, origin, options):
    """Prints the ends, and saves the files that ended badly."""
    tally, bad, spread = collections.Counter(), [], collections.defaultdict(collections.Counter)
    for i, name in enumerate(names):
        ends, peak = runner.ends.get(i, ({}, 0))
        found = [f"{stage}: {end[4:]}" for stage, end in ends.items() if end.startswith("BAD")]
        if peak > options.mib:
            found.append(f"memory {peak} MiB")
        if runner.notes.get(i):
            found.append(runner.notes[i])
        end = "bad" if found else "refused" if "fine" not in ends.get("load", "") else "accepted"
        if end == "accepted" and any(e.startswith("ok") for e in ends.values()):
            end = "refused later"
        tally[end] += 1
        spread[kinds[i]][end] += 1
        tally.update(x.split()[1] for x in ends.values() if x.startswith("ok"))
        bad += [(kinds[i], origin[i], x, name) for x in found]
        if options.verbose:
            print(kinds[i], origin[i], ends, f"{peak} MiB", *found)
    print("\nkind                    accepted  refused  later  bad")
    for kind, ends in sorted(spread.items()):
        print(
            f"{kind:24}{ends['accepted']:8}{ends['refused']:9}{ends['refused later']:7}"
            f"{ends['bad']:5}"
        )
    print(f"\n{len(names)} files:", dict(tally))
    if bad:
        os.makedirs(options.bad, exist_ok=True)
    for kind, where, what, name in bad:
        kept = os.path.join(options.bad, os.path.basename(name))
        if os.path.abspath(kept) != os.path.abspath(name):
            open(kept, "wb").write(open(name, "rb").read())
        print(f"BAD {kind} | {where} | {what} | {kept}")
    print("no bad ends" if not bad else f"{len(bad)} bad ends")
    return bool(bad)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5], sys.argv[6] == "1")
    else:
        sys.exit(main())
