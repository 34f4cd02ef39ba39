import keras
import numpy as np

import tfcompress as tfc
from tfcompress.wrap.samples import InputSamples, samples_to_keep


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
    """A small and a large input keep as many samples, and those of the same steps."""
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
