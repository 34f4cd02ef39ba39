"""Pruned, clustered and quantized in one training: accuracy, bytes after gzip, flash after Vela.

--part resnet: the ResNet of 78,426 parameters on all of Fashion-MNIST (Debian's
dataset-fashion-mnist), trained in float for 6 epochs, then pruned, clustered and quantized together
with the float network as teacher. --part lut: the ResNet-8 of MLPerf Tiny on the same images as
32x32 pixels of three colours, in int8 and clustered, its file in tflite-micro's compressed form.
Run by hand, ten minutes a seed:
python -m benchmarks.clustering --folded [--seeds 3] [--sparsity 0.7] [--clusters 16]
"""

import argparse
import dataclasses
import json
import math
import pathlib
import tempfile

import keras
import numpy as np

import tfcompress as tfc
from tfcompress.demo.data import load
from tfcompress.demo.models import resnet

BATCH, FLOAT_EPOCHS = 128, 6


def fit(model, data, epochs, rate):
    steps = epochs * math.ceil(len(data.x_train) / BATCH)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=16,
    )
    model.fit(data.x_train, data.y_train, batch_size=BATCH, epochs=epochs, verbose=0)


def float_net(data, seed, folder):
    """Returns the float network of a seed, trained once."""
    path = pathlib.Path(folder, f"float_{seed}.keras")
    if path.exists():
        return keras.models.load_model(path)
    keras.utils.set_random_seed(seed)
    model = resnet()
    fit(model, data, FLOAT_EPOCHS, 3e-3)
    model.save(path)
    return model


def compressed(net, data, options, seed):
    """Returns the network that is pruned, clustered and quantized in one training."""
    keras.utils.set_random_seed(seed)
    steps = options.epochs * math.ceil(len(data.x_train) / BATCH)
    student = tfc.fold_batch_norm(net) if options.folded else net
    if options.sparsity:
        schedule = tfc.PolynomialDecay(
            0.0, options.sparsity, begin_step=0, end_step=steps // 2, frequency=10
        )
        student = tfc.prune(student, schedule)
    if options.clusters:
        student = tfc.cluster(
            student,
            options.clusters,
            per_channel=options.per_channel,
            assignment=options.assignment,
        )
    granularity = "tensor" if options.folded and not options.per_channel else "channel"
    student = tfc.quantize(student, tfc.QuantizationScheme(weight_granularity=granularity))
    distiller = tfc.Distiller(net, student, alpha=options.alpha, temperature=3.0)
    fit(distiller, data, options.epochs, options.rate)
    return distiller.student


def resnet8():
    """Returns the ResNet-8 of MLPerf Tiny, for 32x32 pixels of three colours."""
    from keras import layers as L

    def conv(x, filters, size=3, strides=1):
        x = L.Conv2D(filters, size, strides, padding="same", kernel_initializer="he_normal")(x)
        return L.BatchNormalization(momentum=0.9)(x)

    inputs = keras.Input((32, 32, 3), name="image")
    x = L.ReLU()(conv(inputs, 16))
    for width, strides in ((16, 1), (32, 2), (64, 2)):
        y = conv(L.ReLU()(conv(x, width, 3, strides)), width)
        x = L.ReLU()(L.Add()([y, x if strides == 1 else conv(x, width, 1, strides)]))
    x = L.Flatten()(L.AveragePooling2D(8)(x))
    return keras.Model(inputs, L.Dense(10, name="logits")(x))


def in_colour(data):
    """Returns the data as 32x32 pixels of three colours."""

    def padded(x):
        return np.repeat(np.pad(x, [(0, 0), (2, 2), (2, 2), (0, 0)]), 3, -1)

    return dataclasses.replace(data, x_train=padded(data.x_train), x_test=padded(data.x_test))


def tables(options):
    """Prints accuracy and bytes of the ResNet-8, in int8 and in tflite-micro's compressed form."""
    data = in_colour(load(full=True))
    keras.utils.set_random_seed(0)
    net = resnet8()
    fit(net, data, FLOAT_EPOCHS, 3e-3)
    options.sparsity, options.folded = 0.0, True
    for clusters in (0, 16, 8):
        options.clusters = clusters
        with tempfile.TemporaryDirectory() as folder:
            student = compressed(net, data, options, 0)
            row = {"clusters": clusters, **measured(student, data, folder)}
            if clusters:
                small = tfc.compress_lut(f"{folder}/m.tflite", f"{folder}/lut.tflite")
                row |= {"lut_bytes": small.bytes, "lut_arena": small.arena_bytes}
                row["arena"] = small.arena_bytes_before
        print(json.dumps(row), flush=True)


def measured(net, data, folder):
    """Returns accuracy, bytes and flash of the exported file."""
    path = pathlib.Path(folder) / "m.tflite"
    result = tfc.export_tflite(net, path, io_dtype="int8", metadata=False, verbose=False)
    vela = tfc.compile_ethos_u(path)
    return {
        "accuracy": tfc.TFLiteModel(path).evaluate(data.x_test, data.y_test),
        "bytes": result.bytes,
        "gzip": result.report.gzip_bytes,
        "flash": vela.flash_bytes,
        "max_lsb": result.agreement.max_lsb,
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=["resnet", "lut"], default="resnet")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sparsity", type=float, default=0.7)
    parser.add_argument("--clusters", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--alpha", type=float, default=0.8)
    parser.add_argument("--per-channel", action="store_true")
    parser.add_argument("--folded", action="store_true", help="fold BatchNormalization first")
    parser.add_argument("--assignment", default="hard")
    parser.add_argument("--nets", default=tempfile.gettempdir(), help="where float nets are kept")
    options = parser.parse_args()
    if options.part == "lut":
        return tables(options)
    data, rows = load(full=True), []
    for seed in range(options.seeds):
        net = float_net(data, seed, options.nets)
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measured(compressed(net, data, options, seed), data, folder))
            original = tfc.TFLiteModel(
                tfc.export_tflite(net, f"{folder}/f.tflite", verbose=False).path
            )
            rows[-1]["float_accuracy"] = original.evaluate(data.x_test, data.y_test)
        print(json.dumps(rows[-1]), flush=True)
    means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    print(json.dumps({"mean": means, "options": vars(options)}))


if __name__ == "__main__":
    main()
