"""Custom layers and subclassed models: read as graphs, quantized inside, and put back."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import tfcompress as tfc
from tfcompress.graph.inline import as_graph
from tfcompress.graph.read import walk_layers


class Block(L.Layer):
    def __init__(self, filters=4, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.conv = L.Conv2D(filters, 3, padding="same", activation="relu")
        self.norm = L.BatchNormalization()
        self.drop = L.Dropout(0.1)

    def call(self, x, training=False):
        return x + self.drop(self.norm(self.conv(x), training=training), training=training)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


class Stack(L.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [Block(), Block()]

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class Blend(L.Layer):
    def call(self, tensors, share):
        return tensors[0] * share + tensors[1]


class Own(L.Layer):
    def build(self, shape):
        self.matrix = self.add_weight(shape=(shape[-1], 5), name="matrix")

    def call(self, x):
        return ops.matmul(x, self.matrix)


class OnlyInTraining(L.Layer):
    def call(self, x, training=False):
        return x * 2.0 if training else x


class Classifier(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.stack = Stack()
        self.pool = L.GlobalAveragePooling2D()
        self.own = Own()
        self.noise = OnlyInTraining()
        self.head = L.Dense(3)

    def call(self, x, training=None):
        return self.head(self.noise(self.own(self.pool(self.stack(x))), training=training))


def images(count=64):
    return np.random.default_rng(0).normal(size=(count, 8, 8, 4)).astype("float32")


def functional():
    inputs = keras.Input((8, 8, 4))
    x = Blend(name="blend")([L.Conv2D(4, 1)(inputs), Stack(name="stack")(inputs)], share=0.3)
    return keras.Model(inputs, L.Dense(3)(Own(name="own")(L.Flatten()(x))))


def subclassed():
    model = Classifier()
    model(images(1))
    return model


@pytest.fixture(params=[functional, subclassed])
def model(request):
    keras.utils.set_random_seed(0)
    return request.param()


def test_the_graph_does_the_same_and_the_model_is_not_touched(model):
    calls = [len(layer._inbound_nodes) for layer in model._flatten_layers()]
    graph = as_graph(model)
    np.testing.assert_allclose(
        graph.predict(images(), verbose=0), model.predict(images(), verbose=0), atol=1e-6
    )
    assert [len(layer._inbound_nodes) for layer in model._flatten_layers()] == calls
    paths = {path for path, _ in walk_layers(graph)}
    assert {path.split("/")[-1].rstrip("_0123456789") for path in paths} >= {"conv2d", "dropout"}
    assert sum("/" in path for path in paths) >= 6  # those inside of the stack


def test_it_trains_as_before(model):
    """Dropout, statistics and what happens in training only are those of the code."""
    graph = as_graph(model)
    norms = [layer for layer in graph._flatten_layers() if isinstance(layer, L.BatchNormalization)]
    before = [np.array(norm.moving_mean) for norm in norms]
    y = np.arange(64) % 3
    for one in (model, graph):
        one.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        one.fit(images(), y, verbose=0)
    assert all(np.any(np.array(n.moving_mean) != b) for n, b in zip(norms, before, strict=True))
    x = images(8)
    assert np.abs(np.asarray(graph(x, training=True) - graph(x, training=False))).max() > 1e-3


def test_all_the_way_to_the_file_and_back(model, tmp_path):
    aware = tfc.quantize(tfc.prune(model, 0.5))
    aware.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    aware.fit(images(), np.arange(64) % 3, epochs=2, verbose=0)
    result = tfc.export_tflite(aware, tmp_path / "m.tflite")
    assert not result.float_tensors
    assert result.agreement.max_steps <= 4
    with pytest.warns(tfc.CompressionWarning, match="drops"):
        plain = tfc.strip(aware)
    kinds = {layer.name: type(layer) for layer in plain.layers}
    assert Stack in kinds.values() and Own in kinds.values()
    assert len(plain.weights) == len(model.weights)
    assert all("tfcompress" not in type(layer).__module__ for layer in plain._flatten_layers())
    kernels = [w for w in plain.weights if w.name == "kernel" and len(w.shape) == 4]
    assert all(np.mean(np.array(kernel) == 0) == 0.5 for kernel in kernels)


def test_layers_put_back_have_the_weights_that_were_trained(model):
    pruned = tfc.prune(model, 0.5)
    pruned.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    pruned.fit(images(), np.arange(64) % 3, verbose=0)
    plain = tfc.strip(pruned)
    np.testing.assert_allclose(
        plain.predict(images(), verbose=0), pruned.predict(images(), verbose=0), atol=1e-6
    )


def test_ptq_reads_inside(model, tmp_path):
    result = tfc.export_tflite(model, tmp_path / "m.tflite", representative_dataset=images())
    assert not result.float_tensors


@pytest.mark.parametrize("kind", [Own, OnlyInTraining])
def test_what_does_more_than_call_stays_one_layer(kind):
    inputs = keras.Input((6,))
    graph = as_graph(keras.Model(inputs, kind()(inputs)))
    assert [type(inner) for _, inner in walk_layers(graph)] == [kind]


def test_a_subclassed_model_that_cannot_be_called_on_symbols():
    class Values(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = L.Dense(2)

        def call(self, x):
            return self.dense(x) if float(ops.sum(x)) > 0 else x

    model = Values()
    model(np.ones((1, 3), "float32"))
    with pytest.raises(ValueError, match="keras.Input"):
        tfc.quantize(model)


def test_shared_custom_layers_stay_shared():
    inputs = keras.Input((8, 8, 4))
    block = Block(name="block")
    model = keras.Model(inputs, block(block(inputs)))
    graph = as_graph(model)
    assert len(graph.weights) == len(model.weights)
    np.testing.assert_allclose(
        graph.predict(images(), verbose=0), model.predict(images(), verbose=0), atol=1e-6
    )
