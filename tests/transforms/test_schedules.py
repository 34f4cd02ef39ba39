import keras
import numpy as np
import pytest

import tfcompress as tfc


def closed_form(step, initial, final, begin, end, power):
    done = np.clip((step - begin) / (end - begin), 0, 1)
    return final + (initial - final) * (1 - done) ** power


@pytest.mark.parametrize("power", [1, 3])
def test_polynomial_decay_follows_its_closed_form(power):
    schedule = tfc.PolynomialDecay(0.1, 0.9, begin_step=10, end_step=60, power=power)
    for step in (0, 10, 11, 35, 59, 60, 100):
        wanted = closed_form(step, 0.1, 0.9, 10, 60, power)
        assert float(schedule.sparsity(step)) == pytest.approx(wanted, abs=1e-6)


def test_updates_come_every_frequency_steps_and_at_the_end():
    schedule = tfc.PolynomialDecay(0.0, 0.5, begin_step=5, end_step=28, frequency=10)
    turns = [step for step in range(60) if bool(schedule.updates_at(step))]
    assert turns == [5, 15, 25, 28]


def test_constant_sparsity_never_ends_by_default():
    schedule = tfc.ConstantSparsity(0.5, begin_step=2, frequency=3)
    turns = [step for step in range(12) if bool(schedule.updates_at(step))]
    assert turns == [2, 5, 8, 11]
    assert not bool(tfc.ConstantSparsity(0.5, 0, end_step=4, frequency=2).updates_at(6))


@pytest.mark.parametrize(
    "schedule",
    [
        tfc.ConstantSparsity(0.3, 1, 20, 7),
        tfc.PolynomialDecay(0.1, 0.6, 2, 30, power=2, frequency=4),
    ],
)
def test_config_round_trip(schedule):
    config = keras.saving.serialize_keras_object(schedule)
    assert repr(keras.saving.deserialize_keras_object(config)) == repr(schedule)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tfc.ConstantSparsity(1.0, 0), "target_sparsity=1.0"),
        (lambda: tfc.ConstantSparsity(-0.1, 0), "target_sparsity=-0.1"),
        (lambda: tfc.ConstantSparsity("half", 0), "target_sparsity='half'"),
        (lambda: tfc.ConstantSparsity(0.5, -1), "begin_step=-1"),
        (lambda: tfc.ConstantSparsity(0.5, 0, frequency=0), "frequency=0"),
        (lambda: tfc.PolynomialDecay(0, 0.5, 10, 10), "end_step=10"),
        (lambda: tfc.PolynomialDecay(0, 0.5, 10, -1), "end_step=-1"),
        (lambda: tfc.PolynomialDecay(0, 1.5, 0, 10), "final_sparsity=1.5"),
        (lambda: tfc.PolynomialDecay(0, 0.5, 0, 10, power=0), "power=0"),
        (lambda: tfc.PolynomialDecay(0, 0.5, 0.5, 10), "begin_step"),
    ],
)
def test_bad_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
