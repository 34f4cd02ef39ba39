"""A wrong copy is detected before it is returned."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import tfcompress as tfc
from tfcompress.graph.clone import Rewriter
from tfcompress.graph.sameness import check_kept, check_same


def net(**options):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), name="x")
    x = L.Dense(8, activation="relu", name="one")(inputs)
    return keras.Model(inputs, L.Dense(3, name="two")(L.BatchNormalization(name="norm")(x)))


def spoiled(path, weight):
    copy = Rewriter().run(net())
    layer = copy.get_layer(path)
    getattr(layer, weight).assign_add(np.full(getattr(layer, weight).shape, 0.1))
    return copy


def test_equal_models_pass():
    check_same(net(), Rewriter().run(net()), "copy")
    check_kept(net(), Rewriter().run(net()), "copy")


@pytest.mark.parametrize("check", [check_same, check_kept])
@pytest.mark.parametrize(
    ("path", "weight"), [("one", "kernel"), ("norm", "moving_mean"), ("two", "bias")]
)
def test_the_first_layer_that_differs_is_named(path, weight, check):
    with pytest.raises(RuntimeError, match=rf"copy\(\) made .* layer '{path}'"):
        check(net(), spoiled(path, weight), "copy")


def test_a_normalization_that_is_not_finished_is_seen():
    layer = L.Normalization(name="norm")
    layer.adapt(np.random.default_rng(0).normal(5, 3, (64, 6)))
    model = keras.Sequential([keras.Input((6,)), layer, L.Dense(2)])
    copy = Rewriter().run(model)
    copy.get_layer("norm").mean = ops.zeros((1, 6))
    for check in (check_same, check_kept):
        with pytest.raises(RuntimeError, match="layer 'norm'"):
            check(model, copy, "copy")


def test_other_outputs_and_tables_are_seen():
    inputs = keras.Input((6,), name="x")
    other = keras.Model(inputs, L.Dense(3, name="other")(inputs))
    with pytest.raises(RuntimeError, match="inputs and outputs"):
        check_same(net(), other, "copy")
    words = keras.Input((1,), dtype="int64", name="x")

    def looked_up(vocabulary):
        x = L.IntegerLookup(vocabulary=vocabulary, output_mode="one_hot", name="table")(words)
        return keras.Model(words, L.Dense(2, name="out")(x))

    with pytest.raises(RuntimeError, match="layer 'table'"):
        check_same(looked_up([7, 9]), looked_up([9, 7]), "copy")


class Noise(L.Layer):
    def call(self, x):
        return x + keras.random.normal(ops.shape(x), seed=None)


def test_a_model_that_is_random_is_not_compared():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, L.Dense(2)(Noise()(inputs)))
    assert tfc.prune(model, 0.5).count_params() > model.count_params()


def test_random_states_and_statistics_stay(quiet):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, L.Dense(2)(L.Dropout(0.5)(L.BatchNormalization()(inputs))))
    before = [np.array(v) for v in model.variables]
    tfc.quantize(tfc.prune(model, 0.5))
    for old, now in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, now)


class Picky(L.Layer):
    def build(self, shape):
        self.own = self.add_weight(shape=(1,), name="own")

    def call(self, x):
        if hasattr(x, "numpy") or isinstance(x, keras.KerasTensor):  # it is not being traced
            raise ValueError("not on this machine")
        return x * self.own


def test_a_model_that_does_not_run_here(quiet):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, L.Dense(2)(Picky()(inputs)))
    with pytest.raises(ValueError, match="not on this machine.*check=False"):
        tfc.prune(model, 0.5)
    pruned = tfc.prune(model, 0.5, check=False)
    assert len(tfc.strip(pruned, check=False).weights) == 3
    tfc.quantize(model, check=False)


def test_rows_of_a_table_and_open_sizes():
    """Numbers that are no rows, and positions that there are not, are not tried."""
    inputs = keras.Input((None,))
    x = L.Embedding(3, 4)(inputs)
    tfc.prune(keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling1D()(x))), 0.5)
