"""Operations that were recorded with a stand-in for the batch size."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

from tfcompress.graph.any_batch import stand_in_for
from tfcompress.graph.code import runs_code
from tfcompress.graph.inline import as_graph
from tfcompress.graph.read import walk_layers

ONE = np.arange(4, dtype="float32")

CASES = {
    "reshape": lambda x, n: ops.reshape(x, (n, 12)),
    "heads into the batch": lambda x, n: ops.reshape(x, (n * 3, 4)),
    "batch second": lambda x, n: ops.transpose(
        ops.transpose(x, (1, 0, 2)) + ops.broadcast_to(ONE, (3, n, 4)), (1, 0, 2)
    ),
    "tile": lambda x, n: (
        x + ops.tile(ops.reshape(ops.mean(x * 0, (0, 1)) + ONE, (1, 1, 4)), (n, 3, 1))
    ),
    "broadcast": lambda x, n: x * ops.broadcast_to(ops.max(x * 0) + ONE, (n, 3, 4)),
    "repeat": lambda x, n: ops.concatenate([x, ops.repeat(ONE[None, None], n, axis=0)], axis=1),
    "zeros": lambda x, n: ops.concatenate([x, ops.zeros((n, 1, 4))], axis=1),
    "slice": lambda x, n: ops.slice(x, (0, 1, 0), (n, 2, 4)),
}


class Batched(L.Layer):
    def __init__(self, case, **kwargs):
        super().__init__(**kwargs)
        self.case = case

    def call(self, x):
        return CASES[self.case](x, ops.shape(x)[0])


@pytest.mark.parametrize("case", [c for c in CASES if c != "tile"])
def test_for_any_batch(case):
    inputs = keras.Input((3, 4))
    model = keras.Model(inputs, Batched(case, name="own")(inputs))
    graph = as_graph(model)
    assert not [part for _, part in walk_layers(graph) if runs_code(part)]
    for count in (1, 2, 7):
        x = np.random.default_rng(count).normal(size=(count, 3, 4)).astype("float32")
        np.testing.assert_allclose(graph(x), model(x), atol=1e-6)


def test_what_repeats_along_two_axes_is_left_alone():
    inputs = keras.Input((3, 4))
    model = keras.Model(inputs, Batched("tile", name="own")(inputs))
    x = np.random.default_rng(0).normal(size=(5, 3, 4)).astype("float32")
    np.testing.assert_allclose(as_graph(model)(x), model(x), atol=1e-6)


def test_the_stand_in_divides_no_size():
    dense = L.Dense(1009)
    dense.build((None, 2026))
    chosen = stand_in_for(dense, [(None, 1019)])
    assert all(n % chosen for n in (1009, 2026, 1019))
