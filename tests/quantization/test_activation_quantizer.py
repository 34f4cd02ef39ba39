import keras
import numpy as np
import pytest

from tfcompress.integer.fake_quant import fake_quant
from tfcompress.integer.fixed_point import range_of_qparams
from tfcompress.quantization.activation_quantizer import ActivationQuantizer


def observe(batches, **options):
    layer = ActivationQuantizer(**options)
    for batch in batches:
        layer(np.asarray(batch, "float32"), training=True)
    return layer


def test_the_range_starts_as_a_plain_mean_and_becomes_a_moving_average():
    highs = np.random.default_rng(0).uniform(1, 5, 40)
    layer = observe([[[-h / 2, h]] for h in highs], momentum=0.9)
    wanted = 0.0
    for step, high in enumerate(highs):
        wanted += max(0.1, 1 / (step + 1)) * (high - wanted)
    assert layer.range() == pytest.approx((-wanted / 2, wanted), rel=1e-5)


def test_the_first_batch_alone_gives_the_range_of_that_batch():
    assert observe([[[-0.25, 0.5]]]).range() == pytest.approx((-0.25, 0.5))


@pytest.mark.parametrize(("batch", "wanted"), [([2.0, 3.0], (0, 3)), ([-3.0, -2.0], (-3, 0))])
def test_zero_is_always_inside(batch, wanted):
    assert observe([[batch]]).range() == pytest.approx(wanted, abs=2e-4)


def test_untrained_it_changes_nothing_and_trained_it_rounds():
    layer = ActivationQuantizer()
    x = np.linspace(-1, 1, 101, dtype="float32")[None]
    np.testing.assert_array_equal(layer(x), x)
    assert not layer.is_trained
    layer(x, training=True)
    assert layer.is_trained
    rounded = keras.ops.convert_to_numpy(layer(x))
    quantized = rounded / (2 / 255)
    np.testing.assert_allclose(quantized, np.round(quantized), atol=1e-3)
    assert np.abs(rounded - x).max() <= 1.001 / 255
    assert len(np.unique(np.round(keras.ops.convert_to_numpy(fake_quant(x, -1.0, 1.0)) * 255))) > 99


def test_an_overflow_does_not_spoil_the_range():
    layer = observe([[[0.0, 1.0]], [[0.0, np.inf]], [[np.nan, 1.0]]])
    assert layer.range() == pytest.approx((0, 1))
    assert int(layer.step) == 1


def test_one_update_a_pass_however_often_it_is_called():
    quantizer = ActivationQuantizer()
    inputs = keras.Input((2,))
    model = keras.Model(inputs, quantizer(quantizer(inputs), averaged=True))
    model(np.ones((1, 2)), training=True)
    assert int(quantizer.step) == 1


def test_averages_are_rounded_as_the_runtime_does():
    """Ties go away from the integer 0, which is the middle of the range."""
    layer = observe([[[0.0, 255.0]]])
    x = np.array([[0.5, 1.5, 126.5, 128.5, 200.5, 3.25, 3.75]], "float32")
    got = keras.ops.convert_to_numpy(layer(x, averaged=True))
    np.testing.assert_allclose(got, [[0, 1, 126, 129, 201, 3, 4]], atol=1e-3)


def test_sixteen_bits_are_symmetric_around_zero():
    layer = observe([[[-1.0, 3.0]]], bits=16)
    assert layer.range() == (-3.0, 3.0)
    x = np.array([[-2.0, 0.0, 1e-4, 2.5]], "float32")
    scale = 3 / 32767
    np.testing.assert_allclose(layer(x), np.round(x / scale) * scale, atol=1e-6)
    # Ties of averages go away from zero.
    halves = np.array([[-1.5, -0.5, 0.5, 2.5, 2.25]], "float32") * scale
    got = keras.ops.convert_to_numpy(layer(halves, averaged=True)) / scale
    np.testing.assert_allclose(got, [[-2, -1, 1, 3, 2]], atol=1e-2)


def test_the_gradient_passes_straight_through():
    import tensorflow as tf

    x = tf.constant([[-3.0, -0.3, 0.7, 5.0]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = fake_quant(x, -1.0, 1.0) * tf.constant([[1.0, 2.0, 3.0, 4.0]])
    np.testing.assert_array_equal(tape.gradient(y, x), [[1, 2, 3, 4]])


def test_the_converter_computes_the_same_qparams_from_the_range():
    generator = np.random.default_rng(0)
    quantizer = ActivationQuantizer()
    quantizer.build(())
    for _ in range(200):
        low, high = generator.normal(size=2) * 10 ** generator.uniform(-6, 4, 2)
        quantizer.set_range(-abs(low) * (generator.random() > 0.3), abs(high))
        qparams = (float(keras.ops.convert_to_numpy(value)) for value in quantizer.qparams())
        assert quantizer.min_max() == range_of_qparams(*qparams)
