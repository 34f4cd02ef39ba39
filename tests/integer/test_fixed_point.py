"""The fixed-point arithmetic of the runtime, against its definitions."""

import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from tfcompress.integer.fixed_point import (
    divide,
    inverse_root,
    power_below,
    range_of_qparams,
    round_averages,
)


def test_averages_break_ties_as_the_runtime():
    quantized = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 0.25, -0.75], "float32")
    np.testing.assert_array_equal(
        round_averages(quantized, 0.0), [-2.0, -1.0, 0.0, 1.0, 2.0, 0.0, -1.0]
    )
    away = round_averages(quantized, np.float32(0))
    np.testing.assert_array_equal(away, [-3.0, -2.0, -1.0, 1.0, 2.0, 0.0, -1.0])
    middle = np.float32(-100)
    np.testing.assert_array_equal(
        round_averages(quantized + middle, middle), np.asarray(away) + middle
    )


def test_divisions_are_rounded_once_in_compiled_code():
    import tensorflow as tf

    x = np.random.default_rng(0).uniform(0.5, 2, 100_000).astype("float32")
    compiled = tf.function(lambda x: divide(x, 127.0), jit_compile=True)
    np.testing.assert_array_equal(compiled(tf.constant(x)), x / np.float32(127))


def test_ranges_give_their_scale_again():
    generator = np.random.default_rng(0)
    exact = []
    for _ in range(2000):
        low, high = -generator.uniform(0, 3) * generator.integers(0, 2), generator.uniform(0.1, 5)
        scale = np.float32(np.float32(high - low) / np.float32(255))
        qmin = np.rint(np.float32(low) / scale)
        a, b = range_of_qparams(float(scale), float(qmin))
        exact.append(np.float32((b - a) / 255) == scale and round(a / float(scale)) == qmin)
    assert np.mean(exact) > 0.99


def test_powers_of_two():
    for value in (0.001, 0.5, 0.75, 1.0, 3.99, 1000.0):
        wanted = 2.0 ** np.floor(np.log2(value))
        assert float(power_below(ops.convert_to_tensor(value, "float32"))) == wanted


@pytest.mark.parametrize("jit", [False, True])
def test_inverse_roots_are_rounded_in_graphs_as_in_numpy(jit):
    """In graphs, TensorFlow approximates `rsqrt`, and makes one of `1 / sqrt`."""
    x = np.float32(3.7e-5) * np.arange(1, 4096, dtype="float32")
    found = tf.function(inverse_root, jit_compile=jit)(tf.constant(x)).numpy()
    np.testing.assert_array_equal(found, np.float32(1) / np.sqrt(x))
