import json

import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tfcompress.graph.keras_internals import producing_operation
from tfcompress.post_training.noise import quantization_noise

FRAGILE = ("c2", "c5")


@pytest.fixture(scope="module")
def fragile(fashion):
    """A trained net in which rounding spoils two layers: a dead input has huge weights there."""
    keras.utils.set_random_seed(0)
    stack = [L.Conv2D(8, 3, strides=2, activation="relu", name="c0")]
    stack += [L.Conv2D(8, 3, padding="same", activation="relu", name=f"c{i}") for i in range(1, 7)]
    model = keras.Sequential(
        [keras.Input((28, 28, 1)), *stack, L.GlobalAveragePooling2D(), L.Dense(10, name="head")]
    )
    for name in FRAGILE:
        before = model.get_layer(f"c{int(name[1]) - 1}")
        kernel, bias = before.get_weights()
        kernel[..., 0], bias[0] = 0, -1
        before.set_weights([kernel, bias])
        before.trainable = False
        layer = model.get_layer(name)
        kernel, bias = layer.get_weights()
        kernel[:, :, 0, :] = 120
        layer.set_weights([kernel, bias])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    model.fit(fashion[0], fashion[1], epochs=3, batch_size=64, verbose=0)
    return model


def test_exactly_the_fragile_layers_stay_float(fragile, fashion, tmp_path, capsys):
    x, y = fashion[2][:500], fashion[3][:500]
    path = tmp_path / "trials.json"
    scheme = tfc.assign_precision(fragile, x, y, max_drop=0.005, resume=path)
    assert dict(scheme.overrides) == dict.fromkeys(FRAGILE, "float32")
    chosen = next(trial for trial in scheme.trials if trial.layers["float32"] == 2)
    assert scheme.name == "int8" and chosen.drop <= 0.005 < scheme.trials[0].drop
    assert len(scheme.trials) <= 5  # of 2 ** 8
    assert "2 float32" in str(scheme) and "-> " in capsys.readouterr().out
    again = tfc.assign_precision(fragile, x, y, max_drop=0.005, resume=path, verbose=False)
    assert again.overrides == scheme.overrides and all(trial.reused for trial in again.trials)
    with pytest.raises(ValueError, match="another model or other samples"):
        tfc.assign_precision(fragile, x[:100], y[:100], max_drop=0.005, resume=path)
    result = tfc.export_tflite(
        fragile, tmp_path / "m.tflite", scheme=scheme, representative_dataset=x
    )
    assert result.agreement.rmse < 0.1 and result.ops["NEG"] == 2
    accuracy = tfc.TFLiteModel(result.path).evaluate(x, y)
    assert abs(accuracy - chosen.score) <= 0.01
    assert len(json.loads(path.read_text())["scores"]) == len(scheme.trials)


def test_noise_is_where_rounding_hurts(fragile, fashion):
    name = producing_operation(fragile.inputs[0]).name
    options = tfc.QuantizationScheme(correct_bias=False)
    noise = quantization_noise(fragile, options, {name: fashion[2][:64]})
    ranked = sorted(noise, key=noise.get, reverse=True)
    assert set(ranked[:2]) == set(FRAGILE)


@pytest.mark.slow
def test_bytes_are_met_by_four_bits_where_they_hurt_least(trained, fashion):
    model = trained("residual")[0]
    x, y = fashion[2][:300], fashion[3][:300]
    whole = tfc.assign_precision(model, x, y, max_drop=1.0, verbose=False).trials[0].weight_bytes
    scheme = tfc.assign_precision(model, x, y, target_bytes=int(0.8 * whole), verbose=False)
    assert "w4a8" in {scheme.name, *scheme.overrides.values()}
    assert scheme.trials[-1].weight_bytes <= 0.8 * whole
    with pytest.raises(ValueError, match=r"target_bytes=10 cannot be met.*weights take \d+"):
        tfc.assign_precision(model, x, y, target_bytes=10)


BAD = {
    "no budget": ({}, "Give one budget"),
    "two budgets": ({"max_drop": 0.1, "target_bytes": 9}, "Give one budget"),
    "unknown candidate": ({"max_drop": 0.1, "candidates": ["int8", "float23"]}, "'float32'"),
    "wrong order": ({"max_drop": 0.1, "candidates": ["float32", "int8"]}, "from the cheapest"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_input(options, message):
    model = keras.Sequential([keras.Input((4,)), L.Dense(2)])
    with pytest.raises(ValueError, match=message):
        tfc.assign_precision(model, np.zeros((8, 4)), **options)


def test_quantized_models_are_refused():
    model = tfc.quantize(keras.Sequential([keras.Input((4,)), L.Dense(2)]))
    with pytest.raises(ValueError, match="quantized already"):
        tfc.sensitivity(model, np.zeros((8, 4)))
