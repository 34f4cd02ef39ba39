"""CompressionWrapper keeps what a layer does."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import tfcompress as tfc
from tfcompress.graph.weights import channel_axes, compressible_weights, variable_name
from tfcompress.transforms import FakeQuant, MagnitudeMask


def wrap(layer, sparsity=0.0):
    return tfc.CompressionWrapper(layer, [MagnitudeMask(sparsity)])


LAYERS = {
    "dense": (lambda: L.Dense(3), (6,), "float32"),
    "conv": (lambda: L.Conv2D(3, 3), (8, 8, 2), "float32"),
    "depthwise": (lambda: L.DepthwiseConv2D(3), (8, 8, 2), "float32"),
    "separable": (lambda: L.SeparableConv1D(3, 3), (8, 2), "float32"),
    "embedding": (lambda: L.Embedding(10, 4, mask_zero=True), (5,), "int32"),
    "lstm": (lambda: L.LSTM(3, return_sequences=True), (5, 2), "float32"),
    "gru": (lambda: L.GRU(3), (5, 2), "float32"),
    "bidirectional": (lambda: L.Bidirectional(L.LSTM(3)), (5, 2), "float32"),
    "time distributed": (lambda: L.TimeDistributed(L.Dense(3)), (5, 2), "float32"),
    "einsum": (lambda: L.EinsumDense("abc,cd->abd", (None, 3), bias_axes="d"), (5, 2), "float32"),
    "transposed": (lambda: L.Conv2DTranspose(3, 3), (8, 8, 2), "float32"),
}


def inputs_for(shape, dtype, count=4):
    generator = np.random.default_rng(0)
    if dtype == "int32":
        return generator.integers(0, 10, (count, *shape)).astype(dtype)
    return generator.normal(size=(count, *shape)).astype(dtype)


@pytest.mark.parametrize(("make", "shape", "dtype"), LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("built_first", [True, False])
def test_with_nothing_pruned_the_layer_is_the_same(make, shape, dtype, built_first, tmp_path):
    layer = make()
    x = inputs_for(shape, dtype)
    if built_first:
        layer(x)
    wrapper = wrap(layer)
    model = keras.Sequential([keras.Input(shape, dtype=dtype), wrapper])
    np.testing.assert_array_equal(model(x), layer(x))
    assert wrapper.name == layer.name
    assert len(list(wrapper.pipelines())) == len(compressible_weights(layer)) > 0
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(loaded(x), model(x), atol=1e-6)


@keras.saving.register_keras_serializable("tests")
class BuiltByItsCall(L.Layer):
    """Has no build() but a known output shape, so Keras does not call it to build it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.table = self.add_weight(shape=(6, 6), name="table")
        self.inner = L.Dense(6)

    def call(self, x):
        return self.inner(x @ ops.convert_to_tensor(self.table))

    def compute_output_shape(self, shape):
        return shape


@pytest.mark.filterwarnings("ignore:`build\\(\\)` was called on layer")
def test_a_layer_that_only_its_call_builds_is_loaded(tmp_path):
    tfc.describe_layer(BuiltByItsCall)  # or its code would be read
    model = keras.Sequential([keras.Input((6,)), BuiltByItsCall()])
    x = inputs_for((6,), "float32")
    pruned = tfc.prune(model, 0.5)
    pruned.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert len(loaded.layers[0].weight_transforms) == 2
    np.testing.assert_array_equal(loaded(x), pruned(x))


@pytest.mark.parametrize(("make", "shape", "dtype"), LAYERS.values(), ids=LAYERS)
def test_every_layer_trains_pruned(make, shape, dtype):
    wrapper = wrap(make(), 0.5)
    model = keras.Sequential([keras.Input(shape, dtype=dtype), wrapper])
    x = inputs_for(shape, dtype)
    y = np.zeros(model(x).shape, "float32") + 0.5
    model.compile(keras.optimizers.SGD(0.01), "mse")
    losses = model.fit(x, y, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    for weight, (mask,) in wrapper.pipelines():
        zeros = np.sum(keras.ops.convert_to_numpy(mask.mask) == 0)
        assert zeros == np.floor(np.prod(weight.shape) / 2 + 0.5)
        assert mask.report()["step"] == 3


def test_attention_trains_and_counts_its_four_kernels():
    wrapper = wrap(L.MultiHeadAttention(2, 4), 0.5)
    inputs = keras.Input((5, 6))
    model = keras.Model(inputs, wrapper(inputs, inputs))
    assert [variable_name(w) for w, _ in wrapper.pipelines()] == ["kernel"] * 4
    model.compile("sgd", "mse")
    x = inputs_for((5, 6), "float32")
    model.fit(x, x, verbose=0)
    assert all(t[0].report()["step"] == 1 for _, t in wrapper.pipelines())


def test_batchnorm_statistics_move_in_training_and_only_then():
    inner = keras.Sequential([keras.Input((4,)), L.Dense(3), L.BatchNormalization()])
    wrapper = wrap(inner)
    reference = keras.models.clone_model(inner)
    reference.set_weights(inner.get_weights())
    x = inputs_for((4,), "float32", 16) + 5
    wrapper(x, training=False)
    np.testing.assert_array_equal(inner.layers[1].moving_mean, np.zeros(3))
    wrapper(x, training=True)
    reference(x, training=True)
    np.testing.assert_allclose(
        inner.layers[1].moving_mean, reference.layers[1].moving_mean, rtol=1e-5
    )
    assert np.any(keras.ops.convert_to_numpy(inner.layers[1].moving_mean) != 0)


def test_dropout_noise_differs_from_step_to_step():
    inner = keras.Sequential([keras.Input((50,)), L.Dense(50), L.Dropout(0.5)])
    wrapper = wrap(inner)
    x = inputs_for((50,), "float32")
    first, second = wrapper(x, training=True), wrapper(x, training=True)
    assert np.any(keras.ops.convert_to_numpy(first != second))
    np.testing.assert_array_equal(wrapper(x), wrapper(x))


class Adds(L.Dense):
    def call(self, x):
        y = super().call(x)
        self.add_loss(0.5 * keras.ops.mean(y**2))
        return y


def test_losses_count_once():
    def build(change):
        keras.utils.set_random_seed(0)
        layer = change(
            Adds(
                3,
                kernel_regularizer=keras.regularizers.L2(0.1),
                activity_regularizer=keras.regularizers.L2(0.2),
            )
        )
        model = keras.Sequential([keras.Input((6,)), layer])
        model.compile(keras.optimizers.SGD(0.1), "mse")
        return model

    x = inputs_for((6,), "float32")
    y = np.ones((4, 3))
    plain = build(lambda layer: layer)
    wrapped = build(wrap)
    for _ in range(3):
        assert wrapped.train_on_batch(x, y) == pytest.approx(plain.train_on_batch(x, y), rel=1e-5)
    assert len(wrapped.losses) == len(plain.losses) == 3


def test_losses_of_activities_are_the_same_at_inference():
    layer = L.Dense(3, activity_regularizer="l2", name="dense")
    model = keras.Sequential([keras.Input((4,)), layer])
    aware = tfc.quantize(model)
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    model(x)
    (plain,) = map(float, model.losses)  # which not every Keras divides by the batch
    aware(x, training=True)
    (trained,) = map(float, aware.losses)
    aware(x, training=False)
    (loss,) = map(float, aware.losses)
    # Computed before the outputs are quantized: near, not equal.
    np.testing.assert_allclose(loss, plain, rtol=0.02)
    np.testing.assert_allclose(loss, trained, rtol=0.02)


def test_a_layer_called_twice_counts_one_step_a_pass():
    shared = wrap(L.Dense(6), 0.5)
    inputs = keras.Input((6,))
    model = keras.Model(inputs, shared(shared(inputs)))
    model.compile("sgd", "mse")
    x = inputs_for((6,), "float32")
    for eager in (False, True):
        model.compile("sgd", "mse", run_eagerly=eager)
        model.fit(x, x, epochs=3, batch_size=2, verbose=0)
    assert next(shared.pipelines())[1][0].report()["step"] == 12


def test_masks_of_sequences_pass_through():
    ids = np.array([[1, 2, 0, 0], [3, 0, 0, 0]])
    keras.utils.set_random_seed(2)
    embedding, lstm = L.Embedding(5, 3, mask_zero=True), L.LSTM(2)
    inputs = keras.Input((4,), dtype="int32")
    plain = keras.Model(inputs, lstm(embedding(inputs)))
    wrapped = keras.Model(inputs, wrap(lstm)(wrap(embedding)(inputs)))
    np.testing.assert_allclose(wrapped(ids), plain(ids), rtol=1e-6)
    # The padding must not count: with it masked, cutting it off changes nothing.
    np.testing.assert_allclose(plain(ids)[1], wrapped(np.array([[3, 0, 0, 0]]))[0], rtol=1e-6)


def test_only_learned_matrices_are_compressed():
    def names(layer, shape):
        layer.build(shape)
        return [variable_name(w) for w in compressible_weights(layer)]

    assert names(L.Dense(3), (None, 4)) == ["kernel"]
    assert names(L.LSTM(3, stateful=True), (2, 4, 5)) == ["kernel", "recurrent_kernel"]
    assert names(L.PReLU(), (None, 4, 4)) == []
    assert names(L.LayerNormalization(axis=(1, 2)), (None, 4, 4)) == []
    frozen = L.Dense(3)
    frozen.trainable = False
    assert names(frozen, (None, 4)) == ["kernel"]


def test_channel_axes_are_those_of_the_file():
    def axes(layer, shape):
        layer.build(shape)
        return [channel_axes(layer, w) for w in compressible_weights(layer)]

    assert axes(L.Conv2D(3, 3), (None, 8, 8, 2)) == [(-1,)]
    assert axes(L.DepthwiseConv2D(3), (None, 8, 8, 2)) == [(-2, -1)]
    assert axes(L.Conv2DTranspose(3, 3), (None, 8, 8, 2)) == [(-2,)]
    assert axes(L.SeparableConv2D(3, 3), (None, 8, 8, 2)) == [(-2, -1), (-1,)]
    assert axes(L.Embedding(5, 3), (None, 2)) == [()]


def test_what_cannot_be_wrapped_is_refused():
    with pytest.raises(TypeError, match="layer must be a Keras layer"):
        tfc.CompressionWrapper(3)
    with pytest.raises(TypeError, match="transforms must be WeightTransforms"):
        tfc.CompressionWrapper(L.Dense(3), ["prune"])
    with pytest.raises(ValueError, match="wrapped already"):
        tfc.CompressionWrapper(wrap(L.Dense(3)))
    with pytest.raises(ValueError, match="two transforms of the same kind"):
        tfc.CompressionWrapper(L.Dense(3), [FakeQuant(), FakeQuant()])


def test_a_model_that_was_used_can_be_loaded_again(tmp_path):
    """Input quantizers of nested models are set when the model is first used."""
    inside = keras.Input((8,))
    block = keras.Model(inside, L.Add()([L.Dense(8)(inside), inside]))
    inputs = keras.Input((8,))
    model = tfc.quantize(keras.Model(inputs, L.Dense(3)(block(inputs))))
    x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    model.compile("sgd", "mse")
    model.fit(x, np.zeros((64, 3)), verbose=0)
    before = model.predict(x, verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), before)
