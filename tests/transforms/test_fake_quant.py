import keras
import numpy as np
import pytest

from tfcompress.testing import check_transform
from tfcompress.transforms import FakeQuant, MagnitudeMask


def test_passes_the_shared_checks():
    check_transform(FakeQuant, others=[lambda: MagnitudeMask(0.5)])


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((5, 4), (-1,)), ((3, 3, 2, 4), (-1,)), ((3, 3, 4, 2), (-2, -1)), ((7, 3), ())],
)
def test_quantizes_with_the_scale_of_each_channel(shape, channels):
    weight = np.random.default_rng(0).normal(size=shape).astype("float32")
    transform = FakeQuant()
    transform.attach(shape, channels)
    rounded = np.asarray(transform.call(keras.ops.convert_to_tensor(weight)))
    others = tuple(set(range(len(shape))) - {c % len(shape) for c in channels})
    scale = np.abs(weight).max(axis=others, keepdims=True) / 127
    quantized = rounded / scale
    np.testing.assert_allclose(quantized, np.round(quantized), atol=1e-3)
    assert np.abs(np.round(quantized)).max() == 127
    assert np.all(np.abs(rounded - weight) <= scale / 2 * (1 + 1e-5))


def test_a_channel_of_zeros_stays_zero():
    transform = FakeQuant()
    transform.attach((3, 2), (-1,))
    rounded = np.asarray(transform.call(keras.ops.convert_to_tensor([[0.0, 1], [0, 2], [0, 3]])))
    assert np.isfinite(rounded).all() and not rounded[:, 0].any()


def test_the_gradient_passes_straight_through():
    layer = keras.layers.Dense(2, use_bias=False)
    layer.build((None, 3))
    x = np.eye(3, dtype="float32")
    from tfcompress.wrap.wrapper import CompressionWrapper

    model = keras.Sequential([keras.Input((3,)), CompressionWrapper(layer, [FakeQuant()])])
    model.compile(keras.optimizers.SGD(1.0), lambda y, p: keras.ops.sum(p, axis=-1))
    before = keras.ops.convert_to_numpy(layer.kernel).copy()
    model.train_on_batch(x, np.zeros((3, 2)))
    np.testing.assert_allclose(
        before - keras.ops.convert_to_numpy(layer.kernel), np.full((3, 2), 1 / 3), atol=1e-6
    )


def test_only_8_and_4_bits():
    with pytest.raises(ValueError, match="bits=5"):
        FakeQuant(5)
    with pytest.raises(ValueError, match="Did you mean 'mse'"):
        FakeQuant(4, "mes")
