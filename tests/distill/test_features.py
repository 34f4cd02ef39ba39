import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tests import nets
from tfcompress.distill.features import ATTENTION, Feature, Recorder

X = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="subclassed")
        self.block = keras.Sequential([L.Dense(5, name="inner")], name="block")
        self.head = L.Dense(3, name="head")

    def call(self, x):
        return self.head(self.block(x))


def test_features_are_what_the_layer_puts_out():
    model = nets.nested()
    outputs, features = Recorder(model, [Feature("block/inner")], "student_layer")(
        X, training=False
    )
    inner = model.get_layer("block").get_layer("inner")
    wanted = inner(inner(X))  # of a layer called twice, the last call
    np.testing.assert_allclose(features[Feature("block/inner")], wanted, rtol=1e-5)
    np.testing.assert_allclose(outputs, model(X), rtol=1e-5)


def test_subclassed_and_wrapped_models():
    model = Subclassed()
    model(X)
    recorder = Recorder(model, [Feature("block/inner")], "student_layer")
    assert recorder.shapes() == {Feature("block/inner"): (None, 5)} or recorder.shapes() == {
        Feature("block/inner"): (4, 5)
    }
    features = recorder(X, training=False)[1]
    np.testing.assert_allclose(features[Feature("block/inner")], model.block(X), rtol=1e-5)
    wrapped = tfc.quantize(tfc.prune(nets.tiny(), 0.5))
    recorder = Recorder(wrapped, [Feature("second")], "student_layer")
    assert recorder.shapes() == {Feature("second"): (None, 3)}


def test_nothing_stays_on_the_layers():
    model = nets.tiny()
    before = dict(vars(model.layers[0]))
    recorder = Recorder(model, [Feature("first")], "student_layer")
    recorder.shapes()
    recorder(X, training=False)
    assert set(vars(model.layers[0])) == set(before)
    assert "call" not in vars(model.layers[0])


@pytest.mark.parametrize("kind", ["multi-head", "grouped"])
def test_attention_maps_are_those_of_the_layer(kind):
    x = np.random.default_rng(0).normal(size=(2, 7, 8)).astype("float32")
    inputs = keras.Input((7, 8))
    layer = (
        L.MultiHeadAttention(2, 4, name="attention")
        if kind == "multi-head"
        else L.GroupQueryAttention(4, 4, 2, name="attention")
    )
    model = keras.Model(inputs, layer(inputs, inputs))
    feature = Feature("attention", ATTENTION)
    recorder = Recorder(model, [feature], "teacher_layer")
    outputs, features = recorder(x, training=False)
    wanted, scores = layer(x, x, return_attention_scores=True)
    np.testing.assert_allclose(features[feature], scores, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(outputs, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.sum(features[feature], -1), 1, rtol=1e-4)
    heads = 2 if kind == "multi-head" else 4
    assert recorder.shapes()[feature] == (None, heads, 7, 7)


def test_attention_maps_of_a_quantized_layer():
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(2, 7, 8)).astype("float32")
    inputs = keras.Input((7, 8))
    layer = L.MultiHeadAttention(2, 4, name="attention")
    model = keras.Model(inputs, layer(inputs, inputs))
    feature = Feature("attention", ATTENTION)
    recorder = Recorder(tfc.quantize(model), [feature], "student_layer")
    features = recorder(x, training=True)[1]
    _, scores = layer(x, x, return_attention_scores=True)
    np.testing.assert_allclose(features[feature], scores, atol=0.02)  # weights are rounded
    assert recorder.shapes()[feature] == (None, 2, 7, 7)


def test_a_wrong_path_lists_the_nearest():
    with pytest.raises(ValueError, match=r"student_layer='frist' names no layer.*Nearest: first"):
        Recorder(nets.tiny(), [Feature("frist")], "student_layer")
    with pytest.raises(ValueError, match="must name a MultiHeadAttention layer. Received a Dense"):
        Recorder(nets.tiny(), [Feature("first", ATTENTION)], "student_layer")
