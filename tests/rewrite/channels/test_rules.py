"""Removing channels that are zero does not change the outputs, whatever couples the channels."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

from tests.nets import samples_for
from tests.rewrite.channels.cutting import halves, randomized, with_zeros
from tfcompress.graph.inline import as_graph
from tfcompress.rewrite.channels import coupling as coupling_module
from tfcompress.rewrite.channels.coupling import Coupling, Unresolved
from tfcompress.rewrite.channels.cutting import cut

IMAGE, SERIES, VECTOR, VOLUME = (8, 8, 3), (6, 5), (7,), (4, 4, 4, 2)


def graph(function, *shapes, dtype="float32"):
    def make():
        inputs = [keras.Input(shape, dtype=dtype) for shape in shapes]
        outputs = function(*inputs)
        outputs = L.Dense(3)(L.Flatten()(outputs)) if len(outputs.shape) > 2 else outputs
        return keras.Model(inputs if len(inputs) > 1 else inputs[0], L.Dense(2)(outputs))

    return make


def conv(x, filters=8, size=3, **options):
    return L.Conv2D(filters, size, padding="same", **options)(x)


def residual(x):
    x = L.ReLU()(L.BatchNormalization()(conv(x)))
    return L.Add()([x, L.BatchNormalization()(conv(L.ReLU()(conv(x, 6))))])


def squeeze_excite(x):
    x = conv(x)
    gate = L.Reshape((1, 1, 8))(L.GlobalAveragePooling2D()(x))
    gate = conv(conv(gate, 4, 1, activation="relu"), 8, 1, activation="sigmoid")
    return L.Multiply()([x, gate])


def dense_block(x):
    for _ in range(3):
        x = L.Concatenate()([x, conv(L.ReLU()(L.BatchNormalization()(x)), 4)])
    return x


def concatenated_and_added(x):
    """A sum of concatenations with different boundaries."""
    return L.Add()([L.Concatenate()([conv(x, 3), conv(x, 5)]), conv(x, 8)])


def grouped(x):
    return conv(L.ReLU()(conv(conv(x, 8), 8, groups=4)), 6)


def like_depthwise(x):
    return conv(conv(conv(x, 8), 16, groups=8), 6, 1)


def generator(x):
    return L.Conv2DTranspose(4, 3, strides=2)(L.Reshape((2, 2, 6))(L.Dense(24)(x)))


def attention(x):
    x = L.Dense(12)(x)
    return L.Add()([x, L.MultiHeadAttention(4, 3)(x, x)])


def grouped_attention(x):
    x = L.Dense(12)(x)
    return L.GlobalAveragePooling1D()(L.Add()([x, L.GroupQueryAttention(3, 4, 2)(x, x)]))


def cross_attention(x, y):
    return L.MultiHeadAttention(2, 3, output_shape=9)(L.Dense(6)(x), L.Dense(10)(y))


def shared(x):
    layer = L.Conv2D(8, 3, padding="same", activation="relu")
    return layer(layer(conv(x)))


def nested(x):
    inner = keras.Input((8, 8, 6))
    block = keras.Model(inner, L.BatchNormalization()(conv(L.ReLU()(inner), 6)), name="block")
    return block(block(conv(x, 6)))


class Block(L.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv, self.norm = L.Conv2D(8, 3, padding="same"), L.BatchNormalization()

    def call(self, x):
        return x + ops.relu(self.norm(self.conv(x)))


def spatial_gate(x):
    """One channel that all others are multiplied with must stay."""
    x = conv(x)
    return x * conv(x, 1, activation="sigmoid")


def shuffled(x):
    x = L.Permute((3, 1, 2))(conv(x))
    return conv(L.Permute((2, 3, 1))(x))


def averaged(x):
    return ops.mean(conv(x), axis=(1, 2)) + ops.max(conv(x), axis=(1, 2))


VECTORS = keras.initializers.Constant(np.random.default_rng(0).normal(size=(9, 8)))


def by_hand(heads):
    """Attention written as operations, with a Softmax layer."""

    def attend(x):
        x = L.Dense(8)(x)
        parts = [L.Dense(8)(x) for _ in range(3)]
        if heads > 1:
            parts = [L.Permute((2, 1, 3))(L.Reshape((6, heads, 8 // heads))(p)) for p in parts]
        query, key, value = parts
        order = (0, 1, 3, 2) if heads > 1 else (0, 2, 1)
        scores = L.Softmax()(ops.matmul(query, ops.transpose(key, order)) * 0.35)
        x = ops.matmul(scores, value)
        return L.Reshape((6, 8))(L.Permute((2, 1, 3))(x)) if heads > 1 else x

    return attend


def gated_by_halves(x):
    """The halves of one convolution, of which one gates the other."""
    first, second = ops.split(conv(x, 8), 2, axis=-1)
    return conv(first * ops.sigmoid(second), 6)


def bottleneck(x):
    """As in residual blocks that split channels: one part goes on as it is."""
    x = conv(x, 8)
    return conv(L.Concatenate()([x[..., :3], conv(x[..., 3:], 5)]), 4)


def tied(x):
    table = L.ReversibleEmbedding(9, 8)
    return table(L.Dense(8, activation="relu")(table(x)), reverse=True)


NETS = {
    "halves": graph(gated_by_halves, IMAGE),
    "parts": graph(bottleneck, IMAGE),
    "rows": graph(lambda x: conv(conv(x)[:, 1:7:2, None, 3], 4, 1), IMAGE),
    "first step": graph(lambda x: L.Dense(8)(L.Dense(6)(x))[:, 0], SERIES),
    "unstacked": graph(lambda x: sum(ops.split(L.Dense(8)(x), 3, axis=1)), SERIES),
    "stacked": graph(
        lambda x: L.Dense(4)(ops.stack([L.Dense(8)(x), L.Dense(8)(x)], axis=1)), VECTOR
    ),
    "UnitNormalization": graph(lambda x: L.UnitNormalization()(L.Dense(8)(x)), VECTOR),
    "TimeDistributed": graph(
        lambda x: L.TimeDistributed(L.Dense(4))(
            L.TimeDistributed(L.GlobalAveragePooling2D())(
                L.TimeDistributed(L.BatchNormalization())(L.TimeDistributed(L.Conv2D(8, 2))(x))
            )
        ),
        VOLUME,
    ),
    "Bidirectional, both ways apart": graph(
        lambda x: L.Bidirectional(
            L.GRU(6, return_sequences=True),
            backward_layer=L.LSTM(6, return_sequences=True, go_backwards=True),
        )(L.Dense(8)(x)),
        SERIES,
    ),
    "ReversibleEmbedding": graph(tied, (5,), dtype="int32"),
    "attention by hand": graph(by_hand(1), SERIES),
    "attention by hand, heads": graph(by_hand(2), SERIES),
    "products of both sides": graph(
        lambda x: ops.matmul(ops.transpose(L.Dense(6)(x), (0, 2, 1)), L.Dense(6)(x)), SERIES
    ),
    "Dense": graph(lambda x: L.Dense(8, activation="relu")(L.Dense(6)(x)), VECTOR),
    "Conv1D": graph(lambda x: L.Conv1D(4, 3)(L.Conv1D(8, 3, activation="relu")(x)), SERIES),
    "Conv2D": graph(lambda x: conv(conv(x, activation="relu")), IMAGE),
    "Conv3D": graph(lambda x: L.Conv3D(4, 3)(L.MaxPooling3D(1)(L.Conv3D(6, 2)(x))), VOLUME),
    "channels first": graph(
        lambda x: L.GlobalAveragePooling2D(data_format="channels_first")(
            L.Conv2D(6, 3, data_format="channels_first")(
                L.BatchNormalization(axis=1)(L.Conv2D(8, 3, data_format="channels_first")(x))
            )
        ),
        (3, 9, 9),
    ),
    "Conv1DTranspose": graph(lambda x: L.Conv1DTranspose(4, 3)(L.Conv1D(8, 3)(x)), SERIES),
    "Conv3DTranspose": graph(lambda x: L.Conv3DTranspose(4, 2)(L.Conv3D(6, 2)(x)), VOLUME),
    "generator": graph(generator, VECTOR),
    "DepthwiseConv1D": graph(
        lambda x: L.Conv1D(4, 1)(L.DepthwiseConv1D(3, depth_multiplier=2)(L.Conv1D(6, 1)(x))),
        SERIES,
    ),
    "DepthwiseConv2D": graph(
        lambda x: conv(L.DepthwiseConv2D(3, depth_multiplier=2)(conv(x)), 4, 1), IMAGE
    ),
    "SeparableConv2D": graph(
        lambda x: conv(L.SeparableConv2D(6, 3, depth_multiplier=2)(conv(x)), 4), IMAGE
    ),
    "groups": graph(grouped, IMAGE),
    "as many groups as channels": graph(like_depthwise, IMAGE),
    "residual": graph(residual, IMAGE),
    "squeeze and excite": graph(squeeze_excite, IMAGE),
    "DenseNet": graph(dense_block, IMAGE),
    "concatenated and added": graph(concatenated_and_added, IMAGE),
    "flattened": graph(lambda x: L.Dense(5)(L.Flatten()(L.MaxPooling2D()(conv(x)))), IMAGE),
    "PReLU": graph(lambda x: conv(L.PReLU(shared_axes=[1, 2])(conv(x))), IMAGE),
    "PReLU everywhere": graph(lambda x: conv(L.PReLU()(conv(x))), IMAGE),
    "EinsumDense": graph(
        lambda x: L.EinsumDense("abc,cd->abd", (6, 4), bias_axes="d")(
            L.EinsumDense("abc,cd->abd", (6, 9))(x)
        ),
        SERIES,
    ),
    "Embedding": graph(lambda x: L.Dense(4)(L.Embedding(9, 8)(x)), (5,), dtype="int32"),
    "MultiHeadAttention": graph(attention, SERIES),
    "GroupQueryAttention": graph(grouped_attention, SERIES),
    "cross attention": graph(cross_attention, SERIES, (4, 5)),
    "LSTM": graph(lambda x: L.LSTM(6)(L.LSTM(8, return_sequences=True)(x)), SERIES),
    "GRU": graph(lambda x: L.GRU(6, reset_after=False)(L.GRU(8, return_sequences=True)(x)), SERIES),
    "SimpleRNN": graph(lambda x: L.SimpleRNN(8)(x), SERIES),
    "Bidirectional": graph(
        lambda x: L.Bidirectional(L.GRU(4))(
            L.Bidirectional(L.LSTM(6, return_sequences=True), merge_mode="sum")(x)
        ),
        SERIES,
    ),
    "shared": graph(shared, IMAGE),
    "nested": graph(nested, IMAGE),
    "custom": graph(lambda x: Block()(Block()(conv(x))), IMAGE),
    "spatial gate": graph(spatial_gate, IMAGE),
    "permuted": graph(shuffled, IMAGE),
    "operations": graph(averaged, IMAGE),
    "positions mixed": graph(
        lambda x: L.Permute((2, 1))(L.Dense(4)(L.Permute((2, 1))(L.Dense(8)(x)))), SERIES
    ),
    "flattened, channels first": graph(
        lambda x: L.Flatten(data_format="channels_first")(
            L.Conv2D(6, 3, data_format="channels_first")(x)
        ),
        (3, 6, 6),
    ),
    "masked": graph(
        lambda x: L.LSTM(6)(L.Dense(8)(L.Embedding(9, 8, mask_zero=True)(x))), (5,), dtype="int32"
    ),
    "masked sequences": graph(
        lambda x: L.GlobalAveragePooling1D()(L.Dense(8)(L.Masking()(x))), SERIES
    ),
    "bytes": graph(lambda x: conv(conv(L.Rescaling(1 / 255)(x))), IMAGE, dtype="uint8"),
    "powers": graph(
        lambda x: L.Dense(3)(ops.power(ops.sigmoid(L.Dense(8)(x)), L.Dense(8)(x))), VECTOR
    ),
    "softmax in a layer": graph(
        lambda x: L.Dense(3)(L.Dense(6, activation="relu")(L.Dense(8, activation="softmax")(x))),
        VECTOR,
    ),
    "constant initial values": graph(
        lambda x: L.Dense(4)(L.Embedding(9, 8, embeddings_initializer=VECTORS)(x)),
        (5,),
        dtype="int32",
    ),
    "up and down": graph(
        lambda x: conv(L.UpSampling2D()(L.ZeroPadding2D()(L.AveragePooling2D(2)(conv(x))))), IMAGE
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_channels_that_are_zero_do_not_matter(name):
    keras.utils.set_random_seed(0)
    model = as_graph(NETS[name]())
    randomized(model)
    coupling = Coupling(model)
    removed = halves(coupling)
    assert len(removed)
    with_zeros(model, coupling, removed)
    before = [layer.name for layer in model.layers]
    small = cut(model, coupling, removed)
    assert small.count_params() < model.count_params()
    assert [layer.name for layer in small.layers][1:] == before[1:]
    x = samples_for(model, 16)
    wanted, got = (one.predict(x, verbose=0) for one in (model, small))
    assert np.abs(wanted).max() > 0.01
    np.testing.assert_allclose(got, wanted, atol=1e-5 * max(1.0, np.abs(wanted).max()))
    # It is an ordinary model: it can be saved, and rebuilt from its config.
    again = type(small).from_config(small.get_config())
    assert [w.shape for w in again.weights] == [w.shape for w in small.weights]


@pytest.mark.parametrize("kind", ["group", "layer"])
def test_normalized_channels_are_cut_as_numpy_cuts(kind):
    inputs = keras.Input(IMAGE)
    norm = L.GroupNormalization(4) if kind == "group" else L.LayerNormalization()
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(norm(conv(inputs, 8)))))
    randomized(model)
    coupling = Coupling(model)
    (group,) = coupling.groups
    # Every group loses the same number; a layer normalization has no such constraint.
    assert len(group.units) == (2 if kind == "group" else 8)
    small = cut(model, coupling, group.units[:1])
    removed_channels = [0, 2, 4, 6] if kind == "group" else [0]
    kept = np.delete(np.arange(8), removed_channels)
    for old, new in zip(model.layers[1].weights, small.layers[1].weights, strict=True):
        np.testing.assert_array_equal(np.array(old)[..., kept], new)
    for old, new in zip(model.layers[2].weights, small.layers[2].weights, strict=True):
        np.testing.assert_array_equal(np.array(old)[kept], new)
    rows = np.array(model.layers[-1].kernel).reshape(64, 8, 2)[:, kept]
    np.testing.assert_array_equal(rows.reshape(-1, 2), small.layers[-1].kernel)


class Mystery(L.Layer):
    def build(self, shape):
        self.mixed = self.add_weight(shape=(shape[-1], shape[-1]), name="mixed")

    def call(self, x):
        return ops.matmul(x, self.mixed)


def test_what_is_not_known_is_named_or_left_alone():
    inputs = keras.Input((6,))
    x = L.Dense(8, name="a")(L.Dense(8, name="first")(inputs))
    x = Mystery(name="mystery")(x)
    model = keras.Model(inputs, L.Dense(2)(L.Dense(8, name="last")(x)))
    with pytest.raises(Unresolved, match=r"'mystery' \(Mystery\).*unknown='keep'"):
        Coupling(model, unknown="raise")
    coupling = Coupling(model)
    assert coupling.kept == {"mystery": "no rule is known for it"}
    assert sorted(layer for g in coupling.groups for layer in g.layers) == ["first", "last"]


def test_inputs_outputs_and_what_reaches_them_stay():
    inputs = keras.Input(IMAGE)
    x = L.DepthwiseConv2D(3, name="d")(inputs)
    out = conv(x, 4)
    model = keras.Model(inputs, [out, L.GlobalAveragePooling2D()(out)])
    assert Coupling(model).groups == []


class Project(L.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape):
        self.matrix = self.add_weight(shape=(shape[-1], self.units), name="matrix")

    def call(self, x):
        return ops.matmul(x, self.matrix)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def test_a_rule_of_ones_own(monkeypatch):
    monkeypatch.setattr(coupling_module, "RULES", dict(coupling_module.RULES))

    @coupling_module.channel_rule(Project)
    def rule(coupling, call, operands):
        layer = call.operation
        out_channels = coupling.new(call, layer.units)
        inputs = coupling_module.along(operands[0], operands[0].ndim - 1)
        coupling.use(call, layer.matrix, {0: inputs, 1: out_channels}, made=1)
        coupling.set(call, "units", out_channels)
        return out_channels.reshape([1] * (operands[0].ndim - 1) + [-1])

    inputs = keras.Input((6,))
    x = Project(8, name="own")(L.Dense(10, activation="relu")(inputs))
    model = keras.Model(inputs, L.Dense(2)(x))
    randomized(model)
    coupling = Coupling(model)
    removed = halves(coupling)
    with_zeros(model, coupling, removed)
    small = cut(model, coupling, removed)
    assert small.get_layer("own").matrix.shape == (5, 4)
    x = samples_for(model, 8)
    np.testing.assert_allclose(small.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5)
