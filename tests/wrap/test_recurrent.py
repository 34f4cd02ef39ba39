"""Recurrent layers: a loop in training and at inference, written out in the file."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import tfcompress as tfc
from tfcompress.agreement import measure
from tfcompress.wrap.calibrate import calibrate
from tfcompress.wrap.recurrent import RuntimeRecurrent
from tfcompress.wrap.strip import quantizers

STEPS, FEATURES = 4, 5
CELLS = {
    "SimpleRNN": lambda **o: L.SimpleRNN(6, **o),
    "LSTM": lambda **o: L.LSTM(6, **o),
    "GRU": lambda **o: L.GRU(6, **o),
    "GRU, reset before": lambda **o: L.GRU(6, reset_after=False, **o),
    "LSTM without bias": lambda **o: L.LSTM(6, use_bias=False, **o),
    "GRU without bias": lambda **o: L.GRU(6, use_bias=False, **o),
    "GRU backwards": lambda **o: L.GRU(6, go_backwards=True, **o),
}
BOTH = {
    f"{cell}, {mode}, {whole}": (cell, mode, whole == "all states")
    for cell, mode, whole in [
        ("LSTM", "concat", "all states"),
        ("LSTM", "concat", "last"),
        ("GRU", "sum", "last"),
        ("LSTM", "ave", "all states"),
        ("SimpleRNN", "mul", "last"),
        ("GRU", "ave", "last"),
    ]
}


def layer_of(name):
    if name in CELLS:
        return CELLS[name](return_sequences=name != "LSTM")
    cell, mode, whole = BOTH[name]
    return L.Bidirectional(CELLS[cell](return_sequences=whole), merge_mode=mode)


def model_of(name):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((STEPS, FEATURES))
    x = layer_of(name)(inputs)
    return keras.Model(inputs, L.Dense(4)(L.Flatten()(x) if len(x.shape) == 3 else x))


def data(count=256):
    x = np.random.default_rng(0).normal(size=(count, STEPS, FEATURES)).astype("float32")
    return x, (x[:, :, 0].sum(1) > 0).astype("int32")


def fitted(model, x, y, epochs=3):
    aware = tfc.quantize(model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    aware.compile(keras.optimizers.Adam(3e-3), loss)
    aware.fit(x, y, epochs=epochs, verbose=0)
    return aware


def check_equal(model, x, path):
    result = tfc.export_tflite(model, path)
    assert result.float_tensors == []
    found = measure(model, result.path, {model.inputs[0]._keras_history.operation.name: x})
    assert found.max_steps < 0.01, found


@pytest.mark.parametrize("name", [*CELLS, *BOTH])
def test_file_and_model_are_equal_to_the_bit(name, tmp_path):
    x, y = data()
    check_equal(fitted(model_of(name), x, y), x, tmp_path / "m.tflite")


@pytest.mark.parametrize("name", ["LSTM", "GRU", "SimpleRNN", "LSTM, concat, all states"])
def test_the_loop_computes_what_keras_does(name):
    """Before ranges were trained nothing is rounded but gates, to 1/256."""
    plain, aware = model_of(name), tfc.quantize(model_of(name))
    x, y = data(32)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    before = [w.numpy().copy() for w in plain.trainable_variables]
    for model in (plain, aware):
        model.compile(keras.optimizers.SGD(1.0), loss)
        model.fit(x, y, batch_size=32, epochs=1, shuffle=False, verbose=0)
    for old, one, other in zip(
        before, plain.trainable_variables, aware.trainable_variables, strict=True
    ):
        step, same = one.numpy() - old, other.numpy() - old
        assert np.abs(step - same).max() < 0.05 * np.abs(step).max(), one.path


@pytest.mark.parametrize("name", ["LSTM", "GRU", "SimpleRNN", "GRU, sum, last"])
def test_the_loop_sees_the_ranges_that_calibration_sees(name):
    x, y = data(32)
    model = model_of(name)
    looped, written = tfc.quantize(model), tfc.quantize(model)
    looped.compile(keras.optimizers.SGD(0.0), "mse")
    looped.fit(x, np.zeros((32, 4)), batch_size=32, shuffle=False, verbose=0)
    name_of_input = written.inputs[0]._keras_history.operation.name
    calibrate(written, {name_of_input: x}, "min_max")
    inside = [
        {q.path.split("/")[-1]: q.range() for q in quantizers(model)} for model in (looped, written)
    ]
    assert inside[0].keys() == inside[1].keys()
    recurrent = [key for key in inside[0] if not key.endswith("quantizer")]
    assert len(recurrent) > 3
    for key in recurrent:
        np.testing.assert_allclose(inside[0][key], inside[1][key], atol=2e-2, err_msg=key)


def test_rows_of_a_table_are_read_as_integers(tmp_path):
    """An embedding called twice, for a recurrent layer and for a concatenation."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((STEPS,), dtype="int32")
    table = L.Embedding(40, 6)
    states = L.Bidirectional(L.GRU(5))(table(inputs))
    joined = L.Concatenate()([states, L.Flatten()(table(inputs))])
    x = np.random.default_rng(0).integers(0, 40, (256, STEPS))
    model = fitted(keras.Model(inputs, L.Dense(4)(joined)), x, x[:, 0] // 10)
    check_equal(model, x, tmp_path / "m.tflite")


def test_states_beside_other_features(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((STEPS, FEATURES))
    parts = [L.LSTM(6)(inputs), L.Flatten()(L.GRU(3, return_sequences=True)(inputs))]
    joined = L.Concatenate()([*parts, L.Dense(4)(L.Flatten()(inputs))])
    x, y = data()
    model = fitted(keras.Model(inputs, L.Dense(4)(joined)), x, y, epochs=2)
    check_equal(model, x, tmp_path / "m.tflite")


def test_a_shared_layer_that_reads_two_grids_computes_in_floats(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = [keras.Input((STEPS, FEATURES)), keras.Input((STEPS, FEATURES))]
    shared = L.LSTM(6)
    plain = keras.Model(inputs, L.Dense(4)(ops.add(*map(shared, inputs))))
    x, y = data()
    model = fitted(plain, [x, 3 * x], y, epochs=2)
    (layer,) = (part for part in model._flatten_layers() if isinstance(part, RuntimeRecurrent))
    assert not layer.grids()
    result = tfc.export_tflite(model, tmp_path / "m.tflite")
    assert result.float_tensors == [] and result.agreement.max_steps <= 2


def test_a_loaded_model_computes_the_same(tmp_path):
    x, y = data()
    model = fitted(model_of("LSTM, concat, last"), x, y, epochs=1)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
