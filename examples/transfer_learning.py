"""Transfer learning, the way people do it, to an INT8 file equal to its model.

A backbone trained on other images gets augmentation and preprocessing in front and a new head
behind. First the head is trained, the backbone frozen; then all of it, quantization-aware.
Pretrained weights need a network, so a small backbone is trained here first, on five of the classes
of Fashion-MNIST; it then learns the other five from few images. With your own, write
`backbone = keras.applications.MobileNetV2(include_top=False, input_shape=...)` instead.

`--fast` takes fewer images.
"""

import sys

import keras
import numpy as np
from keras import layers

import tfcompress as tfc
from tfcompress.demo.data import load

fast = "--fast" in sys.argv
data = load()
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def of_classes(x, y, wanted, count):
    """Returns images of some classes as they come from a camera, and their new labels."""
    places = np.flatnonzero(np.isin(y, wanted))[:count]
    images = np.repeat(x[places] * 255, 3, axis=-1).astype("float32")
    return images, np.searchsorted(wanted, y[places])


def make_backbone():
    inputs = keras.Input((28, 28, 3))
    x = inputs
    for filters in (16, 32, 64):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.MaxPooling2D()(x) if filters < 64 else x
    return keras.Model(inputs, x, name="backbone")


def train(model, images, labels, epochs, rate):
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    model.fit(images, labels, batch_size=64, epochs=epochs, verbose=0)


# A backbone that has seen trousers, coats, bags and boots.
first, second = np.array([1, 3, 4, 8, 9]), np.array([0, 2, 5, 6, 7])
images, labels = of_classes(data.x_train, data.y_train, first, 1000 if fast else 10_000)
backbone = make_backbone()
pretraining = keras.Sequential(
    [
        keras.Input((28, 28, 3)),
        layers.Rescaling(1 / 127.5, -1),
        backbone,
        layers.GlobalAveragePooling2D(),
        layers.Dense(5),
    ]
)
train(pretraining, images, labels, 1 if fast else 4, 2e-3)

# A new head, for five classes it has not seen, from 500 images.
images, labels = of_classes(data.x_train, data.y_train, second, 500)
test = of_classes(data.x_test, data.y_test, second, 2000)
backbone.trainable = False
inputs = keras.Input((28, 28, 3), name="image")
x = layers.RandomFlip("horizontal")(inputs)
x = layers.RandomTranslation(0.1, 0.1)(x)
x = layers.Rescaling(1 / 127.5, -1)(x)
x = backbone(x, training=False)
x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
model = keras.Model(inputs, layers.Dense(5, name="logits")(x))
train(model, images, labels, 2 if fast else 30, 3e-3)

# Fine-tuned as what it will be: unfreeze, and train with the rounding of the file.
backbone.trainable = True
aware = tfc.quantize(model)
train(aware, images, labels, 1 if fast else 15, 3e-4)
result = tfc.export_tflite(aware, "transfer.tflite")
measured = tfc.export_tflite(model, "measured.tflite", representative_dataset=images)
files = {
    "head trained": model,
    "likewise, measured": measured.path,
    "fine-tuned for INT8": result.path,
}
found = tfc.compare(files, *test)
print(found)
print(f"file against model: {result.agreement}")
print(f"float tensors inside: {len(result.float_tensors)}")
