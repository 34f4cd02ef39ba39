"""Slow operations are replaced by equal ones, on files that other tools may have made."""

import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tests.agreeing import equals_its_file, trained
from tfcompress.tflite.fast_convolutions import _merged_groups
from tfcompress.tflite.fast_kernels import use_fast_kernels


def exported(build, tmp_path, shape=(12, 12, 16), **options):
    """Returns a file in its plain form, and data."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape)
    model = keras.Model(inputs, build(inputs))
    data = np.random.default_rng(0).normal(size=(32, *shape)).astype("float32")
    scheme = tfc.QuantizationScheme(prefer="exactness", **options)
    result = tfc.export_tflite(
        model, tmp_path / "m.tflite", scheme=scheme, representative_dataset=data, metadata=False
    )
    return tfc.TFLiteModel(result.path), data


LARGE = {
    "seven by seven": (lambda x: L.DepthwiseConv2D(7, padding="same")(x), 16),
    "of eleven channels": (lambda x: L.DepthwiseConv2D(7, padding="same")(x), 11),
    "of a prime number of channels": (lambda x: L.DepthwiseConv2D(7)(x), 37),
    "with a ReLU6": (lambda x: L.DepthwiseConv2D((3, 9), activation="relu6")(x), 24),
    "dilated": (lambda x: L.DepthwiseConv2D(6, dilation_rate=2)(x), 8),
    "groups of one": (lambda x: L.Conv2D(16, 3, groups=16)(x), 16),
    "groups of two": (lambda x: L.Conv2D(32, 3, groups=8)(x), 16),
    "scaling of three channels": (lambda x: L.Rescaling([1.0, 2.0, 3.0], [0.1, 0.2, 0.3])(x), 3),
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("delegates", [True, False])
def test_other_convolutions_compute_the_same(name, delegates, tmp_path):
    build, channels = LARGE[name]
    file, data = exported(build, tmp_path, (12, 12, channels))
    replaced = use_fast_kernels(file.content)
    assert replaced != file.content
    plain = tfc.TFLiteModel(file.content, delegates=delegates)
    fast = tfc.TFLiteModel(replaced, delegates=delegates)
    off = np.abs(fast.predict(data) - plain.predict(data))
    # The runtime's own kernels of the two round ties in different ways.
    assert off.max() == 0 if delegates else (off > 0).mean() < 0.02
    assert fast.predict(data).std() > 0


@pytest.mark.parametrize(
    "build",
    [
        lambda x: L.DepthwiseConv2D(5, padding="same")(x),
        lambda x: L.DepthwiseConv2D(7, depth_multiplier=2)(x),
        lambda x: L.Conv2D(16, 3, groups=2)(x),
        lambda x: L.Conv2D(16, 7)(x),
    ],
)
def test_fast_convolutions_stay(build, tmp_path):
    file, _ = exported(build, tmp_path)
    assert use_fast_kernels(file.content) == file.content


def test_for_bytes_nothing_grows(tmp_path):
    file, _ = exported(LARGE["seven by seven"][0], tmp_path)
    assert use_fast_kernels(file.content, "bytes") == file.content
    assert len(use_fast_kernels(file.content)) > len(file.content)


@pytest.mark.parametrize(
    ("groups", "inputs", "merged"),
    [
        (32, 1, 16), (88, 1, 11), (22, 1, 11), (37, 1, 37), (8, 2, 8), (64, 4, 4), (3, 1, 3),
        (61, 1, 1),
    ],
)  # fmt: skip
def test_groups_have_about_as_many_channels_as_fit_at_once(groups, inputs, merged):
    assert _merged_groups(groups, inputs) == merged


def pointwise(strides):
    def build(x):
        x = L.Conv2D(32, 1, strides=strides, activation="relu")(x)
        return L.Conv2D(8, 3)(x)

    return build


@pytest.mark.parametrize("strides", [1, 2, (1, 2)])
@pytest.mark.parametrize("prefer", ["latency", "bytes"])
def test_pointwise_convolutions_of_four_bits(strides, prefer, tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12, 12, 16))
    model = keras.Model(inputs, pointwise(strides)(inputs))
    data = np.random.default_rng(0).normal(size=(64, 12, 12, 16)).astype("float32")
    aware = tfc.quantize(model, tfc.QuantizationScheme(4, prefer=prefer))
    aware.compile(keras.optimizers.SGD(1e-3), "mse")
    aware.fit(data, model.predict(data, verbose=0), verbose=0)
    result = tfc.export_tflite(aware, tmp_path / "m.tflite")
    four_bit = {"latency": 32 * 16 / 2, "bytes": (32 * 16 + 8 * 9 * 32) / 2}[prefer]
    assert result.report.weight_bytes["int4"] == four_bit
    assert "int4" in str(result)
    assert prefer == "bytes" or result.report.weight_bytes["int8"] >= 8 * 9 * 32
    assert result.ops["FULLY_CONNECTED"] == 1
    assert ("CONV_2D" in result.report.outside) == (prefer == "bytes")
    if prefer == "latency":  # the built-in kernels of 4 bits are not XNNPACK's
        file = tfc.TFLiteModel(result.path)
        np.testing.assert_array_equal(file.predict(data), aware.predict(data, verbose=0))


def test_a_batch_that_is_left_open(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12, 12, 3))
    x = L.Conv2D(16, 1, strides=2)(L.BatchNormalization()(inputs))
    x = L.AveragePooling2D(3, 1, "same")(L.Activation("hard_swish")(x))
    model = keras.Model(inputs, L.DepthwiseConv2D(7, padding="same")(x))
    data = np.random.default_rng(0).normal(size=(40, 12, 12, 3)).astype("float32")
    one, any_number = (
        tfc.export_tflite(
            model, tmp_path / "m.tflite", scheme="w4a8", representative_dataset=data,
            batch_size=batch,
        ).report.bytes and tfc.TFLiteModel(tmp_path / "m.tflite")
        for batch in (1, None)
    )  # fmt: skip
    np.testing.assert_array_equal(any_number.predict(data), one.predict(data))


def test_a_shared_pointwise_convolution(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 16))
    shared = L.Conv2D(16, 1, activation="relu")
    model = keras.Model(inputs, L.Conv2D(4, 3)(shared(shared(inputs))))
    data = np.random.default_rng(0).normal(size=(32, 8, 8, 16)).astype("float32")
    aware = tfc.quantize(model, "w4a8")
    aware(data, training=True)
    result = tfc.export_tflite(aware, tmp_path / "m.tflite")
    assert result.ops["FULLY_CONNECTED"] == 2
    # Called on inputs with two scales, it rounds floats.
    file = tfc.TFLiteModel(result.path)
    off = np.abs(file.predict(data) - aware.predict(data, verbose=0)) > 1e-6
    assert off.mean() < 0.02


@pytest.mark.parametrize(
    ("layer", "channels"), [(lambda: L.Conv2D(16, 1, groups=2), 16), (lambda: L.Conv2D(8, 1), 3)]
)
def test_what_has_no_fast_kernel_of_four_bits_keeps_eight(layer, channels, tmp_path):
    """Groups, and an odd number of inputs."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8, 8, channels)), layer(), L.Conv2D(4, 1)])
    data = np.random.default_rng(0).normal(size=(32, 8, 8, channels)).astype("float32")
    aware = tfc.quantize(model, "w4a8")
    aware(data, training=True)
    result = tfc.export_tflite(aware, tmp_path / "m.tflite")
    assert result.report.outside == {} and set(result.report.weight_bytes) == {"int4", "int8"}
    file = tfc.TFLiteModel(result.path)
    np.testing.assert_array_equal(file.predict(data), aware.predict(data, verbose=0))


def test_a_scale_for_the_whole_kernel(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12, 12, 3))
    x = L.Conv2D(16, 1)(L.Rescaling([1.0, 2.0, 3.0])(inputs))
    model = keras.Model(inputs, L.DepthwiseConv2D(7, padding="same")(x))
    data = np.random.default_rng(0).normal(size=(32, 12, 12, 3)).astype("float32")
    scheme = tfc.QuantizationScheme(weight_granularity="tensor")
    result = tfc.export_tflite(
        model, tmp_path / "m.tflite", scheme=scheme, representative_dataset=data
    )
    assert result.ops["CONV_2D"] == 2 and result.report.outside == {}


def test_four_bits_with_channels_that_are_all_but_dead(tmp_path):
    """Trained nets have them; the converter gives them a scale that holds their bias instead."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 16))
    x = keras.layers.Conv2D(8, 1, name="first")(inputs)
    x = keras.layers.ReLU(6.0)(keras.layers.Conv2D(24, 1, name="wide")(x))
    model = keras.Model(inputs, keras.layers.Conv2D(4, 1, name="last")(x))
    kernel, bias = model.get_layer("wide").get_weights()
    kernel[..., [2, 5, 7]] *= np.float32(1e-9)
    bias[[2, 5, 7]] = (-1.3, 2.4, 0.7)
    model.get_layer("wide").set_weights([kernel, bias])
    samples = np.random.default_rng(0).normal(size=(64, 6, 6, 16)).astype("float32")
    aware = trained(tfc.quantize(model, "w4a8"), samples, model.predict(samples, verbose=0))
    result = equals_its_file(aware, samples, tmp_path)
    assert list(result.report.weight_bytes) == ["int4"]


def test_four_bits_where_a_relu6_saturates(tmp_path):
    """An accumulator's LSB is larger than the output's: 6 lies between two of its values."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6, 6, 16))
    outputs = keras.layers.ReLU(6.0)(keras.layers.Conv2D(24, 1, name="wide")(inputs))
    samples = np.random.default_rng(0).normal(size=(64, 6, 6, 16)).astype("float32") * 20
    model = keras.Model(inputs, outputs)
    aware = trained(tfc.quantize(model, "w4a8"), samples, model.predict(samples, verbose=0))
    assert np.mean(aware.predict(samples, verbose=0) == 6) > 0.2
    equals_its_file(aware, samples, tmp_path)
