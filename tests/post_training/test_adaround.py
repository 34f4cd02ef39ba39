import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tfcompress.graph.keras_internals import producing_operation
from tfcompress.post_training.pipeline import post_training

LAYERS = {
    "conv": lambda: L.Conv2D(8, 3, padding="same", strides=2),
    "valid": lambda: L.Conv2D(8, 3, dilation_rate=2),
    "depthwise": lambda: L.DepthwiseConv2D(3, padding="same", depth_multiplier=2),
    "dense": lambda: L.Dense(8),
}


def errors(make, **options):
    """Returns output errors of a layer with weights rounded: root mean square, mean by channel."""
    keras.utils.set_random_seed(0)
    layer = make()
    generator = np.random.default_rng(0)
    # Correlated inputs, so that errors of weights can compensate each other.
    x = generator.normal(size=(256, 12, 12, 2)) @ generator.normal(size=(2, 4)) + 1
    x = x.astype("float32")
    model = keras.Sequential([keras.Input((12, 12, 4)), layer])
    name = producing_operation(model.inputs[0]).name
    bits = 8 if isinstance(layer, L.DepthwiseConv2D) else 4
    options = {"correct_bias": False, "prefer": "bytes", **options}
    scheme = tfc.QuantizationScheme(bits, "mse", **options)
    quantized = post_training(model, scheme, {name: x})
    error = quantized.predict(x, verbose=0) - model.predict(x, verbose=0)
    error = error.reshape(-1, error.shape[-1])
    kernel = np.asarray(quantized.layers[-2].layer.kernel)
    return np.sqrt(np.mean(error**2)), np.abs(error.mean(0)).max(), kernel, quantized


@pytest.mark.parametrize("name", LAYERS)
def test_biases_are_corrected(name):
    plain, corrected = (errors(LAYERS[name], correct_bias=on) for on in (False, True))
    # The rest is the rounding of biases to the scale of the accumulator.
    assert corrected[1] < 0.15 * plain[1] and corrected[0] < plain[0]


@pytest.mark.parametrize("count", [90, 600])  # the last batch is smaller; not all are used
def test_biases_of_a_layer_called_every_time_step_are_corrected(count):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6, 5, 5, 4)), L.TimeDistributed(L.Conv2D(8, 3))])
    x = np.random.default_rng(0).normal(1, size=(count, 6, 5, 5, 4)).astype("float32")
    x *= np.linspace(0.2, 2, count, dtype="float32")[:, None, None, None, None]
    x += np.linspace(-1, 1, 6, dtype="float32")[:, None, None, None]
    name = producing_operation(model.inputs[0]).name
    looked_at = x

    def error(correct_bias):
        scheme = tfc.QuantizationScheme(4, correct_bias=correct_bias)
        quantized = post_training(model, scheme, {name: x})
        return quantized.predict(looked_at, verbose=0) - model.predict(looked_at, verbose=0)

    plain, corrected = (np.abs(error(on).mean((0, 1, 2, 3))) for on in (False, True))
    assert corrected.max() < 0.15 * plain.max()


@pytest.mark.parametrize("count", [20, 160, 300])
@pytest.mark.parametrize("rounding", ["nearest", "adaround"])
def test_samples_that_pass_twice_count_once(count, rounding):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), L.Dense(8)])
    x = np.random.default_rng(0).normal(size=(count, 6)).astype("float32")
    x += np.linspace(-1, 1, count, dtype="float32")[:, None]  # sorted, as by class or time
    name = producing_operation(model.inputs[0]).name
    scheme = tfc.QuantizationScheme(activation_range="percentile", rounding=rounding)
    quantized = post_training(model, scheme, {name: x})
    error = quantized.predict(x[:256], verbose=0) - model.predict(x[:256], verbose=0)
    assert np.abs(error.mean(0)).max() < 0.01


@pytest.mark.parametrize("name", ["conv", "valid", "dense"])
def test_adaround_beats_the_nearest(name):
    nearest, chosen = (errors(LAYERS[name], rounding=how) for how in ("nearest", "adaround"))
    assert chosen[0] < 0.9 * nearest[0]


def test_weights_are_quantized_and_zeros_stay():
    _, _, kernel, quantized = errors(lambda: L.Conv2D(8, 3), rounding="adaround")
    ((variable, (rounding,)),) = quantized.layers[-2].pipelines()
    np.testing.assert_allclose(np.asarray(rounding.call(variable.value)), kernel, atol=1e-6)
    for channel in np.moveaxis(kernel, -1, 0):
        quantized_values = channel / np.abs(channel).max() * 7
        assert len(np.unique(np.round(quantized_values, 3))) <= 15


def test_pruned_weights_stay_zero():
    keras.utils.set_random_seed(0)
    pruned = tfc.prune(keras.Sequential([keras.Input((16,)), L.Dense(8)]), 0.5)
    x = np.random.default_rng(0).normal(size=(64, 16)).astype("float32")
    pruned.compile("sgd", "mse")
    pruned.fit(x, x[:, :8], verbose=0)
    zeros = np.asarray(tfc.strip(pruned).layers[0].kernel) == 0
    name = producing_operation(pruned.inputs[0]).name
    quantized = post_training(
        pruned, tfc.QuantizationScheme(4, "mse", rounding="adaround"), {name: x}
    )
    kernel = np.asarray(quantized.layers[-2].layer.kernel)
    assert zeros.sum() == 64 and (kernel[zeros] == 0).all()
