"""Accuracy of quantized files on Fashion-MNIST: the tables of docs/quantization.md.

A ResNet of 78,426 parameters by QAT and PTQ, with 8 and with 4 bits; and an LSTM, a Transformer and
a network of 1-D convolutions that read the images row by row. Trains on the embedded 10,000 images
and tests on 5,000, or on all 60,000 and 10,000 with --full. By hand, half an hour (with --full two
hours, on one core):

    python -m benchmarks.quantization [--seeds 3] [--part resnet|sequences] [--full]
"""

import argparse
import dataclasses
import math
import tempfile
import time
import warnings

import keras
import numpy as np
from keras import layers
from rich.console import Console

import tfcompress as tfc
from tfcompress.demo.data import load
from tfcompress.demo.models import resnet as resnet_model
from tfcompress.tables import table

W4A8 = tfc.QuantizationScheme(4, "mse", correct_bias=False)
LEARNED = tfc.QuantizationScheme(4, "learned")
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


def resnet(data, seeds, full):
    """Yields (seed, row, accuracy, bytes of the file, bytes after gzip) of every recipe."""
    x, y = data.x_train, data.y_train
    batch, epochs, more = (128, 8, 2) if full else (64, 12, 3)
    steps = math.ceil(len(x) / batch)
    for seed in range(seeds):
        keras.utils.set_random_seed(seed)
        model = compiled(resnet_model(), decay(3e-3, epochs * steps), jit_compile=True)
        model.fit(x, y, batch_size=batch, epochs=epochs, verbose=0)
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/m.tflite"
            tfc.export_tflite(model, path)
            yield seed, "float", accuracy(path, data), *sizes(path)
            for name, (scheme, sparsity) in QAT.items():
                start, length = model, more
                if sparsity:
                    length = 2 * more
                    ramp = tfc.PolynomialDecay(0.0, sparsity, 0, more * steps, frequency=25)
                    start = tfc.prune(model, ramp)
                rate = decay(1e-3 if sparsity else 5e-4, length * steps)
                aware = compiled(tfc.quantize(start, scheme), rate, jit_compile=True)
                aware.fit(x, y, batch_size=batch, epochs=length, verbose=0)
                tfc.export_tflite(aware, path)
                yield seed, name, accuracy(path, data), *sizes(path)
            for name, scheme in PTQ.items():
                tfc.export_tflite(model, path, scheme=scheme, representative_dataset=x[:512])
                yield seed, name, accuracy(path, data), *sizes(path)


def accuracy(path, data):
    """Returns the share of the test images that a file recognizes."""
    return tfc.TFLiteModel(path).evaluate(data.x_test, data.y_test)


def sizes(path):
    """Returns the bytes of a file, as it is and after gzip."""
    report = tfc.inspect_tflite(path)
    return report.bytes, report.gzip_bytes


def lstm():
    """Reads an image row by row."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Reshape((28, 28)),
            layers.LSTM(48),
            layers.Dense(10),
        ]
    )


def transformer():
    """An encoder of one layer over the rows."""
    inputs = keras.Input((28, 28, 1))
    x = layers.Dense(32)(layers.Reshape((28, 28))(inputs))
    x = layers.Add()([x, layers.MultiHeadAttention(4, 8)(x, x)])
    x = layers.LayerNormalization()(x)
    x = layers.Add()([x, layers.Dense(32)(layers.Dense(64, activation="gelu")(x))])
    x = layers.LayerNormalization()(x)
    return keras.Model(inputs, layers.Dense(10)(layers.Flatten()(x)))


def convolutions():
    """1-D convolutions along the rows."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Reshape((28, 28)),
            layers.Conv1D(32, 3, activation="relu"),
            layers.Conv1D(48, 3, strides=2, activation="relu"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(10),
        ]
    )


def sequences(data):
    """Yields (network, scheme, accuracy, float tensors, seconds of the export)."""
    x, y = data.x_train, data.y_train
    for make in (lstm, transformer, convolutions):
        keras.utils.set_random_seed(0)
        model = compiled(make(), decay(3e-3, 8 * 157))
        model.fit(x, y, batch_size=64, epochs=8, verbose=0)
        name = make.__name__
        yield name, "float", model.evaluate(data.x_test, data.y_test, verbose=0)[1], "", ""
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/m.tflite"
            started = time.perf_counter()
            result = tfc.export_tflite(model, path, scheme="int8", representative_dataset=x[:512])
            seconds = f"{time.perf_counter() - started:.0f}"
            yield name, "PTQ int8", accuracy(path, data), len(result.float_tensors), seconds
            aware = compiled(tfc.quantize(model), decay(5e-4, 2 * 157))
            aware.fit(x, y, batch_size=64, epochs=2, verbose=0)
            started = time.perf_counter()
            result = tfc.export_tflite(aware, path)
            seconds = f"{time.perf_counter() - started:.0f}"
            yield name, "QAT int8", accuracy(path, data), len(result.float_tensors), seconds


def main():
    """Prints both tables."""
    warnings.simplefilter("ignore", tfc.CompressionWarning)
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", default="")
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args()
    data, console = load(options.full), Console(width=120)
    if options.part in ("", "sequences"):
        rows = []
        for name, scheme, share, tensors, seconds in sequences(data):
            rows.append((name, scheme, f"{share:.2%}", str(tensors), seconds))
            print(rows[-1], flush=True)
        columns = ("network", "scheme", "accuracy", "float tensors", "export, s")
        console.print(table("sequences", columns, rows))
    if options.part in ("", "resnet"):
        found = {}
        for seed, name, share, count, zipped in resnet(data, options.seeds, options.full):
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
