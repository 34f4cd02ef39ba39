"""The code of custom layers, read into graphs."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import tfcompress as tfc
from tfcompress.graph.code import runs_code
from tfcompress.graph.inline import as_graph, code_of_open_sizes
from tfcompress.graph.read import walk_layers

X = np.random.default_rng(0).normal(size=(64, 6, 8)).astype("float32")


def drawn(layer):
    """Gives the weights of a built layer values that differ."""
    generator = np.random.default_rng(1)
    for weight in layer.weights:
        weight.assign(generator.normal(0, 0.5, weight.shape))
    return layer


def model_of(layer, shape=(6, 8)):
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layer(inputs))
    drawn(model)
    return model


@keras.saving.register_keras_serializable("test_code")
class Tokens(L.Layer):
    """A class token in front, positions, a scale per channel, and a weight that it never reads."""

    def build(self, shape):
        self.token = self.add_weight(shape=(1, 1, shape[-1]), name="token")
        self.positions = self.add_weight(shape=(shape[1] + 1, shape[-1]), name="positions")
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")
        self.mask = self.add_weight(shape=(shape[-1],), name="mask")

    def call(self, x):
        token = ops.tile(self.token, (ops.shape(x)[0], 1, 1))
        return (ops.concatenate([token, x], axis=1) + self.positions) * self.scale


class Inner(L.Layer):
    """Returns more than tensors."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = L.Dense(8)

    def build(self, shape):
        self.dense.build(shape)
        self.bias = self.add_weight(shape=(8,), name="bias")

    def call(self, x, cache=None):
        return ops.tanh(self.dense(x)) + self.bias, cache


@keras.saving.register_keras_serializable("test_code")
class Outer(L.Layer):
    """Calls two of these, whose parts have the same names; a third is never built."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.parts = [Inner(name="inner"), Inner(name="inner")]
        self.spare = Inner(name="spare")

    def build(self, shape):
        for part in self.parts:
            part.build(shape)

    def call(self, x):
        for part in self.parts:
            x, _ = part(x)
        return x

    def compute_output_shape(self, shape):
        return shape


class Windows(L.Layer):
    """Attention within windows: moves windows into the batch and back."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = L.Dense(8)

    def build(self, shape):
        self.dense.build((None, 2, 8))

    def call(self, x):
        batch = ops.shape(x)[0]
        parts = ops.reshape(x, (batch * 3, 2, 8))
        scores = ops.matmul(parts, ops.swapaxes(parts, 1, 2))
        parts = ops.matmul(ops.softmax(scores), self.dense(parts))
        return ops.reshape(parts, (batch, 6, 8))


class Positions(L.Layer):
    """Reads as many positions as there are time steps."""

    def build(self, shape):
        self.table = self.add_weight(shape=(16, shape[-1]), name="table")

    def call(self, x):
        return x + ops.slice(self.table, (0, 0), (ops.shape(x)[1], ops.shape(x)[2]))


READ = (Tokens, Outer, Windows)


@pytest.mark.parametrize("kind", READ)
def test_it_is_read_whole_and_does_the_same(kind):
    model = model_of(kind(name="own"))
    graph = as_graph(model)
    assert not [part for _, part in walk_layers(graph) if runs_code(part)]
    for count in (1, 5, 64):  # any batch
        np.testing.assert_allclose(graph(X[:count]), model(X[:count]), atol=1e-6)


@pytest.mark.parametrize("kind", READ)
def test_all_integers_and_back(kind, tmp_path):
    model = model_of(kind(name="own"))
    aware = tfc.quantize(model)
    aware.compile("sgd", "mse")
    aware.fit(X, np.asarray(model(X)), verbose=0)
    result = tfc.export_tflite(aware, tmp_path / "m.tflite")
    assert result.float_tensors == [] and result.agreement.rmse < 0.01
    loaded = keras.saving.load_model(_saved(aware, tmp_path), custom_objects={kind.__name__: kind})
    np.testing.assert_array_equal(loaded(X), aware(X))


def _saved(model, folder):
    model.save(folder / "m.keras")
    return folder / "m.keras"


@pytest.mark.parametrize("kind", READ)
def test_strip_puts_the_layer_back_with_all_its_weights(kind, quiet):
    model = model_of(kind(name="own"))
    plain = tfc.strip(tfc.quantize(model))
    assert type(plain.layers[-1]) is kind
    for old, new in zip(model.weights, plain.weights, strict=True):
        np.testing.assert_allclose(new, old)  # also that which the code never reads


def test_own_weights_are_trained():
    model = model_of(Tokens(name="own"))
    graph = as_graph(model)
    before = [np.array(w) for w in graph.trainable_weights]
    graph.compile("sgd", "mse")
    graph.fit(X, np.zeros((64, 7, 8)), verbose=0)
    assert len(before) == 3
    assert all(np.any(np.array(w) != b) for w, b in zip(graph.weights, before, strict=True))


class Bound(L.Layer):
    """Reads its weight through a function, where no record sees it."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(8, 8), name="kernel")
        kernel = self.kernel
        self.product = lambda x: x @ ops.convert_to_tensor(kernel)

    def call(self, x):
        return self.product(x)


class Noise(L.Layer):
    """Draws random numbers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed = keras.random.SeedGenerator(0)

    def call(self, x):
        return x + keras.random.normal(ops.shape(x), seed=self.seed)


class ByBatch(L.Layer):
    """Adds to each sample its number."""

    def call(self, x):
        return x + ops.cast(ops.reshape(ops.arange(ops.shape(x)[0]), (-1, 1, 1)), x.dtype)


@pytest.mark.parametrize("kind", [Bound, Noise, ByBatch])
def test_what_cannot_be_read_stays_one_layer(kind):
    model = model_of(kind(name="own"))
    before = [np.array(w) for w in model.weights]
    assert type(as_graph(model).get_layer("own")) is kind
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)


def test_described_layers_stay_what_they_are_described_as():
    class Described(Tokens):
        pass

    tfc.describe_layer(Described)
    model = model_of(Described(name="own"))
    assert type(as_graph(model).get_layer("own")) is Described


def test_open_sizes(tmp_path):
    layer = Positions(name="own")
    model = model_of(layer, (None, 8))
    assert code_of_open_sizes(as_graph(model)) == ["own"]
    assert code_of_open_sizes(as_graph(model, input_shape=(6, 8))) == []
    with pytest.warns(tfc.CompressionWarning, match="'own' stays in float.*input_shape"):
        tfc.quantize(model)
    aware = tfc.quantize(model, input_shape=(6, 8))
    aware(X, training=True)
    assert tfc.export_tflite(aware, tmp_path / "m.tflite").float_tensors == []


def test_after_training_the_samples_give_the_sizes(tmp_path):
    model = model_of(Positions(name="own"), (None, 8))
    with pytest.warns(tfc.CompressionWarning, match="takes those of the samples"):
        result = tfc.export_tflite(model, tmp_path / "m.tflite", representative_dataset=X)
    assert result.float_tensors == []
    assert tfc.TFLiteModel(result.path).inputs[0].shape == (1, 6, 8)
