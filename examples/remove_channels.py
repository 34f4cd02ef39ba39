"""Remove channels a little at a time: score, cut, train on, and again, until a budget is met.

On Fashion-MNIST, the images that ship with the package. `--fast` takes 2,000 of them.
"""

import sys

import keras

import tfcompress as tfc
from tfcompress.demo.data import load
from tfcompress.demo.models import resnet
from tfcompress.graph.cost import macs

count = 2000 if "--fast" in sys.argv else 10_000
data = load()
x, y, test = data.x_train[:count], data.y_train[:count], (data.x_test, data.y_test)


def train(model, epochs, rate):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    model.fit(x, y, epochs=epochs, verbose=0)
    return model.evaluate(*test, verbose=0)[1]


model = resnet((8, 16, 32), stem_strides=2)
print(f"before       {macs(model):>9,} MACs, accuracy {train(model, 4, 3e-3):.2%}")
budget = macs(model) / 4
for step in range(1, 4):
    target = macs(model) * (budget / macs(model)) ** (1 / (4 - step))
    model = tfc.prune_channels(
        model, target_macs=target, criterion="taylor", data=(x[:512], y[:512])
    )
    print(f"after cut {step}  {macs(model):>9,} MACs, accuracy {train(model, 2, 1e-3):.2%}")

result = tfc.export_tflite(model, "smaller.tflite", representative_dataset=x[:500])
print(f"INT8 file    {result.report.bytes:>9,} bytes, {result.agreement}")
