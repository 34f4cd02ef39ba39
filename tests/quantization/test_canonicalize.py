import keras
import numpy as np
import pytest
from keras import layers as L

from tfcompress.graph.layers import activation_name
from tfcompress.quantization.canonicalize import parts_of
from tfcompress.quantization.layers.activations import RuntimeSwish
from tfcompress.wrap.state import original_variables

CASES = {
    "dense": (lambda: L.Dense(4, activation="relu"), (6,)),
    "einsum": (lambda: L.EinsumDense("ab,bc->ac", 4, activation="tanh"), (6,)),
    "conv1d": (lambda: L.Conv1D(4, 3, activation="gelu"), (8, 2)),
    "conv2d": (lambda: L.Conv2D(4, 3, activation="sigmoid", name="c"), (8, 8, 2)),
    "transposed": (lambda: L.Conv2DTranspose(4, 3, activation="relu6"), (8, 8, 2)),
    "depthwise": (lambda: L.DepthwiseConv2D(3, activation="swish"), (8, 8, 2)),
    "separable": (lambda: L.SeparableConv2D(4, 3, activation="elu"), (8, 8, 2)),
    "softmax": (lambda: L.Dense(4, activation="softmax"), (6,)),
}


@pytest.mark.parametrize(("make", "shape"), CASES.values(), ids=CASES)
def test_the_parts_compute_what_the_layer_does(make, shape):
    layer = make()
    x = np.random.default_rng(0).normal(size=(3, *shape)).astype("float32")
    wanted = np.array(layer(x))
    parts = parts_of(layer)
    got = x
    for part in parts:
        got = part(got)
    for old, new in zip(layer.variables, original_variables(parts), strict=True):
        assert old.shape == new.shape
        new.assign(old)
    got = x
    for part in parts:
        got = part(got)
    rounds = any(isinstance(part, RuntimeSwish) for part in parts)  # the sigmoid, to 1/256
    atol = np.abs(x).sum(axis=(1, 2)).max() / 512 if rounds else 2e-6
    np.testing.assert_allclose(np.array(got), wanted, atol=atol)
    assert layer.name in [part.name for part in parts]


def test_what_needs_no_rule_has_none():
    assert parts_of(L.Dense(3)) is None
    assert parts_of(L.ReLU()) is None
    assert parts_of(L.Dense(3, activation=lambda x: x + 1)) is None

    class Own(L.Dense):
        pass

    assert parts_of(Own(3, activation="relu")) is None


def test_names_of_activations():
    assert activation_name(L.Dense(3)) == "linear"
    assert activation_name(L.Activation("relu6")) == "relu6"
    assert activation_name(L.Dense(3, activation=lambda x: x)) is None
    assert activation_name(keras.layers.Flatten()) is None


@pytest.mark.parametrize("keepdims", [False, True])
def test_a_global_average_is_a_pooling_of_the_whole_image(keepdims):
    inputs = keras.Input((7, 5, 3))
    layer = L.GlobalAveragePooling2D(keepdims=keepdims, name="g")
    wanted = layer(inputs)
    first, second = parts_of(layer)
    pooled = second(first(inputs))
    assert pooled.shape == wanted.shape and first.name == "g"
    x = np.random.default_rng(0).normal(size=(4, 7, 5, 3)).astype("float32")
    np.testing.assert_allclose(second(first(x)), layer(x), atol=1e-6)
    assert parts_of(L.GlobalAveragePooling2D()) is None  # the size of its image is not known yet
