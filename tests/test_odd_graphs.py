"""Graphs that are seldom tried: a file that was checked, or an exception that says why not."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import tfcompress as tfc
from tests.nets import samples_for
from tfcompress.graph.keras_internals import flatten_layers

SERIES, IMAGE, VECTOR = (12, 6), (16, 16, 3), (8,)


def graph(function, *shapes):
    def make():
        inputs = [keras.Input(shape) for shape in shapes]
        return keras.Model(inputs if len(inputs) > 1 else inputs[0], function(*inputs))

    return make


def doubled(x):
    import tensorflow as tf

    return tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y * 2.0), [0, x])[1]


GRAPHS = {
    "masked LSTM": graph(lambda x: L.LSTM(4)(L.Masking()(x)), SERIES),
    "states": graph(lambda x: L.LSTM(4, return_state=True)(x)[1], SERIES),
    "ConvLSTM": graph(lambda x: L.ConvLSTM2D(2, 3)(x), (4, 8, 8, 2)),
    "channels first": graph(lambda x: L.Conv2D(4, 3, data_format="channels_first")(x), (3, 9, 9)),
    "Lambda with a loop": graph(lambda x: L.Lambda(doubled, (4,))(L.Dense(4)(x)), VECTOR),
    "an input that nothing reads": graph(lambda x, y: L.Dense(3)(x), VECTOR, VECTOR),
    "an input handed through": graph(lambda x: [L.Dense(3)(x), x], VECTOR),
    "constant": graph(lambda x: L.Dense(3)(x) * 0.0 + 1.0, VECTOR),
    "sort": graph(lambda x: ops.sort(L.Dense(6)(x), -1), VECTOR),
    "top k": graph(lambda x: ops.top_k(L.Dense(6)(x), 3)[0], VECTOR),
    "six axes": graph(
        lambda x: ops.transpose(
            ops.reshape(L.Dense(8)(x), (-1, 2, 3, 2, 4, 2)), (0, 3, 5, 2, 4, 1)
        ),
        SERIES,
    ),
    "SpectralNormalization": graph(lambda x: L.SpectralNormalization(L.Conv2D(3, 3))(x), IMAGE),
    "patches": graph(
        lambda x: ops.image.extract_patches(L.Conv2D(4, 3, padding="same")(x), 4), IMAGE
    ),
    "spectrogram": graph(lambda x: L.STFTSpectrogram(frame_length=64, frame_step=32)(x), (256, 1)),
}


def trained(model, x):
    aware = tfc.quantize(model)
    for _ in range(2):
        aware(x, training=True)
    return aware


@pytest.mark.filterwarnings("ignore::tfcompress.CompressionWarning")
@pytest.mark.parametrize("way", ["float", "qat", "ptq"])
@pytest.mark.parametrize("name", GRAPHS)
def test_it_becomes_a_file(name, way, tmp_path):
    keras.utils.set_random_seed(0)
    model = GRAPHS[name]()
    x = samples_for(model, 32)
    options = {"representative_dataset": x} if way == "ptq" else {}
    if way == "qat":
        model = trained(model, x)
    result = tfc.export_tflite(model, tmp_path / "m.tflite", **options)
    assert result.agreement.rmse < {"float": 1e-4, "qat": 0.03, "ptq": 0.07}[way]


@pytest.mark.parametrize("way", ["qat", "ptq"])
def test_what_is_not_finite_does_not_reach_the_converter(way, tmp_path):
    """The converter crashes on infinite ranges, and Python with it."""
    model = graph(lambda x: ops.log(L.Dense(3)(x)), VECTOR)()
    x = samples_for(model, 32)
    options = {"representative_dataset": x} if way == "ptq" else {}
    if way == "qat":
        model = trained(model, x)
        for layer in flatten_layers(model):
            if hasattr(layer, "set_range"):
                layer.set_range(-1.0, np.nan)
    with pytest.raises(ValueError, match="is not finite|'log.*computes NaN or infinity"):
        tfc.export_tflite(model, tmp_path / "m.tflite", **options)
    assert not (tmp_path / "m.tflite").exists()


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = graph(lambda x: L.Dense(3, name="wild")(x), VECTOR)()
    model.get_layer("wild").bias.assign([1.0, np.inf, 0.0])
    with pytest.raises(ValueError, match="wild/bias' holds NaN or infinity"):
        tfc.export_tflite(model, tmp_path / "m.tflite")


def test_what_the_runtime_does_not_know_is_an_exception(tmp_path):
    for function in (lambda x: ops.cumprod(x, -1), lambda x: ops.erf(x)):
        model = graph(lambda x, made=function: made(L.Dense(3)(x)), VECTOR)()
        with pytest.raises(tfc.ExportError, match="could not convert"):
            tfc.export_tflite(model, tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())


def test_names_that_tensorflow_does_not_like(tmp_path):
    for name in ("_hidden", "1st", "a-b"):
        inputs = keras.Input((200,))
        model = keras.Model(inputs, L.Dense(100, name=name)(inputs))
        result = tfc.export_tflite(model, tmp_path / "m.tflite")
        assert result.agreement.rmse < 1e-5


def test_times_one_is_not_rounded_again(tmp_path):
    """The converter removes it, and crashes on two sets of qparams for the tensor that is left."""

    def pooled(x):
        x = L.Conv2D(4, 3, strides=2)(L.Conv2D(4, 3, strides=2)(x))
        return L.Conv2D(4, 1)(x) * 1.0 + 0.0

    model = graph(pooled, (9, 9, 3))()
    aware = trained(model, samples_for(model, 32))
    assert sum("quantizer" in layer.name for layer in aware.layers) == 4
    result = tfc.export_tflite(aware, tmp_path / "m.tflite")
    assert result.float_tensors == [] and result.agreement.max_lsb <= 1.01
