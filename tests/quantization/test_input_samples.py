import keras
import numpy as np
import pytest

import tfcompress as tfc
from tfcompress.quantization.input_samples import InputSamples, samples_to_keep


def test_samples_fill_with_the_first_batch_and_are_replaced_one_a_step():
    layer = InputSamples(3)
    assert layer(np.zeros((1, 2), "float32")) is not None and layer.kept() is None
    layer(np.array([[1, 1], [2, 2]], "float32"), training=True)
    np.testing.assert_array_equal(layer.kept()[:, 0], [1, 2])
    for number in (3, 4):
        layer(np.full((2, 2), number, "float32"), training=True)
    np.testing.assert_array_equal(layer.kept()[:, 0], [4, 2, 3])
    full = InputSamples(3)
    full(np.arange(10, dtype="float32").reshape(5, 2), training=True)
    np.testing.assert_array_equal(full.kept()[:, 0], [0, 2, 4])


def test_samples_fit_a_budget_and_need_a_fixed_size():
    assert samples_to_keep([(None, 28, 28, 1)]) == 32
    assert samples_to_keep([(None, 224, 224, 3)]) == 3
    assert samples_to_keep([(None, 4), (None, 224, 224, 3)]) == 3
    assert samples_to_keep([(None, 2000, 2000, 3)]) == 1
    assert samples_to_keep([(None, 4), (None, None, 3)]) == 0


def test_the_inputs_of_one_sample_stay_together():
    """A small and a large input keep equally many samples, from the same training steps."""
    small, large = keras.Input((1,), name="small"), keras.Input((64, 64, 16), name="large")
    pooled = keras.layers.GlobalAveragePooling2D()(large)
    outputs = keras.layers.Dense(2)(keras.layers.Concatenate()([small, pooled]))
    model = tfc.quantize(keras.Model([small, large], outputs))
    for start in range(0, 40, 4):
        numbers = np.arange(start, start + 4, dtype="float32")
        large_batch = np.broadcast_to(numbers[:, None, None, None], (4, 64, 64, 16))
        model([numbers[:, None], large_batch], training=True)
    kept = [layer.kept() for layer in model.layers if isinstance(layer, InputSamples)]
    assert len(kept[0]) == len(kept[1]) == 7
    np.testing.assert_array_equal(*(array.reshape(7, -1)[:, 0] for array in kept))


def quantized(**options):
    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2)])
    model = tfc.quantize(net, **options)
    x = np.random.default_rng(0).normal(5.0, 2.0, (64, 4)).astype("float32")
    model(x, training=True)
    return model, x


def holds(path, x):
    """Returns whether any sample is in a file of weights."""
    import h5py

    matches = []

    def look(name, weight):
        if isinstance(weight, h5py.Dataset) and weight.shape[1:] == x.shape[1:]:
            matches.extend((weight[()][:, None] == x[None]).all(-1).any(-1))

    with h5py.File(path, "r") as file:
        file.visititems(look)
    return any(matches)


@pytest.mark.parametrize("count", [0, 5, 32])
def test_as_many_are_kept_as_was_asked_for(count, tmp_path):
    model, x = quantized(keep_samples=count)
    summary = tfc.summary(model)
    assert summary.samples == count and f"{count} training samples kept" in str(summary)
    model.save_weights(tmp_path / "m.weights.h5")
    assert holds(tmp_path / "m.weights.h5", x) == (count > 0)
    agreement = tfc.export_tflite(model, tmp_path / "m.tflite").agreement
    assert agreement.source == ("training" if count else "noise")
    assert ("noise" in str(agreement)) == (count == 0)
    model.save(tmp_path / "m.keras")
    assert tfc.summary(keras.saving.load_model(tmp_path / "m.keras")).samples == count


def test_samples_are_forgotten(tmp_path):
    model, x = quantized()
    before = model(x).numpy()
    model.save_weights(tmp_path / "a.weights.h5")
    tfc.forget_samples(model)
    model.save_weights(tmp_path / "b.weights.h5")
    assert holds(tmp_path / "a.weights.h5", x) and not holds(tmp_path / "b.weights.h5", x)
    np.testing.assert_array_equal(model(x), before)
    result = tfc.export_tflite(model, tmp_path / "m.tflite", representative_dataset=x)
    assert result.agreement.source == "representative_dataset" and result.trained


def test_what_cannot_be_kept_or_forgotten():
    with pytest.raises(ValueError, match="keep_samples must be an integer >= 0. Received: -1"):
        quantized(keep_samples=-1)
    with pytest.raises(ValueError, match="keeps no samples"):
        tfc.forget_samples(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
