"""Int8 and int16 activations in one file."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import tfcompress as tfc
from tests import nets
from tests.test_layers import INTEGER, samples
from tfcompress.export.agreement import measure
from tfcompress.quantization.state import quantizers
from tfcompress.tensorflow_internals import operation_details


def network():
    """Has what 16 bits have kernels for and what not, one after the other."""
    inputs = keras.Input((16, 16, 3), name="image")
    x = L.Conv2D(8, 3, padding="same", use_bias=False, name="c1")(inputs)
    x = L.ReLU(name="r1")(L.BatchNormalization(name="b1")(x))
    y = L.Conv2D(8, 1, name="c2")(L.DepthwiseConv2D(3, padding="same", name="d")(x))
    x = L.MaxPooling2D(name="pool")(L.Add(name="add")([x, y]))
    z = L.Conv2D(8, 3, padding="same", activation="swish", name="c3")(x)
    x = L.Concatenate(name="both")([x, z])
    x = L.AveragePooling2D(2, name="mean")(L.Conv2D(12, 3, activation="relu", name="c4")(x))
    x = L.Conv2DTranspose(6, 3, strides=2, name="up")(x)
    return keras.Model(inputs, L.Dense(10, name="out")(L.GlobalAveragePooling2D()(x)))


def trained(model, scheme):
    keras.utils.set_random_seed(0)
    coarse = np.random.default_rng(0).normal(size=(64, 4, 4, 3)).astype("float32")
    x = np.kron(coarse, np.ones((1, 4, 4, 1), "float32"))
    aware = tfc.quantize(model, scheme)
    aware.compile(keras.optimizers.SGD(1e-4), "mse")
    aware.fit(x, np.asarray(model(x)), batch_size=16, epochs=2, verbose=0)
    return aware


def types(path):
    """Returns the type of the output of each operation of a file, by the operation."""
    file = tfc.TFLiteModel(path, delegates=False).interpreter
    kinds = {d["index"]: d["dtype"].__name__ for d in file.get_tensor_details()}
    return [(op["op_name"], kinds[int(op["outputs"][0])]) for op in operation_details(file)]


def test_all_in_16_bits_but_what_has_no_kernel(tmp_path):
    aware = trained(network(), "int16x8")
    aware.save(tmp_path / "m.keras")
    aware = keras.models.load_model(tmp_path / "m.keras")
    result = tfc.export_tflite(aware, tmp_path / "m.tflite")
    assert (result.scheme, result.float_tensors) == ("int16x8", [])
    assert result.agreement.rmse < 0.005
    output_types = dict(types(result.path))  # the last of each
    assert output_types["LOGISTIC"] == output_types["CONCATENATION"] == "int8"
    for op in ("CONV_2D", "ADD", "MAX_POOL_2D", "AVERAGE_POOL_2D", "TRANSPOSE_CONV"):
        assert output_types[op] == "int16", op
    assert "CAST" not in output_types


@pytest.mark.filterwarnings("ignore:.*poor copy")
@pytest.mark.parametrize(
    "overrides, int16_count",
    [
        ({"c1": "int16x8", "b1": "int16x8"}, 1),
        ({"c?": "int16x8", "d": "int16x8", "add": "int16x8"}, 8),
        ({"c4": "int16x8", "out": "float32", "c3": "w4a8"}, 2),
    ],
    ids=["one", "most", "all kinds"],
)
def test_some_in_16_bits(overrides, int16_count, tmp_path):
    scheme = tfc.QuantizationScheme(overrides=overrides)
    result = tfc.export_tflite(trained(network(), scheme), tmp_path / "m.tflite")
    assert (
        result.agreement.rmse < 0.05
    )  # as in 8 bits: with few layers after them, quantization errors show
    computed = [op for op, kind in types(result.path) if kind == "int16" and op != "QUANTIZE"]
    assert len(computed) == int16_count, computed
    if "out" not in overrides:
        assert result.float_tensors == []


def enlarge(producer, consumer, factor):
    """Makes the first feature between two dense layers large and useless."""
    large = np.arange(producer.units) == 0
    producer.kernel.assign(np.where(large, factor, 1.0) * np.asarray(producer.kernel))
    consumer.kernel.assign(np.where(large, 0.0, 1.0)[:, None] * np.asarray(consumer.kernel))


@pytest.mark.filterwarnings("ignore:.*poor copy")
def test_a_tensor_has_16_bits_if_what_makes_it_has(tmp_path):
    """The hidden layer has a large feature that nothing needs: the others use few of 255 values."""
    keras.utils.set_random_seed(0)
    a, b = L.Dense(16, name="a"), L.Dense(4, name="b")
    model = keras.Sequential([keras.Input((8,)), a, b])
    enlarge(a, b, 30.0)
    x = np.random.default_rng(0).normal(size=(256, 8)).astype("float32")
    rmse = {}
    for names in ("", "a", "b", "ab"):
        scheme = tfc.QuantizationScheme(overrides=dict.fromkeys(names, "int16x8"))
        rmse[names] = tfc.export_tflite(
            model, tmp_path / "m.tflite", scheme=scheme, representative_dataset=x
        ).agreement.rmse
    assert rmse["ab"] < 0.1 * rmse[""]
    assert min(rmse["a"], rmse["b"]) > 0.8 * rmse[""]


KINDS = (
    "Conv1D causal; Conv2D in groups; Conv2DTranspose; DepthwiseConv1D; SeparableConv2D; Dense; "
    "EinsumDense; MultiHeadAttention; Embedding; GroupNormalization; BatchNormalization first; "
    "LeakyReLU; hard_swish; Add three; Subtract; Maximum; Concatenate; Dot; UpSampling2D; "
    "TimeDistributed; stack; called twice; squeeze and excite"
).split("; ")


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_layers(name, tmp_path):
    keras.utils.set_random_seed(1)
    model = INTEGER[name]()
    x = samples(model, 64, 0)
    aware = tfc.quantize(model, "int16x8")
    batch = list(x.values()) if len(x) > 1 else next(iter(x.values()))
    for _ in range(2):
        aware(batch, training=True)
    result = tfc.export_tflite(aware, tmp_path / "m.tflite")
    assert result.float_tensors == [], result.ops
    assert measure(aware, result.path, x).rmse < 0.01


def vectors(function):
    inputs = keras.Input((8,))
    return keras.Model(inputs, function(inputs))


ODD = {
    "matrices added": lambda x: L.Add()([L.Dense(8)(x), L.Dense(8)(x)]),
    "and a ReLU": lambda x: L.Dense(3)(L.ReLU()(L.Add()([L.Dense(6)(x), L.Dense(6)(x)]))),
    "clipped unevenly": lambda x: L.Dense(4)(ops.clip(L.Dense(16)(x), -0.1, 3.0)),
    "clipped at zero": lambda x: L.Dense(4)(ops.clip(L.Dense(16)(x), 0.0, 3.0)),
    "clipped evenly": lambda x: L.Dense(4)(ops.clip(L.Dense(16)(x), -2.0, 2.0)),
    "moved first": lambda x: L.Dense(4)(L.Flatten()(L.Reshape((2, 4))(x))),
    "averaged": lambda x: L.Dense(4)(L.Average()([L.Dense(6)(x), L.Dense(6)(x)])),
    "nested": lambda x: L.Dense(4)(keras.Sequential([keras.Input((8,)), L.Dense(8)])(x)),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_graphs(name, tmp_path):
    keras.utils.set_random_seed(0)
    model = vectors(ODD[name])
    x = 2 * np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    aware = tfc.quantize(model, "int16x8")
    aware(x, training=True)
    result = tfc.export_tflite(aware, tmp_path / "m.tflite")
    assert result.float_tensors == []
    if name == "averaged":  # the sum before the division is int8
        return
    assert all(quantizer.bits == 16 for quantizer in quantizers(aware))
    assert result.agreement.rmse < 0.001


@pytest.mark.filterwarnings("ignore:.*poor copy")
def test_casts_of_the_user_stay(tmp_path):
    for function in (
        lambda x: L.Dense(4)(ops.cast(ops.cast(L.Dense(16)(x), "int32"), "float32")),
        lambda x: ops.cast(L.Dense(16, use_bias=False)(x), "int32"),
    ):
        keras.utils.set_random_seed(0)
        model = vectors(function)
        x = 4 * np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
        scheme = tfc.QuantizationScheme(activation_bits=16)
        result = tfc.export_tflite(
            model, tmp_path / "m.tflite", scheme=scheme, representative_dataset=x
        )
        assert result.ops["CAST"] and result.agreement.rmse < 0.2


def test_strip_takes_all_of_it_out():
    model = network()
    with pytest.warns(tfc.CompressionWarning, match="drops the activation ranges"):
        stripped = tfc.strip(trained(model, tfc.QuantizationScheme(overrides={"c*": "int16x8"})))
    assert [layer.name for layer in stripped.layers] == [layer.name for layer in model.layers]


def test_precision_is_assigned_to_both_sides():
    """Where a tensor needs 16 bits, the layers that make it and read it get them, and no other."""
    keras.utils.set_random_seed(0)
    widths = {"a": 16, "b": 16, "c": 16, "d": 4}
    layers = [L.Dense(width, name=name) for name, width in widths.items()]
    model = keras.Sequential([keras.Input((8,)), *layers])
    enlarge(*layers[1:3], 100.0)
    x = np.random.default_rng(0).normal(size=(512, 8)).astype("float32")
    scheme = tfc.assign_precision(
        model, x, max_drop=0.03, candidates=("int8", "int16x8", "float32"), verbose=False
    )
    assert dict(scheme.overrides) == {"b": "int16x8", "c": "int16x8"}


def test_an_override_may_name_what_is_folded(tmp_path):
    result = tfc.export_tflite(
        network(),
        tmp_path / "m.tflite",
        scheme=tfc.QuantizationScheme(overrides={"c1": "int16x8", "b1": "int16x8"}),
        representative_dataset=np.random.default_rng(0).normal(size=(32, 16, 16, 3)),
    )
    assert ("CONV_2D", "int16") in types(result.path)


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match="activation_bits=16 needs weight_bits=8"):
        tfc.QuantizationScheme(4, activation_bits=16)
    with pytest.raises(ValueError, match="activation_bits must be 8 or 16"):
        tfc.QuantizationScheme(activation_bits=12)
    model = nets.tiny()
    with pytest.raises(ValueError, match="io_dtype='int8' is not possible where some layers"):
        tfc.export_tflite(
            model,
            tmp_path / "m.tflite",
            scheme=tfc.QuantizationScheme(overrides={"*": "int16x8"}),
            representative_dataset=nets.samples_for(model),
            io_dtype="int8",
        )
    assert not (tmp_path / "m.tflite").exists()
