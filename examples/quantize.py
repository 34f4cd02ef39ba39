"""Every precision of one network: float16, int8 and int16x8 without training, int8 and 4 bits with.

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


def train(model, epochs, rate):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    callbacks = [tfc.FreezeQuantization(epochs - 1)]  # changes nothing in a float model
    model.fit(x, y, batch_size=64, epochs=epochs, verbose=0, callbacks=callbacks)
    return model


model = train(resnet((8, 16, 32), stem_strides=2), 1 if fast else 4, 3e-3)
files = {"float32": tfc.export_tflite(model, "float32.tflite").path}
# By default, 3x3 convolutions keep 8 bits: there is no fast kernel for 4. Here bytes count.
small = tfc.QuantizationScheme(4, rounding="adaround", prefer="bytes")
schemes = dict.fromkeys(("float16", "dynamic_int8", "int8", "int16x8")) | {"w4a8": small}
for name, scheme in schemes.items():
    result = tfc.export_tflite(
        model, f"{name}.tflite", scheme=scheme or name, representative_dataset=x[:500]
    )
    files[name] = result.path
for name in ("int8", "w4a8"):
    aware = train(tfc.quantize(model, schemes[name] or name), 2, 5e-4)
    result = tfc.export_tflite(aware, f"{name}_trained.tflite")
    files[f"{name}, trained"] = result.path
    print(f"{name}, trained: {result.agreement}")
found = tfc.compare(files, *test)
found.to_html("precisions.html")
print(found)
print(tfc.layer_errors(model, "int8.tflite", data.x_test[:32]))
