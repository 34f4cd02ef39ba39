"""What comparing a copy with its model costs: the figure of docs/exactness.md.

`prune`, `quantize` and `strip` of a network, in turns with and without `check`. By hand, a minute:

    python -m benchmarks.copy_check [--model MobileNetV2] [--turns 5]
"""

import argparse
import time
import warnings


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="MobileNetV2")
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()

    import keras
    import numpy as np

    import tfcompress as tfc

    warnings.simplefilter("ignore")
    model = getattr(keras.applications, arguments.model)(weights=None)
    wrapped = tfc.quantize(model, check=False)
    calls = {
        "prune": lambda check: tfc.prune(model, 0.5, check=check),
        "quantize": lambda check: tfc.quantize(model, check=check),
        "strip": lambda check: tfc.strip(wrapped, check=check),
    }
    for name, call in calls.items():
        seconds = {True: [], False: []}
        for _ in range(arguments.turns):
            for check, found in seconds.items():
                start = time.perf_counter()
                call(check)
                found.append(time.perf_counter() - start)
        checked, plain = (np.median(found) for found in seconds.values())
        print(f"{name}: {plain:.2f} s, checked {checked:.2f} s ({checked - plain:+.2f} s)")


if __name__ == "__main__":
    main()
