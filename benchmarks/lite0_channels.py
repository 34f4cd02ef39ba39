"""EfficientNet-Lite0 with its ImageNet weights, less 30% of its MACs: for docs/channels.md.

Channels are removed by Taylor scores and the rest is distilled from the original, without labels,
on crops of photographs; agreement is measured on other crops of the same photographs. See
benchmarks/lite0.py for what must be installed. By hand, an hour:

    python -m benchmarks.lite0_channels [--steps 300]
"""

import argparse
import tempfile
import warnings

import keras
import numpy as np

import tfcompress as tfc
from benchmarks.lite0 import HELD_OUT, SEEN, agreement, crops, lite0
from tfcompress.graph.cost import macs


def main():
    """Prints agreement, bytes and latency before and after."""
    warnings.simplefilter("ignore", tfc.CompressionWarning)
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    model = lite0()
    photographs = SEEN + HELD_OUT
    given, test = crops(512, photographs), crops(256, photographs, seed=1)
    logits = model.predict(test, verbose=0)
    print(f"original: {macs(model) / 1e6:.0f} MMACs", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        first = tfc.TFLiteModel(export(model, f"{folder}/a.tflite", given))
        for criterion in ("taylor", "random"):
            data = given[:128] if criterion == "taylor" else None
            small = tfc.prune_channels(
                model, target_macs=0.7 * macs(model), criterion=criterion, data=data
            )
            report(f"{criterion}, cut", small, test, logits)
            if criterion == "random":
                continue
            distiller = tfc.Distiller(model, small, alpha=1.0, temperature=2.0)
            rate = keras.optimizers.schedules.CosineDecay(2e-4, options.steps)
            distiller.compile(keras.optimizers.Adam(rate))
            epochs = max(1, options.steps * 16 // len(given))
            # Batches of 16 crops of a few photographs tell little of the statistics of all images:
            # those of ImageNet stay, of the channels that are left.
            frozen = tfc.FreezeQuantization(0)
            distiller.fit(given, batch_size=16, epochs=epochs, verbose=2, callbacks=[frozen])
            report(f"{criterion}, recovered", distiller.student, test, logits)
            path = export(distiller.student, f"{folder}/b.tflite", given)
            second = tfc.TFLiteModel(path)
            pairs = [
                (first.benchmark(20).median_ms, second.benchmark(20).median_ms) for _ in range(5)
            ]
            sizes = [tfc.inspect_tflite(f"{folder}/{n}.tflite").bytes for n in "ab"]
            print(f"INT8 files: {sizes[0]:,} and {sizes[1]:,} B, {np.median(pairs, 0)} ms")
            share, five = agreement(logits, second.predict(test))
            print(f"INT8 file, recovered: top-1 {share:.1%}, top-5 {five:.1%}", flush=True)


def export(model, path, given):
    """Writes the INT8 file, for a batch of one."""
    result = tfc.export_tflite(
        model, path, representative_dataset=given[:256], batch_size=1, verify=False, verbose=False
    )
    return result.path


def report(name, model, test, logits):
    """Prints how a float net agrees with the original."""
    share, five = agreement(logits, model.predict(test, verbose=0))
    told = f"{macs(model) / 1e6:.0f} MMACs, {model.count_params():,} weights"
    print(f"{name}: top-1 {share:.1%}, top-5 {five:.1%}, {told}", flush=True)


if __name__ == "__main__":
    main()
