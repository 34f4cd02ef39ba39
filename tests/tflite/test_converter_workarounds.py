"""Convolutions that the converter would leave in float."""

import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tfcompress.export.agreement import measure
from tfcompress.graph.keras_internals import producing_operation


def siblings(kind, *args, **options):
    def build(x):
        gate = kind(*args, padding="same", dilation_rate=2, activation="sigmoid", **options)
        return L.Multiply()([kind(*args, padding="same", dilation_rate=2, **options)(x), gate(x)])

    return build


def causal(x):
    gate = L.Conv1D(6, 2, padding="causal", dilation_rate=4, activation="sigmoid")(x)
    return L.Multiply()([L.Conv1D(6, 2, padding="causal", dilation_rate=4)(x), gate])


CASES = {
    "Conv1D": ((16, 4), siblings(L.Conv1D, 6, 3)),
    "Conv1D without bias": ((16, 4), siblings(L.Conv1D, 6, 3, use_bias=False)),
    "Conv2D": ((12, 12, 4), siblings(L.Conv2D, 6, 3)),
    "DepthwiseConv1D": ((16, 4), siblings(L.DepthwiseConv1D, 3)),
    "DepthwiseConv2D": ((12, 12, 4), siblings(L.DepthwiseConv2D, 3)),
    "causal": ((16, 4), causal),
    "one channel": ((16, 4), lambda x: L.Conv1DTranspose(1, 5, strides=2, padding="same")(x)),
}


@pytest.mark.parametrize("name", CASES)
def test_all_in_integers_and_equal(name, tmp_path):
    keras.utils.set_random_seed(0)
    shape, build = CASES[name]
    inputs = keras.Input(shape)
    model = keras.Model(inputs, build(inputs))
    x = np.random.default_rng(0).normal(size=(64, *shape)).astype("float32")
    y = model.predict(x, verbose=0)
    aware = tfc.quantize(model)
    aware.compile(keras.optimizers.SGD(0.0), "mse")
    aware.fit(x, y, batch_size=64, verbose=0)
    result = tfc.export_tflite(aware, tmp_path / "m.tflite")
    assert result.float_tensors == [] and "SPACE_TO_BATCH_ND" not in result.ops
    agreement = measure(aware, result.path, {producing_operation(aware.inputs[0]).name: x})
    assert agreement.max_lsb < 0.01, agreement
    exact = tfc.export_tflite(model, tmp_path / "f.tflite")
    assert exact.agreement.rmse < 1e-5
