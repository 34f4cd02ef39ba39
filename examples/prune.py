"""Prune in four ways, and see what each is worth as a file: single weights, 2:4, blocks, globally.

On Fashion-MNIST, the images that ship with the package. `--fast` takes 1,000 of them.
"""

import sys

import keras

import tfcompress as tfc
from tfcompress.demo.data import load
from tfcompress.demo.models import resnet

fast = "--fast" in sys.argv
count = 1000 if fast else 10_000
data = load()
x, y, test = data.x_train[:count], data.y_train[:count], (data.x_test, data.y_test)
epochs, steps = 2, 2 * count // 64


def train(model, epochs, rate):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    model.fit(x, y, batch_size=64, epochs=epochs, verbose=0)
    return model


base = train(resnet((8, 16, 32), stem_strides=2), 1 if fast else 4, 3e-3)
files = {"dense": tfc.export_tflite(base, "dense.tflite").path}
for name, sparsity, options in (
    ("75%", 0.75, {}),
    ("75% global", 0.75, {"ranking": "global"}),
    ("1:4", 0.75, {"pattern": "1:4"}),
    ("blocks of 4", 0.75, {"pattern": (4, 1)}),
):
    schedule = tfc.PolynomialDecay(0.0, sparsity, 0, int(0.6 * steps), frequency=10)
    pruned = train(tfc.prune(base, schedule, **options), epochs, 1e-3)
    path = f"{name.replace(' ', '_').replace(':', '_').replace('%', '')}.tflite"
    files[name] = tfc.export_tflite(pruned, path).path
print(tfc.compare(files, *test))
