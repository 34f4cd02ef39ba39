"""What the tests of recurrent layers share."""

import keras
import numpy as np

import tfcompress as tfc
from tfcompress.export.agreement import measure
from tfcompress.graph.keras_internals import producing_operation
from tfcompress.post_training.pipeline import post_training

STEPS, FEATURES = 4, 5
MIN_MAX = tfc.QuantizationScheme(activation_range="min_max", correct_bias=False)


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
    agreement = measure(model, result.path, {producing_operation(model.inputs[0]).name: x})
    assert agreement.max_lsb < 0.01, agreement


def check_measured(model, samples, path):
    """Checks the file of a model with measured ranges, and returns that model."""
    measured = post_training(model, MIN_MAX, samples)
    result = tfc.export_tflite(model, path, scheme=MIN_MAX, representative_dataset=samples)
    assert result.float_tensors == []
    assert measure(measured, path, samples).max_lsb < 0.01
    return measured
