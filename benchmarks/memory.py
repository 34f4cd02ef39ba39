"""Memory and time of wrapping, exporting and cutting large models, in a process for each.

The models are stacks of Dense layers and of 3x3 convolutions on 4x4 pixels, and VGG16 at 224x224.

The peak of the memory of the process and of the converter's (their proportional set sizes, read
every 20 ms) above what it was before, over the bytes of the weights, which the float model itself
has once. What the training steps take that set the ranges is not counted. On Linux, by hand:
python -m benchmarks.memory [MILLIONS ...]
"""

import contextlib
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
import warnings

from rich.console import Console

from tfcompress.tables import table

WAYS = ("QAT: quantize and export", "PTQ: export", "float: export", "prune_channels: half")


def stack(kind, millions):
    """Returns layers of 2.5 million weights each, or VGG16, and the shape of their input."""
    import keras

    if kind == "VGG16":
        return keras.applications.VGG16(weights=None, classifier_activation=None), (224, 224, 3)
    width, taps, shape = (1580, 1, (1580,)) if kind == "Dense" else (528, 9, (4, 4, 528))
    inputs = keras.Input(shape)
    x = inputs
    for _ in range(round(millions * 1e6 / (taps * width**2))):
        if kind == "Dense":
            x = keras.layers.Dense(width, activation="relu")(x)
        else:
            options = {"padding": "same", "activation": "relu", "kernel_initializer": "he_normal"}
            x = keras.layers.Conv2D(width, 3, **options)(x)
    x = x if kind == "Dense" else keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(10)(x)), shape


def used():
    """Returns the bytes of memory that this process and those it started take."""
    total = 0
    children = pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for process in ("self", *children):
        with contextlib.suppress(OSError):  # it has ended
            lines = pathlib.Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total * 1024


class Peak(threading.Thread):
    """Remembers the most memory, by a measure of it, that was used inside of `with`."""

    def __init__(self, measure=used):
        super().__init__(daemon=True)
        self.measure = measure
        self.most, self.before, self.counts = 0, measure(), False
        self.start()

    def run(self):
        """Looks for as long as the process lives."""
        while True:
            if self.counts:
                self.most = max(self.most, self.measure() - self.before)
            time.sleep(0.02)

    def __enter__(self):
        self.counts = True

    def __exit__(self, *_):
        self.counts = False


def run(kind, way, millions):
    """Prints seconds and peak of one way in this process."""
    import keras
    import numpy as np

    import tfcompress as tfc

    warnings.simplefilter("ignore", tfc.CompressionWarning)
    model, shape = stack(kind, millions)
    data = np.random.default_rng(0).normal(size=(64, *shape)).astype("float32")
    # With random weights, VGG16 puts out a constant.
    options = {"verbose": False, "verify": kind != "VGG16"}
    with tempfile.TemporaryDirectory() as folder:
        small = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        tfc.export_tflite(
            small, f"{folder}/s.tflite", representative_dataset=data.reshape(-1, 4)[:64]
        )
        peak, started = Peak(), time.perf_counter()
        if way == 0:
            with peak:
                aware = tfc.quantize(model)
            held = used()
            for _ in range(2):  # sets the ranges
                aware(data[:4] if kind == "VGG16" else data, training=True)
            peak.before += used() - held  # TensorFlow keeps what it once had
            with peak:
                tfc.export_tflite(aware, f"{folder}/m.tflite", **options)
        elif way == 3:
            with peak:
                tfc.prune_channels(model, 0.5, ranking="layer")
        else:
            data = data if way == 1 else None
            with peak:
                tfc.export_tflite(
                    model, f"{folder}/m.tflite", representative_dataset=data, **options
                )
        seconds = time.perf_counter() - started
    print(json.dumps([seconds, peak.most / (4 * model.count_params())]))


def main():
    """Prints the table."""
    rows = []
    cases = [*itertools.product(("Dense", "Conv2D"), sys.argv[1:] or ("25", "100"))]
    cases.append(("VGG16", "138"))
    for (kind, millions), (way, name) in itertools.product(cases, enumerate(WAYS)):
        command = [sys.executable, "-m", "benchmarks.memory", "--one", kind, str(way), millions]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        seconds, ratio = json.loads(told.splitlines()[-1])
        rows.append((kind, millions, name, f"{seconds:.0f}", f"{ratio:.1f}"))
        print(rows[-1], flush=True)
    columns = ("layers", "million weights", "way", "s", "memory / weights")
    Console(width=100).print(table("memory", columns, rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        run(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
    else:
        main()
