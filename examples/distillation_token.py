"""DeiT: a vision Transformer with a token of its own for the teacher.

Touvron et al. 2021, arXiv:2012.12877. Labels teach the class token's head, a convolutional teacher
the distillation token's; at inference the mean of both heads counts.
Run: python examples/distillation_token.py [--fast]
"""

import sys

import keras
from keras import layers as L

import tfcompress as tfc
from tfcompress.demo.data import load
from tfcompress.demo.models import resnet

FAST = "--fast" in sys.argv
EPOCHS = 1 if FAST else 10
WIDTH, PATCHES = 48, 49


class Tokens(L.Layer):
    """Puts a class token and a distillation token before the patches, and adds positions."""

    def build(self, shape):
        """Creates the tokens and the positions."""
        self.tokens = self.add_weight(shape=(1, 2, WIDTH), initializer="normal", name="tokens")
        self.positions = self.add_weight(
            shape=(1, PATCHES + 2, WIDTH), initializer="normal", name="positions"
        )

    def call(self, x):
        """Returns the two tokens and the patches."""
        tokens = keras.ops.repeat(self.tokens, keras.ops.shape(x)[0], axis=0)
        return keras.ops.concatenate([tokens, x], axis=1) + self.positions

    def get_config(self):
        """Returns the constructor arguments."""
        return super().get_config()


def vit(depth=2):
    images = keras.Input((28, 28, 1), name="image")
    x = L.Reshape((PATCHES, WIDTH))(L.Conv2D(WIDTH, 4, 4, name="patches")(images))
    x = Tokens(name="tokens")(x)
    for index in range(depth):
        y = L.LayerNormalization()(x)
        x = x + L.MultiHeadAttention(4, WIDTH // 4, name=f"attention{index}")(y, y)
        y = L.Dense(2 * WIDTH, activation="gelu")(L.LayerNormalization()(x))
        x = x + L.Dense(WIDTH)(y)
    x = L.LayerNormalization()(x)
    heads = {
        "class": L.Dense(10, name="class")(x[:, 0]),
        "token": L.Dense(10, name="token")(x[:, 1]),
    }
    return keras.Model(images, heads, name="vit")


def main():
    keras.utils.set_random_seed(1)
    data = load()
    count = 1000 if FAST else len(data.x_train)
    x, y = data.x_train[:count], data.y_train[:count]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    teacher = resnet(name="teacher")
    teacher.compile(keras.optimizers.Adam(3e-3), loss=loss, metrics=["accuracy"])
    teacher.fit(x, y, batch_size=64, epochs=EPOCHS, verbose=0)

    student = vit()
    distiller = tfc.Distiller(teacher, student, tfc.HardTargets(student_layer="token"), alpha=0.5)
    distiller.compile(keras.optimizers.Adam(1e-3), loss={"class": loss, "token": None})
    distiller.fit(x, {"class": y, "token": y}, batch_size=64, epochs=2 * EPOCHS, verbose=2)

    heads = list(student.output.values())
    phone = keras.Model(student.input, L.Average(name="logits")(heads), name="student")
    print(tfc.compare({"teacher": teacher, "student": phone}, data.x_test, data.y_test))


if __name__ == "__main__":
    main()
