"""Find the layers that 4 bits hurt, and give each layer as few bits as a budget allows.

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
x, y = data.x_train[:count], data.y_train[:count]
held_out = data.x_train[-1000:], data.y_train[-1000:]

model = resnet((8, 16, 32), stem_strides=2)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
model.fit(x, y, batch_size=64, epochs=1 if fast else 4, verbose=0)

print(tfc.sensitivity(model, *held_out, candidates=["w4a8"], verbose=False))
candidates = ["w4a8", "int8", "float32"]
scheme = tfc.assign_precision(
    model, *held_out, max_drop=0.005, candidates=candidates, verbose=False
)
print(scheme)
result = tfc.export_tflite(model, "mixed.tflite", scheme=scheme, representative_dataset=x[:500])
eight = tfc.export_tflite(model, "int8.tflite", representative_dataset=x[:500])
print(tfc.compare({"int8": eight.path, "mixed": result.path}, data.x_test, data.y_test))
