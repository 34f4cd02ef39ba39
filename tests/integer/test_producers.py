"""At inference, a quantized model computes exactly the quantized values of its file."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import tfcompress as tfc
from tfcompress.graph.keras_internals import flatten_layers, producing_operation
from tfcompress.integer.affine import constant_operand
from tfcompress.integer.producers import LeakyRelu, MatrixProduct, Product, Requantized
from tfcompress.quantization.state import quantizers

IMAGE = (8, 8, 4)


class FakeQuantizer:
    """A quantizer with a scale and nothing else."""

    def __init__(self, scale):
        self.scale = np.float32(scale)

    def qparams(self):
        return self.scale, -128.0


def images(count=64, shape=IMAGE, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype("float32")


def observed(model, x=None):
    """Quantizes a model, and trains its ranges on two different batches."""
    aware = tfc.quantize(model)
    x = images(64, model.inputs[0].shape[1:]) if x is None else x
    for layer in flatten_layers(aware):
        if isinstance(layer, L.BatchNormalization):
            layer.trainable = False
    aware(x[:30], training=True)
    aware(x[30:], training=True)
    return aware


def check_equal(aware, path, seed=1):
    """Asserts that the outputs of file and model are equal for new data."""
    file = tfc.TFLiteModel(tfc.export_tflite(aware, path).path)
    x = images(256, aware.inputs[0].shape[1:], seed)
    expected = np.asarray(aware(x, training=False))
    assert expected.std() > 0
    np.testing.assert_array_equal(file.predict(x), expected)
    return x, expected


def uneven_batch_norm(layer, seed=0):
    generator = np.random.default_rng(seed)
    size = layer.gamma.shape
    layer.gamma.assign(generator.uniform(-1.5, 1.5, size))
    layer.beta.assign(generator.normal(size=size))
    layer.moving_mean.assign(generator.normal(size=size))
    layer.moving_variance.assign(generator.uniform(0.1, 2, size))


def block(x, filters, **options):
    x = L.Conv2D(filters, 3, padding="same", use_bias=False, **options)(x)
    return L.ReLU()(L.BatchNormalization()(x))


def network():
    """Convolutions, sums, means, a gate and a concatenation in sequence."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(IMAGE)
    x = block(inputs, 16)
    y = L.BatchNormalization()(L.DepthwiseConv2D(3, padding="same")(x))
    x = L.ReLU(6.0)(L.Add()([x, y]))
    gate = L.Conv2D(16, 1, activation="sigmoid")(L.GlobalAveragePooling2D(keepdims=True)(x))
    x = L.Multiply()([x, gate])
    y = L.MaxPooling2D()(x)
    z = L.Activation("silu")(L.Conv2D(8, 1)(y))
    x = L.Concatenate()([y, z, L.AveragePooling2D(2)(x)])
    x = L.Activation("hard_swish")(L.BatchNormalization()(x)) * 0.5 + 1.0
    outputs = L.Dense(10)(L.Flatten()(block(x, 8)))
    model = keras.Model(inputs, outputs)
    for number, layer in enumerate(model.layers):
        if isinstance(layer, L.BatchNormalization):
            uneven_batch_norm(layer, number)
    return model


@pytest.mark.parametrize("options", [{"run_eagerly": True}, {"jit_compile": False}, {}])
def test_a_network_equals_its_file_however_it_is_compiled(options, tmp_path):
    aware = observed(network())
    x, expected = check_equal(aware, tmp_path / "m.tflite")
    aware.compile("sgd", "mse", **(options or {"jit_compile": True}))
    np.testing.assert_array_equal(aware.predict(x, verbose=0), expected)


def test_a_saved_network_equals_its_file(tmp_path):
    aware = observed(network())
    aware.save(tmp_path / "m.keras")
    check_equal(keras.models.load_model(tmp_path / "m.keras"), tmp_path / "m.tflite")


def test_a_deep_network_equals_its_file(tmp_path):
    """A difference of one LSB would change every value after it."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 16, 3))
    x = block(inputs, 32)
    for _ in range(12):
        x = L.Add()([x, block(block(x, 32), 32)])
    model = keras.Model(inputs, L.Dense(10)(L.GlobalAveragePooling2D()(x)))
    check_equal(observed(model), tmp_path / "m.tflite")


def test_a_float_model_with_ranges_from_data_rounds_like_its_file(tmp_path):
    model = network()
    x = images()
    result = tfc.export_tflite(model, tmp_path / "m.tflite", representative_dataset=x)
    from tfcompress.post_training.pipeline import post_training
    from tfcompress.scheme import as_scheme

    name = producing_operation(model.inputs[0]).name
    aware = post_training(model, as_scheme("int8"), {name: x})
    test = images(seed=2)
    np.testing.assert_array_equal(
        tfc.TFLiteModel(result.path).predict(test), np.asarray(aware(test, training=False))
    )


def test_channels_without_weights(tmp_path, quiet):
    """All weights pruned, or scaled by zero: only the bias is left."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(IMAGE)
    conv, first, second = L.Conv2D(6, 3), L.BatchNormalization(), L.BatchNormalization()
    outputs = L.Dense(5)(L.Flatten()(second(L.ReLU()(first(conv(inputs))))))
    model = keras.Model(inputs, outputs)
    for layer in (first, second):
        uneven_batch_norm(layer)
    conv.kernel.assign(np.asarray(conv.kernel) * (np.arange(6) != 1))
    conv.bias.assign(np.linspace(-1, 1, 6))
    first.gamma.assign(np.asarray(first.gamma) * (np.arange(6) != 2))
    second.gamma.assign(np.asarray(second.gamma) * (np.arange(6) != 4))
    check_equal(observed(model), tmp_path / "m.tflite")


def test_pruned_and_four_bit_weights(tmp_path):
    model = tfc.prune(network(), 0.5)
    check_equal(observed(model), tmp_path / "m.tflite")


def test_equal_relus_of_one_tensor_are_one(tmp_path):
    """The converter merges them and fuses them into the layer before, with one range."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(IMAGE)
    x = L.BatchNormalization()(L.Conv2D(8, 3, padding="same")(inputs))
    parts = [L.Conv2D(4, 3)(L.Activation("relu")(x)) for _ in range(3)]
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(L.Concatenate()(parts))))
    aware = observed(model)
    check_equal(aware, tmp_path / "m.tflite")
    behind = [layer for layer in aware.layers if "activation" in layer.name]
    assert sum(layer in quantizers(aware) for layer in behind) == 1
    with pytest.warns(tfc.CompressionWarning, match="drops"):
        assert len(tfc.strip(aware).layers) == len(model.layers)


def test_what_is_moved_into_a_concatenation_keeps_its_grid_for_others(tmp_path):
    """The converter would give the pooled tensor the range of the concatenation for all readers."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(IMAGE)
    pooled = L.MaxPooling2D()(L.ReLU()(L.Conv2D(8, 3, padding="same")(inputs)))
    y = L.Conv2D(8, 3, padding="same")(L.ReLU()(L.BatchNormalization()(pooled)))
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(L.Concatenate()([pooled, y * 8.0]))))
    check_equal(observed(model), tmp_path / "m.tflite")


def test_nested_models(tmp_path):
    """A backbone that starts and ends with accumulations, and a nested model in it."""
    keras.utils.set_random_seed(0)
    inner_input = keras.Input((8, 8, 8))
    inner = keras.Model(inner_input, L.Conv2D(8, 3, padding="same")(block(inner_input, 8)))
    outer_input = keras.Input((8, 8, 8))
    outer = keras.Model(outer_input, L.Add()([outer_input, inner(outer_input)]))
    inputs = keras.Input(IMAGE)
    x = L.ReLU()(outer(L.ZeroPadding2D(0)(block(inputs, 8))))
    aware = observed(keras.Model(inputs, L.Dense(4)(L.Flatten()(x))))
    check_equal(aware, tmp_path / "m.tflite")


def called_on_itself(function):
    """A nested model whose second call has an input with another scale than the first."""

    def twice(x):
        inner = keras.Input(x.shape[1:])
        model = keras.Model(inner, function(inner))
        return model(model(x))

    return twice


GRAPHS = {
    "sum of a number, 3 axes": ((5, 6), lambda x: L.Dense(4)(x) * 2 + 1),
    "numbers alone": (IMAGE, lambda x: 1 - x / 3),
    "numbers and a square": (IMAGE, lambda x: ops.square(x + 2)),
    "a vector and a number": ((6,), lambda x: L.Dense(3)((x + 2) ** 2)),
    "hard swish of a product": (IMAGE, lambda x: L.Activation("hard_swish")(2 * x)),
    "difference, ReLU": (IMAGE, lambda x: L.ReLU()(L.Subtract()([x, L.Conv2D(4, 1)(x)]))),
    "product, ReLU": (IMAGE, lambda x: L.ReLU()(L.Multiply()([x, L.Conv2D(4, 1)(x)]))),
    "transposed, ReLU": (IMAGE, lambda x: L.ReLU()(L.Conv2DTranspose(4, 3)(x))),
    "transposed, normalized, ReLU": (
        IMAGE,
        lambda x: L.ReLU()(L.BatchNormalization()(L.Conv2DTranspose(4, 3, strides=2)(x))),
    ),
    "nested on itself": ((6,), called_on_itself(lambda x: x - L.Dense(6)(x))),
    "nested on itself, tanh": ((5, 6), called_on_itself(lambda x: ops.tanh(L.Dense(6)(x) * 3))),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_are_integers_and_equal_their_files(name, tmp_path):
    shape, function = GRAPHS[name]
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape)
    aware = observed(keras.Model(inputs, function(inputs)))
    check_equal(aware, tmp_path / "m.tflite")
    assert tfc.export_tflite(aware, tmp_path / "m.tflite").float_tensors == []


@pytest.mark.parametrize("scheme", ["int16x8", "tensor", "float16"])
def test_numbers_behind_layers_that_are_not_followed_to_the_bit(scheme, tmp_path):
    half = scheme == "float16"
    options = tfc.QuantizationScheme(weight_granularity="tensor") if scheme == "tensor" else "int8"
    keras.config.set_dtype_policy("mixed_float16" if half else "float32")
    try:
        keras.utils.set_random_seed(0)
        inputs = keras.Input(IMAGE)
        model = keras.Model(inputs, L.ReLU()(2 * L.Conv2D(3, 1)(inputs) + 1))
        aware = tfc.quantize(model, "int16x8" if scheme == "int16x8" else options)
        x = images()
        aware(x, training=True)
        result = tfc.export_tflite(aware, tmp_path / "m.tflite")
        assert result.float_tensors == [] and result.agreement.rmse < 0.01
    finally:
        keras.config.set_dtype_policy("float32")


def test_calling_a_model_symbolically_changes_nothing(tmp_path):
    aware = observed(network())
    before = [quantizer.producer for quantizer in quantizers(aware)]
    aware.compute_output_shape((1, *IMAGE))
    keras.Model(inputs := keras.Input(IMAGE, batch_size=1), aware(inputs))
    assert [quantizer.producer for quantizer in quantizers(aware)] == before
    check_equal(aware, tmp_path / "m.tflite")


def test_a_transformer_block(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 32))
    attended = L.MultiHeadAttention(2, 16)(inputs, inputs, use_causal_mask=True)
    x = L.LayerNormalization()(inputs + attended)
    y = L.Dense(32)(L.Dense(64, activation="gelu")(x))
    model = keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling1D()(L.Add()([x, y]))))
    aware = observed(model)
    file = tfc.TFLiteModel(tfc.export_tflite(aware, tmp_path / "m.tflite").path)
    x = images(256, (16, 32), 1)
    expected = np.asarray(aware(x, training=False))
    # One entry in thousands of the inverse roots and of softmax differs by one LSB.
    assert np.mean(file.predict(x) != expected) < 0.02


def test_inference_has_the_gradient_of_the_float_layers():
    import tensorflow as tf

    aware = observed(keras.Sequential([keras.Input((6,)), L.Dense(4, use_bias=False)]))
    x = tf.constant(images(8, (6,)) * 0.1)
    with tf.GradientTape() as tape:
        tape.watch(x)
        output_sum = tf.reduce_sum(aware(x, training=False))
    wrapper = next(layer for layer in aware.layers if isinstance(layer, tfc.CompressionWrapper))
    ((weight, transforms),) = wrapper.pipelines()
    kernel = np.asarray(wrapper.effective_value(weight, transforms))
    gradient = np.asarray(tape.gradient(output_sum, x))
    np.testing.assert_allclose(gradient, np.tile(kernel.sum(1), (8, 1)), rtol=1e-5)


def test_ranges_that_were_not_trained_change_nothing():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input(IMAGE), L.Conv2D(4, 3), L.ReLU()])
    aware = tfc.quantize(model)
    x = images()
    np.testing.assert_allclose(aware(x), model(x), atol=0.05)
    assert len(np.unique(np.asarray(aware(x)))) > 256


@pytest.mark.parametrize("ratio", [0.013, 0.4, 0.77, 1.9])
def test_moved_is_a_product_with_256ths(ratio):
    x = np.arange(-255, 256)
    quantized = Requantized(FakeQuantizer(ratio)).requantize(
        (x * np.float32(ratio)).astype("float32"), 1.0
    )
    np.testing.assert_array_equal(quantized, (x * round(ratio * 256) + 128) >> 8)


def test_leaky_has_a_ratio_for_each_sign():
    x = np.arange(-255, 256)
    values = np.where(x < 0, 0.3 * x, x).astype("float32") * np.float32(0.7)
    ratio = np.where(x < 0, round(np.float32(0.7) * 0.3 * 256), round(0.7 * 256))
    quantized = LeakyRelu(FakeQuantizer(0.7), 0.3).requantize(values, 1.0)
    np.testing.assert_array_equal(quantized, (x * ratio + 128) >> 8)


def test_products_are_rounded_to_the_nearest():
    generator = np.random.default_rng(0)
    a, b = generator.integers(-255, 256, (2, 10_000))
    s, t = np.float32(0.013), np.float32(0.021)
    values = (a * s).astype("float32") * (b * t).astype("float32")
    quantized = np.asarray(
        Product((FakeQuantizer(s), FakeQuantizer(t))).requantize(values, np.float32(0.05))
    )
    exact = a * b * (float(s * t) / float(np.float32(0.05)))
    np.testing.assert_allclose(quantized, exact, atol=0.5 + 1e-3)


def test_products_of_matrices_are_rounded_twice():
    """After the significand of the multiplier, ties up; after its power of two, away from zero."""
    accumulator = np.arange(-5000, 5001)
    s, t, scale = np.float32(0.03), np.float32(0.02), np.float32(0.25)
    values = (accumulator * (s * t)).astype("float32")
    quantized = MatrixProduct((FakeQuantizer(s), FakeQuantizer(t))).requantize(values, scale)
    digits, power = np.frexp(float(s * t / scale))
    first = np.floor(accumulator * digits + 0.5)
    second = np.sign(first) * np.floor(np.abs(first) * 2.0**power + 0.5)
    np.testing.assert_array_equal(quantized, second)


def test_constants_beside_an_operation():
    x, vector = keras.Input((3, 4)), keras.Input((4,))
    cases = {
        (2.0, 0.0): [x * 2, 2 * x, x / 0.5],
        (1.0, 3.0): [x + 3, 3 + x, x - -3.0],
        (-1.0, 5.0): [5.0 - x],
        None: [x + x, x * 1.0, x - 0, 1.0 / x, ops.maximum(x, 2.0), vector * 2],
    }
    for wanted, tensors in cases.items():
        for tensor in tensors:
            operand = constant_operand(producing_operation(tensor))
            assert operand == wanted, tensor


@pytest.mark.parametrize("merge", [L.Subtract, L.Multiply, L.Add, L.Maximum])
def test_a_nested_model_may_be_called_on_two_images(merge, tmp_path):
    """Both outputs have the same scale and are reshaped: the converter must not mix up scales."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(IMAGE)
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(6, 3, use_bias=False)(inputs)))
    encoder = keras.Model(inputs, L.GlobalAveragePooling2D()(x), name="encoder")
    a, b = keras.Input(IMAGE, name="a"), keras.Input(IMAGE, name="b")
    model = keras.Model([a, b], merge()([encoder(a), encoder(b)]))
    aware = tfc.quantize(model)
    aware([images(64), 2 * images(64, seed=1)], training=True)
    result = tfc.export_tflite(aware, tmp_path / "m.tflite")
    assert result.float_tensors == []
    assert result.ops.get("QUANTIZE", 0) == 2
    # The convolution reads tensors of two scales, so the model rounds its results in floats.
    assert result.agreement.max_lsb <= 2.001


def test_what_drops_channels_in_training_keeps_them_at_inference(tmp_path):
    """Behind spatial dropout, the accumulators of a concatenation are still known."""
    inputs = keras.Input(IMAGE)
    a, b = L.Conv2D(4, 3)(inputs), L.Conv2D(4, 3)(inputs)
    x = L.Concatenate()([L.SpatialDropout2D(0.2)(a), b])
    aware = tfc.quantize(keras.Model(inputs, L.Conv2D(3, 1)(x)))
    for quantizer in quantizers(aware):
        parts = getattr(quantizer.producer, "parts", ())
        assert all(producer is not None for producer, _ in parts)
    x = images(32)
    aware(x, training=True)
    assert tfc.export_tflite(aware, tmp_path / "m.tflite").agreement.max_lsb == 0


@keras.saving.register_keras_serializable("tests")
class Linked(L.Layer):
    """Has attributes with the names of ours."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.link = "next"
        self.output_quantizers = ("none",)

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 4), name="kernel")

    def call(self, x):
        return ops.matmul(x, self.kernel)


def test_attributes_of_others_mean_what_they_like():
    model = keras.Sequential([keras.Input((6,)), Linked(), L.Dense(2)])
    aware = tfc.quantize(model)
    aware(np.ones((4, 6), "float32"), training=True)
    assert aware(np.ones((1, 6), "float32")).shape == (1, 2)
