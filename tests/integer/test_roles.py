"""What is registered of layers, and what is said of those that nobody registered."""

import keras
import pytest
from keras import layers as L

import tfcompress as tfc
from tfcompress.graph.keras_internals import producing_operation
from tfcompress.integer import roles
from tfcompress.integer.roles import (
    LINEAR,
    MOVE,
    OUTPUT,
    RELU,
    fixed_range,
    has_int4_kernels,
    has_int16_kernels,
    integer_layer,
    role,
    support_of,
)


class Renamed(L.Dense):
    """Computes as the layer of Keras does."""


class Doubled(L.Dense):
    """Computes something of its own."""

    def call(self, inputs):
        return 2 * super().call(inputs)


def test_a_layer_is_what_the_class_of_keras_is_that_computes_it():
    assert role(L.Dense(2)) == role(Renamed(2)) == LINEAR
    assert has_int16_kernels(Renamed(2)) and has_int4_kernels(Renamed(2))
    assert role(Doubled(2)) == OUTPUT and not has_int16_kernels(Doubled(2))


def test_what_is_registered_may_depend_on_the_layer():
    assert role(L.Dense(2, activation="relu")) == OUTPUT  # until it is split
    assert (role(L.ReLU()), role(L.ReLU(negative_slope=0.1))) == (RELU, OUTPUT)
    assert fixed_range(L.Activation("softmax")) == (0.0, 255 / 256)
    assert fixed_range(L.Activation("relu")) is None


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(roles, "_REGISTERED", dict(roles._REGISTERED))


def test_registering_again_adds_to_what_is_known(registered):
    integer_layer("Softplus Softsign", role=MOVE)
    integer_layer("Softplus", int16=True)
    softplus, softsign = (
        producing_operation(function(keras.KerasTensor((2, 3))))
        for function in (keras.ops.softplus, keras.ops.softsign)
    )
    assert support_of(softplus).role == role(softsign) == MOVE
    assert has_int16_kernels(softplus) and not has_int16_kernels(softsign)
    with pytest.raises(TypeError, match="rolle"):
        integer_layer("Softplus", rolle=MOVE)


def test_a_description_of_the_user_comes_first():
    class Own(L.Dense):
        pass

    tfc.describe_layer(Own, role="move")
    assert role(Own(2)) == MOVE and role(L.Dense(2)) == LINEAR


def test_nothing_is_registered_twice(registered):
    integer_layer("Softplus", role=MOVE)
    with pytest.raises(ValueError, match="role of Softplus is registered already"):
        integer_layer("Softplus", role=RELU)


def test_bits_of_a_class_that_only_has_the_name_of_another():
    class Dense(L.Layer):
        pass

    assert has_int4_kernels(L.Dense(2)) and not has_int4_kernels(Dense())
