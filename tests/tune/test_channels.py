import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tests.rewrite.channels.cutting import halves, randomized, with_zeros
from tfcompress.graph.cost import macs
from tfcompress.graph.inline import as_graph
from tfcompress.rewrite.channels.coupling import Coupling
from tfcompress.rewrite.channels.cutting import cut

X = np.random.default_rng(0).normal(size=(64, 12, 12, 3)).astype("float32")
Y = np.arange(64) % 4


def net():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12, 12, 3))

    def unit(x, filters, name):
        x = L.Conv2D(filters, 3, padding="same", use_bias=False, name=name)(x)
        return L.ReLU()(L.BatchNormalization(name=f"{name}_norm")(x))

    x = unit(inputs, 16, "first")
    x = L.Add()([x, unit(unit(x, 24, "inner"), 16, "second")])
    x = unit(x, 32, "third")
    return keras.Model(inputs, L.Dense(4, name="head")(L.GlobalAveragePooling2D()(x)))


def widths(model):
    return {layer.name: layer.filters for layer in model.layers if isinstance(layer, L.Conv2D)}


@pytest.mark.parametrize("criterion", ["l1", "l2", "bn_gamma", "taylor", "fpgm", "random"])
def test_every_criterion_and_ranking(criterion):
    model = net()
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            layer.gamma.assign(np.random.default_rng(1).uniform(0.5, 1.5, layer.gamma.shape))
    before = model.get_weights()
    data = (X, Y) if criterion == "taylor" else None
    small = tfc.prune_channels(model, 0.5, criterion=criterion, data=data, ranking="layer")
    assert widths(small) == {"first": 8, "second": 8, "inner": 12, "third": 16}
    assert [layer.name for layer in small.layers] == [layer.name for layer in model.layers]
    overall = tfc.prune_channels(model, 0.5, criterion=criterion, data=data)
    counts = widths(overall)
    assert counts["first"] == counts["second"]
    assert counts["first"] + counts["inner"] + counts["third"] == (16 + 24 + 32) / 2
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_criterion_of_your_own():
    """The built-in norm again, and one that orders channels by the largest of their weights."""
    model = net()

    def l2(weights):
        return np.sqrt(np.sum(weights**2, 1))

    for ranking in ("global", "layer"):
        same = [tfc.prune_channels(model, criterion=c, ranking=ranking) for c in ("l2", l2)]
        assert widths(same[0]) == widths(same[1])
        for a, b in zip(*[m.get_weights() for m in same], strict=True):
            np.testing.assert_array_equal(a, b)
    conv = model.get_layer("third")
    kernel = np.array(conv.kernel)
    kernel[0, 0, 0, ::2] = 100.0
    conv.kernel.assign(kernel)
    small = tfc.prune_channels(
        model, criterion=lambda weights: np.abs(weights).max(1), ranking="layer", layers="third"
    )
    np.testing.assert_array_equal(small.get_layer("third").kernel, kernel[..., ::2])


@pytest.mark.parametrize("scores", [1.0, [1.0], "nan", "negative"])
def test_scores_that_are_none_are_refused(scores):
    def criterion(weights):
        if isinstance(scores, str):
            return np.full(len(weights), np.nan if scores == "nan" else -1.0)
        return scores

    with pytest.raises(ValueError, match="criterion must return a finite score >= 0 for each of"):
        tfc.prune_channels(net(), criterion=criterion)


@pytest.mark.parametrize("criterion", ["l1", "l2", "bn_gamma", "taylor", "fpgm"])
def test_what_does_not_matter_goes_first(criterion):
    """Half of a layer's channels are made worthless, in the way that the criterion looks at."""
    model = net()
    worthless = np.arange(0, 32, 2)
    conv, norm, head = (model.get_layer(name) for name in ("third", "third_norm", "head"))
    kernel, gamma, rows = (np.array(v) for v in (conv.kernel, norm.gamma, head.kernel))
    if criterion == "fpgm":  # in the middle of the others
        kernel[..., worthless] = kernel.mean(-1, keepdims=True)
    else:
        for array in (np.moveaxis(kernel, -1, 0), gamma, rows):
            array[worthless] *= 0.01
    conv.kernel.assign(kernel)
    norm.gamma.assign(gamma)
    head.kernel.assign(rows)
    data = (X, Y) if criterion == "taylor" else None
    small = tfc.prune_channels(
        model, 0.5, criterion=criterion, data=data, ranking="layer", layers="third"
    )
    kept = np.delete(np.arange(32), worthless)
    np.testing.assert_array_equal(small.get_layer("third").kernel, kernel[..., kept])
    assert widths(small)["first"] == 16


def test_taylor_without_labels_and_on_a_dataset():
    import tensorflow as tf

    stream = tf.data.Dataset.from_tensor_slices((X, Y)).batch(10)
    for data in (X, stream):
        small = tfc.prune_channels(net(), 0.5, criterion="taylor", data=data, ranking="layer")
        assert widths(small)["third"] == 16


def test_taylor_scores_are_the_change_of_the_loss():
    """For small changes: against the loss itself, channel by channel."""
    from tfcompress.rewrite.channels.scoring import unit_scores

    model = net()
    coupling = Coupling(model)
    scores = unit_scores(model, coupling, "taylor", [(X, Y)])
    (group,) = (g for g in coupling.groups if g.layers == ("third",))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    kernel = np.array(model.get_layer("head").kernel)
    gamma = np.array(model.get_layer("third_norm").gamma)
    whole = float(loss(Y, model(X)))
    changes = []
    for channel in range(32):
        change = 0.0
        for variable, value in (
            (model.get_layer("head").kernel, kernel),
            (model.get_layer("third_norm").gamma, gamma),
        ):
            altered = value.copy()
            altered[channel] *= 0.99
            variable.assign(altered)
            change += abs(float(loss(Y, model(X))) - whole) / 0.01
            variable.assign(value)
        changes.append(change)
    channel_scores = scores[[coupling.unit_of(np.array(n)) for n in _numbers(coupling, "third")]]
    assert len(group.units) == 32
    np.testing.assert_allclose(channel_scores, changes, rtol=0.1, atol=2e-3)


def _numbers(coupling, path):
    (use,) = (u for u in coupling.uses.values() if u.path == path and u.made is not None)
    return use.axes[use.made]


def test_rounding_of_widths():
    small = tfc.prune_channels(net(), 0.4, ranking="layer", round_to=8)
    assert widths(small) == {"first": 16, "second": 16, "inner": 16, "third": 24}
    tiny = tfc.prune_channels(net(), 0.99, round_to=8)
    assert all(width >= 8 and width % 8 == 0 for width in widths(tiny).values())


def test_budgets():
    model = net()
    target = 0.4 * macs(model)
    small = tfc.prune_channels(model, target_macs=target)
    assert 0.85 * target < macs(small) <= target
    with pytest.raises(ValueError, match="cannot be met"):
        tfc.prune_channels(model, target_macs=10)


def test_a_latency_is_looked_for(monkeypatch):
    """The search, with a clock that is exact."""
    from tfcompress.tune import channels

    monkeypatch.setattr(channels, "_latency", lambda model: macs(model) / 1e5)
    model = net()
    target = 0.5 * macs(model) / 1e5
    small = tfc.prune_channels(model, target_latency_ms=target)
    assert 0.85 * target < macs(small) / 1e5 <= target


def test_a_latency_is_measured():
    from tfcompress.tune.channels import _latency

    assert 0 < _latency(net()) < 1000


def test_it_trains_and_becomes_a_checked_file(tmp_path):
    small = tfc.prune_channels(net(), 0.5)
    aware = tfc.quantize(tfc.prune(small, 0.5))
    aware.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    aware.fit(X, Y, epochs=3, verbose=0)
    result = tfc.export_tflite(aware, tmp_path / "m.tflite")
    assert result.float_tensors == [] and result.agreement.max_lsb <= 2.01


BAD = {
    "all": (dict(ratio=1.0), "layer would be empty.*ratio=1.0"),
    "none": (dict(ratio=0), "ratio=0"),
    "criterion": (dict(criterion="l3"), "criterion must be one of"),
    "ranking": (dict(ranking="local"), "ranking must be"),
    "no data": (dict(criterion="taylor"), "needs data"),
    "idle data": (dict(data=X), "data is for criterion='taylor'"),
    "both": (dict(target_macs=1e6, target_latency_ms=1.0), "not both"),
    "budget": (dict(target_macs=-1), "target_macs must be positive"),
    "round": (dict(round_to=0), "round_to must be"),
    "layer": (dict(layers="thrid"), "Nearest names: third"),
    "coupled": (dict(layers="first"), "Coupled with them: first, second"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        tfc.prune_channels(net(), **options)


def test_models_that_cannot_be_pruned():
    with pytest.raises(TypeError, match="Keras 3 model"):
        tfc.prune_channels("model.keras")
    with pytest.raises(ValueError, match="strip"):
        tfc.prune_channels(tfc.quantize(net()))
    with pytest.raises(ValueError, match="nothing to remove"):
        tfc.prune_channels(keras.Sequential([keras.Input((4,)), L.Dense(2)]))
    plain = keras.Sequential([keras.Input((4,)), L.Dense(8, name="d"), L.Dense(2)])
    with pytest.raises(ValueError, match="needs a BatchNormalization.*: d"):
        tfc.prune_channels(plain, criterion="bn_gamma")


FAMILIES = {
    "VGG16": 32,
    "ResNet50": 32,
    "ResNet50V2": 32,
    "MobileNet": 32,
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "MobileNetV3Large": 32,
    "EfficientNetB0": 32,
    "EfficientNetV2B0": 32,
    "DenseNet121": 32,
    "InceptionV3": 75,
    "InceptionResNetV2": 75,
    "Xception": 71,
    "NASNetMobile": 32,
    "ConvNeXtTiny": 32,
}
QUICK = ("MobileNetV3Small",)
EVERY = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in FAMILIES]


def family(name):
    keras.utils.set_random_seed(0)
    size = FAMILIES[name]
    make = getattr(keras.applications, name)
    return make(input_shape=(size, size, 3), weights=None, classes=10, classifier_activation=None)


@pytest.mark.filterwarnings("ignore::tfcompress.CompressionWarning")
@pytest.mark.parametrize("name", EVERY)
def test_every_family(name, tmp_path):
    model = family(name)
    small = tfc.prune_channels(model, 0.5, ranking="layer")
    assert macs(small) <= 0.35 * macs(model)
    size = FAMILIES[name]
    x = np.random.default_rng(0).uniform(0, 255, (8, size, size, 3)).astype("float32")
    small.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    small.fit(x, np.arange(8), verbose=0)
    result = tfc.export_tflite(
        small, tmp_path / "m.tflite", representative_dataset=x, verify=False, verbose=False
    )
    assert result.report.bytes < 0.45 * model.count_params()


@pytest.mark.parametrize("name", [p for p in EVERY if p.values[0] != "ConvNeXtTiny"])
def test_channels_of_zeros_do_not_matter_in_any_family(name):
    model = as_graph(family(name))
    randomized(model)
    for weight in model.weights:  # so that signals neither die nor grow
        if weight.name == "kernel":
            weight.assign(weight * (6 / max(1, np.prod(weight.shape[:-1]))) ** 0.5)
    coupling = Coupling(model)
    removed = halves(coupling)
    with_zeros(model, coupling, removed)
    small = cut(model, coupling, removed)
    size = FAMILIES[name]
    x = np.random.default_rng(0).uniform(0, 1, (4, size, size, 3)).astype("float32")
    wanted, got = (one.predict(x, verbose=0) for one in (model, small))
    assert np.isfinite(wanted).all() and wanted.std() > 0
    np.testing.assert_allclose(got, wanted, atol=1e-5 * max(1.0, np.abs(wanted).max()))


@pytest.mark.parametrize("activation", [None, "sigmoid"])
@pytest.mark.parametrize("labels", [True, False])
def test_taylor_of_a_single_output(activation, labels):
    """A channel that the output does not read goes first."""
    keras.utils.set_random_seed(0)
    head = L.Dense(1, activation=activation, name="head")
    model = keras.Sequential([keras.Input((6,)), L.Dense(8, name="d"), head])
    model.layers[1].kernel.assign(model.layers[1].kernel * (np.arange(8)[:, None] % 2))
    x = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    data = (x, (x[:, 0] > 0).astype(int)) if labels else x
    kernel = np.array(model.layers[0].kernel)
    small = tfc.prune_channels(model, 0.5, criterion="taylor", data=data)
    np.testing.assert_array_equal(small.layers[0].kernel, kernel[:, 1::2])


def test_layers_by_predicate_and_by_the_name_of_the_whole():
    assert widths(
        tfc.prune_channels(net(), 0.5, layers=lambda layer: isinstance(layer, L.Conv2D))
    ) != widths(net())
    inputs = keras.Input((5, 4))
    bi = L.Bidirectional(L.LSTM(8), name="bi")
    model = keras.Model(inputs, L.Dense(2)(bi(inputs)))
    small = tfc.prune_channels(model, 0.5, layers="bi")
    assert small.get_layer("bi").forward_layer.units == 4
