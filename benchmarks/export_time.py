"""Seconds to export an INT8 file, against Keras' own LiteRT export at the same settings.

In turns in one process; medians. Our time includes checking the file against the model, which
Keras' export does not do; not for networks of keras.applications, which with random weights put out
a constant.
Run by hand: python -m benchmarks.export_time
"""

import tempfile
import time

import keras
import numpy as np
from rich.console import Console

import tfcompress as tfc
from benchmarks.quantization import transformer
from benchmarks.step_time import mobilenet_like
from tfcompress.demo.models import resnet
from tfcompress.tables import table

TURNS = 3


def seconds(act):
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def keras_export(model, path, data):
    import tensorflow as tf

    def dataset():
        for image in data:
            yield [image[None]]

    model.export(
        path,
        format="litert",
        verbose=False,
        optimizations=[tf.lite.Optimize.DEFAULT],
        representative_dataset=dataset,
    )


def main():
    generator = np.random.default_rng(0)
    cases = {
        "ResNet, 78,426": (resnet(), (28, 28, 1)),
        "MobileNet-like": (mobilenet_like(), (28, 28, 1)),
        "Transformer, 1 layer": (transformer((28, 28), 10), (28, 28)),
    }
    for name in ("MobileNetV2", "MobileNetV3Small", "EfficientNetB0", "ResNet50"):
        make = getattr(keras.applications, name)
        shape = (96, 96, 3)
        cases[name] = (make(input_shape=shape, weights=None, classifier_activation=None), shape)
    rows = []
    for name, (model, shape) in cases.items():
        # Patches, not noise: of noise every image looks alike to a deep network.
        coarse = generator.random((32, 4, 4, *shape[2:]), dtype="float32")
        patch = np.ones((1, shape[0] // 4, shape[1] // 4, *(1 for _ in shape[2:])), "float32")
        data = np.kron(coarse, patch)
        aware = tfc.quantize(model)
        aware(data, training=True)
        options = {"representative_dataset": data, "verify": shape[0] < 96, "verbose": False}
        times = {"keras": [], "ptq": [], "qat": []}
        with tempfile.TemporaryDirectory() as folder:
            path = folder + "/m.tflite"
            for _ in range(TURNS):
                times["keras"].append(seconds(lambda: keras_export(model, path, data)))
                times["ptq"].append(seconds(lambda: tfc.export_tflite(model, path, **options)))
                times["qat"].append(seconds(lambda: tfc.export_tflite(aware, path, **options)))
        medians = {key: float(np.median(values)) for key, values in times.items()}
        rows.append(
            (
                name,
                f"{medians['keras']:.1f}",
                f"{medians['ptq']:.1f}",
                f"{medians['ptq'] / medians['keras']:.2f}x",
                f"{medians['qat']:.1f}",
                f"{medians['qat'] / medians['keras']:.2f}x",
            )
        )
    columns = ("network", "Keras s", "PTQ s", "ratio", "QAT s", "ratio")
    Console(width=100).print(table("INT8 export, check included", columns, rows))


if __name__ == "__main__":
    main()
