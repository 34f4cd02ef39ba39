"""Distil, prune and quantize a model of your own in one fit, and write the file for the phone.

Replace `data`, `teacher_model` and `student_model` by yours; the rest stays. Run it as it is to see
it work on images of digits drawn at random. `--fast` trains for an epoch only.
"""

import sys

import keras
import numpy as np
from keras import layers

import tfcompress as tfc

EPOCHS = 1 if "--fast" in sys.argv else 8


def data(count, seed):
    """Images of a bright square or cross at a random place, with noise; labels 0 and 1."""
    generator = np.random.default_rng(seed)
    x = generator.normal(0, 0.3, (count, 24, 24, 1)).astype("float32")
    y = generator.integers(0, 2, count)
    for image, label, (row, column) in zip(
        x, y, generator.integers(0, 16, (count, 2)), strict=True
    ):
        shape = np.ones((8, 8)) if label else np.maximum(np.eye(8), np.eye(8)[::-1])
        image[row : row + 8, column : column + 8, 0] += shape
    return x, y


def network(width, name):
    return keras.Sequential([
        keras.Input((24, 24, 1)),
        layers.Conv2D(width, 3, strides=2, activation="relu"),
        layers.Conv2D(2 * width, 3, strides=2, activation="relu"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(2),
    ], name=name)  # fmt: skip


x_train, y_train = data(4000, seed=0)
x_test, y_test = data(1000, seed=1)
crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

teacher = network(32, "teacher")
teacher.compile("adam", crossentropy, metrics=["accuracy"])
teacher.fit(x_train, y_train, epochs=EPOCHS, verbose=2)

steps = EPOCHS * len(x_train) // 32
schedule = tfc.PolynomialDecay(0.0, 0.6, begin_step=0, end_step=int(0.6 * steps), frequency=25)
student = tfc.quantize(tfc.prune(network(12, "student"), schedule))
distiller = tfc.Distiller(teacher, student, alpha=0.5, temperature=3.0)
distiller.compile("adam", crossentropy, metrics=["accuracy"])
distiller.fit(x_train, y_train, epochs=EPOCHS, validation_data=(x_test, y_test), verbose=2)

result = tfc.export_tflite(distiller.student, "student.tflite", io_dtype="int8")
print(result)
print(tfc.compare({"teacher": teacher, "student": result.path}, x_test, y_test))
