"""Nested models and what reads them: their output has one scale inside and outside."""

import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tests.agreeing import goes_all_the_way
from tfcompress.quantization.following_quantizer import FollowingQuantizer

IMAGE = (16, 16, 3)
X = np.random.default_rng(0).normal(size=(48, *IMAGE)).astype("float32")


def backbone(*last_layers):
    inputs = keras.Input(IMAGE)
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(8, 3)(inputs)))
    for layer in last_layers:
        x = layer(x)
    return keras.Model(inputs, x, name="backbone")


def head(*layers):
    return keras.Sequential([keras.Input((14, 14, 8)), *layers, L.Dense(5)], name="head")


def stack(*layers):
    return keras.Sequential([keras.Input(IMAGE), *layers])


def siamese():
    first, second = keras.Input(IMAGE), keras.Input(IMAGE)
    base, pool = backbone(), L.GlobalAveragePooling2D()
    both = L.Concatenate()([pool(base(first)), pool(base(second))])
    return keras.Model([first, second], L.Dense(3)(both))


def frozen():
    inputs, base = keras.Input(IMAGE), backbone()
    base.trainable = False
    x = L.GlobalAveragePooling2D()(base(inputs, training=False))
    return keras.Model(inputs, L.Dense(4)(L.Dropout(0.2)(x)))


def two_features():
    inputs = keras.Input(IMAGE)
    first = L.Conv2D(4, 3, activation="relu")(inputs)
    base = keras.Model(inputs, [first, L.Conv2D(6, 3, activation="relu")(first)])
    outer = keras.Input(IMAGE)
    pooled = [L.GlobalAveragePooling2D()(x) for x in base(outer)]
    return keras.Model(outer, L.Dense(3)(L.Concatenate()(pooled)))


NETS = {
    "pooled globally": lambda: stack(backbone(), L.GlobalAveragePooling2D(), L.Dense(5)),
    "pooled": lambda: stack(backbone(), L.AveragePooling2D(2), L.Flatten(), L.Dense(5)),
    "moved about first": lambda: stack(
        backbone(L.MaxPooling2D(2), L.Dropout(0.2)), L.GlobalAveragePooling2D(), L.Dense(5)
    ),
    "ReLU outside": lambda: stack(
        backbone(L.Conv2D(6, 1)), L.ReLU(), L.GlobalAveragePooling2D(), L.Dense(5)
    ),
    "pooled in the next model": lambda: stack(backbone(), head(L.GlobalAveragePooling2D())),
    "pooled twice there": lambda: stack(
        backbone(), head(L.Dropout(0.1), L.AveragePooling2D(2), L.GlobalAveragePooling2D())
    ),
    "nested twice": lambda: stack(stack(backbone()), L.GlobalAveragePooling2D(), L.Dense(5)),
    "resized": lambda: stack(
        backbone(), L.UpSampling2D(2, interpolation="bilinear"), L.GlobalAveragePooling2D()
    ),
    "frozen": frozen,
    "two features": two_features,
}


QUICK = ("pooled globally", "moved about first", "pooled in the next model", "frozen")


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NETS]
)
def test_transfer_learning(name, tmp_path):
    goes_all_the_way(NETS[name](), X, tmp_path)


def test_one_backbone_of_two_images(tmp_path):
    # A backbone that is called on two tensors rounds in floats: its accumulators have two scales.
    goes_all_the_way(siamese(), [X, X[::-1]], tmp_path, off=0.02)


def test_the_grid_is_not_learned_twice():
    inner = NETS["pooled globally"]().get_layer("backbone")
    inputs = keras.Input(inner.input_shape[1:])
    averages = L.AveragePooling2D(2)(inner(inputs))
    aware = tfc.quantize(keras.Model(inputs, L.Dense(2)(L.Flatten()(averages))))
    (follower,) = [layer for layer in aware.layers if isinstance(layer, FollowingQuantizer)]
    assert not follower.variables
    inner = aware.get_layer("backbone")
    assert follower.leader() in inner.layers
    alone = keras.Model(inner.inputs, inner.outputs)
    assert alone.predict(X, verbose=0).shape == (48, 14, 14, 8)


def test_unfrozen_and_trained_on(tmp_path):
    """The two phases of transfer learning, the second with a few batches frozen."""
    model = frozen()
    aware = tfc.quantize(model)
    nested = aware.get_layer("backbone")
    assert not any(w.trainable for w in nested.weights)
    for trainable in (False, True):
        nested.trainable = trainable
        aware.compile("sgd", "mse")
        aware.fit(X, np.zeros((48, 4)), verbose=0)
    result = tfc.export_tflite(aware, tmp_path / "m.tflite")
    assert result.agreement.rmse < 1e-5 and not result.float_tensors


@pytest.mark.parametrize("compiled", [{"box": "mse", "cls": "mse"}, ["mse", "mse"]])
def test_outputs_keep_their_names(compiled, tmp_path, quiet):
    inputs = keras.Input((6,))
    x = L.Dense(8, activation="relu")(inputs)
    outputs = [L.Dense(4, name="box")(x), L.Dense(3, name="cls", activation="softmax")(x)]
    model = keras.Model(inputs, outputs)
    targets = {"box": np.ones((8, 4)), "cls": np.ones((8, 3))}
    weights = [np.ones(8), np.linspace(0, 1, 8)]  # Keras needs targets in the same structure
    for aware in (tfc.quantize(model), tfc.prune(tfc.quantize(model), 0.5)):
        assert aware.output_names == ["box", "cls"]
        metrics = {"cls": ["accuracy"]}
        aware.compile("sgd", loss=compiled, metrics=metrics, weighted_metrics={"box": ["mae"]})
        history = aware.fit(np.ones((8, 6)), targets, verbose=0).history
        aware.fit(np.ones((8, 6)), [*targets.values()], sample_weight=weights, verbose=0)
        assert {"box_loss", "cls_accuracy", "box_mae"} <= {*history}
        aware.save(tmp_path / "m.keras")
        loaded = keras.models.load_model(tmp_path / "m.keras")
        assert loaded.output_names == ["box", "cls"]
        loaded.fit(np.ones((8, 6)), targets, verbose=0)
    assert type(tfc.strip(aware)) is type(model)
