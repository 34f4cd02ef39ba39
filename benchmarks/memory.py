"""Memory and time of wrapping, exporting and cutting large models, in a process for each.

The peak of the memory of the process above what it was before, over the bytes of the weights, which
the float model itself has once. By hand: python -m benchmarks.memory [MILLIONS ...]
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings

from rich.console import Console

from tfcompress.tables import table

WAYS = ("QAT: quantize and export", "PTQ: export", "float: export", "prune_channels: half")


def run(way, millions):
    """Prints seconds and peak of one way in this process."""
    import keras
    import numpy as np

    import tfcompress as tfc

    warnings.simplefilter("ignore", tfc.CompressionWarning)
    width = 1580  # 2.5 million weights a layer
    inputs = keras.Input((width,))
    x = inputs
    for _ in range(round(millions * 1e6 / width**2)):
        x = keras.layers.Dense(width, activation="relu")(x)
    model = keras.Model(inputs, keras.layers.Dense(10)(x))
    data = np.random.default_rng(0).normal(size=(64, width)).astype("float32")
    with tempfile.TemporaryDirectory() as folder:
        small = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        tfc.export_tflite(small, f"{folder}/s.tflite", representative_dataset=data[:, :4])
        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        if way == 0:
            aware = tfc.quantize(model)
            aware.compile("sgd", "mse")
            for _ in range(2):  # sets the ranges
                aware(data, training=True)
            tfc.export_tflite(aware, f"{folder}/m.tflite", verbose=False)
        elif way == 3:
            tfc.prune_channels(model, 0.5, ranking="layer")
        else:
            data = data if way == 1 else None
            tfc.export_tflite(
                model, f"{folder}/m.tflite", representative_dataset=data, verbose=False
            )
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    weights = 4 * model.count_params()
    print(json.dumps([seconds, (peak - before) * 1024 / weights]))


def main():
    """Prints the table."""
    rows = []
    for millions in map(float, sys.argv[1:] or (25, 50, 100)):
        for way, name in enumerate(WAYS):
            command = [sys.executable, "-m", "benchmarks.memory", "--one", str(way), str(millions)]
            told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            seconds, ratio = json.loads(told.splitlines()[-1])
            rows.append((f"{millions:.0f}", name, f"{seconds:.0f}", f"{ratio:.1f}"))
            print(rows[-1], flush=True)
    columns = ("million weights", "way", "s", "memory / weights")
    Console(width=100).print(table("memory", columns, rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        run(int(sys.argv[2]), float(sys.argv[3]))
    else:
        main()
