import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tests import nets
from tests.graph.test_expand import TOKENS, WIDTH, WORDS, token_ids
from tfcompress.graph.expand import Expanded
from tfcompress.graph.layers import plain
from tfcompress.graph.read import read_graph, walk_layers
from tfcompress.lowering.strip import without_transforms

CASES = {
    "of itself": ("", L.Attention, {}),
    "scaled, of a key": ("key", L.Attention, {"use_scale": True}),
    "additive": ("", L.AdditiveAttention, {}),
    "additive, not scaled": ("key", L.AdditiveAttention, {"use_scale": False}),
    "causal, dropout": ("causal", L.Attention, {"dropout": 0.2}),
    "padded": ("padded", L.Attention, {}),
    "padded, additive, of a key": ("padded key", L.AdditiveAttention, {}),
    "padded, causal, scaled": ("padded causal", L.Attention, {"use_scale": True}),
    "padded, behind an LSTM": ("padded recurrent", L.Attention, {}),
    "padded, twice": ("padded twice", L.Attention, {}),
    "masks given": ("padded given", L.Attention, {}),
}


def net(kind, layer_class, options):
    """Returns a reader of token ids with an attention layer, "look"."""
    keras.utils.set_random_seed(0)
    ids = keras.Input((TOKENS,), dtype="int32", name="ids")
    spread = keras.initializers.RandomNormal(stddev=1.0)
    padded = "padded" in kind and "given" not in kind
    x = L.Embedding(WORDS, WIDTH, embeddings_initializer=spread, mask_zero=padded)(ids)
    if "recurrent" in kind:
        x = L.LSTM(WIDTH, return_sequences=True)(x)
    look = layer_class(name="look", **options)
    called = {"use_causal_mask": True} if "causal" in kind else {}
    if "given" in kind:
        known = keras.ops.not_equal(ids, 0)
        called["mask"] = [known, known]
    if "key" in kind:
        x = look([L.Dense(WIDTH, "tanh")(x), x, L.Dense(WIDTH)(x)], **called)
    else:
        x = look([x, x], **called)
    if "twice" in kind:
        x = look([L.Dense(WIDTH)(x), x], **called)
    for weight in look.weights:
        weight.assign(0.4 * np.ones(weight.shape))
    return keras.Model(ids, L.Dense(3)(x[:, 0] + x[:, -1]), name="net")


@pytest.mark.parametrize("case", nets.some_slow(CASES, ["padded, behind an LSTM"]))
def test_it_trains_exports_and_comes_back(case, tmp_path):
    model, ids = net(*CASES[case]), token_ids(padded="padded" in case)
    wanted = np.asarray(model(ids))
    if "padded" in case:  # the padding must change the outputs
        assert np.std(model(np.where(ids == 0, 1, ids)) - wanted) > 0.05 * np.std(wanted)
    aware = tfc.quantize(model)
    assert isinstance(aware.get_layer("look"), Expanded)
    # Only embeddings and scores are quantized.
    assert np.std(aware(ids) - wanted) < 0.03 * np.std(wanted)
    aware.compile(keras.optimizers.Adam(1e-3), "mse", jit_compile=False)
    aware.fit(ids, wanted, epochs=2, verbose=0)
    aware.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded(ids), aware(ids))
    result = tfc.export_tflite(loaded, tmp_path / "m.tflite")
    assert result.float_tensors == []
    assert result.agreement.max_lsb <= 1.01, result.agreement
    measured = tfc.export_tflite(model, tmp_path / "p.tflite", representative_dataset=ids)
    assert measured.float_tensors == []
    assert measured.agreement.rmse < 0.06
    with pytest.warns(tfc.CompressionWarning, match="drops"):
        back = tfc.strip(loaded)
    assert [type(layer) for layer in back.layers] == [type(layer) for layer in model.layers]
    assert [w.path for w in back.weights] == [w.path for w in model.weights]
    assert back.get_layer("look").get_config() == model.get_layer("look").get_config()
    assert len(read_graph(back).calls) == len(read_graph(model).calls)
    np.testing.assert_allclose(back(ids), without_transforms(loaded)(ids), atol=1e-4)


def odd_net(kind):
    keras.utils.set_random_seed(0)
    x = y = keras.Input((None if "length" in kind else TOKENS, WIDTH))
    look = L.Attention(name="look", score_mode="concat" if "concat" in kind else "dot")
    if "scores" in kind:
        y, scores = look([x, x], return_attention_scores=True)
        return keras.Model(x, [L.Dense(3)(y), scores])
    if "some masked" in kind:
        known = keras.ops.any(x > 0.5, axis=-1)
        y = look([x, x], mask=[None, known])
    return keras.Model(x, L.Dense(3)(look([y, x])))


@pytest.mark.parametrize("kind", ["concat", "scores", "unknown length", "some masked calls"])
def test_others_stay_in_float(kind, tmp_path):
    model = odd_net(kind)
    x = np.random.default_rng(0).normal(size=(64, TOKENS, WIDTH)).astype("float32")
    aware = tfc.quantize(model)
    attention_layers = [plain(layer) for path, layer in walk_layers(aware) if path.endswith("look")]
    assert [isinstance(layer, L.Attention) for layer in attention_layers] == [True]
    if "length" not in kind:
        result = tfc.export_tflite(model, tmp_path / "m.tflite", representative_dataset=x)
        assert result.float_tensors != []
        assert result.agreement.rmse < 0.1


def test_of_half_precision(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = net(*CASES["padded, causal, scaled"])
    finally:
        keras.config.set_dtype_policy("float32")
    ids = token_ids()
    aware = tfc.quantize(model)
    aware.compile("adam", "mse", jit_compile=False)
    aware.fit(ids, np.asarray(model(ids)), epochs=2, verbose=0)
    result = tfc.export_tflite(aware, tmp_path / "m.tflite")
    assert result.float_tensors == []
    assert result.agreement.rmse < 0.05


def words(masked, ids):
    spread = keras.initializers.RandomNormal(stddev=1.0)
    return L.Embedding(WORDS, WIDTH, embeddings_initializer=spread, mask_zero=masked)(ids)


def shared_net(kind):
    """Returns a model whose calls of one layer differ in what is not seen by their shapes."""
    keras.utils.set_random_seed(0)
    ids = keras.Input((TOKENS,), dtype="int32")
    look = L.Attention(name="look")
    if kind == "key":
        x = words(False, ids)
        y = L.Dense(WIDTH, "tanh")(x)
        x = look([x, y]) + look([x, y, L.Dense(WIDTH)(x)])
    else:
        x, y, known = words(True, ids), words(False, ids), keras.ops.less(ids, 9)
        x = look([x, x]) + look([y, y], mask=[known, known])
    return keras.Model(ids, L.Dense(3)(x[:, 0] + x[:, -1]))


@pytest.mark.parametrize("kind", ["key", "mask"])
def test_strip_gives_back_calls_that_differ(kind):
    model, ids = shared_net(kind), token_ids()
    wanted = np.asarray(model(ids))
    aware = tfc.quantize(model)
    for made in (aware, tfc.strip(aware)):
        assert np.std(made(ids) - wanted) < 0.03 * np.std(wanted)


@pytest.mark.parametrize("masks", ["value", "query"])
def test_masks_that_are_given_stand_for_those_carried(masks, tmp_path):
    """Keras then takes none of the tensors, not even where one of the two is left out."""
    keras.utils.set_random_seed(0)
    ids = keras.Input((TOKENS,), dtype="int32", name="ids")
    x, known = words(True, ids), keras.ops.less(ids, 9)
    given = [None, known] if masks == "value" else [known, None]
    x = L.Attention(name="look")([x, x], mask=given)
    model, x = keras.Model(ids, L.Dense(3)(x[:, 0] + x[:, -1])), token_ids()
    wanted = np.asarray(model(x))
    aware = tfc.quantize(model)
    assert isinstance(aware.get_layer("look"), Expanded)
    for made in (aware, tfc.strip(aware)):
        assert np.std(made(x) - wanted) < 0.03 * np.std(wanted)
    result = tfc.export_tflite(model, tmp_path / "m.tflite", representative_dataset=x)
    assert result.float_tensors == [] and result.agreement.rmse < 0.06


@pytest.mark.parametrize("layer_class", [L.Attention, L.AdditiveAttention])
@pytest.mark.parametrize("use_scale", [False, True])
def test_of_16_bits(layer_class, use_scale, tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((TOKENS, WIDTH))
    y = layer_class(use_scale=use_scale, name="look")([inputs, inputs])
    model = keras.Model(inputs, L.Dense(3)(y[:, 0]))
    x = np.random.default_rng(0).normal(size=(64, TOKENS, WIDTH)).astype("float32")
    for scheme in ("int16x8", tfc.QuantizationScheme(overrides={"look": "int16x8"})):
        aware = tfc.quantize(model, scheme)
        aware(x, training=True)
        result = tfc.export_tflite(aware, tmp_path / "m.tflite", representative_dataset=x)
        assert result.agreement.rmse < 0.02, result.agreement


def test_what_the_layer_would_cast_stays_as_it_is():
    inputs = keras.Input((TOKENS, WIDTH))
    look = L.Attention(name="look", dtype="mixed_float16")
    model = keras.Model(inputs, L.Dense(3)(look([inputs, inputs])))
    aware = tfc.quantize(model)
    assert plain(aware.get_layer("look")).compute_dtype == "float16"
    assert not isinstance(aware.get_layer("look"), Expanded)
