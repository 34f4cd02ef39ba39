import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc


def net():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            L.Conv2D(16, 3, name="a"),
            L.BatchNormalization(name="n"),
            L.ReLU(),
            L.Conv2DTranspose(6, 3, name="b"),
            L.GlobalAveragePooling2D(),
            L.Dense(2, name="head"),
        ]
    )


def test_the_penalty_is_the_sum_of_norms():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype("float32")
    wanted = 0.1 * np.sqrt(36) * np.sqrt((kernel**2).sum((0, 1, 2))).sum()
    assert float(tfc.GroupLasso(0.1)(kernel)) == pytest.approx(wanted, rel=1e-5)
    other = 0.1 * np.sqrt(45) * np.sqrt((kernel**2).sum((0, 1, 3))).sum()
    assert float(tfc.GroupLasso(0.1, axis=-2)(kernel)) == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize("on", ["kernels", "gammas"])
def test_channels_go_to_zero_as_a_whole(on):
    """Only two of the channels are needed."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(512, 6)).astype("float32")
    y = np.maximum(x @ generator.normal(size=(6, 2)), 0).astype("float32")
    keras.utils.set_random_seed(0)
    stack = [L.Dense(12, name="a"), L.BatchNormalization(name="n"), L.ReLU(), L.Dense(2, name="b")]
    model = keras.Sequential([keras.Input((6,)), *stack])
    shares = {}
    for strength in (0.0, 3e-2):
        trained = tfc.regularize_channels(model, strength, on=on, layers=["a", "n"][on == "gammas"])
        trained.compile(keras.optimizers.Adam(1e-2), "mse")
        trained.fit(x, y, epochs=60, batch_size=64, verbose=0)
        if on == "kernels":
            norms = np.linalg.norm(trained.get_layer("a").kernel, axis=0)
        else:
            norms = np.abs(trained.get_layer("n").gamma)
        shares[strength] = np.sort(norms)[:4].sum() / norms.sum()
    before, after = shares.values()
    assert after < before / 3


def test_which_layers_and_off_again():
    model = net()
    regular = tfc.regularize_channels(model, 1e-3)
    assert len(regular.losses) == 3 and not model.losses
    assert regular.get_layer("b").kernel_regularizer.axis == -2
    assert len(tfc.regularize_channels(model, 1e-3, layers="a").losses) == 1
    assert len(tfc.regularize_channels(model, 1e-3, on="gammas").losses) == 1
    off = tfc.regularize_channels(regular, 0)
    assert not off.losses
    for old, new in zip(model.get_weights(), off.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    again = keras.Sequential.from_config(regular.get_config())
    assert again.get_layer("a").kernel_regularizer.strength == pytest.approx(1e-3)


def test_bad_arguments():
    with pytest.raises(ValueError, match="strength"):
        tfc.regularize_channels(net(), -1)
    with pytest.raises(ValueError, match="Did you mean 'gammas'"):
        tfc.regularize_channels(net(), on="gamma")
    plain = keras.Sequential([keras.Input((3,)), L.Dense(2)])
    with pytest.raises(ValueError, match="no layer with gammas"):
        tfc.regularize_channels(plain, on="gammas")
