"""A teacher's cache of millions of samples, and a model of hundreds of millions of weights.

Peaks of memory: of the cache anonymous memory, which the system cannot take back as it can pages of
files; of the model the proportional set size of the process and the converter's. On Linux, by hand:
python -m benchmarks.scale [--samples 10] [--weights 350], in millions.
"""

import argparse
import pathlib
import tempfile
import time

import numpy as np

from benchmarks.memory import Peak, stack


def anonymous():
    """Returns the bytes of anonymous memory of this process."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


def cache(count):
    """Caches logits of ten classes for so many samples of four numbers, and trains an epoch."""
    import keras

    import tfcompress as tfc

    peak = Peak(anonymous)
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    teacher = keras.Model(inputs, keras.layers.Dense(10)(inputs))
    student = keras.Model(inputs, keras.layers.Dense(10)(inputs))
    x = np.random.default_rng(0).normal(size=(count, 4)).astype("float32")
    with peak, tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        path = f"{folder}/cache"
        found = tfc.cache_teacher(teacher, x, path, shard_size=2**16, batch_size=2**13)
        cached = time.perf_counter()
        distiller = tfc.Distiller(found, student, alpha=1.0)
        distiller.compile("adam")
        distiller.fit(found.dataset(2**13), verbose=0)
        trained = time.perf_counter()
    seconds = f"cached in {cached - started:.0f} s, an epoch {trained - cached:.0f} s"
    most = (peak.before + peak.most) / 2**20
    memory = f"{peak.before / 2**20:.0f} MiB before, {most:.0f} MiB at most"
    print(f"{count:,} samples of {x.nbytes / 2**20:.0f} MiB: {seconds}; anonymous memory {memory}")


def model(millions):
    """Wraps, prunes and exports a stack of Dense layers."""
    import tfcompress as tfc

    big, shape = stack("Dense", millions)
    data = np.random.default_rng(0).normal(size=(64, *shape)).astype("float32")
    peak, times = Peak(), [time.perf_counter()]
    with peak, tempfile.TemporaryDirectory() as folder:
        aware = tfc.quantize(tfc.prune(big, tfc.ConstantSparsity(0.5, 0, frequency=1)))
        times.append(time.perf_counter())
        for _ in range(2):  # sets the masks and the ranges
            aware(data, training=True)
        times.append(time.perf_counter())
        result = tfc.export_tflite(aware, f"{folder}/m.tflite", verbose=False)
        times.append(time.perf_counter())
    wrapped, steps, exported = np.diff(times)
    print(
        f"{big.count_params():,} weights: wrapped in {wrapped:.0f} s, two steps {steps:.0f} s, "
        f"exported in {exported:.0f} s to {result.report.bytes / 1e6:.0f} MB with "
        f"{result.report.sparsity:.0%} zeros; at most {peak.most / 2**30:.1f} GiB above the model"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=float, default=10)
    parser.add_argument("--weights", type=float, default=350)
    options = parser.parse_args()
    if options.samples:
        cache(int(options.samples * 1e6))
    if options.weights:
        model(options.weights)


if __name__ == "__main__":
    main()
