"""prune and quantize: what they change, and what they must not."""

import time

import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tests import nets
from tests.conftest import arrays
from tfcompress.graph.read import walk_layers
from tfcompress.wrap.wrapper import CompressionWrapper

WAYS = {
    "prune": lambda m: tfc.prune(m, 0.5),
    "quantize": tfc.quantize,
    "prune, quantize": lambda m: tfc.quantize(tfc.prune(m, 0.5)),
    "quantize, prune": lambda m: tfc.prune(tfc.quantize(m), 0.5),
}


@pytest.mark.parametrize("make", nets.GRAPHS.values(), ids=nets.GRAPHS)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_model_given_is_never_touched(make, way, quiet):
    model = make()
    x = nets.samples_for(model, 8)
    before, config, outputs = arrays(model), model.get_config(), model.predict(x, verbose=0)
    wrapped = way(model)
    losses = {key: "mse" for key in outputs} if isinstance(outputs, dict) else "mse"
    wrapped.compile("sgd", losses)
    wrapped.fit(x, outputs, epochs=2, verbose=0)
    tfc.strip(wrapped)
    assert model.get_config() == config
    for old, new in zip(before, arrays(model), strict=True):
        np.testing.assert_array_equal(old, new)
    keras.tree.map_structure(np.testing.assert_array_equal, outputs, model.predict(x, verbose=0))


@pytest.mark.parametrize("make", nets.GRAPHS.values(), ids=nets.GRAPHS)
def test_strip_of_prune_zero_is_equal_to_the_bit(make):
    model = make()
    stripped = tfc.strip(tfc.prune(model, 0.0))
    assert stripped.get_config() == model.get_config()
    assert type(stripped) is type(model)
    for old, new in zip(arrays(model), arrays(stripped), strict=True):
        np.testing.assert_array_equal(old, new)
    x = nets.samples_for(model, 8)
    keras.tree.map_structure(
        np.testing.assert_array_equal, model.predict(x, verbose=0), stripped.predict(x, verbose=0)
    )


@pytest.mark.parametrize("make", nets.GRAPHS.values(), ids=nets.GRAPHS)
def test_strip_of_quantize_is_within_half_a_weight_step(make):
    model = make()
    stripped = tfc.strip(tfc.quantize(model))
    assert stripped.get_config() == model.get_config()
    assert type(stripped) is type(model)
    for old, new in zip(model.weights, stripped.weights, strict=True):
        old, new = keras.ops.convert_to_numpy(old), keras.ops.convert_to_numpy(new)
        scale = np.abs(old).max(axis=tuple(range(old.ndim - 1)), keepdims=True) / 127
        limit = scale / 2 * (1 + 1e-5) if old.ndim > 1 else 0
        assert np.all(np.abs(new - old) <= limit)
    assert not any("tfcompress" in type(layer).__module__ for _, layer in walk_layers(stripped))


def test_both_orders_give_the_same_model():
    model = nets.tiny()
    first, second = WAYS["prune, quantize"](model), WAYS["quantize, prune"](model)
    for a, b in zip(first.layers, second.layers, strict=True):
        if isinstance(a, CompressionWrapper):
            kinds = [[type(t) for t in w.transforms] for w in (a, b)]
            assert kinds[0] == kinds[1]
    x = nets.samples_for(model, 8)
    np.testing.assert_array_equal(first(x, training=True), second(x, training=True))


def test_adding_a_transform_keeps_the_state_of_the_others(quiet):
    model = nets.tiny()
    pruned = tfc.prune(model, 0.5)
    pruned.compile("sgd", "mse")
    x = nets.samples_for(model, 8)
    pruned.fit(x, np.ones((8, 3)), epochs=3, verbose=0)
    both = tfc.quantize(pruned)
    before = next(pruned.get_layer("first").pipelines())[1][0]
    after = next(both.get_layer("first").pipelines())[1][0]
    assert after.report() == before.report() and after.report()["step"] == 3
    np.testing.assert_array_equal(before.mask, after.mask)
    kernel = keras.ops.convert_to_numpy(tfc.strip(both).get_layer("first").kernel)
    assert not kernel[keras.ops.convert_to_numpy(before.mask) == 0].any()


def test_depthwise_kernels_are_pruned_only_by_name():
    model = keras.Sequential(
        [keras.Input((8, 8, 2)), L.DepthwiseConv2D(3, name="dw"), L.Conv2D(3, 1, name="pw")]
    )
    assert isinstance(tfc.prune(model).get_layer("pw"), CompressionWrapper)
    assert not isinstance(tfc.prune(model).get_layer("dw"), CompressionWrapper)
    assert isinstance(tfc.prune(model, layers="dw").get_layer("dw"), CompressionWrapper)


def test_selection_reaches_nested_layers_only_where_told():
    pruned = tfc.prune(nets.nested(), 0.5, layers="block/*")
    wrapped = {p: isinstance(layer, CompressionWrapper) for p, layer in walk_layers(pruned)}
    assert wrapped == {"block/inner": True, "head/out": False}


def test_a_single_layer_can_be_wrapped_built_or_not():
    model = keras.Sequential([keras.Input((4,)), tfc.prune(L.Dense(3), 0.5), L.Dense(2)])
    model.compile("sgd", "mse")
    model.fit(np.ones((4, 4)), np.ones((4, 2)), verbose=0)
    layer = model.layers[0]
    kernel = keras.ops.convert_to_numpy(tfc.strip(layer).kernel)
    assert (kernel == 0).sum() == 6
    both = tfc.quantize(layer)
    assert len(both.transforms) == 2
    np.testing.assert_array_equal(both.layer.kernel, layer.layer.kernel)


class Subclassed(keras.Model):
    def call(self, x):
        return x


BAD = {
    "not a model": (lambda: tfc.prune(3), TypeError, "Received an object of type builtins.int"),
    "unbuilt": (
        lambda: tfc.prune(keras.Sequential([L.Dense(2)], name="plain")),
        ValueError,
        "unbuilt model 'plain'",
    ),
    "nothing to compress": (
        lambda: tfc.prune(keras.Sequential([keras.Input((2,)), L.ReLU()])),
        ValueError,
        "nothing to compress",
    ),
    "a layer with nothing": (lambda: tfc.quantize(_built(L.PReLU())), ValueError, "no kernel"),
    "unknown layer": (
        lambda: tfc.prune(nets.tiny(), layers="frist"),
        ValueError,
        "'frist' matches no layer.*Nearest names: first",
    ),
    "sparsity of one": (lambda: tfc.prune(nets.tiny(), 1.0), ValueError, "sparsity=1.0"),
    "negative sparsity": (lambda: tfc.prune(nets.tiny(), -0.5), ValueError, "sparsity=-0.5"),
    "sparsity of a strange type": (lambda: tfc.prune(nets.tiny(), "0.5"), ValueError, "'0.5'"),
    "NaN": (lambda: tfc.prune(nets.tiny(), float("nan")), ValueError, "sparsity=nan"),
    "unknown scheme": (
        lambda: tfc.quantize(nets.tiny(), "int-8"),
        ValueError,
        "scheme='int-8'. Did you mean 'int8'",
    ),
    "pruned twice": (lambda: tfc.prune(tfc.prune(nets.tiny())), ValueError, "of the same kind"),
    "quantized twice": (
        lambda: tfc.quantize(tfc.quantize(nets.tiny())),
        ValueError,
        "quantized already",
    ),
    "LoRA": (lambda: tfc.quantize(_adapted()), ValueError, "'adapted' has LoRA weights"),
    "nothing to strip": (lambda: tfc.strip(nets.tiny()), ValueError, "nothing to strip"),
}


def _adapted():
    dense = L.Dense(2, name="adapted")
    model = keras.Sequential([keras.Input((3,)), dense])
    dense.enable_lora(1)
    return model


def _built(layer):
    layer.build((None, 3))
    return layer


@pytest.mark.parametrize(("act", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_at_once_and_by_name(act, error, message):
    started = time.perf_counter()
    with pytest.raises(error, match=message):
        act()
    assert time.perf_counter() - started < 1
