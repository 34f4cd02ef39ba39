"""Every kind of layer alone: quantized, trained for a moment, all-integer in the file, equal."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import tfcompress as tfc
from tests import nets
from tfcompress.export.agreement import measure
from tfcompress.graph.keras_internals import producing_operation
from tfcompress.tflite.inspect import weights

IMAGE, SERIES, VECTOR, VOLUME = (8, 8, 4), (12, 6), (6,), (6, 6, 6, 2)


def chain(shape, *stack):
    return lambda: keras.Sequential([keras.Input(shape), *[layer() for layer in stack]])


def graph(function, *shapes):
    def make():
        inputs = [keras.Input(shape) for shape in shapes]
        return keras.Model(inputs if len(inputs) > 1 else inputs[0], function(*inputs))

    return make


def conv(x, filters=4, **options):
    return L.Conv2D(filters, 3, padding="same", **options)(x)


def act(name):
    return chain(IMAGE, lambda: L.Conv2D(4, 3, activation=name))


def squeeze_excite(x):
    x = conv(x)
    gate = L.Conv2D(2, 1, activation="relu")(L.GlobalAveragePooling2D(keepdims=True)(x))
    return L.Multiply()([x, L.Conv2D(4, 1, activation="sigmoid")(gate)])


INTEGER = {
    "Conv1D": chain(SERIES, lambda: L.Conv1D(8, 3)),
    "Conv1D causal": chain(SERIES, lambda: L.Conv1D(8, 3, padding="causal", dilation_rate=2)),
    "Conv2D": chain(IMAGE, lambda: L.Conv2D(8, 3)),
    "Conv2D in groups": chain(IMAGE, lambda: L.Conv2D(8, 3, groups=2)),
    "Conv3D": chain(VOLUME, lambda: L.Conv3D(4, 3, padding="same", strides=(2, 1, 1))),
    "Conv3D, BatchNorm, ReLU": chain(
        VOLUME, lambda: L.Conv3D(4, 3), L.BatchNormalization, lambda: L.ReLU()
    ),
    "Conv1DTranspose": chain(SERIES, lambda: L.Conv1DTranspose(8, 3, strides=2)),
    "Conv2DTranspose": chain(IMAGE, lambda: L.Conv2DTranspose(8, 3, strides=2)),
    "Conv3DTranspose": chain((4, 4, 4, 2), lambda: L.Conv3DTranspose(4, 3, strides=2)),
    "Conv3DTranspose same": chain(
        (4, 4, 4, 2), lambda: L.Conv3DTranspose(4, 3, strides=2, padding="same")
    ),
    "DepthwiseConv1D": chain(SERIES, lambda: L.DepthwiseConv1D(3, depth_multiplier=2)),
    "DepthwiseConv2D": chain(IMAGE, lambda: L.DepthwiseConv2D(3)),
    "SeparableConv1D": chain(SERIES, lambda: L.SeparableConv1D(8, 3)),
    "SeparableConv2D": chain(IMAGE, lambda: L.SeparableConv2D(8, 3, activation="relu")),
    "Dense": chain(VECTOR, lambda: L.Dense(8)),
    "EinsumDense": chain(
        SERIES, lambda: L.EinsumDense("abc,cd->abd", output_shape=(None, 8), bias_axes="d")
    ),
    "Embedding": lambda: keras.Sequential(
        [keras.Input((12,), dtype="int32"), L.Embedding(10, 8), L.Dense(4)]
    ),
    "MultiHeadAttention": graph(lambda x: L.MultiHeadAttention(2, 4)(x, x), SERIES),
    "GroupQueryAttention": graph(lambda x: L.GroupQueryAttention(4, 4, 2)(x, x), SERIES),
    "Attention": graph(lambda x: L.Attention()([x, x]), SERIES),
    "AdditiveAttention": graph(lambda x: L.AdditiveAttention()([x, x]), SERIES),
    "UnitNormalization": chain(SERIES, L.UnitNormalization),
    "LayerNormalization": chain(SERIES, L.LayerNormalization),
    "RMSNormalization": chain(SERIES, L.RMSNormalization),
    "GroupNormalization": chain(IMAGE, lambda: L.Conv2D(8, 3), lambda: L.GroupNormalization(2)),
    "BatchNormalization first": chain(IMAGE, L.BatchNormalization, lambda: L.Conv2D(4, 3)),
    "BatchNormalization, ReLU": chain(SERIES, L.BatchNormalization, lambda: L.ReLU()),
    "BatchNormalization of vectors": chain(VECTOR, L.BatchNormalization, lambda: L.Dense(4)),
    "PReLU": chain(IMAGE, lambda: L.Conv2D(4, 3), lambda: L.PReLU(shared_axes=[1, 2])),
    "ELU": chain(IMAGE, lambda: L.Conv2D(4, 3), lambda: L.ELU()),
    "LeakyReLU": chain(IMAGE, lambda: L.Conv2D(4, 3), lambda: L.LeakyReLU()),
    "ReLU up to 1": chain(IMAGE, lambda: L.Conv2D(4, 3), lambda: L.ReLU(1.0)),
    **{
        name: act(name)
        for name in "relu relu6 gelu silu hard_swish hard_sigmoid sigmoid tanh hard_tanh elu selu "
        "softmax log_softmax exponential".split()
    },
    "Add three": graph(lambda x: L.Add()([conv(x), x, conv(x)]), IMAGE),
    "Multiply three": graph(lambda x: L.Multiply()([conv(x), x, conv(x)]), IMAGE),
    "Subtract": graph(lambda x: L.Subtract()([conv(x), x]), IMAGE),
    "Average": graph(lambda x: L.Average()([conv(x), x, conv(x)]), IMAGE),
    "Maximum": graph(lambda x: L.Maximum()([conv(x), x]), IMAGE),
    "Minimum": graph(lambda x: L.Minimum()([conv(x), x]), IMAGE),
    "Concatenate": graph(lambda x: L.Concatenate()([conv(x), x]), IMAGE),
    "Dot": graph(lambda x: L.Dot(axes=(2, 2))([L.Dense(6)(x), L.Dense(6)(x)]), SERIES),
    "MaxPooling3D": chain(VOLUME, lambda: L.Conv3D(4, 3), lambda: L.MaxPooling3D(2)),
    "AveragePooling3D": chain(
        VOLUME, lambda: L.Conv3D(4, 3), lambda: L.AveragePooling3D(2, strides=1)
    ),
    "AveragePooling1D": chain(SERIES, lambda: L.Conv1D(4, 3), lambda: L.AveragePooling1D(2)),
    "GlobalAveragePooling1D": chain(SERIES, lambda: L.Dense(4), L.GlobalAveragePooling1D),
    "UpSampling2D": chain(IMAGE, lambda: L.Conv2D(4, 3), lambda: L.UpSampling2D()),
    "UpSampling2D bilinear": chain(
        IMAGE, lambda: L.Conv2D(4, 3), lambda: L.UpSampling2D(interpolation="bilinear")
    ),
    "Rescaling": chain(IMAGE, lambda: L.Rescaling(0.5, -0.5), lambda: L.Conv2D(4, 3)),
    "Normalization": chain(
        IMAGE,
        lambda: L.Normalization(mean=[0.1, 0.2, 0.3, 0.4], variance=[1.0, 2.0, 0.5, 0.7]),
        lambda: L.Conv2D(4, 3),
    ),
    "LSTM": chain((5, 6), lambda: L.LSTM(5)),
    "GRU": chain((5, 6), lambda: L.GRU(5, return_sequences=True)),
    "GRU with dropout": chain((5, 6), lambda: L.GRU(5, dropout=0.2, recurrent_dropout=0.2)),
    "SimpleRNN": chain((5, 6), lambda: L.SimpleRNN(5)),
    "Bidirectional": chain((4, 6), lambda: L.Bidirectional(L.GRU(4, reset_after=False))),
    "TimeDistributed": chain(
        (3, 8, 8, 2), lambda: L.TimeDistributed(L.Conv2D(4, 3, activation="relu"))
    ),
    "x * sigmoid(x)": graph(lambda x: (lambda y: y * ops.sigmoid(y))(conv(x)), IMAGE),
    "clip": graph(lambda x: ops.clip(conv(x), -0.5, 0.5), IMAGE),
    "stack": graph(lambda x: ops.stack([conv(x), x], axis=1), IMAGE),
    "negative": graph(lambda x: -conv(x), IMAGE),
    "split": graph(lambda x: sum(ops.split(conv(x), 2, axis=-1)), IMAGE),
    "array_split": graph(lambda x: ops.array_split(conv(x), 3, axis=2)[1], IMAGE),
    "unstack": graph(lambda x: sum(ops.unstack(conv(x), axis=1)[1:3]), IMAGE),
    "swapaxes": graph(lambda x: ops.swapaxes(conv(x), 1, 2), IMAGE),
    "moveaxis": graph(lambda x: ops.moveaxis(conv(x), -1, 1), IMAGE),
    "take": graph(lambda x: ops.take(conv(x), [0, 2], axis=1), IMAGE),
    "squeeze and excite": graph(squeeze_excite, IMAGE),
    "called twice": graph(
        lambda x: (lambda layer: layer(layer(x)))(L.Conv2D(4, 3, activation="tanh")), IMAGE
    ),
}
"""Kinds of which nothing may stay in float."""

KEPT_IN_FLOAT = {
    "softplus": act("softplus"),
    "mish": act("mish"),
    "divide": graph(lambda x: conv(x) / (ops.relu(conv(x)) + 1.0), IMAGE),
}
"""Kinds for which the runtime has no integers; they must still agree."""

STEPS = {
    **dict.fromkeys(KEPT_IN_FLOAT, 1),
    **dict.fromkeys(("Conv3D", "Conv3D, BatchNorm, ReLU", "MaxPooling3D"), 1),
    **dict.fromkeys(("MultiHeadAttention", "Attention", "softmax", "clip"), 1),
    **dict.fromkeys(("AdditiveAttention", "Maximum", "Minimum"), 1),
    "Average": 2,
}
"""The LSBs that file and model may differ by if they are not bit-exact (docs/exactness.md)."""


def exported(name, scheme, path):
    """Writes the file of an integer layer; returns its model and the samples of its ranges."""
    keras.utils.set_random_seed(1)
    model = INTEGER[name]()
    data = samples(model, 64, 0)
    tfc.export_tflite(model, path, scheme=scheme, representative_dataset=data, metadata=False)
    return model, data


def samples(model, count, seed):
    generator = np.random.default_rng(seed)
    arrays = {}
    for tensor in model.inputs:
        shape = (count, *tensor.shape[1:])
        integers = "int" in tensor.dtype
        values = generator.integers(0, 10, shape) if integers else generator.normal(size=shape)
        arrays[producing_operation(tensor).name] = values.astype(tensor.dtype)
    return arrays


@pytest.fixture(scope="module")
def trained():
    def make(build):
        keras.utils.set_random_seed(1)
        model = build()
        x = samples(model, 64, 0)
        given = list(x.values()) if len(x) > 1 else next(iter(x.values()))
        wanted = np.asarray(model(given))
        aware = tfc.quantize(model)
        aware.compile(keras.optimizers.SGD(1e-3), "mse")
        aware.fit(given, wanted, batch_size=16, epochs=2, verbose=0)
        return model, aware, x

    return make


@pytest.mark.parametrize("name", [*INTEGER, *KEPT_IN_FLOAT])
def test_trained(name, trained, tmp_path):
    model, aware, _ = trained({**INTEGER, **KEPT_IN_FLOAT}[name])
    result = tfc.export_tflite(aware, tmp_path / "m.tflite")
    found = measure(aware, result.path, samples(model, 64, 1))
    assert found.max_lsb <= STEPS.get(name, 0) + 0.01, found
    assert (result.float_tensors == []) == (name in INTEGER), result.ops
    with pytest.warns(tfc.CompressionWarning, match="drops the activation ranges"):
        stripped = tfc.strip(aware)
    assert [type(layer) for layer in stripped.layers] == [type(layer) for layer in model.layers]
    assert [w.shape for w in stripped.weights] == [w.shape for w in model.weights]


REWRITTEN = (
    "Conv3D, BatchNorm, ReLU; Conv2DTranspose; SeparableConv2D; Embedding; EinsumDense; "
    "MultiHeadAttention; GroupQueryAttention; GroupNormalization; LSTM; Bidirectional; "
    "TimeDistributed; called twice"
).split("; ")


@pytest.mark.parametrize("name", nets.some_slow(REWRITTEN, ["Bidirectional"]))
def test_pruned_weights_stay_zero_at_their_places(name, tmp_path):
    """Whatever the rules make of a layer, through training and strip."""
    keras.utils.set_random_seed(1)
    model = INTEGER[name]()
    x = samples(model, 64, 0)
    given = next(iter(x.values()))
    wanted = np.asarray(model(given)) + 1.0
    pruned = tfc.prune(model, 0.6)
    # The masks are drawn up by a first pass; from then on they are to stay.
    pruned.compile(keras.optimizers.SGD(0.0), "mse")
    pruned.fit(given, wanted, batch_size=16, verbose=0)
    before = [np.array(w) == 0 for w in tfc.strip(pruned).weights]
    aware = tfc.quantize(pruned)
    aware.compile(keras.optimizers.SGD(1e-3), "mse")
    aware.fit(given, wanted, batch_size=16, epochs=2, verbose=0)
    with pytest.warns(tfc.CompressionWarning, match="drops the activation ranges"):
        after = [np.array(w) for w in tfc.strip(aware).weights]
    pairs = list(zip(before, after, strict=True))
    kernels = [(zeros, w) for zeros, w in pairs if zeros.ndim > 1 and 0.4 < zeros.mean() < 0.9]
    assert kernels
    for zeros, weight in kernels:
        assert np.all(weight[zeros] == 0)
        assert np.any(weight[~zeros] != 0)
    found = kept_zeros(tfc.export_tflite(aware, tmp_path / "m.tflite").path)
    assert found >= 0.9 * sum(zeros.sum() for zeros, _ in kernels)


def kept_zeros(path):
    """Returns the number of zeros among the 8-bit weights of a file."""
    return sum(
        int((values == 0).sum())
        for values, _ in weights(tfc.TFLiteModel(path, delegates=False)).values()
        if values.dtype == np.int8
    )


EQUATIONS = {
    "ab,bc->ac": ((6,), (8,), "c"),
    "abc,cde->abde": ((12, 6), (12, 4, 3), "de"),
    "abde,dec->abc": ((12, 4, 3), (12, 5), "c"),
    "abc,dc->abd": ((12, 6), (12, 5), "d"),
    "abc,cd->adb": ((12, 6), (5, 12), "d"),
    "abc,bd->adc": ((12, 6), (5, 6), "d"),
    "abc,bcd->ad": ((12, 6), (5,), "d"),
    "abc,cde->adbe": ((12, 6), (5, 12, 3), "e"),
    "abc,cde->aebd": ((12, 6), (3, 12, 5), "ed"),
    "...x,xy->...y": ((12, 6), (5,), "y"),
}


@pytest.mark.parametrize("equation", EQUATIONS)
def test_products_agree_to_the_bit(equation, tmp_path):
    """Each channel has the scale that the file gives it, wherever its axis is."""
    keras.utils.set_random_seed(0)
    shape, output_shape, bias = EQUATIONS[equation]
    layer = L.EinsumDense(equation, output_shape=output_shape, bias_axes=bias)
    model = keras.Sequential([keras.Input(shape), layer])
    generator = np.random.default_rng(0)
    kernel = np.asarray(layer.kernel)
    layer.kernel.assign(kernel * generator.uniform(0.1, 1, size=kernel.shape))
    layer.bias.assign(generator.normal(size=layer.bias.shape))
    x = generator.normal(size=(64, *shape)).astype("float32")
    aware = tfc.quantize(model)
    aware(x, training=True)
    result = tfc.export_tflite(aware, tmp_path / "m.tflite")
    assert result.float_tensors == [] and result.agreement.rmse < 0.002


def test_products_in_any_order_in_float(tmp_path):
    """With a bias on some of their channels, an activation, or an axis that both sides share."""
    for equation, shape, output_shape, bias, activation in (
        ("abc,cd->adb", (5, 8), (6, 5), "d", "softmax"),
        ("abc,bcd->abd", (5, 8), (5, 6), "d", "relu"),
        ("abc,cde->abde", (5, 8), (5, 4, 3), "e", None),
    ):
        layer = L.EinsumDense(
            equation,
            output_shape=output_shape,
            bias_axes=bias,
            activation=activation,
            bias_initializer="normal",
        )
        model = keras.Sequential([keras.Input(shape), layer])
        assert tfc.export_tflite(model, tmp_path / "m.tflite").agreement.rmse < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", INTEGER)
def test_after_training(name, tmp_path):
    keras.utils.set_random_seed(1)
    model = INTEGER[name]()
    result = tfc.export_tflite(
        model, tmp_path / "m.tflite", representative_dataset=samples(model, 64, 0), verify=False
    )
    assert result.float_tensors == [], result.ops
    assert measure(model, result.path, samples(model, 64, 1)).rmse < 0.1


@pytest.mark.parametrize("kind", [L.LSTM, L.GRU, L.SimpleRNN])
def test_dropout_inside_of_recurrent_layers(kind):
    """In training only, and of inputs and states alike."""
    for options in ({"dropout": 0.5}, {"recurrent_dropout": 0.5}):
        model = keras.Sequential([keras.Input((6, 4)), kind(8, **options)])
        aware = tfc.quantize(model)
        x = np.random.default_rng(0).normal(size=(16, 6, 4)).astype("float32")
        same = np.asarray(aware(x, training=False))
        np.testing.assert_allclose(same, np.asarray(model(x, training=False)), atol=0.02)
        first, second = (np.asarray(aware(x, training=True)) for _ in range(2))
        assert np.abs(first - second).mean() > 0.01
        # On average it is what it is without.
        mean = np.mean([np.asarray(aware(x, training=True)) for _ in range(10)], axis=0)
        assert np.abs(mean - same).mean() < 0.7 * np.abs(first - same).mean()


def test_sequences_of_unknown_length_stay_in_float():
    model = keras.Sequential([keras.Input((None, 3)), L.LSTM(4)])
    with pytest.warns(tfc.CompressionWarning, match=r"unknown length.*keras.Input"):
        tfc.quantize(model)
