import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tests import nets
from tfcompress.graph.cost import macs
from tfcompress.graph.expand import (
    Expanded,
    attention_call,
    expand_attention,
    inputs_of,
    matching_variables,
)
from tfcompress.graph.layers import plain
from tfcompress.graph.read import read_graph, walk_layers
from tfcompress.lowering.strip import without_transforms

TOKENS, WORDS, WIDTH = 10, 40, 16


def attention_net(masked=False, causal=False, cross=False, **options):
    """Returns a classifier of token ids with one attention layer, "look"."""
    keras.utils.set_random_seed(1)
    options = {"num_heads": 4, "key_dim": 4, "bias_initializer": "normal", **options}
    ids = keras.Input((TOKENS,), dtype="int32", name="ids")
    spread = keras.initializers.RandomNormal(stddev=1.0)
    x = L.Embedding(WORDS, WIDTH, embeddings_initializer=spread, name="words")(ids)
    mask = keras.ops.expand_dims(keras.ops.not_equal(ids, 0), 1) if masked else None
    other = L.Dense(12, name="other")(x) if cross else x
    y = L.MultiHeadAttention(**options, name="look")(
        x, other, attention_mask=mask, use_causal_mask=causal
    )
    y = L.Add(name="sum")([x, y])[:, -1]  # the last token attends to all, also with a causal mask
    return keras.Model(ids, L.Dense(3, name="head")(y), name="net")


def token_ids(count=256, padded=True):
    generator = np.random.default_rng(0)
    ids = generator.integers(1, WORDS, (count, TOKENS)).astype("int32")
    lengths = generator.integers(3, TOKENS + 1, count)
    return np.where(np.arange(TOKENS) < lengths[:, None], ids, 0) if padded else ids


CASES = {
    "self": {},
    "no bias, dropout, own value width": {"use_bias": False, "dropout": 0.3, "value_dim": 5},
    "cross": {"cross": True},
    "padded": {"masked": True},
    "causal": {"causal": True},
    "padded, causal": {"masked": True, "causal": True},
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_out_computes_what_the_layer_does(case):
    model = attention_net(**CASES[case])
    call = next(c for c in read_graph(model).calls if c.path == "look")
    layer = call.operation
    arguments = attention_call(layer, call.args, call.kwargs)
    expanded = expand_attention(layer, arguments, inputs_of(arguments), lambda part: part)
    for old, new in matching_variables(layer, expanded.get_layer):
        new.assign(keras.ops.reshape(old, new.shape))
    ids = token_ids()
    tensors = {
        name: keras.Model(model.inputs, t)(ids) for name, t in arguments.items() if name in NAMES
    }
    masks = [tensors[name] for name in inputs_of(arguments)]
    expected = keras.Model(model.inputs, call.outputs[0])(ids)
    np.testing.assert_allclose(expanded(masks), expected, atol=1e-5)


NAMES = ("query", "key", "value", "attention_mask")


@pytest.mark.parametrize("case", CASES)
def test_strip_puts_the_layer_back(case, tmp_path):
    model = attention_net(**CASES[case])
    ids = token_ids()
    trained = tfc.quantize(model)
    trained.compile("sgd", "mse", jit_compile=False)
    trained.fit(ids, np.ones((len(ids), 3)), verbose=0)
    trained.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(again.predict(ids, verbose=0), trained.predict(ids, verbose=0))
    with pytest.warns(tfc.CompressionWarning):
        back = tfc.strip(again)
    assert [type(layer) for layer in back.layers] == [type(layer) for layer in model.layers]
    assert [w.path for w in back.weights] == [w.path for w in model.weights]
    assert back.get_layer("look").get_config() == model.get_layer("look").get_config()
    np.testing.assert_allclose(
        back.predict(ids, verbose=0), without_transforms(again).predict(ids, verbose=0), atol=1e-5
    )


@pytest.mark.parametrize("case", ["self", "cross", "padded", "causal"])
def test_the_file_is_all_integer_and_agrees(case, tmp_path):
    ids = token_ids(padded=case == "padded")
    model = tfc.quantize(attention_net(**CASES[case]))
    model.compile("adam", "mse", jit_compile=False)
    model.fit(ids, np.random.default_rng(1).normal(size=(len(ids), 3)), epochs=3, verbose=0)
    result = tfc.export_tflite(model, tmp_path / "m.tflite", io_dtype="int8")
    assert not result.float_tensors
    file = tfc.TFLiteModel(result.path)
    lsb = file.outputs[0].scale
    errors = np.abs(file.predict(ids) - model.predict(ids, verbose=0)) / lsb
    # Default kernels; the LSB of the softmax, 1/256, is several LSBs of this small output.
    assert (errors > 1.5).mean() < 0.04 and (errors > 2.5).mean() < 0.01


@pytest.mark.parametrize("case", CASES)
def test_it_costs_what_the_layer_costs(case):
    model = attention_net(**CASES[case])
    # Four projections and two products, in multiply-accumulates.
    width, other = WIDTH, 12 if case == "cross" else WIDTH
    value = CASES[case].get("value_dim", 4)
    expected = TOKENS * (16 * width + 16 * other + 4 * value * other + 4 * value * width)
    expected += 4 * TOKENS * TOKENS * (4 + value)
    rest = 3 * width + (TOKENS * width * 12 if case == "cross" else 0)
    assert macs(model) == macs(tfc.quantize(model)) == expected + rest


def test_a_pruned_layer_keeps_its_zeros():
    model = tfc.prune(attention_net(), 0.5)
    model(token_ids(), training=True)
    both = tfc.quantize(model)
    part = both.get_layer("look").get_layer("query")
    assert [type(t).__name__ for t in part.transforms] == ["MagnitudeMask", "FakeQuant"]
    masks = dict(zip(("query", "key", "value"), model.get_layer("look").pipelines(), strict=False))
    kernel, chain = masks["query"]
    wrapped = next(iter(part.pipelines()))
    np.testing.assert_array_equal(
        np.reshape(chain[0].mask, wrapped[1][0].mask.shape), wrapped[1][0].mask
    )
    zeros = np.asarray(model.get_layer("look").effective_value(kernel, chain)) == 0
    now = np.asarray(part.effective_value(*wrapped)).reshape(zeros.shape)
    assert zeros.mean() == 0.5 and (now[zeros] == 0).all()
    other_way = tfc.prune(tfc.quantize(attention_net()), 0.5, layers=["look/*"])
    part = other_way.get_layer("look").get_layer("value")
    assert [type(t).__name__ for t in part.transforms] == ["MagnitudeMask", "FakeQuant"]


def test_a_shared_layer_stays_shared():
    ids = keras.Input((TOKENS,), dtype="int32")
    x = L.Embedding(WORDS, WIDTH)(ids)
    look = L.MultiHeadAttention(2, 8, name="look")
    model = keras.Model(ids, look(look(x, x), x))
    quantized = tfc.quantize(model)
    assert sum(isinstance(layer, Expanded) for layer in quantized.layers) == 1
    np.testing.assert_allclose(
        without_transforms(quantized)(token_ids()), tfc.strip(quantized)(token_ids()), atol=1e-5
    )


@pytest.mark.parametrize("selected", [["head"], ["look", "head"]])
def test_selection(selected):
    model = tfc.quantize(attention_net(), layers=selected)
    assert isinstance(model.get_layer("look"), Expanded) == ("look" in selected)
    inside = [path for path, _ in walk_layers(model) if path.startswith("look/")]
    assert any("quantizer" in path for path in inside) == ("look" in selected)


def odd_attention(kind):
    keras.utils.set_random_seed(0)
    ids = keras.Input((None if kind == "length" else TOKENS,), dtype="int32")
    carried = "carried" in kind or kind == "mask into a nested model"
    x = L.Embedding(WORDS, WIDTH, mask_zero=carried)(ids)
    options = {"shape": {"output_shape": 5}, "constraint": {"kernel_constraint": "non_neg"}}
    look = L.MultiHeadAttention(2, 8, name="look", **options.get(kind, {}))
    if kind == "scores":
        return keras.Model(ids, look(x, x, return_attention_scores=True)[0])
    if kind == "mask into a nested model":
        inner = keras.Input((TOKENS, WIDTH))
        nested = keras.Model(inner, look(inner, inner), name="nested")
        return keras.Model(ids, L.GlobalAveragePooling1D()(nested(x)))
    if kind == "carried masks, two calls":
        return keras.Model(ids, look(look(x, x), x))
    if kind == "a carried mask, two calls":
        return keras.Model(ids, look(look(x, x), L.Embedding(WORDS, WIDTH)(ids)))
    if kind == "calls that differ":
        return keras.Model(ids, look(look(x, x, use_causal_mask=True), x))
    if kind == "query mask":  # which Keras ignores
        return keras.Model(ids, look(x, x, query_mask=keras.ops.not_equal(ids, 0)))
    if kind == "constant mask":
        return keras.Model(ids, look(x, x, attention_mask=np.tril(np.ones((TOKENS, TOKENS), bool))))
    return keras.Model(ids, look(x, x))


KINDS = (
    "scores; shape; constraint; length; carried masks, two calls; a carried mask, two calls; "
    "mask into a nested model; calls that differ; query mask; constant mask"
).split("; ")


@pytest.mark.parametrize("kind", KINDS)
def test_others_are_left_as_they_are(kind):
    model = odd_attention(kind)
    quantized = tfc.quantize(model)
    attention_layers = [
        plain(layer) for path, layer in walk_layers(quantized) if path.endswith("look")
    ]
    assert [isinstance(layer, L.MultiHeadAttention) for layer in attention_layers] == [True]
    ids = token_ids(32)
    stripped = tfc.strip(quantized)
    np.testing.assert_allclose(stripped(ids), model(ids), atol=1e-5)
    np.testing.assert_allclose(quantized(ids), model(ids), atol=0.02)  # weights are quantized


def padded_net(kind):
    """Returns an encoder that reads padded texts; the words carry a mask along."""
    keras.utils.set_random_seed(0)
    ids = keras.Input((TOKENS,), dtype="int32", name="ids")
    spread = keras.initializers.RandomNormal(stddev=1.0)
    x = L.Embedding(WORDS, WIDTH, embeddings_initializer=spread, mask_zero=True)(ids)
    if kind == "grouped":
        x = L.GroupQueryAttention(4, 4, 2, name="look")(x, x)
    elif kind == "key and value":
        other = L.Embedding(WORDS, WIDTH, embeddings_initializer=spread)(ids)
        x = L.MultiHeadAttention(2, 8, name="look")(other, other, x)
    elif kind == "residual":  # the second layer gets no mask: Keras removed it
        x = L.Add()([x, L.MultiHeadAttention(2, 8, name="look")(x, x)])
        x = L.Add()([x, L.MultiHeadAttention(2, 8, name="again")(x, x)])
    else:
        causal = kind == "causal"
        x = L.MultiHeadAttention(2, 8, name="look")(x, x, use_causal_mask=causal)
        x = L.MultiHeadAttention(2, 8, name="again")(L.Dense(WIDTH)(x), x)
    y = L.LSTM(6)(x) if kind == "recurrent" else x[:, 0] + x[:, -1]
    return keras.Model(ids, L.Dense(3)(y))


KINDS = ("", "grouped", "key and value", "residual", "causal", "recurrent")


@pytest.mark.parametrize("kind", nets.some_slow(KINDS, ["grouped", *KINDS[3:]]))
def test_masks_that_tensors_carry_along(kind, tmp_path):
    model, ids = padded_net(kind), token_ids()
    wanted = model(ids)
    unmasked = np.where(ids == 0, WORDS - 1, ids)
    assert np.std(model(unmasked) - wanted) > 0.05 * np.std(
        wanted
    )  # the padding changes some outputs
    quantized = tfc.quantize(model)
    assert isinstance(quantized.get_layer("look"), Expanded)
    # Only scores are quantized, with a scale of 1/256.
    assert np.std(without_transforms(quantized)(ids) - wanted) < 0.02 * np.std(wanted)
    stripped = tfc.strip(quantized)
    assert np.std(stripped(ids) - wanted) < 0.02 * np.std(wanted)  # weights are quantized
    assert len(read_graph(stripped).calls) == len(read_graph(model).calls)
    quantized.compile(keras.optimizers.Adam(1e-3), "mse", jit_compile=False)
    quantized.fit(ids, wanted, epochs=2, verbose=0)
    quantized.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded(ids), quantized(ids))
    result = tfc.export_tflite(loaded, tmp_path / "m.tflite")
    assert result.float_tensors == []
    assert result.agreement.max_lsb <= 2, result.agreement
    # Masked scores do not extend the range either.
    measured = tfc.export_tflite(model, tmp_path / "p.tflite", representative_dataset=ids)
    assert measured.float_tensors == []
    assert measured.agreement.rmse < 0.1


def test_a_frozen_layer_stays_frozen():
    model = attention_net()
    model.get_layer("look").trainable = False
    count = len(model.trainable_weights)
    quantized = tfc.quantize(model)
    assert len(quantized.trainable_weights) == count
    stripped = tfc.strip(quantized)
    kernel = np.array(stripped.get_layer("look").weights[0])
    stripped.compile("sgd", "mse", jit_compile=False)
    stripped.fit(token_ids(), np.ones((256, 3)), verbose=0)
    np.testing.assert_array_equal(stripped.get_layer("look").weights[0], kernel)


def test_masked_keys_weigh_nothing_however_many_they_are():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((256, 8))
    layer = L.MultiHeadAttention(2, 4, name="look")
    model = tfc.quantize(keras.Model(inputs, layer(inputs, inputs, use_causal_mask=True)))
    x = np.random.default_rng(0).normal(0, 0.1, (2, 256, 8)).astype("float32")
    seen = {}
    look = model.get_layer("look")
    softmax = look.get_layer("softmax")
    call = softmax.call
    softmax.call = lambda scores, **kwargs: seen.setdefault("maps", call(scores, **kwargs))
    model(x, training=True)
    future = np.triu(np.ones((256, 256), bool), 1)
    assert np.where(future, seen["maps"], 0).sum(-1).max() < 1e-3
