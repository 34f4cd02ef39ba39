"""Small models of every shape that a graph can have, for all tests."""

import keras
import numpy as np
import pytest
from keras import layers as L

from tfcompress.graph.keras_internals import input_struct


def some_slow(cases, slow):
    """Returns parameters of a test, of which some run with the slow tests only."""
    known = list(cases)
    assert set(slow) <= set(known), set(slow) - set(known)
    return [pytest.param(*_tuple(c), marks=pytest.mark.slow if c in slow else ()) for c in known]


def _tuple(case):
    return case if isinstance(case, tuple) else (case,)


def conv():
    """Convolutions with BatchNorm and ReLU, max and average pooling."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            L.Conv2D(8, 3, use_bias=False, name="c1"),
            L.BatchNormalization(momentum=0.9, name="b1"),
            L.ReLU(name="r1"),
            L.MaxPooling2D(name="m1"),
            L.Conv2D(16, 3, name="c2"),
            L.BatchNormalization(momentum=0.9, name="b2"),
            L.ReLU(6.0, name="r2"),
            L.AveragePooling2D(2, name="a2"),
            L.Flatten(name="f"),
            L.Dense(10, name="d"),
        ],
        name="conv",
    )


def depthwise():
    """Depthwise separable blocks with ReLU6, as in MobileNet."""
    stack = [
        keras.Input((28, 28, 1)),
        L.Conv2D(16, 3, strides=2, use_bias=False),
        L.BatchNormalization(momentum=0.9),
        L.ReLU(6.0),
    ]
    for index, filters in enumerate((32, 48)):
        stack += [
            L.DepthwiseConv2D(3, strides=index + 1, padding="same", use_bias=False),
            L.BatchNormalization(momentum=0.9),
            L.ReLU(6.0),
            L.Conv2D(filters, 1, use_bias=False),
            L.BatchNormalization(momentum=0.9),
            L.ReLU(6.0),
        ]
    return keras.Sequential([*stack, L.GlobalAveragePooling2D(), L.Dense(10)], name="depthwise")


def residual():
    """Residual blocks, Functional."""
    inputs = keras.Input((28, 28, 1), name="image")
    x = _unit(inputs, 8, 1)
    x = L.ReLU()(x)
    for filters, strides in ((8, 1), (16, 2)):
        y = L.ReLU()(_unit(x, filters, strides))
        y = _unit(y, filters, 1)
        if strides > 1:
            x = _unit(x, filters, strides)
        x = L.ReLU()(L.Add()([x, y]))
    x = L.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, L.Dense(10, name="logits")(x), name="residual")


def recurrent():
    """Image rows, averaged to seven time steps, read in both directions."""
    inputs = keras.Input((28, 28, 1), name="image")
    x = L.Reshape((7, 28))(L.AveragePooling2D((4, 1))(inputs))
    x = L.Bidirectional(L.LSTM(12))(L.GRU(16, return_sequences=True)(x))
    return keras.Model(inputs, L.Dense(10, name="logits")(x), name="recurrent")


def _unit(x, filters, strides):
    x = L.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
    return L.BatchNormalization(momentum=0.9)(x)


def dense():
    """Dense layers with fused activations and Dropout."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            L.Flatten(),
            L.Dense(48, activation="relu", name="hidden"),
            L.Dropout(0.1),
            L.Dense(32, activation="tanh", name="squashed"),
            L.Dense(10, name="logits"),
        ],
        name="dense",
    )


NETS = {"conv": conv, "depthwise": depthwise, "residual": residual, "dense": dense}


def tiny(activation="relu"):
    return keras.Sequential(
        [
            keras.Input((6,)),
            L.Dense(8, activation=activation, name="first"),
            L.Dense(3, name="second"),
        ],
        name="tiny",
    )


def two_by_two():
    """Two inputs, two outputs, as dicts and lists."""
    a, b = keras.Input((6,), name="a"), keras.Input((4,), name="b")
    x = L.Dense(5, activation="relu", name="left")(a)
    y = L.Dense(5, name="right")(b)
    z = L.Concatenate(name="both")([x, y])
    outputs = {
        "main": L.Dense(3, name="main_out")(z),
        "side": L.Dense(1, activation="sigmoid", name="side_out")(z),
    }
    return keras.Model({"a": a, "b": b}, outputs, name="two_by_two")


def nested():
    """A Sequential and a Functional model inside a model, one of them called twice."""
    block = keras.Sequential(
        [keras.Input((6,)), L.Dense(6, activation="relu", name="inner")], name="block"
    )
    hidden = keras.Input((6,))
    head = keras.Model(hidden, L.Dense(3, name="out")(hidden), name="head")
    inputs = keras.Input((6,), name="x")
    return keras.Model(inputs, head(block(block(inputs))), name="nested")


def shared():
    """One layer called twice, and an operation of keras.ops."""
    layer = L.Dense(6, activation="tanh", name="twice")
    inputs = keras.Input((6,), name="x")
    x = layer(layer(inputs))
    return keras.Model(inputs, keras.ops.relu(x + inputs), name="shared")


def small_residual():
    inputs = keras.Input((8, 8, 2), name="image")
    x = L.ReLU(name="r0")(_unit(inputs, 4, 1))
    x = L.ReLU(name="r1")(L.Add(name="sum")([x, _unit(x, 4, 1)]))
    return keras.Model(inputs, L.Dense(3, name="out")(L.GlobalAveragePooling2D()(x)), name="small")


def regularized():
    return keras.Sequential(
        [
            keras.Input((6,)),
            L.Dense(
                5,
                activation="relu",
                kernel_regularizer=keras.regularizers.L2(0.1),
                activity_regularizer=keras.regularizers.L2(0.05),
                name="first",
            ),
            L.Dense(2, name="second"),
        ],
        name="regularized",
    )


GRAPHS = {f.__name__: f for f in (tiny, two_by_two, nested, shared, small_residual, regularized)}


def compiled(model, rate=2e-3, **options):
    options.setdefault("metrics", ["accuracy"])
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **options,
    )
    return model


def samples_for(model, count=16, seed=0):
    """Normal samples in the structure of the model's inputs."""
    generator = np.random.default_rng(seed)
    arrays = [generator.normal(size=(count, *t.shape[1:])).astype(t.dtype) for t in model.inputs]
    structure = input_struct(model)
    if isinstance(structure, dict):
        return keras.tree.pack_sequence_as(structure, arrays)
    return arrays[0] if len(arrays) == 1 else arrays


def regularized_classifier():
    return keras.Sequential(
        [
            keras.Input((6,)),
            L.Dense(5, activation="relu", kernel_regularizer=keras.regularizers.L2(0.1)),
            L.Dense(3),
        ]
    )


def nested_wide():
    return keras.Sequential([keras.Input((6,)), L.Dense(5)], name="wide")
