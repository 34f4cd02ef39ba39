"""float16 and int16x8: what the other schemes do not show."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import tfcompress as tfc
from tests import nets
from tests.test_layers import INTEGER, samples
from tests.test_odd_graphs import GRAPHS

TOKENS = np.random.default_rng(0).integers(0, 50, (64, 8)).astype("int32")


def reader():
    return keras.Sequential(
        [
            keras.Input((8,), dtype="int32", name="tokens"),
            L.Embedding(50, 16),
            L.LayerNormalization(),
            L.GlobalAveragePooling1D(),
            L.Dense(4),
        ]
    )


def test_float16_takes_half_the_bytes(tmp_path):
    model = keras.Sequential([keras.Input((64,)), L.Dense(256), L.Dense(64)])
    sizes = [
        tfc.export_tflite(model, tmp_path / "m.tflite", scheme=scheme).bytes
        for scheme in ("float32", "float16")
    ]
    saved = 2 * model.count_params()
    assert saved - 2000 <= sizes[0] - sizes[1] <= saved


def test_int16_is_closer_than_int8_where_activations_are_uneven(tmp_path):
    model = nets.tiny()
    x = nets.samples_for(model, 64)
    x[:, 0] *= 100  # one feature takes the whole range of the input
    rmse = {
        scheme: tfc.export_tflite(
            model, tmp_path / "m.tflite", scheme=scheme, representative_dataset=x
        ).agreement.rmse
        for scheme in ("int8", "int16x8")
    }
    assert rmse["int16x8"] < 0.5 * rmse["int8"]


def test_tokens_in_int16(tmp_path):
    result = tfc.export_tflite(
        reader(), tmp_path / "m.tflite", scheme="int16x8", representative_dataset=TOKENS
    )
    assert result.float_tensors == [] and result.agreement.rmse < 0.02
    assert "LESS" not in result.ops and result.ops["GATHER"] == 1
    assert TFLite(result).inputs[0].dtype == "int32"


def TFLite(result):
    return tfc.TFLiteModel(result.path)


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_inputs_of_16_bits(batch_size, tmp_path):
    model = nets.small_residual()
    x = nets.samples_for(model, 16)
    result = tfc.export_tflite(
        model,
        tmp_path / "m.tflite",
        scheme="int16x8",
        representative_dataset=x,
        io_dtype="int16",
        batch_size=batch_size,
    )
    file = TFLite(result)
    assert {i.dtype for i in (*file.inputs, *file.outputs)} == {"int16"}
    np.testing.assert_allclose(file.predict(x), model.predict(x, verbose=0), atol=0.05)


KINDS = (
    "LSTM; Bidirectional; LayerNormalization; RMSNormalization; MaxPooling3D; MultiHeadAttention"
)


@pytest.mark.parametrize("name", KINDS.split("; "))
def test_layers_that_need_another_form_in_16_bits(name, tmp_path):
    keras.utils.set_random_seed(0)
    model = INTEGER[name]()
    result = tfc.export_tflite(
        model,
        tmp_path / "m.tflite",
        scheme="int16x8",
        representative_dataset=samples(model, 64, 0),
    )
    assert result.agreement.rmse < 0.02


def test_a_loop_is_refused_before_it_kills_the_process(tmp_path):
    model = GRAPHS["Lambda with a loop"]()
    with pytest.raises(tfc.ExportError, match=r"cannot measure ranges inside of a loop.*unroll"):
        tfc.export_tflite(
            model,
            tmp_path / "m.tflite",
            scheme="int16x8",
            representative_dataset=nets.samples_for(model),
        )


@pytest.mark.parametrize("scheme", ["float16", "dynamic_int8", "float32"])
def test_schemes_without_training_say_what_to_do(scheme):
    with pytest.raises(ValueError, match=rf"takes no training: export .*scheme='{scheme}'"):
        tfc.quantize(nets.tiny(), scheme)


def test_ends_of_other_widths_are_refused(tmp_path):
    with pytest.raises(ValueError, match="io_dtype='int16' needs scheme='int16x8'"):
        tfc.export_tflite(
            nets.tiny(),
            tmp_path / "m.tflite",
            representative_dataset=np.ones((4, 6)),
            io_dtype="int16",
        )


def test_three_d_pooling_of_a_sequential_model_in_float(tmp_path):
    model = INTEGER["AveragePooling3D"]()
    assert tfc.export_tflite(model, tmp_path / "m.tflite").agreement.rmse < 1e-4


@pytest.mark.parametrize("scheme", ["float32", "int8"])
@pytest.mark.parametrize("batch_size", [1, None])
def test_large_dense_kernels(scheme, batch_size, tmp_path):
    """They are turned before they are converted, whatever is behind them."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3, 1024))
    x = L.Dense(1100, activation="relu", name="steps")(inputs)
    x = L.Dense(1024, use_bias=False, name="plain")(L.GlobalAveragePooling1D()(x))
    outputs = L.Dense(10)(L.ReLU()(L.BatchNormalization()(x)))
    model = keras.Model(inputs, outputs)
    x = np.random.default_rng(0).normal(size=(32, 3, 1024)).astype("float32")
    before = [np.array(weight) for weight in model.weights]
    result = tfc.export_tflite(
        model,
        tmp_path / "m.tflite",
        scheme=scheme,
        batch_size=batch_size,
        representative_dataset=x if scheme == "int8" else None,
        verbose=False,
    )
    assert result.ops["FULLY_CONNECTED"] == 3 and "TRANSPOSE" not in result.ops
    assert result.agreement.rmse < (1e-4 if scheme == "float32" else 0.05)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_custom_layers_with_dense_layers_inside(tmp_path):
    """One of them is never built, of one only the kernel is read."""

    @keras.saving.register_keras_serializable("test_convert")
    class Tied(L.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.used, self.unused = L.Dense(1100), L.Dense(4)

        def build(self, shape):
            self.used.build(shape)

        def call(self, x):
            return ops.matmul(ops.matmul(x, self.used.kernel), ops.transpose(self.used.kernel))

    inputs = keras.Input((1024,))
    model = keras.Model(inputs, Tied()(inputs))
    assert tfc.export_tflite(model, tmp_path / "m.tflite", verbose=False).agreement.rmse < 1e-4
