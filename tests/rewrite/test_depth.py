import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tfcompress.graph.keras_internals import attention_parts
from tfcompress.rewrite.depth import residual_blocks

X = np.random.default_rng(0).normal(size=(32, 6, 8)).astype("float32")


def encoder(count=3, nested=False):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 8))
    x = inputs
    for n in range(count):
        y = L.LayerNormalization(name=f"norm{n}a")(x)
        y = L.MultiHeadAttention(2, 4, name=f"look{n}")(y, y)
        x = L.Add(name=f"attend{n}")([x, y])
        y = L.Dense(16, activation="gelu", name=f"wide{n}")(
            L.LayerNormalization(name=f"norm{n}b")(x)
        )
        x = L.Add(name=f"feed{n}")([L.Dense(8, name=f"narrow{n}")(y), x])
    head = L.Dense(3, name="head")(L.GlobalAveragePooling1D()(x))
    return keras.Model(inputs, head)


def test_blocks_of_an_encoder():
    layers_by_block = {block.name: block.layers for block in residual_blocks(encoder(1))}
    assert layers_by_block == {
        "attend0": ("look0", "norm0a"),
        "feed0": ("narrow0", "norm0b", "wide0"),
    }


def test_blocks_of_resnet():
    """Twelve of sixteen; those that change the size stay."""
    model = keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3), classes=3)
    assert len(residual_blocks(model)) == 12
    small = tfc.drop_layers(model, ["conv3_block3_*", "conv4_block?_add"])
    # conv4_block1 changes the size and is no candidate.
    assert len(residual_blocks(small)) == 12 - 1 - 5
    assert small.count_params() < 0.8 * model.count_params()


@pytest.mark.parametrize("named", ["feed1", "wide1", ["narrow1", "norm1b"]])
def test_a_block_that_adds_nothing_does_not_matter(named):
    model = encoder()
    for weight in model.get_layer("narrow1").weights:
        weight.assign(0 * weight)
    small = tfc.drop_layers(model, named)
    names = [layer.name for layer in small.layers]
    assert "wide1" not in names and "feed1" not in names and "look1" in names
    np.testing.assert_allclose(small.predict(X, verbose=0), model.predict(X, verbose=0), atol=1e-5)


def test_the_least_influential_go_first():
    model = encoder()
    for name, size in (("narrow0", 0.05), ("narrow2", 0.01)):
        model.get_layer(name).kernel.assign(size * model.get_layer(name).kernel)
    last = attention_parts(model.get_layer("look1"))["attention_output"]
    last.kernel.assign(0.02 * last.kernel)
    names = {layer.name for layer in tfc.drop_layers(model, 2, data=X).layers}
    assert {"feed0", "attend0", "attend2", "feed1"} <= names
    assert not {"feed2", "attend1"} & names
    named = tfc.drop_layers(model, 1, score=lambda name: name != "attend0")
    assert "attend0" not in {layer.name for layer in named.layers}


def test_nothing_else_may_depend_on_the_branch():
    inputs = keras.Input((8,))
    other = keras.Input((8,))
    outside = L.Add(name="outside")([inputs, L.Dense(8)(L.Add()([inputs, other]))])
    assert [b.name for b in residual_blocks(keras.Model([inputs, other], outside))] == []


def test_shared_layers_compute_with_the_mean():
    model = encoder()
    groups = [[f"{part}{n}" for n in range(3)] for part in ("look", "wide", "narrow")]
    small = tfc.share_layers(model, groups)
    saved = 2 * sum(model.get_layer(group[0]).count_params() for group in groups)
    assert small.count_params() == model.count_params() - saved
    kernels = [np.array(model.get_layer(f"wide{n}").kernel) for n in range(3)]
    np.testing.assert_allclose(small.get_layer("wide0").kernel, np.mean(kernels, 0), atol=1e-6)
    for n in range(1, 3):
        for part in ("look", "wide", "narrow"):
            model.get_layer(f"{part}{n}").set_weights(model.get_layer(f"{part}0").get_weights())
    np.testing.assert_allclose(
        tfc.share_layers(model, groups).predict(X, verbose=0),
        model.predict(X, verbose=0),
        atol=1e-5,
    )


@pytest.mark.parametrize("scheme", ["float32", "int8"])
def test_shared_weights_are_in_the_file_once(scheme, tmp_path):
    stack = [L.Dense(64, activation="relu", name=f"d{n}") for n in range(4)]
    model = keras.Sequential([keras.Input((64,)), *stack])
    x = np.random.default_rng(0).normal(size=(64, 64)).astype("float32")
    sizes = []
    for one in (model, tfc.share_layers(model, [["d0", "d1", "d2", "d3"]])):
        options = {"representative_dataset": x} if scheme == "int8" else {}
        sizes.append(tfc.export_tflite(one, tmp_path / "m.tflite", **options).report.bytes)
    weights = 64 * 64 * (4 if scheme == "float32" else 1)
    assert sizes[0] - sizes[1] > 2.9 * weights


BAD = {
    "too many": (dict(blocks=9), "has 6 residual blocks"),
    "none": (dict(blocks=0), "blocks=0"),
    "name": (dict(blocks="fed1"), "Nearest names: feed1"),
    "no data": (dict(blocks=1), "needs data"),
    "score": (dict(blocks=1, score="size"), "score must be"),
    "type": (dict(blocks=1.5), "must be a number"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_blocks(options, message):
    with pytest.raises(ValueError, match=message):
        tfc.drop_layers(encoder(), **options)


def test_bad_groups():
    model = encoder()
    for groups, message in (
        ([["look0"]], "at least two"),
        ([["look0", "loook1"]], "Nearest names"),
        ([["look0", "wide0"]], "cannot share"),
        ([["wide0", "narrow0"]], "cannot share"),
        ([["look0", "look1"], ["look1", "look2"]], "twice"),
    ):
        with pytest.raises(ValueError, match=message):
            tfc.share_layers(model, groups)
    with pytest.raises(ValueError, match="strip"):
        tfc.drop_layers(tfc.prune(model, 0.5), 1)


def test_an_addition_that_is_called_twice():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,))
    add = L.Add(name="add")
    x = add([inputs, L.Dense(8, name="one")(inputs)])
    model = keras.Model(inputs, L.Dense(2)(add([L.Dense(8, name="two")(x), x])))
    assert [block.name for block in residual_blocks(model)] == ["add", "add#2"]
    names = {layer.name for layer in tfc.drop_layers(model, "one").layers}
    assert "two" in names and "one" not in names
    names = {layer.name for layer in tfc.drop_layers(model, "add#2").layers}
    assert "one" in names and "two" not in names
