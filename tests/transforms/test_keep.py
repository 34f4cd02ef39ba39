import keras
import numpy as np
import pytest

import tfcompress as tfc
from tfcompress.testing import check_transform
from tfcompress.transforms import FakeQuant, KeepZeros


def test_the_contract():
    check_transform(KeepZeros, others=[FakeQuant])


def pruned(share=0.5):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(16, activation="relu", name="one")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(4, name="two")(x))
    return tfc.strip(fitted(tfc.prune(model, share)))


def zeros(model):
    return [np.equal(layer.kernel, 0) for layer in model.layers if hasattr(layer, "kernel")]


def fitted(model):
    generator = np.random.default_rng(0)
    model.compile("adam", "mse")
    model.fit(generator.normal(size=(64, 6)), generator.normal(size=(64, 4)), epochs=3, verbose=0)
    return model


@pytest.mark.parametrize("quantize", [False, True])
def test_the_zeros_there_are_stay(quantize, tmp_path, quiet):
    model = pruned()
    before = zeros(model)
    kept = tfc.prune(model, "keep")
    kept = fitted(tfc.quantize(kept) if quantize else kept)
    kept.save(tmp_path / "kept.keras")
    kept = fitted(keras.models.load_model(tmp_path / "kept.keras"))
    after = tfc.strip(kept)
    for old, new in zip(before, zeros(after), strict=True):
        assert new[old].all()
        assert old.mean() == 0.5
    assert not np.array_equal(model.layers[1].kernel, after.layers[1].kernel)


def test_one_layer_and_others_by_schedule():
    kept = tfc.prune(pruned(), {"one": "keep", "two": 0.75})
    assert [row.target for row in tfc.summary(kept).layers if row.target] == [0.5, 0.75]
    layer = tfc.prune(pruned().layers[1], "keep")
    assert float(np.mean(layer.weight_transforms[0].mask)) == 0.5


def test_a_pruned_model_that_would_lose_its_zeros_is_warned_of():
    with pytest.warns(tfc.CompressionWarning, match=r"50% .*'(one|two)'.*prune\(model, 'keep'\)"):
        tfc.quantize(pruned())
    tfc.quantize(tfc.prune(pruned(), "keep"))
    tfc.quantize(pruned(0.0))
    blank = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, kernel_initializer="zeros")])
    tfc.quantize(blank)


@pytest.mark.parametrize("options", [{"pattern": "2:4"}, {"ranking": "global"}])
def test_zeros_that_are_there_have_no_pattern(options):
    with pytest.raises(ValueError, match="leave pattern and ranking out"):
        tfc.prune(pruned(), "keep", **options)
    with pytest.raises(ValueError, match="sparsity must be"):
        tfc.prune(pruned(), "hold")
