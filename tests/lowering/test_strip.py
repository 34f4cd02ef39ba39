import keras
import numpy as np
import pytest

import tfcompress as tfc
from tests import nets
from tfcompress.lowering.lower import lower
from tfcompress.lowering.normalization import SummingLayerNormalization


def test_dropping_trained_ranges_warns_and_says_what_to_do():
    model = tfc.quantize(nets.tiny())
    x = nets.samples_for(model, 8)
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
def test_lower_computes_what_the_model_does(policy):
    with_policy = keras.dtype_policies.DTypePolicy(policy)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, activation="relu", dtype=with_policy),
            keras.layers.Dense(3, dtype=with_policy),
        ]
    )
    model = tfc.quantize(tfc.prune(model, 0.5))
    x = nets.samples_for(model, 8)
    model(x, training=True)
    lowered = lower(model)
    assert all(layer.compute_dtype == "float32" for layer in lowered.layers)
    tolerance = 1e-5 if policy == "float32" else 0.05
    np.testing.assert_allclose(
        np.asarray(lowered(x)), np.asarray(model(x), "float32"), atol=tolerance
    )


class Shifted(keras.layers.Layer):
    """A layer as people write them: no get_config of its own."""

    def __init__(self, by=1.0, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.by = by

    def call(self, x):
        return x + self.by


def test_lowering_twice_needs_no_get_config():
    model = keras.Sequential([keras.Input((6,)), Shifted(2.0, name="mine")])
    twice = lower(lower(model))
    assert twice.get_layer("mine").by == 2.0


@pytest.mark.filterwarnings("error:.*destroy the mask")
def test_masks_survive_lowering():
    inputs = keras.Input((5,), dtype="int32")
    x = keras.layers.Embedding(7, 4, mask_zero=True)(inputs)
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.Dense(3)(Shifted(name="mine")(x)))
    model = tfc.quantize(keras.Model(inputs, x))
    ids = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 6, 1]])
    model(ids, training=True)
    expected = model.predict(ids, verbose=0)
    np.testing.assert_allclose(lower(model).predict(ids, verbose=0), expected, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{}, {"axis": [1, 2]}, {"axis": 1}, {"center": False, "epsilon": 1e-12}, {"scale": False}],
    ids=str,
)
def test_layer_normalization_for_conversion_is_that_of_keras(options):
    generator = np.random.default_rng(0)
    layer = keras.layers.LayerNormalization(**options)
    x = generator.normal(2.0, 3.0, (4, 5, 6)).astype("float32")
    layer.build(x.shape)
    for weight in layer.weights:
        weight.assign(generator.normal(size=weight.shape))
    summing = SummingLayerNormalization.from_config(layer.get_config())
    summing.build(x.shape)
    summing.set_weights(layer.get_weights())
    np.testing.assert_allclose(summing(x), layer(x), atol=1e-5)


def test_root_mean_square_scaling_is_left_to_keras():
    inputs = keras.Input((8, 12))
    model = tfc.quantize(
        keras.Model(inputs, keras.layers.RMSNormalization(name="n")(keras.layers.Dense(12)(inputs)))
    )
    x = np.random.default_rng(0).normal(2, 1, (9, 8, 12)).astype("float32")
    model(x, training=True)
    # The lowered model rounds floats, the model integers: ties sometimes round differently.
    scale = float(model.layers[-1].qparams()[0])
    difference = np.abs(lower(model)(x) - model(x))
    assert difference.max() < 1.01 * scale and np.mean(difference > 1e-5) < 0.01


def test_normalized_layers_agree_with_the_file(tmp_path):
    inputs = keras.Input((8, 12))
    x = keras.layers.LayerNormalization(name="norm")(keras.layers.Dense(12)(inputs))
    model = tfc.quantize(keras.Model(inputs, x))
    x = np.random.default_rng(0).normal(size=(300, 8, 12)).astype("float32")
    model.compile("sgd", "mse")
    model.fit(x, x, verbose=0)
    result = tfc.export_tflite(model, tmp_path / "m.tflite", io_dtype="int8")
    assert result.float_tensors == []
    file = tfc.TFLiteModel(result.path)
    lsb = np.abs(file.predict(x) - model.predict(x, verbose=0)) / file.outputs[0].scale
    assert (lsb > 0.5).mean() < 0.05 and lsb.max() < 3.1  # default kernels


@pytest.mark.filterwarnings("ignore::tfcompress.CompressionWarning")
def test_stripping_twice_gives_the_same():
    inputs = keras.Input((4, 5))
    x = keras.layers.TimeDistributed(keras.layers.Dense(6))(inputs)
    model = tfc.quantize(keras.Model(inputs, keras.layers.Flatten()(x)))
    x = np.random.default_rng(0).normal(size=(8, 4, 5)).astype("float32")
    first, second = tfc.strip(model), tfc.strip(model)
    np.testing.assert_array_equal(first(x), second(x))


def test_a_head_in_single_precision_behind_half():
    inputs = keras.Input((5,), dtype="float16")
    x = keras.layers.Dense(4, dtype="mixed_float16")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3, dtype="float32")(x))
    samples = np.random.default_rng(0).normal(size=(32, 5)).astype("float16")
    aware = tfc.quantize(model)
    aware(samples, training=True)
    wanted = model(samples)
    assert np.std(aware(samples) - wanted) < 0.05 * np.std(wanted)


def test_augmentation_behind_a_rescaling(tmp_path):
    """The rescaling is still to be folded into something when the augmentation is taken out."""
    layers = [keras.layers.Rescaling(1 / 255, name="scale"), keras.layers.RandomFlip()]
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers, keras.layers.Conv2D(4, 3)])
    aware = tfc.quantize(model, tfc.QuantizationScheme(overrides={"scale": "float32"}))
    x = np.random.default_rng(0).uniform(0, 255, (16, 8, 8, 3)).astype("float32")
    aware(x, training=True)
    result = tfc.export_tflite(aware, tmp_path / "m.tflite", representative_dataset=x)
    assert result.agreement.rmse < 0.02
