"""Quantizers stand where the runtime quantizes, and nowhere else."""

import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tests import nets
from tfcompress.graph.keras_internals import producing_operation
from tfcompress.graph.read import read_graph, walk_layers
from tfcompress.integer.roles import fixed_range, role
from tfcompress.quantization.activation_quantizer import ActivationQuantizer
from tfcompress.quantization.state import quantizers


def quantized_after(model):
    """Returns the names of the operations whose output is quantized."""
    names = []
    for call in read_graph(model).calls:
        if isinstance(call.operation, ActivationQuantizer):
            names.append(producing_operation(call.inputs[0]).name.removesuffix("_samples"))
    return names


def chain(*layers):
    return keras.Sequential([keras.Input((8, 8, 2), name="x"), *layers])


CASES = {
    "conv, norm and relu are one": (
        [L.Conv2D(3, 3, name="c"), L.BatchNormalization(name="b"), L.ReLU(name="r")],
        ["x", "r"],
    ),
    "relu6 too": ([L.Conv2D(3, 3, name="c"), L.ReLU(6.0, name="r")], ["x", "r"]),
    "a leaky relu is its own": (
        [L.Conv2D(3, 3, name="c"), L.LeakyReLU(name="r")],
        ["x", "c", "r"],
    ),
    "a relu with another cap too": (
        [L.Conv2D(3, 3, name="c"), L.ReLU(3.0, name="r")],
        ["x", "r"],
    ),
    "a fused activation is split": (
        [L.Conv2D(3, 3, activation="relu", name="c")],
        ["x", "c_activation"],
    ),
    "what moves values has no quantizer": (
        [L.MaxPooling2D(), L.ZeroPadding2D(), L.Flatten(), L.Dropout(0.5), L.Dense(3, name="d")],
        ["x", "d"],
    ),
    "an average keeps the scale of its input": (
        [L.AveragePooling2D(2, name="a"), L.Conv2D(3, 3, name="c")],
        ["x", "a", "c"],
    ),
    "a global average is a pooling over all of the image": (
        [L.Conv2D(3, 3, name="c"), L.GlobalAveragePooling2D(name="g")],
        ["x", "c", "g"],
    ),
    "softmax is prescribed": (
        [L.Flatten(), L.Dense(3, activation="softmax", name="d")],
        ["x", "d", "d_activation"],
    ),
}


@pytest.mark.parametrize(("layers", "wanted"), CASES.values(), ids=CASES)
def test_where_quantizers_stand(layers, wanted):
    assert quantized_after(tfc.quantize(chain(*layers))) == wanted


def test_additions_fuse_a_relu_and_feed_it_both_sides():
    model = tfc.quantize(nets.small_residual())
    names = quantized_after(model)
    assert names[:2] == ["image", "r0"] and "sum" not in names and "r1" in names


def test_a_tensor_read_twice_is_quantized_once():
    inputs = keras.Input((6,), name="x")
    hidden = L.Dense(4, name="h")(inputs)
    model = keras.Model(inputs, L.Concatenate(name="c")([L.ReLU(name="r")(hidden), hidden]))
    model = keras.Model(inputs, L.Dense(1, name="d")(model.output))
    assert quantized_after(tfc.quantize(model)) == ["x", "h", "c", "d"]


def test_what_is_concatenated_is_on_the_grid_of_the_result():
    """Also through operations that move values, unless another operation reads it as well."""
    inputs = keras.Input((8, 8, 3), name="x")
    branches = [
        L.Flatten()(L.MaxPooling2D()(L.Conv2D(2, 3, activation="relu", name="moved")(inputs))),
        L.Flatten(name="f")(L.Conv2D(2, 3, name="read_twice")(inputs)),
    ]
    inner = L.Concatenate(name="inner")(branches)
    outer = L.Concatenate(name="outer")([inner, L.Dense(2, name="dense")(branches[1])])
    model = tfc.quantize(keras.Model(inputs, outer))
    # A concatenation inside another keeps its own scale, as in the file.
    assert set(quantized_after(model)) == {"x", "read_twice", "inner", "outer"}


def test_the_average_shares_its_quantizer():
    model = tfc.quantize(chain(L.AveragePooling2D(2), L.Conv2D(3, 3)))
    assert len(quantizers(model)) == 2 and len(quantized_after(model)) == 3


def test_nested_outputs_are_closed_where_they_are_called():
    backbone = keras.Sequential([keras.Input((6,)), L.Dense(4, name="d")], name="backbone")
    inputs = keras.Input((6,), name="x")
    fused = keras.Model(inputs, L.ReLU(name="r")(backbone(inputs)))
    assert quantized_after(tfc.quantize(fused)) == ["x", "r"]
    alone = keras.Model(inputs, L.LeakyReLU(name="r")(backbone(inputs)))
    assert quantized_after(tfc.quantize(alone)) == ["x", "backbone", "r"]


def test_integers_are_left_alone():
    inputs = keras.Input((5,), dtype="int32", name="ids")
    model = keras.Model(inputs, L.Dense(2, name="d")(L.Embedding(10, 4, name="e")(inputs)))
    assert quantized_after(tfc.quantize(model)) == ["d"]  # rows have the scale of the table


def test_a_selection_quantizes_what_it_names_and_its_inputs():
    layers = [
        L.Conv2D(3, 3, name="c1"),
        L.ReLU(name="r1"),
        L.Conv2D(3, 3, name="c2"),
        L.ReLU(name="r2"),
        L.Flatten(),
        L.Dense(2, name="d"),
    ]
    assert quantized_after(tfc.quantize(chain(*layers), layers="c2")) == ["r1", "r2"]


def test_averages_in_a_nested_model_get_a_grid_they_can_call():
    inner = chain(L.AveragePooling2D(2, name="a"), L.Flatten(), L.Dense(2, name="d"))
    inputs = keras.Input((8, 8, 2), name="x")
    model = tfc.quantize(keras.Model(inputs, inner(inputs)))
    nested = next(layer for layer in model.layers if isinstance(layer, keras.Model))
    assert len(quantized_after(nested)) == 2


def test_the_table():
    assert role(L.Dense(3)) == "linear"
    assert role(L.Dense(3, activation=lambda x: x)) == "output"
    assert role(L.Activation("relu6")) == "relu"
    assert role(L.Activation("gelu")) == "output"
    assert fixed_range(L.Softmax()) == (0.0, 255 / 256)
    assert fixed_range(L.Activation("tanh")) == (-1.0, 127 / 128)
    assert fixed_range(L.ReLU()) is None

    class Tanh(L.Layer):  # a name says nothing: the class must be Keras' own
        def call(self, x):
            return x

    assert fixed_range(Tanh()) is None and role(Tanh()) == "output"

    class Scaled(L.Conv2D):
        def call(self, x):
            return super().call(x) * 2

    assert role(Scaled(3, 3)) == "output"


@pytest.mark.parametrize("joined", [False, True])
def test_rows_of_a_table_are_on_its_grid_already(joined, tmp_path):
    keras.utils.set_random_seed(0)
    ids = keras.Input((4,), dtype="int32", name="ids")
    x = L.Embedding(9, 6, embeddings_initializer="normal", name="words")(ids)
    if joined:
        x = L.Concatenate()([x, L.Embedding(9, 3, embeddings_initializer="normal")(ids)])
    model = tfc.quantize(keras.Model(ids, x))
    rounded = [q for _, q in walk_layers(model) if isinstance(q, ActivationQuantizer)]
    assert len(rounded) == joined  # behind the concatenation
    every = np.arange(72).reshape(18, 4).astype("int32") % 9
    model(every, training=True)
    result = tfc.export_tflite(model, tmp_path / "m.tflite", representative_dataset=every)
    assert not result.float_tensors
    lsb = 2.0 / 255 if joined else 0.0
    np.testing.assert_allclose(
        tfc.TFLiteModel(result.path).predict(every), model(every), atol=1e-6 + lsb
    )


def test_a_layer_may_stand_in_a_nested_model_and_outside_of_it(tmp_path):
    shared = L.Dense(8, activation="relu", name="shared")
    middle = keras.Input((8,))
    inner = keras.Model(middle, shared(L.Dense(8, name="own")(middle)), name="inner")
    inputs = keras.Input((8,))
    model = keras.Model(inputs, L.Dense(3)(inner(shared(inputs))))
    x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    aware = tfc.quantize(model)
    np.testing.assert_allclose(aware(x), model(x), atol=1e-2)
    aware(x, training=True)
    result = tfc.export_tflite(aware, tmp_path / "m.tflite")
    assert result.float_tensors == [] and result.agreement.max_lsb <= 1
    assert len(tfc.strip(tfc.quantize(model)).weights) == len(model.weights)
