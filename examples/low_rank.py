"""Write the large dense layers of a small CNN as products of two, and train on.

On Fashion-MNIST, the images that ship with the package. `--fast` takes 2,000 of them.
"""

import sys

import keras
from keras import layers

import tfcompress as tfc
from tfcompress.demo.data import load

count = 2000 if "--fast" in sys.argv else 10_000
data = load()
x, y, test = data.x_train[:count], data.y_train[:count], (data.x_test, data.y_test)


def train(model, epochs, rate):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    model.fit(x, y, batch_size=64, epochs=epochs, verbose=0)
    return model


model = keras.Sequential([
    keras.Input((28, 28, 1)),
    layers.Conv2D(16, 3, strides=2, activation="relu"),
    layers.Flatten(),
    layers.Dense(256, activation="relu", name="wide"),
    layers.Dense(10, name="logits"),
])  # fmt: skip
train(model, 3, 1e-3)
small = tfc.factorize(model, 16, layers="wide")
cut = tfc.export_tflite(small, "cut.tflite").path
files = {"full": model, "rank 16": cut, "rank 16, trained on": train(small, 2, 5e-4)}
files["INT8"] = tfc.export_tflite(small, "int8.tflite", representative_dataset=x[:500]).path
print(tfc.compare(files, *test))
