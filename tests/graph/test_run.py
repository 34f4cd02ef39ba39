"""Running call by call returns the outputs of Keras, and releases values after their last use."""

import weakref

import keras
import numpy as np
import pytest
from keras import layers as L

from tfcompress.graph.keras_internals import input_struct, producing_operation
from tfcompress.graph.run import largest_tensor, run


@keras.saving.register_keras_serializable("tests")
class TrainsByDefault(L.Layer):
    """Adds one, unless it is called with training=False."""

    def call(self, x, training=True):
        return x + 1 if training else x


def backbone():
    x = inputs = keras.Input((8,))
    x = L.Dense(8, activation="relu")(x)
    return keras.Model(inputs, [L.Add()([x, inputs]), x], name="backbone")


def of_dicts():
    a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    x = L.Concatenate()([a, b])
    y = L.Dense(2)(x)
    return keras.Model({"b": b, "a": a}, {"second": y, "first": x, "again": y})


def nested():
    inner = keras.Sequential([keras.Input((8,)), L.Dense(8), L.Dropout(0.5)], name="inner")
    inputs = keras.Input((8,))
    x, y = backbone()(inner(inputs))
    return keras.Model(inputs, L.Dense(2)(keras.ops.maximum(inner(x), y)))


def masked():
    inputs = keras.Input((6,), dtype="int32")
    x = L.Embedding(9, 4, mask_zero=True)(inputs)
    inner = keras.Sequential([keras.Input((6, 4)), L.Dense(4), L.LSTM(3)], name="inner")
    return keras.Model(inputs, [L.LSTM(3)(x), inner(L.Dense(4)(x))])


def training_arguments():
    inputs = keras.Input((8,))
    x = L.Dropout(0.5)(TrainsByDefault()(inputs), training=True)
    return keras.Model(inputs, L.BatchNormalization()(x))


@pytest.mark.filterwarnings("ignore:Layer 'inner'")
@pytest.mark.parametrize("make", [backbone, of_dicts, nested, masked, training_arguments])
def test_it_returns_what_the_model_returns(make):
    keras.utils.set_random_seed(0)
    model = make()
    generator = np.random.default_rng(0)
    samples = {
        producing_operation(t).name: generator.integers(0, 9, (40, *t.shape[1:]))
        for t in model.inputs
    }
    batches = list(run(model, samples))
    assert [len(outputs[0]) for outputs in batches] == [32, 8]
    inputs = [samples[producing_operation(t).name] for t in model.inputs]
    packed = keras.tree.pack_sequence_as(input_struct(model), inputs)
    expected = keras.tree.flatten(model(packed, training=False))
    for index, wanted in enumerate(expected):
        actual = np.concatenate([np.asarray(outputs[index]) for outputs in batches])
        np.testing.assert_allclose(actual, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("inside", [False, True], ids=["flat", "nested"])
def test_values_are_let_go(inside):
    seen, alive = [], []

    class Watches(L.Layer):
        def call(self, x):
            outputs = x + 1
            if not isinstance(outputs, keras.KerasTensor):
                alive.append(sum(ref() is not None for ref in seen))
                seen.append(weakref.ref(outputs))
            return outputs

        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape)

    chain = keras.Sequential([keras.Input((2,)), *(Watches() for _ in range(6))])
    if inside:
        inputs = keras.Input((2,))
        chain = keras.Model(inputs, Watches()(chain(Watches()(inputs))))
    ((outputs,),) = run(chain, {producing_operation(chain.inputs[0]).name: np.ones((3, 2))})
    np.testing.assert_array_equal(outputs, np.full((3, 2), len(seen) + 1.0))
    assert max(alive) == 1  # the input of the layer


def test_batches_shrink_where_tensors_are_large():
    model = keras.Sequential([keras.Input((4,)), L.Dense(2**22), L.Reshape((2**20, 4))])
    assert largest_tensor(model) == 2**22
    name = producing_operation(model.inputs[0]).name
    sizes = [len(outputs[0]) for outputs in run(model, {name: np.ones((6, 4))})]
    assert sizes == [4, 2]
