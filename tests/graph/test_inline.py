"""Custom layers and subclassed models: expanded into graphs, quantized inside, and restored."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import tfcompress as tfc
from tfcompress.graph.inline import as_graph
from tfcompress.graph.keras_internals import flatten_layers, inbound_nodes
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
    calls = [len(inbound_nodes(layer)) for layer in flatten_layers(model)]
    graph = as_graph(model)
    np.testing.assert_allclose(
        graph.predict(images(), verbose=0), model.predict(images(), verbose=0), atol=1e-6
    )
    assert [len(inbound_nodes(layer)) for layer in flatten_layers(model)] == calls
    paths = {path for path, _ in walk_layers(graph)}
    assert {path.split("/")[-1].rstrip("_0123456789") for path in paths} >= {"conv2d", "dropout"}
    assert sum("/" in path for path in paths) >= 6  # those inside of the stack


def test_it_trains_as_before(model):
    """Dropout, statistics and what happens in training only are those of the code."""
    graph = as_graph(model)
    norms = [layer for layer in flatten_layers(graph) if isinstance(layer, L.BatchNormalization)]
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
    assert result.agreement.max_lsb <= 4
    with pytest.warns(tfc.CompressionWarning, match="drops"):
        plain = tfc.strip(aware)
    kinds = {layer.name: type(layer) for layer in plain.layers}
    assert Stack in kinds.values() and Own in kinds.values()
    assert len(plain.weights) == len(model.weights)
    assert all("tfcompress" not in type(layer).__module__ for layer in flatten_layers(plain))
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


def test_what_does_more_in_training_stays_one_layer():
    inputs = keras.Input((6,))
    graph = as_graph(keras.Model(inputs, OnlyInTraining()(inputs)))
    assert [type(inner) for _, inner in walk_layers(graph)] == [OnlyInTraining]


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


def same_name(activation):
    class Layer(L.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dense = L.Dense(6)

        def call(self, x):
            return activation(self.dense(x))

    return Layer


def test_classes_of_one_name_are_told_apart():
    inputs = keras.Input((6,))
    x = same_name(ops.tanh)()(same_name(ops.relu)()(inputs))
    model = keras.Model(inputs, L.Dense(2)(x))
    x = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")
    pruned = tfc.prune(model, 0.5)
    pruned(x, training=True)
    plain = tfc.strip(pruned)
    np.testing.assert_allclose(plain(x), pruned(x), atol=1e-6)


class Quirk(L.Layer):
    def __init__(self, kind="", **kwargs):
        super().__init__(**kwargs)
        self.kind = kind
        self.dense = L.Dense(6)
        self.head = L.Dense(2) if kind == "head" else None

    def build(self, shape):
        self.dense.build(shape)
        if self.kind == "count":
            self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.built = True

    def call(self, x, training=False):
        if self.kind == "count":
            self.count.assign_add(1.0)
        if self.kind == "head" and training:
            self.add_loss(ops.mean(self.head(x)))
        return self.dense(x) * (0.5 if training and self.kind == "scale" else 1.0)

    def get_config(self):
        return {**super().get_config(), "kind": self.kind}


@pytest.mark.parametrize("kind", ["count", "head", "scale", "regularized"])
def test_reading_changes_nothing_and_keeps_what_it_cannot_tell(kind):
    options = {"activity_regularizer": "l2"} if kind == "regularized" else {}
    layer = Quirk(kind, name="quirk", **options)
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layer(inputs))
    before = [np.array(weight) for weight in model.weights]
    graph = as_graph(model)
    assert type(graph.get_layer("quirk")) is Quirk
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)


def test_calls_that_differ():
    layer = Blend(name="blend")
    a, b = keras.Input((6,)), keras.Input((6,))
    model = keras.Model([a, b], [layer([a, b], share=0.1), layer([a, b], share=0.9)])
    graph = as_graph(model)
    assert not [part for _, part in walk_layers(graph) if isinstance(part, Blend)]
    x = [np.ones((2, 6), "float32"), np.zeros((2, 6), "float32")]
    for one in (graph, tfc.strip(tfc.quantize(model))):
        for old, new in zip(model(x), one(x), strict=True):
            np.testing.assert_allclose(new, old, atol=1e-6)
    block = Block(name="block")
    inputs = keras.Input((8, 8, 4))
    twice = as_graph(keras.Model(inputs, block(block(inputs))))
    assert any(path.startswith("block/") for path, _ in walk_layers(twice))


def test_tokens_of_a_subclassed_model_are_integers():
    class Reader(keras.Model):
        def __init__(self):
            super().__init__()
            self.table, self.head = L.Embedding(5000, 4), L.Dense(2)

        def call(self, ids):
            return self.head(ops.mean(self.table(ids), 1))

    model = Reader()
    ids = np.array([[4999, 4097, 3]])
    wanted = np.asarray(model(ids))
    graph = as_graph(model)
    assert graph.inputs[0].dtype == "int32"
    np.testing.assert_allclose(graph(ids), wanted, atol=1e-6)


class Patches(L.Layer):
    """Reads the size of the batch, which is not known in a graph."""

    def call(self, images):
        batch, height, width, channels = ops.shape(images)
        patches = ops.image.extract_patches(images, size=4)
        return ops.reshape(patches, (batch, height * width // 16, 16 * channels))


class Places(L.Layer):
    """Looks up constants, one after the other, in two tables."""

    def __init__(self, count, width, **kwargs):
        super().__init__(**kwargs)
        self.project = L.Dense(width)
        self.tables = [L.Embedding(count, width), L.Embedding(2, width)]
        self.count = count

    def call(self, x):
        places = self.tables[0](ops.expand_dims(ops.arange(self.count), 0))
        halves = self.tables[1](ops.arange(self.count) // 2 % 2)
        return self.project(x) + places + halves + self.tables[1](ops.zeros((1,), "int32"))


class Attention(L.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = L.MultiHeadAttention(2, 6)
        self.feed = keras.Sequential([L.Dense(16, activation="gelu"), L.Dense(12)])
        self.norms = [L.LayerNormalization(), L.LayerNormalization()]

    def call(self, x):
        x = self.norms[0](x + self.attention(x, x))
        return self.norms[1](x + self.feed(x))


def transformer():
    inputs = keras.Input((8, 8, 4))
    x = Attention()(Places(4, 12)(Patches()(inputs)))
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(x)))


def several_axes():
    """Attention over the two axes of an image."""
    inputs = keras.Input((4, 4, 12))
    x = inputs + L.MultiHeadAttention(2, 6)(inputs, inputs)
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(x)))


@pytest.mark.parametrize("build", [transformer, several_axes])
def test_vision_transformers_are_integers_throughout(build, tmp_path):
    keras.utils.set_random_seed(0)
    model = build()
    shape = model.input_shape[1:]
    x = np.random.default_rng(0).normal(size=(64, *shape)).astype("float32")
    graph = as_graph(model)
    np.testing.assert_allclose(graph.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5)
    paths = {path for path, _ in walk_layers(graph)}
    assert build is several_axes or sum("/" in path for path in paths) >= 8
    aware = tfc.quantize(model)
    aware.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    aware.fit(x, np.arange(64) % 3, epochs=2, verbose=0)
    result = tfc.export_tflite(aware, tmp_path / "m.tflite")
    assert result.float_tensors == [] and result.agreement.max_lsb < 0.01
    with pytest.warns(tfc.CompressionWarning, match="drops"):
        plain = tfc.strip(aware)
    assert [type(layer) for layer in plain.layers] == [type(layer) for layer in model.layers]
    assert len(plain.weights) == len(model.weights)


def test_functions_in_configs_are_copied_as_they_are(tmp_path):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, L.Dense(4, activation=lambda x: x * ops.sigmoid(x))(inputs))
    x = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    with pytest.warns(tfc.CompressionWarning, match="no Keras activation"):
        result = tfc.export_tflite(model, tmp_path / "m.tflite", representative_dataset=x)
    assert result.agreement.rmse < 0.05
