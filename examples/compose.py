"""Everything in turn: channels removed, kernels factorized, then pruned, quantized and distilled.

Prints what each step added, and what it cost. On Fashion-MNIST, the images that ship with the
package. `--fast` takes 2,000 of them.
"""

import sys
import time

import keras
from rich.console import Console

import tfcompress as tfc
from tfcompress.demo.data import load
from tfcompress.demo.models import resnet
from tfcompress.graph.cost import macs
from tfcompress.tables import table

fast = "--fast" in sys.argv
epochs, count = (2, 2000) if fast else (8, 10_000)
data = load()
x, y, test = data.x_train[:count], data.y_train[:count], (data.x_test, data.y_test)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
rows = []


def fit(model, epochs):
    steps = epochs * -(-count // 64)
    rate = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    model.fit(x, y, batch_size=64, epochs=epochs, verbose=0)
    return model


def note(step, model, started):
    result = tfc.export_tflite(model, "model.tflite", batch_size=1)
    file, seconds = tfc.TFLiteModel(result.path), time.perf_counter() - started
    share, speed = file.evaluate(*test), file.benchmark().median_ms
    shape = f"{macs(model):,}", f"{result.report.gzip_bytes:,}", f"{speed:.3f}"
    rows.append((step, f"{share:.2%}", *shape, f"{seconds:.0f}"))


started = time.perf_counter()
teacher = fit(resnet((16, 32, 64) if not fast else (8, 16, 32), stem_strides=2), epochs)
note("float", teacher, started)

started = time.perf_counter()
small = tfc.prune_channels(
    teacher, 0.4, criterion="taylor", data=(x[:512], y[:512]), ranking="layer"
)
note("channels removed, trained on", fit(small, epochs // 2), started)

started = time.perf_counter()
small = tfc.factorize(small, 0.9, layers="stage3*")
note("last stage of low rank, trained on", fit(small, epochs // 2), started)

started = time.perf_counter()
ramp = tfc.PolynomialDecay(0.0, 0.5, 0, epochs * count // 64 // 2, frequency=25)
student = tfc.quantize(tfc.prune(small, ramp))
distiller = tfc.Distiller(teacher, student, alpha=0.5, temperature=3.0)
note("pruned + QAT + distilled", fit(distiller, epochs).student, started)

columns = ("step", "accuracy", "MACs", "gzip, B", "ms", "seconds of training")
Console(width=110).print(table("compose", columns, rows))
