"""The forms that one layer may have in a file: each equals its model, and strip undoes it."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import tfcompress as tfc

SHAPE = (12, 12, 8)


def alone(activation):
    """An activation that nothing fuses with: another layer reads its input as well."""
    return lambda x: L.Add()([L.Conv2D(8, 1)(activation(x)), x])


def slopes(low, high, **options):
    return L.PReLU(alpha_initializer=keras.initializers.RandomUniform(low, high, 0), **options)


FORMS = {
    "hard swish": lambda x: L.Activation("hard_swish")(x),
    "ReLU alone": alone(L.ReLU()),
    "ReLU6 alone": alone(L.ReLU(6.0)),
    "LeakyReLU, slope 0": alone(L.LeakyReLU(0.0)),
    "selu": lambda x: L.Activation("selu")(x),
    "PReLU": lambda x: slopes(-0.5, 2.5, shared_axes=[1, 2])(x),
    "PReLU of every place": lambda x: slopes(-2.0, 0.5)(x),
    "average": lambda x: L.AveragePooling2D(3, 1)(x),
    "average of four": lambda x: L.AveragePooling2D(2)(x),
    "average at the border": lambda x: L.AveragePooling2D(3, 1, "same")(x),
    "average at the border, strided": lambda x: L.AveragePooling2D((3, 2), 2, "same")(x),
    "average in a concatenation": lambda x: L.Concatenate()(
        [L.AveragePooling2D(2)(x), L.Conv2D(4, 2, 2, activation="tanh")(x)]
    ),
    "average of time steps": lambda x: L.AveragePooling1D(2)(L.Reshape((12, 96))(x)),
    "global average": lambda x: L.Multiply()([x, L.GlobalAveragePooling2D(keepdims=True)(x)]),
    "global average in a concatenation": lambda x: L.Concatenate()(
        [L.GlobalAveragePooling2D()(x), L.Dense(4, activation="tanh")(L.Flatten()(x))]
    ),
    "average, then ReLU": lambda x: L.ReLU()(L.AveragePooling2D(2)(x)),
    "hard swish, then ReLU": lambda x: L.ReLU()(L.Activation("hard_swish")(x)),
    "selu, then ReLU": lambda x: L.ReLU()(L.Activation("selu")(x)),
    "pooled, then ReLU": lambda x: L.ReLU()(L.MaxPooling2D(2)(x)),
    "product with a tanh": lambda x: ops.matmul(
        L.Reshape((12, 96))(x), L.Activation("tanh")(L.Reshape((96, 12))(L.Conv2D(8, 1)(x)))
    ),
    "large depthwise": lambda x: L.DepthwiseConv2D(7, padding="same")(x),
    "large depthwise, strided": lambda x: L.DepthwiseConv2D((5, 7), (2, 2))(x),
    "groups of one": lambda x: L.Conv2D(8, 3, groups=8)(x),
    "groups of one, large": lambda x: L.Conv2D(8, 7, groups=8, padding="same")(x),
    "groups of two": lambda x: L.Conv2D(12, 3, groups=4)(x),
    "scaling of three channels": lambda x: L.BatchNormalization()(L.Activation("tanh")(x[..., :3])),
    "LayerNormalization": lambda x: L.LayerNormalization()(x),
    "RMSNormalization": lambda x: L.RMSNormalization()(x),
    "absolute values": lambda x: ops.absolute(x),
    "product of matrices": lambda x: ops.matmul(L.Reshape((12, 96))(x), L.Reshape((96, 12))(x)),
    "softmax of many": lambda x: L.Softmax()(L.Conv2D(32, 1)(x)),
    "time step": lambda x: x[:, 3],
    "last time step": lambda x: x[:, -1],
    "pixel": lambda x: x[:, 2, -2],
}


def trained(build, prefer):
    """Returns a model of three layers, quantized and trained for a few steps, and test data."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SHAPE)
    x = build(L.Conv2D(8, 3, padding="same")(inputs))
    x = L.Conv2D(4, 3)(x) if len(x.shape) == 4 else L.Dense(4)(x)
    model = keras.Model(inputs, x)
    data = np.random.default_rng(0).normal(size=(96, *SHAPE)).astype("float32")
    aware = tfc.quantize(model, tfc.QuantizationScheme(prefer=prefer))
    aware.compile(keras.optimizers.SGD(1e-3), "mse")
    aware.fit(data[:64], model.predict(data[:64], verbose=0), batch_size=16, verbose=0)
    return model, aware, data[32:]


@pytest.mark.parametrize("prefer", ["latency", "exactness"])
@pytest.mark.parametrize("name", FORMS)
def test_a_file_equals_its_model(name, prefer, tmp_path):
    model, aware, data = trained(FORMS[name], prefer)
    file = tfc.TFLiteModel(tfc.export_tflite(aware, tmp_path / "m.tflite").path)
    expected = aware.predict(data, verbose=0)
    off = np.abs(file.predict(data) - expected) > 1e-6
    # Products of matrices of the runtime's own kernel round twice in some shapes.
    allowed = 1e-3 if (name, prefer) == ("product of matrices", "exactness") else 0.0
    assert off.mean() <= allowed, f"{off.sum()} of {off.size}"
    with pytest.warns(tfc.CompressionWarning, match="drops the activation ranges"):
        stripped = tfc.strip(aware)
    assert [type(layer) for layer in stripped.layers] == [type(layer) for layer in model.layers]


@pytest.mark.parametrize("name", FORMS)
def test_xnnpack_takes_every_operation(name, tmp_path):
    _, aware, _ = trained(FORMS[name], "latency")
    report = tfc.export_tflite(aware, tmp_path / "m.tflite").report
    if name == "average at the border, strided":  # factors that 8 bits cannot hold exactly stay
        assert set(report.outside) <= {"AVERAGE_POOL_2D"}
    else:
        assert report.outside == {}, report.outside


def test_sizes_that_are_left_open(tmp_path):
    """A shape that only says the placeholder of an open axis must not be computed with."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, 8))
    x = L.Dense(8)(L.BatchNormalization()(inputs))
    model = keras.Model(inputs, L.Dense(4)(x[:, -1]))
    data = np.random.default_rng(0).normal(size=(64, 7, 8)).astype("float32")
    aware = tfc.quantize(model)
    aware(data, training=True)
    file = tfc.TFLiteModel(tfc.export_tflite(aware, tmp_path / "m.tflite").path)
    np.testing.assert_array_equal(file.predict(data), aware.predict(data, verbose=0))


@pytest.mark.parametrize("name", ["hard swish", "selu", "PReLU", "average at the border"])
def test_the_fast_form_costs_no_accuracy(name, tmp_path):
    """Against the float model, without training: beside the operation that rounds least."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SHAPE)
    model = keras.Model(inputs, FORMS[name](L.Conv2D(8, 3, padding="same")(inputs)))
    data = np.random.default_rng(0).normal(size=(64, *SHAPE)).astype("float32")
    errors = {}
    for prefer in ("latency", "exactness"):
        scheme = tfc.QuantizationScheme(prefer=prefer)
        result = tfc.export_tflite(
            model, tmp_path / "m.tflite", scheme=scheme, representative_dataset=data
        )
        errors[prefer] = result.agreement.rmse
    assert errors["latency"] < 1.5 * errors["exactness"] + 1e-4


def test_gradients_of_the_gate_are_those_of_hard_swish():
    import tensorflow as tf

    inputs = keras.Input((5,))
    aware = tfc.quantize(keras.Model(inputs, L.Activation("hard_swish")(L.Dense(5)(inputs))))
    aware(np.random.default_rng(0).normal(0, 4, (64, 5)).astype("float32"), training=True)
    (gate,) = [
        la.layer
        for la in aware.layers
        if type(getattr(la, "layer", la)).__name__ == "RuntimeHardSwish"
    ]
    x = tf.constant(np.linspace(-6, 6, 25, dtype="float32"))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        quantized, exact = gate(x, training=True), keras.activations.hard_swish(x)
    np.testing.assert_allclose(
        tape.gradient(quantized, x)[1:-1:2], tape.gradient(exact, x)[1:-1:2], atol=0.02
    )
