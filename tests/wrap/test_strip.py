import keras
import numpy as np
import pytest

import tfcompress as tfc
from tests import nets
from tfcompress.wrap.strip import bake


def test_dropping_trained_ranges_warns_and_says_what_to_do():
    model = tfc.quantize(nets.tiny())
    x = nets.samples_for(model)
    model(x, training=True)
    with pytest.warns(tfc.CompressionWarning, match="export_tflite.* on the unstripped model"):
        tfc.strip(model)


def test_an_unfinished_schedule_warns_with_its_figures(tmp_path):
    model = tfc.prune(nets.tiny(), tfc.PolynomialDecay(0.0, 0.5, 0, 100))
    model(nets.samples_for(model), training=True)
    message = "layer 'first' is not finished.*reaches 50% at step 100, but only 1 steps"
    with pytest.warns(tfc.CompressionWarning, match=message):
        tfc.strip(model)
    with pytest.warns(tfc.CompressionWarning, match=message):
        tfc.export_tflite(model, tmp_path / "m.tflite")


def test_finished_models_strip_without_a_word():  # our warnings are errors in the tests
    model = tfc.prune(nets.tiny(), 0.5)
    model(nets.samples_for(model), training=True)
    kernel = keras.ops.convert_to_numpy(tfc.strip(model).get_layer("first").kernel)
    assert (kernel == 0).sum() == 24


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_bake_computes_what_the_model_does(policy):
    with_policy = keras.dtype_policies.DTypePolicy(policy)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, activation="relu", dtype=with_policy),
            keras.layers.Dense(3, dtype=with_policy),
        ]
    )
    model = tfc.quantize(tfc.prune(model, 0.5))
    x = nets.samples_for(model)
    model(x, training=True)
    baked = bake(model)
    assert all(layer.compute_dtype == "float32" for layer in baked.layers)
    tolerance = 1e-5 if policy == "float32" else 0.05
    np.testing.assert_allclose(
        np.asarray(baked(x)), np.asarray(model(x), "float32"), atol=tolerance
    )
