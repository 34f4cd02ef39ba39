import keras
import numpy as np
import pytest

import tfcompress as tfc
from tfcompress.testing import check_transform
from tfcompress.transforms import FakeQuant, MagnitudeMask


def test_passes_the_shared_checks():
    check_transform(lambda: MagnitudeMask(0.5), others=[FakeQuant])


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.77, 0.99])
@pytest.mark.parametrize("kind", ["normal", "ties", "zeros"])
def test_prunes_exactly_as_many_and_the_smallest(sparsity, kind):
    generator = np.random.default_rng(0)
    weight = {
        "normal": generator.normal(size=(7, 11)),
        "ties": np.ones((7, 11)),
        "zeros": np.zeros((7, 11)),
    }[kind].astype("float32")
    mask = MagnitudeMask(sparsity)
    mask.attach(weight.shape, ())
    mask.update(keras.ops.convert_to_tensor(weight))
    kept = keras.ops.convert_to_numpy(mask.mask).astype(bool)
    assert (~kept).sum() == np.floor(sparsity * weight.size + 0.5)
    if kept.any() and (~kept).any():
        assert np.abs(weight[kept]).min() >= np.abs(weight[~kept]).max()


def test_sparsity_follows_the_schedule_at_every_step():
    schedule = tfc.PolynomialDecay(0.2, 0.8, begin_step=3, end_step=21, frequency=4)
    mask = MagnitudeMask(schedule)
    mask.attach((50, 10), ())
    weight = keras.random.normal((50, 10), seed=1)
    in_force = 0.0
    for step in range(30):
        if 3 <= step <= 21 and ((step - 3) % 4 == 0 or step == 21):
            done = (step - 3) / 18
            in_force = 0.8 + (0.2 - 0.8) * (1 - done) ** 3
        mask.update(weight)
        assert abs(np.sum(keras.ops.convert_to_numpy(mask.mask) == 0) - in_force * 500) <= 1
    assert np.sum(keras.ops.convert_to_numpy(mask.mask) == 0) == 400


def test_a_pruned_weight_comes_back_when_the_others_shrink():
    mask = MagnitudeMask(tfc.ConstantSparsity(0.5, 0, frequency=1))
    mask.attach((1, 2), ())
    mask.update(keras.ops.convert_to_tensor([[1.0, 2.0]]))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(mask.mask), [[0, 1]])
    mask.update(keras.ops.convert_to_tensor([[1.0, 0.5]]))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(mask.mask), [[1, 0]])


def test_knows_whether_the_schedule_has_ended():
    mask = MagnitudeMask(tfc.PolynomialDecay(0.0, 0.5, 0, 2, frequency=1))
    mask.attach((2, 2), ())
    weight = keras.ops.ones((2, 2))
    for _ in range(2):
        mask.update(weight)
        assert "only" in mask.unfinished()
    mask.update(weight)
    assert mask.unfinished() is None
