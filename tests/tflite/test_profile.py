"""Where the time of a file goes: every operation once, alone, with its layer."""

import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tests import nets
from tfcompress.tflite.profile import layer_of


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 16, 4), name="image")
    x = L.Conv2D(8, 3, padding="same", name="first")(inputs)
    x = L.Activation("hard_swish", name="gate")(x)
    x = L.MaxPooling2D(name="pool")(x)
    x = L.Conv2D(8, 3, activation="relu", name="second")(x)
    model = keras.Model(inputs, L.Dense(3, name="logits")(L.Flatten()(x)))
    data = np.random.default_rng(0).normal(size=(16, 16, 16, 4)).astype("float32")
    path = tmp_path_factory.mktemp("profile") / "m.tflite"
    scheme = tfc.QuantizationScheme(prefer="exactness")
    tfc.export_tflite(model, path, scheme=scheme, representative_dataset=data)
    return path


def test_every_operation_has_a_time_a_kernel_and_a_layer(path):
    profile = tfc.profile_tflite(path)
    assert len(profile.operations) == sum(tfc.inspect_tflite(path).ops.values())
    assert all(row.ms > 0 for row in profile.operations) and profile.total_ms > 0
    outside = [row for row in profile.operations if not row.delegated]
    assert [(row.operation, row.layer) for row in outside] == [("HARD_SWISH", "gate")]
    assert outside[0].shape == (1, 16, 16, 8) and outside[0].dtype == "int8"
    layers = {row.layer for row in profile.operations}
    assert {"first", "gate", "pool", "second", "logits"} <= layers
    assert 0 < profile.outside < 1
    assert profile.shares() == pytest.approx({"HARD_SWISH": profile.outside})


def test_tables_are_sorted_and_complete(path):
    profile = tfc.profile_tflite(path)
    times = [row[-1] for row in profile.by_operation()]
    assert times == sorted(times, reverse=True)
    assert sum(times) == pytest.approx(sum(row.ms for row in profile.operations))
    assert sum(row[2] for row in profile.by_layer()) == pytest.approx(sum(times))
    assert "HARD_SWISH" in str(profile) and "built-in" in str(profile)


def test_the_plot_is_a_picture(path, tmp_path):
    tfc.profile_tflite(path).plot(tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"


def test_a_file_with_a_loop(tmp_path):
    """A loop cannot be run alone: it takes what the other operations leave."""
    model = keras.Sequential([keras.Input((8, 4)), L.LSTM(6), L.Dense(2)])
    path = tfc.export_tflite(model, tmp_path / "m.tflite").path
    profile = tfc.profile_tflite(path)
    (loop,) = [row for row in profile.operations if row.operation == "WHILE"]
    assert 0 < loop.ms <= profile.total_ms and not loop.delegated


def test_weights_of_four_bits_and_an_open_batch(tmp_path):
    data = np.random.default_rng(0).normal(size=(16, *nets.tiny().input_shape[1:]))
    path = tfc.export_tflite(
        nets.tiny(), tmp_path / "m.tflite", scheme="w4a8", representative_dataset=data,
        batch_size=None,
    ).path  # fmt: skip
    profile = tfc.profile_tflite(path)
    assert all(row.ms > 0 for row in profile.operations)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("m_1/re_lu_1/Relu;m_1/conv_1/BiasAdd;m_1/conv_1/convolution", "conv"),
        ("m_1/backbone_1/stem_1/add;", "backbone/stem"),
        ("m_1/act_1/Gelu/mul_2;;m_1/act_1/Gelu/mul", "act"),
        ("StatefulPartitionedCall:0", "StatefulPartitionedCall:0"),
        ("", "?"),
    ],
)
def test_the_layer_that_a_tensor_is_named_after(name, layer):
    assert layer_of(name) == layer


def test_a_file_that_does_not_exist():
    with pytest.raises(FileNotFoundError, match="No such file"):
        tfc.profile_tflite("none.tflite")
