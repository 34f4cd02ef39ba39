import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tests import nets
from tests.conftest import ROOT
from tests.test_layers import INTEGER
from tfcompress.graph.layers import plain
from tfcompress.graph.read import walk_layers
from tfcompress.graph.weights import compressible_weights


def lively(model):
    """Sets the variables of normalizations, so that none is the identity."""
    generator = np.random.default_rng(0)
    for _, layer in walk_layers(model):
        if isinstance(layer, L.BatchNormalization):
            layer.gamma.assign(generator.uniform(0.5, 1.5, layer.gamma.shape))
            layer.beta.assign(generator.normal(size=layer.gamma.shape) * 0.2)
            layer.moving_mean.assign(generator.normal(size=layer.gamma.shape) * 0.1)
    return model


def inception():
    """Branches with layers of like names, in another order than the file's."""
    inputs = keras.Input((12, 12, 3))
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(6, 3)(inputs)))
    branches = [
        L.ReLU()(L.Conv2D(4, 1)(x)),
        L.ReLU()(L.BatchNormalization()(L.Conv2D(4, 3, padding="same")(x))),
        L.Conv2D(4, 1)(L.MaxPooling2D(3, 1, "same")(x)),
    ]
    x = L.Add()([L.Concatenate()(branches), L.Conv2D(12, 1)(x)])
    return keras.Model(inputs, L.Dense(4)(L.GlobalAveragePooling2D()(x)))


def stacked():
    block = keras.Sequential(
        [keras.Input((8, 8, 4)), L.DepthwiseConv2D(3, padding="same"), L.ReLU(), L.Conv2D(4, 1)],
        name="block",
    )
    inputs = keras.Input((8, 8, 4))
    x = L.SeparableConv2D(4, 3, padding="same", activation="silu")(block(inputs))
    x = L.Conv1D(4, 3)(L.Reshape((64, 4))(x))
    return keras.Model(inputs, L.Dense(3, activation="softmax")(L.Flatten()(x)))


NETS = {
    "conv": nets.conv,
    "depthwise": nets.depthwise,
    "residual": nets.residual,
    "dense": nets.dense,
    "inception": inception,
    "stacked": stacked,
    "attention": INTEGER["MultiHeadAttention"],
}


def samples(model, count=64):
    return np.random.default_rng(0).normal(size=(count, *model.input_shape[1:])).astype("float32")


def exported(make, way, path):
    keras.utils.set_random_seed(0)
    model = lively(make())
    x = samples(model)
    if way == "ptq":
        tfc.export_tflite(model, path, representative_dataset=x, verify=False)
    else:
        model = tfc.quantize(model)
        for _ in range(3):
            model(x, training=True)
        tfc.export_tflite(model, path, verify=False)
    return model, x


WAYS = [(name, way) for name in NETS for way in ("ptq", "qat")]
SLOW = [(name, "qat") for name in NETS if name != "residual"]


@pytest.mark.parametrize(("name", "way"), nets.some_slow(WAYS, SLOW))
def test_a_broken_layer_ranks_first_whichever_it_is(name, way, tmp_path):
    path = tmp_path / "m.tflite"
    model, x = exported(NETS[name], way, path)
    healthy = tfc.layer_errors(model, path, x)
    assert healthy.rows[0].sqnr > 20 and healthy.unmatched == []
    assert [r.sqnr for r in healthy.rows] == sorted(r.sqnr for r in healthy.rows)
    tried = 0
    for layer_path, layer in walk_layers(model):
        weights = compressible_weights(plain(layer)) or (
            [layer.gamma] if isinstance(layer, L.BatchNormalization) else []
        )
        for weight in weights[-1:]:
            before = keras.ops.convert_to_numpy(weight).copy()
            weight.assign(np.flip(before * 1.7, -1) + 0.1)
            worst = tfc.layer_errors(model, path, x).rows[0]
            assert layer_path in worst.layers, (layer_path, worst)
            assert worst.sqnr < healthy.rows[0].sqnr - 5
            weight.assign(before)
            tried += 1
    assert tried >= (1 if name == "attention" else 3)


def test_a_layer_is_not_blamed_for_those_before_it(tmp_path):
    path = tmp_path / "m.tflite"
    model, x = exported(nets.dense, "ptq", path)
    model.get_layer("hidden").kernel.assign(model.get_layer("hidden").kernel * 1.5)
    rows = {row.path: row for row in tfc.layer_errors(model, path, x).rows}
    assert rows["hidden"].sqnr < 15 and rows["logits"].sqnr > 35
    assert rows["logits"].sqnr_total < 25


def test_errors_are_those_of_numpy(tmp_path):
    """One dense layer, its int8 twin computed by hand."""
    path = tmp_path / "m.tflite"
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), L.Dense(5, name="only")])
    x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
    tfc.export_tflite(model, path, representative_dataset=x)
    file = tfc.TFLiteModel(path, delegates=False)
    (row,) = tfc.layer_errors(model, path, x).rows
    details = next(d for d in file.interpreter.get_tensor_details() if "quantizer" in d["name"])
    scale, zero_point = details["quantization"]
    quantized_x = (np.clip(np.round(x / scale) + zero_point, -128, 127) - zero_point) * scale
    wanted = quantized_x @ np.array(model.layers[0].kernel) + np.array(model.layers[0].bias)
    got = file.predict(x)
    noise = ((wanted - got) ** 2).sum()
    assert abs(row.sqnr - 10 * np.log10((wanted**2).sum() / noise)) < 0.01
    assert abs(row.max_error - np.abs(wanted - got).max()) < 1e-5
    cosine = (wanted * got).sum() / np.sqrt((wanted**2).sum() * (got**2).sum())
    assert abs(row.cosine - cosine) < 1e-6
    assert row.steps < 3 and row.kind == "Dense"


def test_float_files_have_no_errors_and_open_batches_work(tmp_path):
    model = nets.residual()
    for options in ({}, {"batch_size": None}, {"batch_size": 3}):
        tfc.export_tflite(model, tmp_path / "m.tflite", **options)
        errors = tfc.layer_errors(model, tmp_path / "m.tflite", samples(model, 10))
        assert errors.rows[0].sqnr > 80 and errors.samples == 10 and errors.rows[0].steps is None


def encoder():
    inputs = keras.Input((8, 16))
    attended = L.MultiHeadAttention(2, 8, name="attention")(inputs, inputs)
    x = L.LayerNormalization()(L.Add(name="add")([inputs, attended]))
    return keras.Model(inputs, L.Dense(3, activation="softmax")(L.Flatten()(x)))


@pytest.mark.parametrize("scheme", ["float32", "float16", "dynamic_int8", "int8", "int16x8"])
def test_no_layer_is_blamed_in_a_file_that_agrees(scheme, tmp_path):
    """Outputs are named for the signature, and the axis of the batch comes and goes."""
    keras.utils.set_random_seed(0)
    model = encoder()
    x = samples(model)
    result = tfc.export_tflite(
        model, tmp_path / "m.tflite", scheme=scheme, representative_dataset=x
    )
    assert result.agreement.rmse < 0.05
    errors = tfc.layer_errors(model, result.path, x)
    assert errors.rows[0].sqnr > 25 and errors.unmatched == []


def test_several_inputs_and_the_table(tmp_path):
    model = nets.two_by_two()
    x = nets.samples_for(model, 32)
    path = tmp_path / "m.tflite"
    tfc.export_tflite(model, path, representative_dataset=x)
    errors = tfc.layer_errors(model, path, x)
    assert {row.path for row in errors.rows} >= {"left", "right", "main_out", "side_out"}
    assert "SQNR dB" in str(errors) and "side_out" in str(errors)


def test_files_of_other_models_are_refused():
    student = ROOT / "tflite_models" / "fashion_mnist_student_int8.tflite"
    with pytest.raises(ValueError, match=r"no file of this model.*It has: 'image'"):
        tfc.layer_errors(nets.tiny(), student, np.ones((4, 6)))
    with pytest.raises(FileNotFoundError):
        tfc.layer_errors(nets.tiny(), "none.tflite", np.ones((4, 6)))
