"""A chain of teachers: where teacher and student are far apart, one between them helps.

Mirzadeh et al. 2020, arXiv:1902.03393. Run: python examples/teacher_assistant.py [--fast]
"""

import sys

import keras

import tfcompress as tfc
from tfcompress.demo.data import load
from tfcompress.demo.models import resnet

FAST = "--fast" in sys.argv
EPOCHS = 1 if FAST else 12


def fit(model, x, y):
    steps = EPOCHS * len(x) // 64
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, steps)),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(x, y, batch_size=64, epochs=EPOCHS, verbose=0)
    return model


def main():
    keras.utils.set_random_seed(1)
    data = load()
    count = 1000 if FAST else len(data.x_train)
    x, y = data.x_train[:count], data.y_train[:count]

    teacher = fit(resnet(name="teacher"), x, y)
    sizes = {"assistant": (12, 24, 40), "student": (4, 8, 12)}
    last, models = teacher, {"teacher": teacher}
    for name, widths in sizes.items():
        model = resnet(widths, stem_strides=2, name=name)
        fit(tfc.Distiller(last, model, alpha=0.9, temperature=4.0), x, y)
        last = models[name] = model
    direct = resnet(sizes["student"], stem_strides=2, name="direct")
    fit(tfc.Distiller(teacher, direct, alpha=0.9, temperature=4.0), x, y)
    models["student without assistant"] = direct
    print(tfc.compare(models, data.x_test, data.y_test))


if __name__ == "__main__":
    main()
