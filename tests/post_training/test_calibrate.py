import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tfcompress.post_training.calibrate import calibrate
from tfcompress.quantization.state import quantizers


@pytest.fixture(scope="module")
def data():
    """Normal values, and one outlier."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(512, 200)).astype("float32")
    x.ravel()[0] = 100
    return x


def range_of(method, data):
    model = tfc.quantize(keras.Sequential([keras.Input((200,), name="x"), L.Dense(2)]))
    calibrate(model, {"x": data}, method)
    assert all(quantizer.is_trained for quantizer in quantizers(model))
    return quantizers(model)[0].range()


def test_min_max_holds_everything(data):
    assert range_of("min_max", data) == pytest.approx((data.min(), 100))


def test_the_average_of_minima_and_maxima_of_batches(data):
    mean = np.mean([[b.min(), b.max()] for b in np.split(data, 16)], axis=0)
    assert range_of("moving_average", data) == pytest.approx(tuple(mean), rel=1e-5)


@pytest.mark.parametrize("method", ["percentile", "mse", "kl"])
def test_the_others_do_not_extend_the_range_for_one_value(method, data):
    low, high = range_of(method, data)
    assert high < 95 and -6 < low < -2

    def error(low, high):
        scale = (high - low) / 255
        rounded = np.clip(np.round((data - low) / scale), 0, 255) * scale + low
        return np.mean(np.minimum(np.abs(rounded - data), 10) ** 2)

    assert error(low, high) < error(*range_of("min_max", data))


def test_nothing_of_it_stays(data):
    model = tfc.quantize(keras.Sequential([keras.Input((200,), name="x"), L.Dense(2)]))
    calibrate(model, {"x": data}, "mse")
    assert all(quantizer.observer is None for quantizer in quantizers(model))
