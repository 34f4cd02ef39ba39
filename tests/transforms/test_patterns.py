import keras
import numpy as np
import pytest

import tfcompress as tfc
from tests import nets
from tests.conftest import arrays
from tfcompress.graph.keras_internals import attention_parts
from tfcompress.testing import check_transform
from tfcompress.transforms import FakeQuant, MagnitudeMask
from tfcompress.transforms.patterns import as_pattern


def weight(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def mask(pattern, values, sparsity, input_axis=-2, output_axis=-1):
    entries = as_pattern(pattern).mask(values, sparsity, input_axis, output_axis)
    return keras.ops.convert_to_numpy(entries)


@pytest.mark.parametrize(
    ("pattern", "shape"),
    [("2:4", (12, 5)), ("1:3", (7, 4)), ("4:8", (3, 3, 10, 6)), ("2:4", (1, 3))],
)
def test_of_m_weights_the_n_largest_stay(pattern, shape):
    n, m = map(int, pattern.split(":"))
    values = weight(shape)
    got = np.moveaxis(mask(pattern, values, 1 - n / m), -2, -1).reshape(-1, shape[-2])
    rows = np.moveaxis(np.abs(values), -2, -1).reshape(-1, shape[-2])
    for row, kept in zip(rows, got, strict=True):
        for start in range(0, len(row), m):
            group, own = row[start : start + m], kept[start : start + m]
            assert own.sum() == min(n, len(group))
            if 0 < own.sum() < len(group):
                assert group[own == 1].min() >= group[own == 0].max()


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize(
    ("block", "shape"), [((2, 3), (6, 9)), ((4, 1), (10, 3)), ((1, 16), (5, 20))]
)
def test_blocks_of_the_smallest_mean_are_zero(block, shape, sparsity):
    values = weight(shape)
    got = mask(block, values, sparsity)
    rows, columns = block
    scores, kept = [], []
    for i in range(0, shape[0], rows):
        for j in range(0, shape[1], columns):
            scores.append(np.abs(values[i : i + rows, j : j + columns]).mean())
            part = got[i : i + rows, j : j + columns]
            assert part.min() == part.max()
            kept.append(part.max())
    pruned = int(np.floor(sparsity * len(scores) + 0.5))
    expected = np.ones(len(scores))
    expected[np.argsort(scores)[:pruned]] = 0
    np.testing.assert_array_equal(kept, expected)


def test_blocks_of_a_convolution_are_those_of_its_matrix():
    values = weight((3, 3, 4, 6))
    whole = mask((4, 2), values.reshape(36, 6), 0.5).reshape(values.shape)
    np.testing.assert_array_equal(mask((4, 2), values, 0.5), whole)
    turned = np.swapaxes(values, 2, 3)  # a transposed convolution: outputs before inputs
    np.testing.assert_array_equal(mask((4, 2), turned, 0.5, -1, -2), np.swapaxes(whole, 2, 3))


def test_a_block_of_one_is_no_pattern():
    values = weight((6, 7))
    np.testing.assert_array_equal(mask((1, 1), values, 0.4), mask("unstructured", values, 0.4))


@pytest.mark.parametrize(
    "pattern", ["4:2", "2:2", "0:4", "2;4", (0, 4), (4,), (1.5, 2), None, "blocks", (True, 2)]
)
def test_patterns_that_are_none_are_refused(pattern):
    with pytest.raises(ValueError, match="pattern must be"):
        tfc.prune(nets.tiny(), pattern=pattern)


@pytest.mark.parametrize("pattern", ["2:4", (2, 2), (4, 1)])
def test_masks_with_patterns_are_transforms_like_others(pattern):
    check_transform(lambda: MagnitudeMask(0.5, pattern), [FakeQuant])


def zeros(model, path):
    kernel = keras.ops.convert_to_numpy(tfc.strip(model).get_layer(path).kernel)
    return kernel, kernel == 0


def one_step(model):
    x = nets.samples_for(model, 16)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(x, np.zeros((16, *model.output_shape[1:])), batch_size=16, verbose=0)
    return model


def test_two_of_four_in_a_trained_network():
    pruned = one_step(tfc.prune(nets.small_residual(), pattern="2:4"))
    stripped = tfc.strip(pruned)
    kernels = [layer.kernel for layer in stripped.layers if isinstance(layer, keras.layers.Conv2D)]
    for kernel in map(keras.ops.convert_to_numpy, kernels):
        inputs = kernel.shape[2]
        assert (np.count_nonzero(kernel, axis=2) == min(2, inputs)).all()


def test_a_pattern_sets_the_sparsity():
    assert tfc.summary(tfc.prune(nets.tiny(), pattern="1:4")).layers[0].target == 0.75
    schedule = tfc.PolynomialDecay(0.0, 0.5, 0, 4, frequency=1)
    pruned = one_step(tfc.prune(nets.tiny(), schedule, pattern="2:4"))
    with pytest.warns(tfc.CompressionWarning, match="reaches 50%"):
        assert not zeros(pruned, "first")[1].any()
    with pytest.raises(ValueError, match=r"pattern='2:4' ends with a sparsity of 0\.5"):
        tfc.prune(nets.tiny(), 0.8, pattern="2:4")


def test_layers_without_input_channels_have_no_two_of_four():
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            keras.layers.Embedding(9, 8, name="words"),
            keras.layers.Flatten(),
            keras.layers.Dense(3, name="out"),
        ]
    )
    assert {
        layer.path for layer in tfc.summary(tfc.prune(model, pattern="2:4")).layers if layer.target
    } == {"out"}
    with pytest.raises(ValueError, match="matches no layer"):
        tfc.prune(model, pattern="2:4", layers="words")


def test_the_inputs_of_attention_are_grouped():
    inputs = keras.Input((5, 8))
    layer = keras.layers.MultiHeadAttention(2, 4, name="attention")
    model = keras.Model(inputs, layer(inputs, inputs))
    pruned = one_step(tfc.prune(model, pattern="2:4"))
    inner = tfc.strip(pruned).get_layer("attention")
    parts = attention_parts(inner)
    query = keras.ops.convert_to_numpy(parts["query"].kernel)  # (inputs, heads, size)
    output = keras.ops.convert_to_numpy(parts["attention_output"].kernel)  # (heads, size, outputs)
    assert (np.count_nonzero(query.reshape(2, 4, -1), axis=1) == 2).all()
    assert (np.count_nonzero(output, axis=1) == 2).all()


def test_global_ranking_prunes_the_smallest_weights_of_all_layers(tmp_path):
    model = nets.small_residual()
    model.get_layer("out").kernel.assign(model.get_layer("out").kernel * 0.2)
    kernels = [
        keras.ops.convert_to_numpy(layer.kernel)
        for layer in model.layers
        if hasattr(layer, "kernel")
    ]
    everything = np.abs(np.concatenate([k.ravel() for k in kernels]))
    pruned = one_step(tfc.prune(model, 0.4, ranking="global"))
    stripped = tfc.strip(pruned)
    left = [
        keras.ops.convert_to_numpy(layer.kernel)
        for layer in stripped.layers
        if hasattr(layer, "kernel")
    ]
    count = int(np.floor(0.4 * everything.size + 0.5))
    threshold = np.sort(everything)[count]
    assert sum(int((k == 0).sum()) for k in left) == count
    for before, after in zip(kernels, left, strict=True):
        np.testing.assert_array_equal(after == 0, np.abs(before) < threshold)
    pruned.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    for one, other in zip(arrays(pruned), arrays(loaded), strict=True):
        np.testing.assert_array_equal(one, other)
    assert tfc.summary(loaded).layers[-1].target > 0.5  # the layer with small weights


def test_global_ranking_follows_a_schedule():
    schedule = tfc.PolynomialDecay(0.25, 0.75, 0, 4, power=1, frequency=1)
    pruned = tfc.prune(nets.tiny(), schedule, ranking="global")
    count = sum(layer.kernel.shape[0] * layer.kernel.shape[1] for layer in nets.tiny().layers)
    x = np.ones((4, 6), "float32")
    for step in range(5):
        pruned(x, training=True)
        shares = [
            layer.sparsity * np.prod(k)
            for layer, k in zip(tfc.summary(pruned).layers, [(6, 8), (8, 3)], strict=True)
        ]
        assert abs(sum(shares) / count - (0.25 + 0.125 * step)) <= 1.5 / count


def test_a_layer_that_global_ranking_would_empty_keeps_one_weight():
    model = nets.tiny()
    model.get_layer("second").kernel.assign(model.get_layer("second").kernel * 1e-6)
    with pytest.warns(tfc.CompressionWarning, match="all of layer 'second'"):
        pruned = one_step(tfc.prune(model, 0.5, ranking="global"))
    assert (~zeros(pruned, "second")[1]).sum() == 1


def test_a_sparsity_for_each_layer():
    pruned = one_step(tfc.prune(nets.tiny(), {"first": 0.25, "*": tfc.ConstantSparsity(0.5, 0)}))
    assert zeros(pruned, "first")[1].mean() == 0.25 and zeros(pruned, "second")[1].mean() == 0.5
    some = tfc.summary(tfc.prune(nets.tiny(), {"first": 0.5}))
    assert [layer.target for layer in some.layers] == [0.5, None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": {"frist": 0.5}}, "Nearest names: first"),
        ({"sparsity": {}}, "empty dict"),
        ({"sparsity": {"first": 1.5}}, r"in \[0, 1\)"),
        ({"sparsity": {"*": 0.5}, "ranking": "global"}, "shares one sparsity out"),
        ({"ranking": "globally"}, "Did you mean 'global'"),
        ({"pattern": "2:4", "ranking": "global"}, "fixes the sparsity"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tfc.prune(nets.tiny(), **options)


def test_one_unit_of_each_weight_stays():
    assert mask("unstructured", weight((2, 1)), 0.9).sum() == 1
    with pytest.warns(tfc.CompressionWarning, match=r"has 1 block\(s\) of \(8, 8\)"):
        pruned = tfc.prune(nets.tiny(), 0.8, pattern=(8, 8))
    assert not zeros(one_step(pruned), "first")[1].any()


def test_a_shared_layer_counts_once_in_global_ranking():
    shared = keras.layers.Dense(6, name="shared")
    inner = keras.Sequential([keras.Input((6,)), shared], name="inner")
    inputs = keras.Input((6,))
    model = keras.Model(inputs, keras.layers.Dense(6, name="out")(inner(shared(inputs))))
    pruned = one_step(tfc.prune(model, 0.5, ranking="global"))
    kernels = {id(w): w for w in tfc.strip(pruned).weights if w.path.endswith("kernel")}
    weights = np.concatenate([np.ravel(w) for w in kernels.values()])
    assert (weights == 0).sum() == round(0.5 * weights.size)


def test_layers_at_each_step_are_grouped_by_their_own_inputs():
    inputs = keras.Input((3, 6, 6, 4))
    x = keras.layers.TimeDistributed(keras.layers.Conv2DTranspose(5, 3), name="up")(inputs)
    x = keras.layers.TimeDistributed(keras.layers.DepthwiseConv2D(3), name="each")(x)
    model = keras.Model(inputs, x)
    pruned = tfc.prune(model, pattern="2:4")
    stripped = tfc.strip(one_step(pruned))
    kernel = np.array(stripped.get_layer("up").layer.kernel)  # (3, 3, outputs, inputs)
    assert (np.count_nonzero(kernel, axis=-1) == 2).all()
    assert np.count_nonzero(np.array(stripped.get_layer("each").layer.kernel) == 0) == 0


@pytest.mark.parametrize("scale", [1.0, 1e-38, 1e38])
@pytest.mark.parametrize("count", [1, 3, 100, 5000])
def test_the_limit_is_that_of_a_stable_sort(count, scale):
    generator = np.random.default_rng(0)
    for values in (generator.random(count), generator.integers(0, 4, count) / 4, np.zeros(count)):
        scores = (values * scale).astype("float32")
        rank = np.argsort(np.argsort(scores, kind="stable"), kind="stable")
        for sparsity in (0.0, 0.1, 0.5, 0.9, 1.0):
            pruned = min(np.floor(np.float32(sparsity) * count + 0.5), count - 1)
            got = mask("unstructured", keras.ops.convert_to_tensor(scores), sparsity)
            np.testing.assert_array_equal(got, rank >= pruned)
