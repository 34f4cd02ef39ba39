"""Simpler operations in place of those that custom code calls."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import tfcompress as tfc
from tfcompress.graph.inline import as_graph
from tfcompress.graph.plain_layers import MaskScores, RootMeanSquare
from tfcompress.graph.read import read_graphs

X = np.random.default_rng(0).normal(size=(64, 6, 8)).astype("float32")


class Code(L.Layer):
    """Runs a function."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def call(self, x):
        return self.function(x)


def model_of(function, shape=(6, 8)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, Code(function, name="own")(inputs))


def operations(model):
    calls = [call for graph in read_graphs(model).values() for call in graph.calls]
    return [type(call.operation) for call in calls]


NORMALIZATIONS = {
    "rsqrt": lambda x: x * ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + 1e-3),
    "power": lambda x: ops.rsqrt(1e-3 + ops.mean(ops.power(x, 2), axis=2, keepdims=True)) * x,
    "product": lambda x: x * ops.rsqrt(ops.mean(x * x, axis=-1, keepdims=True) + 1e-3),
    "root": lambda x: x / ops.sqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + 1e-3),
    "reciprocal": lambda x: (
        x * ops.reciprocal(ops.sqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + 1e-3))
    ),
}
OTHERS = {
    "of another tensor": lambda x: (
        (x + 1) * ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + 1e-3)
    ),
    "of another axis": lambda x: (
        x * ops.rsqrt(ops.mean(ops.square(x), axis=1, keepdims=True) + 1e-3)
    ),
    "the other way": lambda x: (
        ops.sqrt(ops.mean(ops.square(x), -1, keepdims=True) + 1e-3) / (x + 9)
    ),
}


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_root_mean_squares(name, tmp_path):
    model = model_of(NORMALIZATIONS[name])
    graph = as_graph(model)
    assert RootMeanSquare in operations(graph)
    np.testing.assert_allclose(graph(X), model(X), atol=1e-5)
    aware = tfc.quantize(model)
    aware(X, training=True)
    result = tfc.export_tflite(aware, tmp_path / "m.tflite")
    assert result.float_tensors == [] and result.agreement.max_lsb == 0


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_root_mean_square(name):
    model = model_of(OTHERS[name])
    graph = as_graph(model)
    assert RootMeanSquare not in operations(graph)
    np.testing.assert_allclose(graph(X), model(X), atol=1e-5)


def _attention(causal=False, heads=4, fewer=4, mask=None, scale=None, bias=None):
    def attend(x):
        def split(n):
            return ops.reshape(x[..., : 2 * n], (-1, 6, n, 2))

        return ops.dot_product_attention(
            split(heads),
            split(fewer) * 0.5,
            split(fewer) + 1,
            mask=mask,
            scale=scale,
            bias=bias,
            is_causal=causal,
        )

    return attend


TRIANGLE = np.tril(np.ones((1, 1, 6, 6), bool))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True},
        {"fewer": 2},
        {"mask": TRIANGLE[..., ::-1]},
        {"mask": TRIANGLE, "causal": True},
        {"scale": 0.1},
        {"bias": np.linspace(0, 1, 36, dtype="float32").reshape(1, 1, 6, 6)},
    ],
    ids=str,
)
def test_attention(options):
    model = model_of(_attention(**options))
    graph = as_graph(model)
    assert "DotProductAttention" not in [kind.__name__ for kind in operations(graph)]
    np.testing.assert_allclose(graph(X), model(X), atol=1e-5)


@pytest.mark.parametrize("dtype", ["bool", "int32", "float32"])
def test_softmax_with_a_mask(dtype, tmp_path):
    keep = np.tril(np.ones((6, 8))).astype(dtype)

    class Masked(L.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.softmax = L.Softmax()

        def call(self, x):
            return self.softmax(x, mask=ops.broadcast_to(keep, (1, 6, 8)))

    inputs = keras.Input((6, 8))
    model = keras.Model(inputs, Masked(name="own")(L.Dense(8)(inputs)))
    graph = as_graph(model)
    assert MaskScores in operations(graph)
    np.testing.assert_allclose(graph(X), model(X), atol=1e-6)
    aware = tfc.quantize(model)
    aware(X, training=True)
    assert tfc.export_tflite(aware, tmp_path / "m.tflite").float_tensors == []


def test_an_activation_that_is_a_function(tmp_path):
    class Block(L.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dense = L.Dense(8, activation=lambda x: keras.activations.gelu(x, True))

        def build(self, shape):
            self.dense.build(shape)

        def call(self, x):
            return self.dense(x)

    inputs = keras.Input((6, 8))
    model = keras.Model(inputs, Block(name="own")(inputs))
    np.testing.assert_allclose(as_graph(model)(X), model(X), atol=1e-6)
    aware = tfc.quantize(model)
    aware(X, training=True)
    assert tfc.export_tflite(aware, tmp_path / "m.tflite").float_tensors == []


def test_a_fourier_transform():
    model = model_of(lambda x: ops.fft2((x, ops.zeros_like(x)))[0])
    wanted = np.fft.fft2(X).real
    np.testing.assert_allclose(as_graph(model)(X), wanted, atol=1e-4)
    both = model_of(lambda x: ops.concatenate(ops.fft2((x, ops.zeros_like(x)))))
    found = np.asarray(as_graph(both)(X))
    np.testing.assert_allclose(found[64:], np.fft.fft2(X).imag, atol=1e-4)
