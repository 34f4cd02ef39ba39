"""Files to damage: small nets that have, together, most of what a file can have."""

import pathlib

import keras
import numpy as np
from keras import layers, ops

import tfcompress as tfc


class Shapes(layers.Layer):
    def call(self, x):
        a, b = ops.split(x, 2, axis=1)
        a = ops.pad(a, ((0, 0), (1, 2), (0, 1)))
        a = a[:, 1:6:2, ::-1]
        b = ops.take(b, np.array([2, 0, 1], "int32"), axis=1)
        b = ops.transpose(b, (0, 2, 1))
        b = ops.concatenate([b, b[:, :1]], axis=1)
        m = ops.max(b, axis=-1, keepdims=True)
        t = ops.tile(m, (1, 1, 2))
        c = ops.cumsum(ops.concatenate([b, t], axis=2), axis=1)
        k, _ = ops.top_k(ops.reshape(c, (-1, 5 * c.shape[1])), 7)
        s = ops.stack([ops.reshape(a, (-1, 3 * a.shape[2]))[:, :7], k], axis=1)
        return ops.reshape(ops.sum(s, axis=1), (-1, 7)), ops.argmax(s, axis=-1)


def make(folder):
    """Yields the path of each file, after writing it to a folder."""
    keras.utils.set_random_seed(3)
    rng = np.random.default_rng(3)
    cnn = keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Conv2D(8, 3, strides=2, padding="same", activation="relu"),
            layers.DepthwiseConv2D(3, padding="same"),
            layers.ReLU(),
            layers.MaxPooling2D(2),
            layers.Conv2DTranspose(4, 3, strides=2, padding="same"),
            layers.AveragePooling2D(2),
            layers.UpSampling2D(2, interpolation="bilinear"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5),
            layers.Softmax(),
        ]
    )
    x = rng.random((32, 12, 12, 3)).astype("float32")
    yield write(folder, "cnn_int8", cnn, representative_dataset=x)
    yield write(folder, "cnn_dynamic", cnn, scheme="dynamic_int8", batch_size=None)

    gru = keras.Sequential([keras.Input((6, 4)), layers.GRU(8), layers.Dense(3)])
    x = rng.random((32, 6, 4)).astype("float32")
    yield write(folder, "gru_float", gru, scheme="float32")

    inp = keras.Input((8, 4))
    shapes = keras.Model(inp, Shapes()(inp))
    x = rng.random((32, 8, 4)).astype("float32")
    yield write(folder, "shapes_float", shapes, scheme="float32")

    tok = keras.Input((6,), dtype="int32")
    emb = layers.Embedding(20, 8)(tok)
    emb = layers.Dense(4)(layers.LayerNormalization()(layers.GlobalAveragePooling1D()(emb)))
    emb = keras.Model(tok, emb)
    x = rng.integers(0, 20, (32, 6)).astype("int32")
    yield write(folder, "embedding_float", emb, scheme="float32", representative_dataset=x)
    yield write(folder, "embedding_int8", emb, scheme="int8", representative_dataset=x)

    lstm = keras.Sequential([keras.Input((5, 4)), layers.LSTM(6), layers.Dense(3)])
    x = rng.random((32, 5, 4)).astype("float32")
    yield write(folder, "lstm_int8", lstm, representative_dataset=x)
    dense = keras.Sequential(
        [keras.Input((16,)), layers.Dense(16, activation="relu"), layers.Dense(4)]
    )
    dense.layers[0].set_weights(
        [np.where(rng.random((16, 16)) < 0.8, 0, 1).astype("f4"), np.zeros(16)]
    )
    yield write(folder, "dense_sparse", dense, scheme="float32", sparse=True)


def write(folder, name, model, **options):
    """Exports a net, and returns the path."""
    path = pathlib.Path(folder) / f"{name}.tflite"
    tfc.export_tflite(model, path, verbose=False, **options)
    return str(path)
