"""Accuracy of quantized files: the tables of docs/quantization.md.

A ResNet of 78,426 parameters by QAT and PTQ, with 8 and with 4 bits, on the embedded Fashion-MNIST
(10,000 training and 5,000 test images) or on all 60,000 and 10,000 with --full; and an LSTM, a
Transformer and a network of 1-D convolutions that read the images row by row, spoken vowels and
curves of electricity (the data are in aeon: pip install --no-deps aeon). By hand, an hour for
either part, and three with --full, on one core:

    python -m benchmarks.quantization [--seeds 0 1 2] [--part resnet|rows|vowels|power] [--full]
"""

import argparse
import dataclasses
import fnmatch
import importlib.util
import math
import pathlib
import tempfile
import warnings

import keras
import numpy as np
from keras import layers
from rich.console import Console

import tfcompress as tfc
from tfcompress.demo.data import Data, load
from tfcompress.demo.models import resnet as resnet_model
from tfcompress.tables import table

W4A8 = tfc.QuantizationScheme(4, "mse", correct_bias=False, prefer="bytes")
LEARNED = tfc.QuantizationScheme(4, "learned", prefer="bytes")
PTQ = {
    "PTQ int8": tfc.QuantizationScheme(correct_bias=False),
    "PTQ int8, biases corrected": tfc.QuantizationScheme(),
    "PTQ w4a8": W4A8,
    "PTQ w4a8, biases corrected": dataclasses.replace(W4A8, correct_bias=True),
    "PTQ w4a8, AdaRound": dataclasses.replace(W4A8, rounding="adaround"),
    "PTQ w4a8, both": dataclasses.replace(W4A8, rounding="adaround", correct_bias=True),
}
QAT = {
    "QAT int8": ("int8", 0.0),
    "QAT w4a8": (W4A8, 0.0),
    "QAT w4a8, learned steps": (LEARNED, 0.0),
    "QAT w4a8, learned, 40% zeros": (LEARNED, 0.4),
    "QAT w4a8, learned, 60% zeros": (LEARNED, 0.6),
}
"""Scheme and share of pruned weights."""


def compiled(model, rate, **options):
    """Returns the model, compiled for training at a learning rate or schedule."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"], **options)
    return model


def decay(rate, steps):
    """Returns a schedule that ends at zero."""
    return keras.optimizers.schedules.CosineDecay(rate, steps)


def resnet(data, options):
    """Yields (seed, row, accuracy, bytes of the file, bytes after gzip) of every recipe."""
    x, y = data.x_train, data.y_train
    batch, epochs, more = (128, 8, 2) if options.full else (64, 12, 3)
    steps = math.ceil(len(x) / batch)
    for seed in options.seeds:
        keras.utils.set_random_seed(seed)
        kept = options.folder / f"float-{seed}.keras"
        if kept.exists():
            model = keras.models.load_model(kept)
        else:
            model = compiled(resnet_model(), decay(3e-3, epochs * steps))
            model.fit(x, y, batch_size=batch, epochs=epochs, verbose=0)
            model.save(kept)
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/m.tflite"
            tfc.export_tflite(model, path)
            yield seed, "float", accuracy(path, data), *sizes(path)
            for name in fnmatch.filter(QAT, options.recipes):
                scheme, sparsity = QAT[name]
                start, length = model, more
                if sparsity:
                    length = 2 * more
                    ramp = tfc.PolynomialDecay(0.0, sparsity, 0, more * steps, frequency=25)
                    start = tfc.prune(model, ramp)
                rate = decay(1e-3 if sparsity else 5e-4, length * steps)
                aware = compiled(tfc.quantize(start, scheme), rate)
                aware.fit(x, y, batch_size=batch, epochs=length, verbose=0)
                tfc.export_tflite(aware, path)
                yield seed, name, accuracy(path, data), *sizes(path)
            for name in fnmatch.filter(PTQ, options.recipes):
                tfc.export_tflite(model, path, scheme=PTQ[name], representative_dataset=x[:512])
                yield seed, name, accuracy(path, data), *sizes(path)


def accuracy(path, data):
    """Returns the share of the test images that a file recognizes."""
    return tfc.TFLiteModel(path).evaluate(data.x_test, data.y_test)


def sizes(path):
    """Returns the bytes of a file, as it is and after gzip."""
    report = tfc.inspect_tflite(path)
    return report.bytes, report.gzip_bytes


def lstm(shape, classes):
    """Reads step by step."""
    return keras.Sequential([keras.Input(shape), layers.LSTM(48), layers.Dense(classes)])


def transformer(shape, classes):
    """An encoder of one layer."""
    inputs = keras.Input(shape)
    x = layers.Dense(32)(inputs)
    x = layers.Add()([x, layers.MultiHeadAttention(4, 8)(x, x)])
    x = layers.LayerNormalization()(x)
    x = layers.Add()([x, layers.Dense(32)(layers.Dense(64, activation="gelu")(x))])
    x = layers.LayerNormalization()(x)
    return keras.Model(inputs, layers.Dense(classes)(layers.Flatten()(x)))


def convolutions(shape, classes):
    """1-D convolutions along the steps."""
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.Conv1D(32, 3, activation="relu"),
            layers.Conv1D(48, 3, strides=2, activation="relu"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(classes),
        ]
    )


def series(name):
    """Returns a set of aeon's time series, each channel normalized: (steps, channels), labels."""
    package = importlib.util.find_spec("aeon")
    if package is None:
        raise SystemExit("pip install --no-deps aeon")
    (folder,) = pathlib.Path(package.origin).parent.glob(f"datasets/data/{name}")
    parts = []
    for split in ("TRAIN", "TEST"):
        (path,) = [*folder.glob(f"*_eq_{split}.ts"), *folder.glob(f"{name}_{split}.ts")][:1]
        lines = [line for line in path.read_text().splitlines() if line[:1] not in ("@", "#", "")]
        rows = [line.split(":") for line in lines]
        x = [[[float(v) for v in channel.split(",")] for channel in row[:-1]] for row in rows]
        parts += [np.moveaxis(np.array(x, "float32"), 1, 2), np.array([row[-1] for row in rows])]
    x_train, y_train, x_test, y_test = parts
    mean, deviation = x_train.mean((0, 1)), x_train.std((0, 1))
    names = sorted(set(y_train))
    labels = [np.array([names.index(label) for label in y]) for y in (y_train, y_test)]
    return Data(
        name, (x_train - mean) / deviation, labels[0], (x_test - mean) / deviation, labels[1]
    )


def image_rows(data):
    """Returns the images as sequences of their rows."""
    return dataclasses.replace(
        data, source="image rows", x_train=data.x_train[..., 0], x_test=data.x_test[..., 0]
    )


def sequences(data, seeds, epochs, more, batch):
    """Yields (network, scheme, accuracy, float tensors) of every seed."""
    x, y = data.x_train, data.y_train
    steps = math.ceil(len(x) / batch)
    for make in (lstm, transformer, convolutions):
        for seed in seeds:
            keras.utils.set_random_seed(seed)
            model = compiled(make(x.shape[1:], len(set(y))), decay(3e-3, epochs * steps))
            model.fit(x, y, batch_size=batch, epochs=epochs, verbose=0)
            test = data.x_test, data.y_test
            yield make.__name__, "float", model.evaluate(*test, verbose=0)[1], 0
            with tempfile.TemporaryDirectory() as folder:
                path = f"{folder}/m.tflite"
                for name, ranges in {"PTQ": "min_max", "PTQ, averages": "moving_average"}.items():
                    scheme = tfc.QuantizationScheme(activation_range=ranges)
                    result = tfc.export_tflite(
                        model, path, scheme=scheme, representative_dataset=x[:512]
                    )
                    yield make.__name__, name, accuracy(path, data), len(result.float_tensors)
                aware = compiled(tfc.quantize(model), decay(1e-3, more * steps))
                aware.fit(x, y, batch_size=batch, epochs=more, verbose=0)
                result = tfc.export_tflite(aware, path)
                yield make.__name__, "QAT", accuracy(path, data), len(result.float_tensors)


def main():
    """Prints both tables."""
    warnings.simplefilter("ignore", tfc.CompressionWarning)
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--part", default="*", help="a glob on 'resnet' and the sequences' names")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--recipes", default="*", help="a glob on the rows of the ResNet")
    parser.add_argument("--folder", type=pathlib.Path, default=".", help="keeps its float nets")
    options = parser.parse_args()
    data, console = load(options.full), Console(width=120)
    sets = {
        "rows": (lambda: image_rows(load()), 8, 2, 64),
        "vowels": (lambda: series("JapaneseVowels"), 150, 40, 32),
        "power": (lambda: series("ItalyPowerDemand"), 300, 100, 32),
    }
    for part, (read, *training) in sets.items():
        if fnmatch.fnmatch(part, options.part):
            given, found = read(), {}
            for name, scheme, share, tensors in sequences(given, options.seeds, *training):
                print(given.source, name, scheme, f"{share:.4f}", tensors, flush=True)
                found.setdefault((name, scheme), []).append((share, tensors))
            rows = [
                (*key, f"{np.mean([s for s, _ in runs]):.2%}", f"{max(t for _, t in runs)}")
                for key, runs in found.items()
            ]
            columns = ("network", "scheme", "accuracy", "float tensors")
            console.print(table(given.source, columns, rows))
    if fnmatch.fnmatch("resnet", options.part):
        found = {}
        for seed, name, share, count, zipped in resnet(data, options):
            print(seed, name, f"{share:.4f}", count, zipped, flush=True)
            found.setdefault(name, []).append((share, count, zipped))
        rows = [
            (
                name,
                f"{np.mean([run[0] for run in runs]):.2%}",
                f"{np.std([run[0] for run in runs], ddof=min(1, len(runs) - 1)):.2%}",
                f"{np.mean([run[1] for run in runs]):,.0f}",
                f"{np.mean([run[2] for run in runs]):,.0f}",
            )
            for name, runs in found.items()
        ]
        columns = ("recipe", "accuracy", "deviation", "file, B", "gzip, B")
        console.print(table("ResNet", columns, rows))


if __name__ == "__main__":
    main()
