"""What every operation of the runtime costs: the table of docs/operations.md.

Every operation that the lowering can emit is a file of its own, in int8, int16, with 4-bit weights
and in float, at three sizes. Each is run alone, in turns with all others, on one thread; and where
one function can be computed by several operations, so are these forms. "XNNPACK" says whether the
delegate takes the whole file. It needs no TensorFlow, so that it also runs in an environment with
the oldest ai-edge-litert that is supported. By hand, some minutes:

    python -m benchmarks.operations [--only GLOB] [--json FILE]
"""

import argparse
import fnmatch
import json
import os
import platform
import time

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from benchmarks import operation_forms as _registers_them  # noqa: F401
from benchmarks.operation_cases import CASES
from benchmarks.operation_files import DTYPES, SIZES, File
from tfcompress.tflite.delegates import kernels_of


def measure(cases, seconds):
    """Returns the least milliseconds of each case, in turns, and what is delegated."""
    models, rows = {}, {}
    for key, content in cases.items():
        try:
            interpreter = Interpreter(model_content=content, num_threads=1)
            interpreter.allocate_tensors()
            interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            rows[key] = {"error": str(error).strip().splitlines()[-1][:80]}
            continue
        whole = all(delegated for _, delegated in kernels_of(interpreter))
        rows[key] = {"ms": float("inf"), "xnnpack": whole}
        models[key] = interpreter
    for key, interpreter in models.items():
        for detail in interpreter.get_input_details():
            random = np.random.default_rng(0)
            if detail["dtype"] == np.float32:
                values = random.uniform(0.1, 2, detail["shape"]).astype(np.float32)
            else:
                values = random.integers(-100, 100, detail["shape"]).astype(detail["dtype"])
            interpreter.set_tensor(detail["index"], values)
        start = time.perf_counter()
        interpreter.invoke()
        rows[key]["count"] = max(1, min(50, int(2e-3 / (time.perf_counter() - start + 1e-9))))
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < 5 or time.perf_counter() < end:
        rounds += 1
        for key, interpreter in models.items():
            count = rows[key]["count"]
            start = time.perf_counter()
            for _ in range(count):
                interpreter.invoke()
            took = (time.perf_counter() - start) / count * 1000
            rows[key]["ms"] = min(rows[key]["ms"], took)
    return rows


def processor():
    """Returns the name of the processor and its integer instructions."""
    try:
        with open("/proc/cpuinfo") as file:
            text = file.read()
    except OSError:
        return platform.processor() or platform.machine()
    name = next((line.split(":")[1].strip() for line in text.splitlines() if "model name" in line),
                platform.machine())  # fmt: skip
    return name + (" with AVX-512 VNNI" if "avx512_vnni" in text else "")


def _microseconds(ms):
    return f"{ms * 1000:.3g}" if ms < 1 else f"{ms * 1000:,.0f}"


def main():
    """Measures, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", help="a glob of cases")
    parser.add_argument("--json", help="a file for the figures")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each size")
    arguments = parser.parse_args()
    from importlib import metadata

    version = metadata.version("ai-edge-litert")
    print(
        f"{processor()}, ai-edge-litert {version}, one thread, least of turns, "
        f"microseconds at {', '.join(SIZES)}\n"
    )
    figures = {}
    for size, (side, channels) in SIZES.items():
        files = {}
        for name, (build, dtypes) in CASES.items():
            for dtype in dtypes if fnmatch.fnmatch(name, arguments.only) else ():
                file = File(dtype)
                files[name, dtype] = file.content(build(file, side, channels))
        for (name, dtype), row in measure(files, arguments.seconds).items():
            figures.setdefault(name, {}).setdefault(dtype, {})[size] = row
    print("| operation | " + " | ".join(DTYPES) + " | taken by XNNPACK |")
    print("|---" * (len(DTYPES) + 2) + "|")
    for name, by_dtype in figures.items():
        cells = []
        for dtype in DTYPES:
            rows = [by_dtype.get(dtype, {}).get(size, {}) for size in SIZES]
            times = [_microseconds(row["ms"]) for row in rows if "ms" in row]
            cells.append(" / ".join(times) or ("no kernel" if any(rows) else ""))
        taken = [d for d in by_dtype if all(r.get("xnnpack") for r in by_dtype[d].values())]
        print(f"| {name} | " + " | ".join(cells) + f" | {', '.join(taken) or 'none'} |")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"processor": processor(), "version": version, "figures": figures}, file)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main()
