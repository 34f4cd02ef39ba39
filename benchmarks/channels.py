"""Channels removed from the ResNet of 78,426 parameters: the table and plot of docs/channels.md.

Fashion-MNIST, the embedded 10,000 training and 5,000 test images (`--full`: 60,000 and 10,000). The
float net is trained; channels are removed; what is left is trained on with quantization, alone or
with the float net as its teacher. Beside it stand the same with random channels, and the same small
net from scratch for as many epochs in all. Each file runs on one thread. By hand, an hour:

    python -m benchmarks.channels FOLDER [--seeds 0 1 2] [--full]
"""

import argparse
import json
import math
import pathlib
import tempfile
import warnings

import keras
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console

import tfcompress as tfc
from benchmarks.quantization import compiled, decay
from tfcompress.demo.data import load
from tfcompress.demo.models import resnet
from tfcompress.graph.cost import macs
from tfcompress.tables import table

RATIOS = (0.45, 0.6)
BATCH = 64


def fit(model, data, epochs, rate=2e-3):
    """Trains, and returns the model."""
    steps = epochs * math.ceil(len(data.x_train) / BATCH)
    compiled(model, decay(rate, steps))
    model.fit(data.x_train, data.y_train, batch_size=BATCH, epochs=epochs, verbose=0)
    return model


def measured(model, data, float_file):
    """Returns accuracy, bytes after gzip and latency of the file of a model, over the float one."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/m.tflite"
        tfc.export_tflite(model, path, batch_size=1 if float_file is None else None)
        file = tfc.TFLiteModel(path)
        share = file.evaluate(data.x_test, data.y_test)
        zipped = tfc.inspect_tflite(path).gzip_bytes
        if float_file is None:
            return share, zipped, pathlib.Path(path).read_bytes()
        other = tfc.TFLiteModel(float_file)
        # In turns, so that a busy machine slows both down.
        pairs = [(other.benchmark(50).median_ms, file.benchmark(50).median_ms) for _ in range(5)]
        return share, zipped, float(np.median([a / b for a, b in pairs]))


def recipes(model, data, epochs, tune, seed):
    """Yields (row, function that returns the trained model); some rows for the first seed only."""
    if seed == 0:
        yield "float net, QAT", lambda: fit(tfc.quantize(model), data, tune, 1e-3)
    taylor = (data.x_train[:512], data.y_train[:512])
    for ratio in RATIOS:
        for criterion, given in (("taylor", taylor), ("random", None)):
            small = tfc.prune_channels(
                model, ratio, criterion=criterion, data=given, ranking="layer"
            )
            name = f"{ratio:.0%} {criterion}"
            yield name, lambda small=small: fit(tfc.quantize(small), data, tune)
            if criterion == "taylor" and seed == 0:

                def distilled(small=small):
                    student = tfc.quantize(small)
                    teacher = tfc.Distiller(model, student, alpha=0.5, temperature=3.0)
                    fit(teacher, data, tune)
                    return student

                yield f"{name}, distilled", distilled

        def scratch(small=small):
            fresh = keras.models.clone_model(small)
            fit(fresh, data, epochs, 3e-3)
            return fit(tfc.quantize(fresh), data, tune, 1e-3)

        yield f"{ratio:.0%} from scratch", scratch


def main():
    """Prints the table and draws the plot; rows are kept in FOLDER as they are done."""
    warnings.simplefilter("ignore", tfc.CompressionWarning)
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args()
    data = load(options.full)
    epochs, tune = (8, 5) if options.full else (12, 8)
    options.folder.mkdir(exist_ok=True)
    found = {}
    for seed in options.seeds:
        keras.utils.set_random_seed(seed)
        kept = options.folder / f"float-{seed}.keras"
        if kept.exists():
            model = keras.models.load_model(kept)
        else:
            model = fit(resnet(), data, epochs, 3e-3)
            model.save(kept)
        share, zipped, content = measured(model, data, None)
        found.setdefault("float", []).append((share, zipped, 1.0, macs(model)))
        for name, train in recipes(model, data, epochs, tune, seed):
            row = options.folder / f"{name.replace(' ', '-')}-{seed}.json"
            if not row.exists():
                keras.utils.set_random_seed(seed)
                trained = train()
                row.write_text(json.dumps([*measured(trained, data, content), macs(trained)]))
            found.setdefault(name, []).append(json.loads(row.read_text()))
            print(seed, name, found[name][-1], flush=True)
    smaller = np.mean([run[1] for run in found["float"]])
    rows, points = [], {}
    for name, runs in found.items():
        shares, zips, faster, counts = np.array(runs).T
        points[name] = smaller / zips.mean(), shares.mean(), shares.std(ddof=min(1, len(runs) - 1))
        rows.append(
            (
                name,
                len(runs),
                f"{points[name][1]:.2%}",
                f"{points[name][2]:.2%}",
                f"{zips.mean():,.0f}",
                f"{points[name][0]:.1f}x",
                f"{faster.mean():.1f}x",
                f"{counts.mean() / 1e6:.2f}",
            )
        )
    columns = ("recipe", "seeds", "accuracy", "deviation", "gzip, B", "smaller", "faster", "MMACs")
    Console(width=120).print(table("channels", columns, rows))
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for kind, marker in {"taylor": "o", "random": "x", "scratch": "^"}.items():
        names = [n for n in points if n.endswith(kind)]
        axes.errorbar(
            [points[n][0] for n in names],
            [points[n][1] * 100 for n in names],
            [points[n][2] * 100 for n in names],
            marker=marker,
            capsize=3,
            label={"scratch": "from scratch"}.get(kind, kind),
        )
    names = [n for n in points if n.endswith("distilled")]
    axes.plot(
        [points[n][0] for n in names],
        [points[n][1] * 100 for n in names],
        "D--",
        label="taylor, distilled",
    )
    axes.axhline(points["float"][1] * 100, color="grey", linewidth=1, label="float net")
    axes.set_xlabel("times smaller than the float file (gzip)")
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(options.folder / "channels.png", dpi=120)


if __name__ == "__main__":
    main()
