"""Masked time steps of recurrent layers."""

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
from tfcompress.graph.keras_internals import flatten_layers, producing_operation
from tfcompress.post_training.pipeline import post_training
from tfcompress.quantization.layers.recurrent import RuntimeRecurrent

MASKED = {
    "LSTM": lambda: L.LSTM(6),
    "GRU": lambda: L.GRU(6, return_sequences=True),
    "GRU, zeros": lambda: L.GRU(6, return_sequences=True, zero_output_for_mask=True),
    "SimpleRNN": lambda: L.SimpleRNN(6),
    "backwards": lambda: L.LSTM(6, go_backwards=True, dropout=0.1),
    "both": lambda: L.Bidirectional(L.GRU(6), merge_mode="ave"),
    "both, all states": lambda: L.Bidirectional(L.LSTM(6, return_sequences=True)),
}


def padded_texts(count=256):
    generator = np.random.default_rng(0)
    ids = generator.integers(1, 40, (count, STEPS))
    ids[np.arange(STEPS) >= generator.integers(0, STEPS + 1, count)[:, None]] = 0
    ids[::7, 0] = 0  # the first time step of some is masked
    return ids


def reader_of_padded_texts(name):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((STEPS,), dtype="int32")
    spread = keras.initializers.RandomNormal(stddev=1.0)
    x = L.Embedding(40, 6, mask_zero=True, embeddings_initializer=spread)(inputs)
    x = MASKED[name]()(L.Dense(6, activation="relu")(x))
    return keras.Model(inputs, L.Dense(4)(L.GRU(5)(x) if len(x.shape) == 3 else x))


LONG = ("both, all states",)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in LONG else ()) for n in MASKED],
)
def test_masked_steps(name, tmp_path):
    x = padded_texts()
    wanted = reader_of_padded_texts(name)(x)
    aware = tfc.quantize(reader_of_padded_texts(name))
    # Before ranges were trained nothing is rounded but gates, to 1/256.
    assert np.std(aware(x) - wanted) < 0.02 * np.std(wanted)
    assert any(isinstance(part, RuntimeRecurrent) for part in flatten_layers(aware))
    model = reader_of_padded_texts(name)
    samples = {producing_operation(model.inputs[0]).name: x}
    measured = check_measured(model, samples, tmp_path / "m.tflite")
    assert np.std(measured(x) - wanted) < 0.04 * np.std(wanted)
    longer = np.where(x == 0, 7, x)  # read as words, padding makes a difference
    assert np.abs(measured(longer) - measured(x)).max() > 0.01


DROPPING = {
    "operation": lambda x, y: x + y,
    "Add": lambda x, y: L.Add()([x, y]),
    "RMSNormalization": lambda x, y: L.RMSNormalization()(x),
    "both masked": lambda x, y: L.Add()([x, L.Dense(6)(x)]),
}


@pytest.mark.filterwarnings("ignore:.*destroy the mask")
@pytest.mark.parametrize("name", DROPPING)
def test_masks_end_where_they_do_in_keras(name):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((STEPS,), dtype="int32")
    spread = keras.initializers.RandomNormal(stddev=1.0)
    x = L.Embedding(40, 6, mask_zero=True, embeddings_initializer=spread)(inputs)
    y = L.Embedding(40, 6, embeddings_initializer=spread)(inputs)
    model = keras.Model(inputs, L.Dense(3)(L.LSTM(6)(DROPPING[name](x, y))))
    ids = padded_texts()
    wanted = model(ids)
    assert np.std(tfc.quantize(model)(ids) - wanted) < 0.03 * np.std(wanted)


@pytest.mark.slow
def test_a_sequential_model_with_masks(tmp_path):
    keras.utils.set_random_seed(0)
    spread = keras.initializers.RandomNormal(stddev=1.0)
    words = L.Embedding(40, 6, mask_zero=True, embeddings_initializer=spread)
    inputs = keras.Input((STEPS,), dtype="int32")
    model = keras.Sequential([inputs, words, L.Bidirectional(L.LSTM(6)), L.Dense(4)])
    ids = padded_texts()
    pruned = tfc.quantize(tfc.prune(model, 0.5))
    assert np.isfinite(pruned(ids)).all()
    aware = fitted(model, ids, ids[:, 1] % 4)
    check_equal(aware, ids, tmp_path / "m.tflite")
    with pytest.warns(tfc.CompressionWarning, match="drops"):
        stripped = tfc.strip(aware)
    assert isinstance(stripped, keras.Sequential)
    assert np.std(stripped(ids) - aware(ids)) < 0.2 * np.std(aware(ids))
    measured = tfc.export_tflite(
        model, tmp_path / "p.tflite", scheme=MIN_MAX, representative_dataset=ids
    )
    assert measured.agreement.rmse < 0.1


def test_a_mask_of_integers(tmp_path):
    inputs, mask = keras.Input((STEPS, FEATURES)), keras.Input((STEPS,), dtype="int32")
    model = keras.Model([inputs, mask], L.Dense(2)(L.GRU(6)(inputs, mask=mask)))
    valid = np.random.default_rng(1).integers(0, 2, (64, STEPS))
    names = [producing_operation(tensor).name for tensor in model.inputs]
    samples = dict(zip(names, [data(64)[0], valid], strict=True))
    check_measured(model, samples, tmp_path / "m.tflite")


def test_a_mask_with_an_axis_more_is_left_to_keras():
    inputs, mask = keras.Input((STEPS, FEATURES)), keras.Input((STEPS, 1), dtype="bool")
    model = keras.Model([inputs, mask], L.Dense(2)(L.LSTM(6)(inputs, mask=mask)))
    x, _ = data(32)
    valid = np.random.default_rng(1).random((32, STEPS, 1)) < 0.7
    aware = tfc.quantize(model)
    aware([x, valid], training=True)
    assert np.std(aware([x, valid]) - model([x, valid])) < 0.05


def test_ranges_of_a_model_with_an_output_of_booleans(tmp_path):
    inputs = keras.Input((STEPS, FEATURES))
    scores = L.Dense(3)(L.LSTM(5)(inputs))
    model = keras.Model(inputs, [scores, ops.greater(scores, 0.0)])
    x, _ = data(64)
    samples = {producing_operation(inputs).name: x}
    assert post_training(model, tfc.QuantizationScheme(), samples).count_params()


@pytest.mark.slow
def test_the_loss_sees_the_masks_of_a_tagger(tmp_path):
    """Of padding, which Keras leaves out of the loss."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((STEPS,), dtype="int32")
    x = L.Embedding(40, 6, mask_zero=True)(inputs)
    x = L.Bidirectional(L.LSTM(6, return_sequences=True))(x)
    model = keras.Model(inputs, L.TimeDistributed(L.Dense(3))(x))
    ids = padded_texts()
    tags = np.where(ids == 0, 2, ids % 2)  # what padding is tagged with would be seen in the loss
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss)
    model.fit(ids, tags, epochs=5, verbose=0)
    aware = fitted(model, ids, tags)
    with pytest.warns(tfc.CompressionWarning, match="drops"):
        stripped = tfc.strip(aware)
    for each in (stripped, aware):
        each.compile("sgd", loss)
    expected = stripped.evaluate(ids, tags, verbose=0)
    assert abs(aware.evaluate(ids, tags, verbose=0) - expected) < 0.1 * expected
    check_equal(aware, ids, tmp_path / "m.tflite")


def test_selections_between_inputs_that_are_compared(tmp_path):
    """The operands of a selection have one scale, and so have those of a comparison."""
    inputs = keras.Input((FEATURES,))
    chosen = ops.where(inputs > 0.2, inputs, inputs * 0.1)
    model = keras.Model(inputs, L.Dense(3)(chosen))
    x = data()[0][:, 0]
    result = tfc.export_tflite(model, tmp_path / "m.tflite", representative_dataset=x)
    assert result.agreement.rmse < 0.05


def test_masking_needs_floats_at_the_input(tmp_path):
    inputs = keras.Input((STEPS, FEATURES))
    model = keras.Model(inputs, L.GRU(6)(L.Masking(-9.7)(inputs)))
    x, _ = data(64)
    with pytest.raises(tfc.ExportError, match="Use io_dtype='float32'"):
        tfc.export_tflite(model, tmp_path / "m.tflite", representative_dataset=x, io_dtype="int8")


@pytest.mark.parametrize("way", nets.some_slow(["Masking", "argument"], ["argument"]))
def test_a_mask_of_values_sees_them_as_they_come_in(way, tmp_path):
    """-9.7 is no quantized value: quantized first, no time step would be masked."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((STEPS, FEATURES))
    if way == "Masking":
        states = L.LSTM(6)(L.Masking(-9.7)(inputs))
    else:
        states = L.LSTM(6)(inputs, mask=ops.any(ops.not_equal(inputs, -9.7), axis=-1))
    model = keras.Model(inputs, L.Dense(4)(states))
    x, y = data()
    x[padded_texts() == 0] = -9.7
    aware = fitted(model, x, y)
    result = tfc.export_tflite(aware, tmp_path / "m.tflite")
    assert len(result.float_tensors) <= 3  # the number that is compared with, and the product
    assert result.agreement.max_lsb < 0.01, result.agreement
    other = np.where(x == np.float32(-9.7), np.float32(-9.6), x)
    assert np.abs(aware(other) - aware(x)).max() > 0.05
    with pytest.warns(tfc.CompressionWarning, match="drops"):
        stripped = tfc.strip(aware)
    measured = tfc.export_tflite(
        stripped, tmp_path / "p.tflite", scheme=MIN_MAX, representative_dataset=x
    )
    assert measured.agreement.rmse < 0.1
