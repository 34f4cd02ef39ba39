"""The loop in a file: a few time steps in each pass, for sequences of any length."""

import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tests import nets
from tests.quantization.layers.sequences import FEATURES, MIN_MAX, check_equal, check_measured
from tests.quantization.layers.sequences import fitted as trained
from tfcompress.graph.keras_internals import producing_operation
from tfcompress.quantization.layers.recurrent_blocks import before_loop, block_of

LAYERS = {
    "LSTM": lambda: L.LSTM(6),
    "LSTM, all": lambda: L.LSTM(6, return_sequences=True),
    "GRU, all": lambda: L.GRU(6, return_sequences=True),
    "GRU backwards": lambda: L.GRU(6, go_backwards=True, return_sequences=True),
    "SimpleRNN": lambda: L.SimpleRNN(6, activation="relu"),
    "both, all": lambda: L.Bidirectional(L.LSTM(6, return_sequences=True)),
    "both": lambda: L.Bidirectional(L.GRU(6), merge_mode="sum"),
}
STEPS = 21  # two time steps, one that is left over, three passes of six


def model_of(name, steps=STEPS, masked=False):
    keras.utils.set_random_seed(0)
    spread = keras.initializers.RandomNormal(stddev=1.0)
    if masked:
        inputs = keras.Input((steps,), dtype="int32")
        x = L.Embedding(40, FEATURES, mask_zero=True, embeddings_initializer=spread)(inputs)
    else:
        x = inputs = keras.Input((steps, FEATURES))
    x = LAYERS[name]()(x)
    return keras.Model(inputs, L.Dense(4)(L.Flatten()(x) if len(x.shape) == 3 else x))


def samples_of(model, count=48):
    shape = (count, *model.inputs[0].shape[1:])
    generator = np.random.default_rng(0)
    if model.inputs[0].dtype == "int32":
        x = generator.integers(1, 40, shape)
        x[np.arange(shape[1]) >= generator.integers(0, shape[1] + 1, count)[:, None]] = 0
    else:
        x = generator.normal(size=shape).astype("float32")
    return {producing_operation(model.inputs[0]).name: x}


def kinds(path):
    return tfc.inspect_tflite(path).ops


def test_passes_cover_all_but_a_few_time_steps():
    for count in range(1, 400):
        size, before = block_of(count), before_loop(count)
        if not size:
            assert before == count < 18
            continue
        passes, rest = divmod(count - before, size)
        assert rest == 0 and passes >= 2 and 2 <= before < 2 + size
        # Never more operations than for eight in each pass, whatever is left over.
        assert before + size <= max(2 + (count - 2) % 8 + 8, 17)


RARE = ["SimpleRNN", "both", "GRU, all", "both, all"]


@pytest.mark.parametrize("name", nets.some_slow(LAYERS, RARE))
def test_file_and_measured_model_are_equal_to_the_bit(name, tmp_path):
    model = model_of(name)
    check_measured(model, samples_of(model), tmp_path / "m.tflite")
    assert "WHILE" in kinds(tmp_path / "m.tflite")


@pytest.mark.filterwarnings("ignore:.*destroy the mask")
@pytest.mark.parametrize("name", nets.some_slow(LAYERS, [n for n in LAYERS if n != "both, all"]))
def test_masked_time_steps(name, tmp_path):
    model = model_of(name, masked=True)
    check_measured(model, samples_of(model), tmp_path / "m.tflite")
    assert "WHILE" in kinds(tmp_path / "m.tflite")


def test_file_and_trained_model_are_equal_to_the_bit(tmp_path):
    model = model_of("LSTM, all")
    (x,) = samples_of(model, 64).values()
    check_equal(trained(model, x, np.arange(64) % 4), x, tmp_path / "m.tflite")


def test_a_file_does_not_grow_with_the_sequence(tmp_path):
    sizes = []
    for steps in (26, 506):
        model = model_of("GRU, all", steps)
        model = keras.Model(model.inputs, model.layers[-3].output)
        check_measured(model, samples_of(model, 32), tmp_path / "m.tflite")
        sizes.append((tmp_path / "m.tflite").stat().st_size)
    assert sizes[1] < 1.05 * sizes[0]


@pytest.mark.parametrize("batch_size", [None, 3])
def test_batches_of_other_sizes(batch_size, tmp_path):
    model = model_of("LSTM, all")
    samples = samples_of(model, 36)
    result = tfc.export_tflite(
        model,
        tmp_path / "m.tflite",
        scheme=MIN_MAX,
        representative_dataset=samples,
        batch_size=batch_size,
    )
    assert result.agreement.rmse < 0.05 and "WHILE" in kinds(result.path)


def test_chips_get_every_time_step(tmp_path):
    """They lack loops as they lack floats; the values are the same."""
    outputs = []
    for prefer in ("latency", "exactness"):
        model = model_of("LSTM")
        (x,) = samples_of(model).values()
        scheme = tfc.QuantizationScheme(
            activation_range="min_max", correct_bias=False, prefer=prefer
        )
        result = tfc.export_tflite(
            model, tmp_path / "m.tflite", scheme=scheme, representative_dataset=x
        )
        assert ("WHILE" in kinds(result.path)) == (prefer == "latency")
        outputs.append(tfc.TFLiteModel(result.path).predict(x))
    np.testing.assert_array_equal(*outputs)
