"""Saves a model with every registered class: `python -m tests.saved_models.make`.

What lies beside this file was made by version 0.1.0 before its modules moved, and is never made
again: `test_saved_models.py` loads it with today's code. A new registered class gets a model of
its own here, which this script then adds.
"""

import pathlib
import zipfile

import keras
import numpy as np
from keras import layers as L

import tfcompress as tfc

HERE = pathlib.Path(__file__).parent


def image_network():
    x = inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(4, 3, padding="same", activation="swish")(x)
    x = L.Conv2D(4, 3, padding="same", activation="hard_swish")(x)
    x = L.BatchNormalization()(x)
    x = L.PReLU(shared_axes=[1, 2])(x)
    y = L.SeparableConv2D(4, 3, padding="same", activation="relu")(x)
    x = L.Average()([x, y])
    x = L.Concatenate()([x, L.Maximum()([x, y])])
    x = L.LayerNormalization()(x)
    x = L.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, L.Dense(3, activation="softmax")(x)), (8, 8, 3)


def normalized_first():
    x = inputs = keras.Input((6, 6, 2))
    x = L.BatchNormalization()(x)
    x = L.Activation("relu")(x)
    x = L.BatchNormalization()(L.MaxPooling2D(2)(x))
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(x))), (6, 6, 2)


def fast_forms():
    x = inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(4, 3, padding="same", activation="selu")(x)
    x = L.Conv2D(4, 3, padding="same", activation="hard_swish")(x)
    x = L.AveragePooling2D(3, 1, padding="same")(x)
    x = L.PReLU(shared_axes=[1, 2])(x)
    x = L.LayerNormalization()(x)
    return keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling2D()(x))), (8, 8, 3)


def mean():
    inputs = keras.Input((6, 6, 2))
    x = L.GlobalAveragePooling2D()(L.Conv2D(4, 3)(inputs))
    return keras.Model(inputs, L.Dense(2)(x)), (6, 6, 2)


def chain():
    return keras.Sequential([keras.Input((6,)), L.Dense(4, "relu"), L.Dense(2)]), (6,)


def nested():
    images = keras.Input((6, 6, 2))
    inner = keras.Model(images, L.ReLU()(L.Conv2D(4, 3)(images)), name="inner")
    x = L.GlobalAveragePooling2D()(inner(images))
    return keras.Model(images, L.Dense(2)(x)), (6, 6, 2)


def recurrent():
    x = inputs = keras.Input((4, 3))
    x = L.LSTM(4, return_sequences=True)(x)
    return keras.Model(inputs, L.Dense(2)(L.GRU(4)(x))), (4, 3)


def steps():
    x = inputs = keras.Input((3, 6, 6, 2))
    x = L.TimeDistributed(L.Conv2D(3, 3, activation="relu"))(x)
    return keras.Model(inputs, L.Dense(2)(L.Flatten()(x))), (3, 6, 6, 2)


def attention():
    x = inputs = keras.Input((4, 6))
    x = L.Masking()(x)
    x = L.MultiHeadAttention(2, 3)(x, x, use_causal_mask=True)
    return keras.Model(inputs, L.Dense(2)(x)), (4, 6)


def divided():
    x = inputs = keras.Input((4, 6))
    x = L.Dense(6, activation="relu")(x)
    x = L.Add()([x, keras.ops.sqrt(x)])
    x = x / (keras.ops.sum(x, axis=-1, keepdims=True) + 1e-3)
    return keras.Model(inputs, L.Dense(2)(x)), (4, 6)


@keras.saving.register_keras_serializable("tests.saved_models")
class Positions(L.Layer):
    """Adds a table of positions, as custom code does."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.table = L.Embedding(4, 6)

    def build(self, shape):
        self.table.build(())

    def call(self, x):
        return x + self.table(keras.ops.arange(4))


def positions():
    x = inputs = keras.Input((4, 6))
    return keras.Model(inputs, L.Dense(2)(Positions()(x))), (4, 6)


@keras.saving.register_keras_serializable("tests.saved_models")
class Tokens(L.Layer):
    """Puts a token of its own in front, and normalizes by the root of the mean square."""

    def build(self, shape):
        self.token = self.add_weight(shape=(1, 1, shape[-1]), name="token")
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

    def call(self, x):
        token = keras.ops.tile(self.token, (keras.ops.shape(x)[0], 1, 1))
        x = keras.ops.concatenate([token, x], axis=1)
        mean = keras.ops.mean(keras.ops.square(x), axis=-1, keepdims=True)
        return x * keras.ops.rsqrt(mean + 1e-6) * self.scale


def tokens():
    x = inputs = keras.Input((4, 6))
    return keras.Model(inputs, L.Dense(2)(Tokens()(x))), (4, 6)


def bits_mixed():
    x = inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(4, 3, activation="relu", name="conv2d")(x)
    x = L.Conv2D(4, 3, name="second")(x)
    return keras.Model(inputs, L.Dense(2)(L.Flatten()(x))), (8, 8, 3)


LOSSES = {
    "soft": lambda: tfc.SoftTargets(2.0),
    "hard": tfc.HardTargets,
    "decoupled": tfc.DecoupledTargets,
    "features": lambda: tfc.FeatureMatching("hidden", "hidden"),
    "attention": lambda: tfc.AttentionTransfer("map", "map"),
    "maps": lambda: tfc.AttentionMaps("mha", "mha"),
    "flow": lambda: tfc.FSP(("map", "map_2"), ("map", "map_2")),
    "distance": tfc.RKDDistance,
    "angle": tfc.RKDAngle,
    "similarity": tfc.SimilarityPreserving,
}


def student():
    x = inputs = keras.Input((6, 6, 2))
    x = L.Conv2D(4, 3, padding="same", name="map")(x)
    x = L.Conv2D(4, 3, padding="same", name="map_2")(x)
    x = L.Reshape((36, 4))(x)
    x = L.MultiHeadAttention(1, 4, name="mha")(x, x)
    x = L.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, L.Dense(3)(L.Dense(4, name="hidden")(x)))


def trained(model, shape):
    """Returns the model with ranges that a few samples set."""
    model(samples(shape), training=True)
    return model


def samples(shape, count=4):
    return np.random.default_rng(0).normal(size=(count, *shape)).astype("float32")


def models():
    """Yields the name of each file, its model and the shape of a sample."""
    for make in (image_network, normalized_first, chain, nested, recurrent, steps, attention):
        model, shape = make()
        yield f"int8_{make.__name__}", trained(tfc.quantize(model), shape), shape
    for make in (divided, positions, tokens):
        model, shape = make()
        yield f"int8_{make.__name__}", trained(tfc.quantize(model), shape), shape
    model, shape = image_network()
    scheme = tfc.QuantizationScheme(
        weight_range="learned", activation_range="learned", overrides={"dense*": "w4a8"}
    )
    yield "mixed_image_network", trained(tfc.quantize(model, scheme), shape), shape
    sixteen = tfc.QuantizationScheme(overrides={"conv2d": "int16x8"})
    model, shape = bits_mixed()
    yield "int8_and_int16", trained(tfc.quantize(model, sixteen), shape), shape
    decay = tfc.PolynomialDecay(0.0, 0.5, begin_step=0, end_step=4)
    model, shape = fast_forms()
    yield "int8_fast_forms", trained(tfc.quantize(model), shape), shape
    model, shape = mean()
    yield "int8_mean", trained(tfc.quantize(model), shape), shape
    yield "pruned_chain", tfc.prune(chain()[0], decay), (6,)
    constant = tfc.ConstantSparsity(0.5, begin_step=0)
    pruned = tfc.quantize(tfc.prune(chain()[0], constant))
    yield "pruned_int8_chain", trained(pruned, (6,)), (6,)
    clustered = tfc.quantize(tfc.cluster(chain()[0], 4, per_channel=True))
    yield "clustered_int8_chain", trained(clustered, (6,)), (6,)
    yield "kept_zeros", tfc.prune(tfc.strip(tfc.prune(chain()[0], 0.5)), "keep"), (6,)
    yield "averaged_teachers", tfc.ensemble([chain()[0], chain()[0]], [0.25, 0.75]), (6,)
    lasso = tfc.regularize_channels(student(), 1e-3)
    yield "group_lasso", lasso, (6, 6, 2)
    distiller = tfc.Distiller(student(), student(), [make() for make in LOSSES.values()])
    distiller.compile("sgd", "mse")
    yield "distiller", distiller, (6, 6, 2)


def weights_and_outputs(model, shape):
    """Returns what must be the same after loading."""
    outputs = keras.tree.flatten(model(samples(shape), training=False))
    weights = {f"weight_{i}": keras.ops.convert_to_numpy(v) for i, v in enumerate(model.weights)}
    results = {f"output_{i}": keras.ops.convert_to_numpy(v) for i, v in enumerate(outputs)}
    return {"x": samples(shape), **weights, **results}


def main():
    keras.utils.set_random_seed(0)
    for name, model, shape in models():
        path = HERE / f"{name}.keras"
        if not path.exists():
            model(samples(shape))
            model.save(path)
            with zipfile.ZipFile(path) as archive:
                parts = {part: archive.read(part) for part in archive.namelist()}
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                for part, content in parts.items():
                    archive.writestr(part, content)
            np.savez_compressed(path.with_suffix(".npz"), **weights_and_outputs(model, shape))


if __name__ == "__main__":
    main()
