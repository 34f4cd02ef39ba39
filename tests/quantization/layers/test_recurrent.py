"""Recurrent layers: a loop in training and at inference, unrolled in the file."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import tfcompress as tfc
from tests import nets
from tests.quantization.layers.sequences import (
    FEATURES,
    MIN_MAX,
    STEPS,
    check_equal,
    check_measured,
    data,
    fitted,
)
from tfcompress.export.agreement import measure
from tfcompress.graph.keras_internals import flatten_layers, producing_operation
from tfcompress.post_training.calibrate import calibrate
from tfcompress.post_training.pipeline import post_training
from tfcompress.quantization.layers.recurrent import RuntimeRecurrent
from tfcompress.quantization.state import quantizers

CELLS = {
    "SimpleRNN": lambda **o: L.SimpleRNN(6, **o),
    "LSTM": lambda **o: L.LSTM(6, **o),
    "GRU": lambda **o: L.GRU(6, **o),
    "GRU, reset before": lambda **o: L.GRU(6, reset_after=False, **o),
    "LSTM without bias": lambda **o: L.LSTM(6, use_bias=False, **o),
    "GRU without bias": lambda **o: L.GRU(6, use_bias=False, **o),
    "LSTM, relu": lambda **o: L.LSTM(6, activation="relu", **o),
    "GRU, linear": lambda **o: L.GRU(6, activation="linear", **o),
    "SimpleRNN, relu": lambda **o: L.SimpleRNN(6, activation="relu", **o),
    "SimpleRNN, sigmoid": lambda **o: L.SimpleRNN(6, activation="sigmoid", **o),
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


TRAINED = ("LSTM", "GRU backwards", "SimpleRNN, mul, last", "LSTM, ave, all states")


@pytest.mark.parametrize("name", nets.some_slow(TRAINED, TRAINED[-1:]))
def test_file_and_trained_model_are_equal_to_the_bit(name, tmp_path):
    x, y = data()
    check_equal(fitted(model_of(name), x, y), x, tmp_path / "m.tflite")


@pytest.mark.parametrize(
    "name", ["LSTM", "GRU", "GRU, linear", "SimpleRNN", "LSTM, concat, all states"]
)
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
        update, same = one.numpy() - old, other.numpy() - old
        assert np.abs(update - same).max() < 0.05 * np.abs(update).max(), one.path


@pytest.mark.parametrize("name", ["LSTM", "GRU", "SimpleRNN", "GRU, sum, last"])
def test_the_loop_sees_the_ranges_that_calibration_sees(name):
    x, y = data(32)
    model = model_of(name)
    looped, unrolled = tfc.quantize(model), tfc.quantize(model)
    looped.compile(keras.optimizers.SGD(0.0), "mse")
    looped.fit(x, np.zeros((32, 4)), batch_size=32, shuffle=False, verbose=0)
    name_of_input = producing_operation(unrolled.inputs[0]).name
    calibrate(unrolled, {name_of_input: x}, "min_max")
    inside = [
        {q.path.split("/")[-1]: q.range() for q in quantizers(model)}
        for model in (looped, unrolled)
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


WAYS = [*[(name, True) for name in [*CELLS, *BOTH]], *[(name, False) for name in BOTH]]
FAST = [*[(name, True) for name in [*CELLS, "LSTM, concat, all states"]], ("GRU, sum, last", False)]


@pytest.mark.parametrize(
    ("name", "alike"), nets.some_slow(WAYS, [way for way in WAYS if way not in FAST])
)
def test_file_and_measured_model_are_equal_to_the_bit(name, alike, tmp_path):
    """Also with equal biases, which the converter stores as one number."""
    x, _ = data()
    model, generator = model_of(name), np.random.default_rng(1)
    for variable in model.variables:
        if variable.name == "bias" and len(variable.shape) == (2 if "GRU" in name else 1):
            variable.assign(
                np.full(variable.shape, 0.7) if alike else generator.normal(size=variable.shape)
            )
    check_measured(model, {producing_operation(model.inputs[0]).name: x}, tmp_path / "m.tflite")


@pytest.mark.parametrize("outliers", [False, True])
def test_ranges_are_chosen_by_what_computes_better(outliers):
    """Outliers in a few samples make the scale too coarse; else the whole range is needed."""
    x, _ = data(64)
    inputs = keras.Input((STEPS, FEATURES), name="x")
    layer = L.LSTM(6)
    model = keras.Model(inputs, layer(inputs))
    if outliers:
        x[:2] *= 100
        layer.cell.kernel.assign(layer.cell.kernel * 3)
    errors = {}
    for method in ("min_max", "moving_average", None):
        scheme = dataclasses.replace(MIN_MAX, activation_range=method)
        measured = post_training(model, scheme, {"x": x})
        errors[method] = float(np.var(measured(x) - model(x)))
    assert errors[None] == min(errors.values())
    assert (errors["moving_average"] < errors["min_max"]) == outliers, errors


def seq2seq(kind, masked=False):
    """An encoder whose states the decoder starts with; it returns its own as well."""
    read, decoded = keras.Input((STEPS, FEATURES)), keras.Input((3, FEATURES))
    masks = [keras.Input((size,), dtype="bool") for size in (STEPS, 3)] if masked else [None] * 2
    _, *states = kind(6, return_state=True)(read, mask=masks[0])
    decoder = kind(6, return_sequences=True, return_state=True)
    x, *states = decoder(decoded, initial_state=states, mask=masks[1])
    return keras.Model([read, decoded, *masks[: 2 * masked]], [L.Dense(3)(x), *states])


def both_ways(merge_mode):
    inputs = keras.Input((STEPS, FEATURES))
    x, *states = L.Bidirectional(L.LSTM(6, return_state=True), merge_mode="ave")(inputs)
    if merge_mode is None:
        states = states[::2]
    cell = (L.GRU if merge_mode is None else L.LSTM)(6, return_sequences=True)
    parts = L.Bidirectional(cell, merge_mode=merge_mode)(inputs, initial_state=states)
    return keras.Model(inputs, [L.Dense(2)(x), *(L.Dense(3)(y) for y in keras.tree.flatten(parts))])


def one_step(kind, states):
    """What an application calls with each sample of a stream."""
    inputs, states = keras.Input((1, FEATURES)), [keras.Input((6,)) for _ in range(states)]
    initial = states[0] if len(states) == 1 else states
    x, *after = kind(6, return_state=True)(inputs, initial_state=initial)
    return keras.Model([inputs, *states], [L.Dense(3)(x), *after])


def from_zeros():
    inputs = keras.Input((1, FEATURES))
    return keras.Model(
        inputs, L.LSTM(6, return_state=True)(inputs)
    )  # two of these are the same tensor


def nested():
    inputs, states = keras.Input((3, FEATURES)), [keras.Input((6,)), keras.Input((6,))]
    x = L.LSTM(6, return_sequences=True)(inputs, initial_state=states)
    decoder = keras.Model([inputs, *states], L.Dense(3)(x))
    read, decoded = keras.Input((STEPS, FEATURES)), keras.Input((3, FEATURES))
    encoder = keras.Model(read, L.LSTM(6, return_state=True)(read)[1:])
    return keras.Model([read, decoded], decoder([decoded, *encoder(read)]))


STATES = {
    "LSTM": lambda: seq2seq(L.LSTM),
    "masked LSTM": lambda: seq2seq(L.LSTM, masked=True),
    "masked GRU": lambda: seq2seq(L.GRU, masked=True),
    "masked SimpleRNN": lambda: seq2seq(L.SimpleRNN, masked=True),
    "both ways": lambda: both_ways("concat"),
    "both ways apart": lambda: both_ways(None),
    "one step of an LSTM": lambda: one_step(L.LSTM, 2),
    "one step of a GRU": lambda: one_step(L.GRU, 1),
    "from zeros": from_zeros,
    "nested": nested,
}


SLOW = ("both ways", "both ways apart", "masked GRU", "masked SimpleRNN")


@pytest.mark.parametrize("name", nets.some_slow(STATES, SLOW))
def test_states_that_are_given_and_returned(name, tmp_path):
    keras.utils.set_random_seed(0)
    model = STATES[name]()
    generator = np.random.default_rng(0)
    samples = {
        producing_operation(t).name: generator.random((256, *t.shape[1:])) < 0.7
        if t.dtype == "bool"
        else generator.uniform(-1, 1, (256, *t.shape[1:])).astype("float32")
        for t in model.inputs
    }
    batch = [*samples.values()] if len(samples) > 1 else next(iter(samples.values()))
    wanted = keras.tree.flatten(model(batch))
    aware = tfc.quantize(model)
    # Before ranges were trained nothing is rounded but gates, to 1/256.
    for got, expected in zip(keras.tree.flatten(aware(batch)), wanted, strict=True):
        assert np.std(got - expected) < 0.03 * np.std(expected)
    measured = check_measured(model, samples, tmp_path / "m.tflite")
    recurrent = [part for part in flatten_layers(measured) if isinstance(part, RuntimeRecurrent)]
    assert recurrent and all(part.linked_quantizers() for part in recurrent)


@pytest.mark.slow
def test_training_an_encoder_and_a_decoder(tmp_path):
    keras.utils.set_random_seed(0)
    model = seq2seq(L.GRU)
    x, _ = data()
    batch = [x, x[:, :3]]
    targets = [np.tanh(x[:, :3, :3].cumsum(1)), np.tanh(x[:, 1:].sum(1))[:, [0, 1, 2, 3, 4, 0]]]
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    model.fit(batch, targets, epochs=5, verbose=0)
    aware = tfc.quantize(model)
    aware.compile(keras.optimizers.Adam(3e-3), "mse")
    aware.fit(batch, targets, epochs=3, verbose=0)
    reached = model.evaluate(batch, targets, verbose=0, return_dict=True)["loss"]
    assert aware.evaluate(batch, targets, verbose=0, return_dict=True)["loss"] < 1.2 * reached
    names = [producing_operation(tensor).name for tensor in aware.inputs]
    result = tfc.export_tflite(aware, tmp_path / "m.tflite")
    assert result.float_tensors == []
    assert measure(aware, result.path, dict(zip(names, batch, strict=True))).max_lsb < 0.01
    with pytest.warns(tfc.CompressionWarning, match="drops"):
        stripped = tfc.strip(aware)
    stripped.compile("sgd", "mse")
    assert stripped.evaluate(batch, targets, verbose=0, return_dict=True)["loss"] < 1.2 * reached


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
    (layer,) = (part for part in flatten_layers(model) if isinstance(part, RuntimeRecurrent))
    assert not layer.linked_quantizers()
    result = tfc.export_tflite(model, tmp_path / "m.tflite")
    assert result.float_tensors == [] and result.agreement.max_lsb <= 2


@pytest.mark.slow
def test_a_loaded_model_computes_the_same(tmp_path):
    x, y = data()
    model = fitted(model_of("LSTM, concat, last"), x, y, epochs=1)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
