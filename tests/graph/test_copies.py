"""A copy has all the state of its layer, and shares none of it."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import tfcompress as tfc
from tfcompress.graph.clone import Rewriter
from tfcompress.graph.copies import clone_layer

X = (np.random.default_rng(0).normal(size=(128, 3)) * 20 + 50).astype("float32")


def normalized(**options):
    layer = L.Normalization(**options)
    layer.adapt(X)
    return layer


def before_the_call():
    return keras.Sequential([keras.Input((3,)), normalized(), L.Dense(4)])


def after_the_call():
    layer = L.Normalization()
    model = keras.Sequential([keras.Input((3,)), layer, L.Dense(4)])
    layer.adapt(X)
    return model


def inside_another():
    inner = keras.Sequential([keras.Input((3,)), normalized()], name="scaled")
    return keras.Sequential([keras.Input((3,)), inner, L.Dense(4)])


class Scaler(L.Layer):
    """Holds a layer that was adapted, as the preprocessing of many examples does."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.scale = normalized()

    def call(self, x):
        return self.scale(x) * 2.0

    def get_config(self):
        return super().get_config()


ADAPTED = {
    "before the call": before_the_call,
    "after the call": after_the_call,
    "nested": inside_another,
    "one axis for all": lambda: keras.Sequential(
        [keras.Input((3,)), normalized(axis=None), L.Dense(4)]
    ),
    "inverted": lambda: keras.Sequential([keras.Input((3,)), normalized(invert=True), L.Dense(4)]),
    "in a custom layer": lambda: keras.Sequential([keras.Input((3,)), Scaler(), L.Dense(4)]),
    "at each time step": lambda: keras.Sequential(
        [keras.Input((3,)), L.Reshape((3, 1)), L.Reshape((1, 3)), adapted_steps(), L.Dense(4)]
    ),
}


def adapted_steps():
    return L.TimeDistributed(normalized())


@pytest.mark.parametrize("name", ADAPTED)
def test_what_was_adapted_stays(name, tmp_path, quiet):
    keras.utils.set_random_seed(0)
    model = ADAPTED[name]()
    wanted = model.predict(X, verbose=0)
    for copy in (
        Rewriter().run(model),
        tfc.strip(tfc.prune(model, 0.0)),
        tfc.strip(tfc.quantize(model)),
        tfc.factorize(model, 0.9999),
    ):
        np.testing.assert_allclose(copy.predict(X, verbose=0), wanted, atol=1e-4)
    if name == "in a custom layer":  # which Keras does not load
        return
    aware = tfc.quantize(tfc.prune(model, 0.0))
    aware.compile(keras.optimizers.SGD(0.0), "mse")
    aware.fit(X, wanted, verbose=0)
    aware.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(again.predict(X, verbose=0), aware.predict(X, verbose=0), atol=1e-4)


@pytest.mark.parametrize("mode", ["int", "one_hot", "tf_idf"])
def test_vocabularies_stay(mode, tmp_path, quiet):
    rows = np.random.default_rng(0).choice([7, 11, 99], (64, 2)).astype("int32")
    lookup = L.IntegerLookup(output_mode=mode)
    lookup.adapt(rows)
    inputs = keras.Input((2,), dtype="int32")
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(ops.cast(lookup(inputs), "float32"))))
    wanted = model.predict(rows, verbose=0)
    pruned = tfc.prune(model, 0.0)
    np.testing.assert_allclose(pruned.predict(rows, verbose=0), wanted, atol=1e-6)
    pruned.save(tmp_path / "m.keras")
    again = tfc.strip(keras.models.load_model(tmp_path / "m.keras"))
    np.testing.assert_allclose(again.predict(rows, verbose=0), wanted, atol=1e-6)


class Own(L.Layer):
    """A constructor argument cannot be serialized, and is missing in the config."""

    def __init__(self, function, units=4, config=True, **kwargs):
        super().__init__(**kwargs)
        self.function, self.units, self.config = function, units, config

    def build(self, shape):
        self.matrix = self.add_weight(shape=(shape[-1], self.units), name="matrix")
        self.inside = L.Dense(3)
        self.inside.build((None, self.units))

    def call(self, x):
        return self.inside(self.function(ops.matmul(x, self.matrix)))

    def get_config(self):
        if not self.config:
            raise AttributeError("there is none")
        return L.Layer.get_config(self)


def own(layer):
    inputs = keras.Input((6,))
    return keras.Model(inputs, L.Dense(2)(layer(inputs)))


@pytest.mark.parametrize("config", [True, False])
def test_a_layer_without_a_config_is_copied_as_it_is(config, tmp_path, quiet):
    x = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    model = own(Own(lambda v: ops.tanh(v), units=5, config=config))
    wanted = model.predict(x, verbose=0)
    before = [np.array(w) for w in model.weights]
    aware = tfc.quantize(tfc.prune(model, 0.5))
    aware.compile(keras.optimizers.SGD(0.1), "mse")
    aware.fit(x, np.zeros((64, 2)), verbose=0)
    stripped = tfc.strip(aware)
    assert type(stripped.layers[1]) is Own and stripped.layers[1] is not model.layers[1]
    assert float(np.mean(np.array(stripped.layers[1].matrix) == 0)) == 0.5
    for scheme in ("float32", "float16", "dynamic_int8", "int8"):
        data = x if scheme == "int8" else None
        tfc.export_tflite(model, tmp_path / "m", scheme=scheme, representative_dataset=data)
    np.testing.assert_array_equal(model.predict(x, verbose=0), wanted)
    for old, now in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, now)


def test_its_parts_are_its_own():
    layer = Own(ops.tanh)
    own(layer)
    copy = clone_layer(layer)
    assert [w.path for w in copy.variables] == [w.path for w in layer.variables]
    assert not {id(w) for w in copy.variables} & {id(w) for w in layer.variables}
    copy.trainable = False
    assert layer.inside.trainable and not copy.inside.trainable
    frozen = clone_layer(layer, name="other", dtype=keras.DTypePolicy("float16"))
    assert frozen.name == "other" and frozen.compute_dtype == "float16"


class Bound(L.Layer):
    """Holds a function that is bound to the layer."""

    def build(self, shape):
        self.matrix = self.add_weight(shape=(shape[-1], 4), name="matrix")
        matrix = self.matrix
        self.product = lambda x: ops.matmul(x, matrix)

    def call(self, x):
        return self.product(x)

    def get_config(self):
        raise NotImplementedError


def test_what_cannot_be_copied_is_in_both_models(tmp_path):
    x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
    model = own(Bound())
    copy = Rewriter().run(model)
    assert copy.layers[1] is model.layers[1]
    np.testing.assert_array_equal(copy.predict(x, verbose=0), model.predict(x, verbose=0))
    with pytest.raises(ValueError, match=r"'bound\w*' \(Bound\) cannot be copied"):
        clone_layer(model.layers[1])
    with pytest.warns(tfc.CompressionWarning, match="is in both models"):
        tfc.export_tflite(model, tmp_path / "m.tflite", representative_dataset=x)


class Tied(L.Layer):
    """Reads the table of an embedding, as heads of language models do."""

    def __init__(self, table, **kwargs):
        super().__init__(**kwargs)
        self.table = table

    def call(self, x):
        return ops.matmul(x, ops.transpose(self.table.embeddings))


def test_weights_that_are_shared_stay_shared():
    table = L.Embedding(9, 4)
    inputs = keras.Input((5,), dtype="int32")
    model = keras.Model(inputs, Tied(table)(L.Dense(4)(table(inputs))))
    copy = Rewriter().run(model)
    assert copy.layers[-1].table is copy.layers[1] is not table
    assert copy.count_params() == model.count_params()


def test_policies_and_operations_are_copied():
    policy = keras.DTypePolicy("float32")
    inputs = keras.Input((8,))
    x = L.Identity(dtype=policy)(L.Dense(4)(inputs))
    model = keras.Model(inputs, ops.clip(x, -1.0, 1.0) ** 2)
    x = np.random.default_rng(0).normal(size=(4, 8))
    copy = Rewriter().run(model)
    np.testing.assert_array_equal(copy.predict(x, verbose=0), model.predict(x, verbose=0))
    assert not {id(o) for o in copy.operations} & {id(o) for o in model.operations}


class Gated(L.Layer):
    """Called on two tensors of one shape, whose names are in another order than the arguments."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = L.Dense(4), L.Dense(4)

    def call(self, x, gate=None):
        return self.first(x) * ops.sigmoid(self.second(gate))

    def get_config(self):
        return super().get_config()


def test_arguments_by_name_do_not_change_places(quiet):
    first, second = keras.Input((6,), name="one"), keras.Input((6,), name="two")
    model = keras.Model([first, second], L.Dense(2)(Gated()(first, gate=second)))
    x = [np.random.default_rng(seed).normal(size=(8, 6)) for seed in (0, 1)]
    wanted = model.predict(x, verbose=0)
    for copy in (tfc.strip(tfc.prune(model, 0.0)), tfc.strip(tfc.quantize(model))):
        assert type(copy.layers[2]) is Gated
        np.testing.assert_allclose(copy.predict(x, verbose=0), wanted, atol=1e-6)
