import os

import keras
import numpy as np
import pytest

tf_keras = pytest.importorskip("tf_keras")

import tfcompress as tfc  # noqa: E402
from tfcompress.graph.layers import plain  # noqa: E402
from tfcompress.quantization.state import fake_quantizing_in_float  # noqa: E402

L = tf_keras.layers


@pytest.fixture(autouse=True)
def seeded_too():
    tf_keras.utils.set_random_seed(0)


@pytest.fixture(scope="module")
def tfmot():
    before = os.environ.get("TF_USE_LEGACY_KERAS")
    module = pytest.importorskip("tensorflow_model_optimization")
    if before is None:
        os.environ.pop("TF_USE_LEGACY_KERAS", None)
    return module


def mnist():
    return tf_keras.Sequential(
        [
            L.InputLayer((28, 28, 1)),
            L.Conv2D(8, 3, use_bias=False, name="c1"),
            L.BatchNormalization(name="b1"),
            L.ReLU(name="r1"),
            L.MaxPooling2D(name="mp"),
            L.DepthwiseConv2D(3, name="dw"),
            L.BatchNormalization(name="b2"),
            L.ReLU(6.0, name="r2"),
            L.Conv2D(6, 1, activation="relu", name="c2"),
            L.Flatten(name="f"),
            L.Dropout(0.2, name="dropped"),
            L.Dense(16, activation="relu", name="d1"),
            L.Dense(10, name="d2"),
        ],
        name="mnist",
    )


def residual(ending="softmax"):
    inputs = tf_keras.Input((12, 12, 3), name="photo")
    x = L.Conv2D(4, 3, padding="same", name="a")(inputs)
    x = L.ReLU(name="ar")(L.BatchNormalization(name="ab")(x))
    y = L.Conv2D(4, 3, padding="same", name="b")(x)
    x = L.ReLU(name="sr")(L.Add(name="add")([y, x]))
    x = L.GlobalAveragePooling2D(name="g")(x)
    return tf_keras.Model(inputs, L.Dense(3, activation=ending, name="o")(x), name="residual")


def operations():
    import tensorflow as tf

    inputs = tf_keras.Input((8, 8, 3))
    x = L.Conv2D(4, 3, padding="same")(inputs)
    x = tf.nn.relu6(x + 3.0) * (1.0 / 6.0) * x
    x = tf.concat([x, 1.0 - x, tf.nn.silu(x)], axis=-1)
    x = tf.reduce_mean(x[:, 1:, :, :], axis=[1, 2])
    return tf_keras.Model(inputs, L.Dense(3)(x))


def recurrent():
    return tf_keras.Sequential(
        [
            L.InputLayer((7, 5)),
            L.Bidirectional(L.LSTM(4, return_sequences=True)),
            L.TimeDistributed(L.Dense(6, activation="tanh")),
            L.GRU(3, return_sequences=True),
            L.LayerNormalization(),
            L.SimpleRNN(2),
        ]
    )


def several():
    a, b = tf_keras.Input((6,), name="a"), tf_keras.Input((4,), dtype="int32", name="b")
    embedded = L.Flatten()(L.Embedding(5, 3)(b))
    shared = L.Dense(6, activation="elu", name="shared")
    z = L.Concatenate()([shared(shared(a)), embedded])
    block = tf_keras.Sequential([L.InputLayer((18,)), L.Dense(4), L.PReLU()], name="block")
    return tf_keras.Model({"a": a, "b": b}, {"one": L.Dense(2)(block(z)), "two": block(z)})


def attention():
    inputs = tf_keras.Input((6, 8))
    x = L.MultiHeadAttention(2, 4)(inputs, inputs)
    x = L.SeparableConv1D(5, 3)(L.Add()([x, inputs]))
    return tf_keras.Model(inputs, L.Conv1DTranspose(4, 3, strides=2)(x))


MODELS = {f.__name__: f for f in (mnist, residual, operations, recurrent, several, attention)}


def lively(model):
    """Gives normalizations statistics of their own."""
    generator = np.random.default_rng(0)
    for layer in model.submodules:
        if isinstance(layer, L.BatchNormalization):
            shape = layer.moving_mean.shape
            layer.moving_mean.assign(generator.normal(size=shape) * 0.1)
            layer.moving_variance.assign(generator.uniform(0.5, 2, shape))
            layer.gamma.assign(generator.uniform(0.5, 1.5, shape))
    return model


def inputs_of(model, count=16):
    generator = np.random.default_rng(1)
    arrays = []
    for tensor in model.inputs:
        shape = (count, *tensor.shape[1:])
        if tensor.dtype.is_integer:
            arrays.append(generator.integers(0, 5, shape).astype("int32"))
        else:
            arrays.append(generator.random(shape).astype("float32"))
    names = [tensor.node.layer.name for tensor in model.inputs]
    return dict(zip(names, arrays, strict=True)) if len(arrays) > 1 else arrays[0]


def difference(old, new):
    x = inputs_of(old)
    with fake_quantizing_in_float(new):
        got = new.predict(x, verbose=0)
    wanted = old.predict(x, verbose=0)
    if not isinstance(wanted, dict):
        wanted, got = {"y": wanted}, {"y": got}
    return max(np.abs(wanted[key] - got[key]).max() for key in wanted)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_it_computes_the_same(make):
    old = lively(make())
    new = tfc.from_tf_keras(old)
    assert isinstance(new, keras.Model) and new.name == old.name
    assert isinstance(new, keras.Sequential) == isinstance(old, tf_keras.Sequential)
    assert difference(old, new) < 1e-5
    assert new.count_params() == old.count_params()
    assert "TF_USE_LEGACY_KERAS" not in os.environ


def mobilenet(size):
    make = tf_keras.applications.MobileNetV2
    return make((size, size, 3), 0.35, weights=None, classes=10, classifier_activation=None)


def test_mobilenet_v2_comes_over_and_is_exported(tmp_path):
    old = lively(
        tf_keras.applications.MobileNetV2(
            (64, 64, 3), 0.35, weights=None, classifier_activation=None
        )
    )
    new = tfc.from_tf_keras(old)
    assert difference(old, new) < 1e-5
    x = np.random.default_rng(0).random((32, 64, 64, 3)).astype("float32")
    result = tfc.export_tflite(new, tmp_path / "m.tflite", representative_dataset=x)
    assert result.float_tensors == []


def fitted(model, epochs=2):
    x = inputs_of(model, 128)
    y = np.arange(128) % model.output_shape[-1]
    from_logits = model.layers[-1].name != "quant_o"
    model.compile("adam", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits))
    model.fit(x, y, epochs=epochs, verbose=0)
    return model


def test_a_pruned_model_keeps_its_zeros(tfmot):
    old = tfmot.sparsity.keras.prune_low_magnitude(
        mnist(), pruning_schedule=tfmot.sparsity.keras.ConstantSparsity(0.5, 0, frequency=1)
    )
    x, y = inputs_of(old, 128), np.arange(128) % 10
    old.compile("adam", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    step = tfmot.sparsity.keras.UpdatePruningStep()
    old.fit(x, y, epochs=2, verbose=0, callbacks=[step])
    new = tfc.from_tf_keras(old)
    assert difference(old, new) < 1e-5
    assert [layer.name for layer in new.layers] == [
        layer.name.removeprefix("prune_low_magnitude_") for layer in old.layers
    ]
    assert abs((np.array(new.get_layer("d1").kernel) == 0).mean() - 0.5) < 0.01
    assert "TF_USE_LEGACY_KERAS" not in os.environ


def test_a_clustered_model_keeps_its_centroids(tfmot):
    cluster = tfmot.clustering.keras
    old = fitted(
        cluster.cluster_weights(
            residual(None),
            number_of_clusters=8,
            cluster_centroids_init=cluster.CentroidInitialization.KMEANS_PLUS_PLUS,
        )
    )
    new = tfc.from_tf_keras(old)
    stripped = cluster.strip_clustering(old)
    assert difference(stripped, new) < 1e-5
    ordinary = tfc.strip(new)
    assert len(np.unique(np.array(ordinary.get_layer("b").kernel))) <= 8
    before = [v.numpy() for v in new.trainable_variables if "centroids" in v.path]
    x = inputs_of(old, 32)
    new.compile("sgd", "mse")
    new.fit(x, np.zeros((32, *new.output_shape[1:])), verbose=0)
    after = [v.numpy() for v in new.trainable_variables if "centroids" in v.path]
    assert len(before) > 1 and any(
        np.abs(a - b).max() > 0 for a, b in zip(before, after, strict=True)
    )
    assert len(np.unique(np.array(tfc.strip(new).get_layer("b").kernel))) <= 9


@pytest.mark.parametrize("make", [mnist, residual], ids=["mnist", "residual"])
def test_a_quantization_aware_model_keeps_its_ranges(make, tfmot, tmp_path):
    # Ranges of tfmot start at 6 and -6 and move by a hundredth in a training step.
    old = fitted(tfmot.quantization.keras.quantize_model(lively(make())), epochs=80)
    new = tfc.from_tf_keras(old)
    assert difference(old, new) < 1e-5
    ranges = {r.name: (r.minimum, r.maximum) for r in tfc.histograms(new).ranges}
    for wrapper in old.layers:
        for name in ("output", "post_activation", "pre_activation"):
            values = {
                w.name.split("/")[-1][:-2]: float(w) for w in wrapper.weights if not w.shape.rank
            }
            if f"{name}_max" in values:
                limits = values[f"{name}_min"], values[f"{name}_max"]
                assert any(np.allclose(limits, other, atol=1e-6) for other in ranges.values())
    x = inputs_of(old, 64)
    result = tfc.export_tflite(new, tmp_path / "m.tflite", representative_dataset=x)
    assert result.trained and result.agreement.max_lsb <= 2.01
    # It trains on, and goes back to an ordinary model.
    new.compile("sgd", "mse")
    new.fit(x, np.zeros((64, new.output_shape[-1])), verbose=0)
    with pytest.warns(tfc.CompressionWarning, match="drops the activation ranges"):
        stripped = tfc.strip(new)
    assert type(stripped).__name__ == ("Sequential" if make is mnist else "Functional")
    assert {type(plain(layer)).__module__.split(".")[0] for layer in stripped.layers} == {"keras"}


@pytest.mark.slow
def test_a_quantization_aware_mobilenet(tfmot):
    aware = fitted(tfmot.quantization.keras.quantize_model(lively(mobilenet(32))), 1)
    new = tfc.from_tf_keras(aware)
    x = inputs_of(aware)
    wanted, got = aware.predict(x, verbose=0), new.predict(x, verbose=0)
    # Fifty layers deep, a sum that differs in the last bit may be rounded to another value.
    assert np.sqrt(np.mean((wanted - got) ** 2)) < 0.02 * wanted.std()


def test_how_a_layer_was_called_is_kept():
    import tensorflow as tf

    base = tf_keras.Sequential(
        [L.InputLayer((4,)), L.Dense(3), L.BatchNormalization()], name="base"
    )
    inputs = tf_keras.Input((4,))
    x = tf.maximum(base(inputs, training=False), 0.1)
    x = tf.matmul(x[:, None, :], x[:, None, :], transpose_b=True)[:, 0]
    old = lively(tf_keras.Model(inputs, tf.pow(x, y=2.0)))
    with pytest.warns(tfc.CompressionWarning, match="'base' is called with training=False"):
        new = tfc.from_tf_keras(old)
    given = np.random.default_rng(0).random((8, 4)).astype("float32")
    # Its statistics stay, in training as well.
    np.testing.assert_allclose(new(given, training=True), old(given, training=True), atol=1e-5)


def test_what_always_trains_is_refused():
    inputs = tf_keras.Input((4,))
    old = tf_keras.Model(inputs, L.Dropout(0.5, name="drop")(inputs, training=True))
    with pytest.raises(ValueError, match="'drop' is called with training=True"):
        tfc.from_tf_keras(old)


def test_statistics_that_were_learned_come_over():
    layer = L.Normalization()
    layer.adapt(np.random.default_rng(0).normal(3, 2, (50, 4)))
    old = tf_keras.Sequential([L.InputLayer((4,)), layer, L.Dense(2)])
    assert difference(old, tfc.from_tf_keras(old)) < 1e-5


def test_what_cannot_come_over_says_why():
    import tensorflow as tf

    with pytest.raises(TypeError, match="It is a Keras 3 model already"):
        tfc.from_tf_keras(keras.Sequential([keras.Input((2,))]))
    with pytest.raises(TypeError, match="must be a tf_keras model"):
        tfc.from_tf_keras("model.h5")
    with pytest.raises(ValueError, match="must be built"):
        tfc.from_tf_keras(tf_keras.Sequential([L.Dense(2)]))

    class Own(tf_keras.layers.Layer):
        def call(self, x):
            return x

    inputs = tf_keras.Input((4,))
    with pytest.raises(ValueError, match="is a Own, which Keras 3 does not have"):
        tfc.from_tf_keras(tf_keras.Model(inputs, Own(name="mine")(inputs)))
    odd = tf_keras.Model(inputs, tf.math.bessel_i0(inputs))
    with pytest.raises(ValueError, match=r"calls tf\.math\.bessel_i0"):
        tfc.from_tf_keras(odd)

    class Subclassed(tf_keras.Model):
        def call(self, x):
            return x

    model = Subclassed()
    model(np.ones((1, 2)))
    with pytest.raises(ValueError, match="is subclassed"):
        tfc.from_tf_keras(model)


def test_importing_tfcompress_leaves_keras_2_alone(python):
    python("""
import os, sys
import keras
import tfcompress as tfc
tfc.quantize(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
assert "tensorflow_model_optimization" not in sys.modules and "tf_keras" not in sys.modules
import tf_keras
old = tf_keras.Sequential([tf_keras.layers.Dense(3, input_shape=(4,))])
os.environ["TF_USE_LEGACY_KERAS"] = "0"
tfc.from_tf_keras(old)
assert os.environ["TF_USE_LEGACY_KERAS"] == "0"
""")
