"""The table of docs/exactness.md: INT8 files against their models, and kernels among themselves.

Trains the networks of the tests on Fashion-MNIST as tests/conftest.py does, then compares file and
model on 500 test images, and the kernels on the student in tflite_models/. Run by hand:
python -m benchmarks.exactness
"""

import pathlib
import tempfile

import keras
import numpy as np
from rich.console import Console

import tfcompress as tfc
from tests import nets
from tfcompress.demo.data import load
from tfcompress.export.agreement import measure
from tfcompress.tables import table

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tflite_models"
STUDENT = FOLDER / "fashion_mnist_student_int8.tflite"


def rows(data, folder):
    x, y = data.x_train[:5000], data.y_train[:5000]
    for name, make in nets.NETS.items():
        keras.utils.set_random_seed(3)
        model = make()
        nets.compiled(model).fit(x, y, epochs=6, batch_size=64, verbose=0)
        aware = tfc.quantize(model)
        nets.compiled(aware, 3e-4).fit(x, y, epochs=2, batch_size=64, verbose=0)
        trained = tfc.export_tflite(aware, f"{folder}/{name}.tflite")
        after = tfc.export_tflite(
            model, f"{folder}/{name}_ptq.tflite", representative_dataset=data.x_train[:300]
        )
        image = model.inputs[0]._keras_history.operation.name
        found = measure(aware, trained.path, {image: data.x_test[:500]})
        accuracies = [
            model.evaluate(data.x_test, data.y_test, verbose=0)[1],
            aware.evaluate(data.x_test, data.y_test, verbose=0)[1],
            tfc.TFLiteModel(trained.path).evaluate(data.x_test, data.y_test),
            tfc.TFLiteModel(after.path).evaluate(data.x_test, data.y_test),
        ]
        yield (
            name,
            f"{found.max_lsb:.0f}",
            f"{found.rmse:.4f}",
            f"{found.top1:.1%}",
            len(trained.float_tensors),
            *(f"{a:.2%}" for a in accuracies),
        )


def kernels(images):
    """Yields the share of outputs that differ by 0, 1, 2, ... LSB between kernels."""
    default, builtin = tfc.TFLiteModel(STUDENT), tfc.TFLiteModel(STUDENT, delegates=False)
    lsb = np.abs(default.predict(images) - builtin.predict(images)) / default.outputs[0].scale
    counts = np.bincount(np.round(lsb).astype(int).ravel())
    yield from ((f"{n} LSB", f"{count / lsb.size:.2%}") for n, count in enumerate(counts))


def main():
    data = load()
    console = Console(width=120)
    columns = "network,LSB,RMSE,top-1,float tensors,float,Keras QAT,QAT file,PTQ file".split(",")
    with tempfile.TemporaryDirectory() as folder:
        console.print(table("INT8 file against its model", columns, list(rows(data, folder))))
    found = list(kernels(data.x_test[:1000]))
    console.print(table("The shipped student, XNNPACK against built-in", ("", "outputs"), found))


if __name__ == "__main__":
    main()
