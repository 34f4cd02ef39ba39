"""The INT8 file computes what the trained model does."""

import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tests import nets
from tfcompress.export.agreement import measure
from tfcompress.graph.keras_internals import producing_operation
from tfcompress.quantization.state import quantizers
from tfcompress.tflite.inspect import weights
from tfcompress.tflite.run import TFLiteModel

NAMES = list(nets.NETS)


def agreement(model, path, fashion):
    name = producing_operation(model.inputs[0]).name
    return measure(model, path, {name: fashion[2][:500]})


def is_exact(result):
    return result.max_lsb < 0.01


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    exports = {}

    def get(name):
        if name not in exports:
            aware = trained(name)[1]
            path = tmp_path_factory.mktemp("int8") / f"{name}.tflite"
            exports[name] = aware, tfc.export_tflite(aware, path)
        return exports[name]

    return get


@pytest.mark.parametrize("name", nets.some_slow(NAMES, ["depthwise"]))
def test_qat_files_agree_with_their_model(name, exported, fashion):
    aware, result = exported(name)
    result_agreement = agreement(aware, result.path, fashion)
    assert is_exact(result_agreement), result_agreement
    x, y = fashion[2:]
    accuracy = aware.evaluate(x, y, verbose=0)[1]
    assert abs(TFLiteModel(result.path).evaluate(x, y) - accuracy) <= 0.003


@pytest.mark.parametrize("name", NAMES)
def test_qat_files_are_integer_and_per_channel(name, exported):
    aware, result = exported(name)
    assert result.float_tensors == [] and result.trained and result.scheme == "int8"
    assert result.agreement.source == "training"
    stored = weights(TFLiteModel(result.path, delegates=False))
    kernels = {n: (v, s) for n, (v, s) in stored.items() if v.dtype == np.int8 and v.std()}
    assert len(kernels) == sum(bool(getattr(la, "transforms", None)) for la in aware.layers)
    for values, scales in kernels.values():
        depthwise = values.shape[0] == 1 and len(values.shape) == 4
        assert len(scales) == values.shape[-1 if depthwise else 0] > 1
        assert np.abs(values.astype(int)).max() == 127


@pytest.mark.parametrize("name", NAMES)
def test_the_check_sees_a_wrong_range(name, exported, fashion, tmp_path):
    """If one activation range of the exported copy is scaled by 1.2, the check fails."""
    aware, _ = exported(name)
    learned = [q for q in quantizers(aware) if q.fixed_range is None]
    quantizer = learned[-1]
    minimum, maximum = quantizer.range()
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(aware))
    copy.set_weights(aware.get_weights())
    changed = copy.get_layer(quantizer.name)
    changed.set_range(1.2 * minimum, 1.2 * maximum)
    path = tmp_path / "wrong.tflite"
    tfc.export_tflite(copy, path)
    assert not is_exact(agreement(aware, path, fashion))


@pytest.mark.parametrize("name", NAMES)
def test_ptq_loses_at_most_half_a_point(name, trained, fashion, tmp_path):
    model = trained(name)[0]
    x, y = fashion[2:]
    result = tfc.export_tflite(
        model, tmp_path / "ptq.tflite", representative_dataset=fashion[0][:300]
    )
    assert result.float_tensors == [] and not result.trained
    file = TFLiteModel(result.path)
    assert model.evaluate(x, y, verbose=0)[1] - file.evaluate(x, y) <= 0.005 + 1e-6


def test_pruned_weights_are_zero_in_the_file_at_the_same_places(fashion, tmp_path):
    x, y = fashion[0][:1280], fashion[1][:1280]
    schedule = tfc.PolynomialDecay(0.0, 0.75, 0, 20, frequency=5)
    model = tfc.quantize(tfc.prune(nets.residual(), schedule))
    nets.compiled(model).fit(x, y, epochs=2, batch_size=64, verbose=0)
    result = tfc.export_tflite(model, tmp_path / "m.tflite")
    stored = [v for v, _ in weights(TFLiteModel(result.path, delegates=False)).values()]
    for layer in model.layers:
        if not getattr(layer, "transforms", None):
            continue
        mask = keras.ops.convert_to_numpy(layer.weight_transforms[0].mask)
        # In TFLite output channels are the first axis.
        mask = np.moveaxis(mask, -1, 0)
        matching = [v for v in stored if v.shape == mask.shape and not v[mask == 0].any()]
        assert matching, f"no kernel of the file has the zeros of {layer.name}"
        # Quantization may add zeros, but not many.
        assert min(np.mean(v == 0) for v in matching) < np.mean(mask == 0) + 0.1
    assert result.report.sparsity >= 0.74


def test_averages_agree_to_the_bit(tmp_path):
    """Average pooling is modelled with its rounding of ties; there is no other layer."""
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.AveragePooling2D(2)])
    from tfcompress.quantization.placement import PlaceQuantizers

    aware = PlaceQuantizers(None).run(model)
    x = np.random.default_rng(0).uniform(-1, 3, (64, 8, 8, 3)).astype("float32")
    aware(x, training=True)
    result = tfc.export_tflite(aware, tmp_path / "m.tflite", representative_dataset=x)
    np.testing.assert_allclose(
        TFLiteModel(result.path).predict(x), aware.predict(x, verbose=0), atol=1e-5
    )


def transformer():
    """Reads an image row by row."""
    inputs = keras.Input((28, 28, 1), name="image")
    x = L.Dense(32, name="rows")(L.Reshape((28, 28))(inputs))
    for index in range(2):
        y = L.MultiHeadAttention(4, 8, name=f"attention{index}")(x, x)
        x = L.LayerNormalization()(L.Add()([x, y]))
        y = L.Dense(32)(L.Dense(64, activation="gelu")(x))
        x = L.LayerNormalization()(L.Add()([x, y]))
    return keras.Model(inputs, L.Dense(10)(L.Flatten()(x)))


def test_a_transformer_agrees(fashion, tmp_path):
    keras.utils.set_random_seed(3)
    x, y = fashion[0][:2000], fashion[1][:2000]
    model = nets.compiled(transformer())
    model.fit(x, y, epochs=3, batch_size=64, verbose=0)
    aware = nets.compiled(tfc.quantize(model), 3e-4)
    aware.fit(x, y, epochs=2, batch_size=64, verbose=0)
    result = tfc.export_tflite(aware, tmp_path / "m.tflite")
    result_agreement = agreement(aware, result.path, fashion)
    # One table entry of softmax or inverse root in a million is rounded the other way.
    assert result_agreement.rmse <= 0.005 and result_agreement.top1 >= 0.995, result_agreement
    assert result.float_tensors == []


def inception():
    """Branches of all kinds into one concatenation; one reads what others read as well."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = L.Conv2D(6, 3, padding="same", activation="relu")(inputs)
    branches = [
        L.Conv2D(4, 1, activation="relu")(x),
        L.Conv2D(5, 3, padding="same")(L.Conv2D(4, 1, activation="relu")(x)),
        L.MaxPooling2D(3, strides=1, padding="same")(x),
        L.Conv2D(3, 1, activation="relu6")(L.AveragePooling2D(3, strides=1, padding="same")(x)),
    ]
    return keras.Model(inputs, L.Concatenate()(branches))


def dense_block():
    """As in DenseNet: each concatenation is read by the next one and by a convolution."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = L.Conv2D(6, 3, padding="same")(inputs)
    for _ in range(3):
        y = L.Conv2D(4, 3, padding="same", activation="relu")(x)
        x = L.Concatenate()([x, y])
    return keras.Model(inputs, x)


def two_towers():
    """Flattened, dropped-out and padded tensors share the qparams of the concatenation."""
    image, facts = keras.Input((8, 8, 3), name="image"), keras.Input((5,), name="facts")
    x = L.Flatten()(L.MaxPooling2D()(L.Conv2D(4, 3, activation="relu")(image)))
    y = L.Dropout(0.3)(L.Dense(6)(facts))
    z = L.Concatenate()([L.Concatenate()([x, y]), facts, L.Activation("tanh")(y)])
    return keras.Model([image, facts], z)


@pytest.mark.parametrize("make", [inception, dense_block, two_towers])
def test_concatenations_agree_to_the_step(make, tmp_path):
    aware = tfc.quantize(make())
    generator = np.random.default_rng(0)
    for _ in range(4):
        x = {t.name: generator.normal(size=(64, *t.shape[1:])) for t in aware.inputs}
        aware(list(x.values()) if len(x) > 1 else x["image"], training=True)
    result = tfc.export_tflite(aware, tmp_path / "m.tflite", representative_dataset=x)
    assert result.float_tensors == []
    # One LSB, not zero: XNNPACK requantizes a branch with 8 bits of the ratio of scales.
    assert result.agreement.max_lsb <= 1.01 and result.agreement.rmse <= 0.02


@pytest.mark.parametrize("layers", ["c2", ["c1", "c2"], "hidden"])
def test_a_part_of_a_model_in_integers_agrees(layers, tmp_path):
    """What is not selected stays in float; the file changes back and forth where the model does."""
    aware = tfc.quantize(nets.dense() if layers == "hidden" else nets.conv(), layers=layers)
    generator = np.random.default_rng(0)
    for _ in range(4):
        x = generator.random((64, 28, 28, 1), dtype="float32")
        aware(x, training=True)
    result = tfc.export_tflite(aware, tmp_path / "m.tflite", representative_dataset=x)
    assert result.float_tensors and "int8" in result.dtypes
    assert result.agreement.rmse <= 0.02


def test_weights_between_quantized_layers_stay_float(tmp_path):
    aware = tfc.quantize(nets.conv(), layers=["c1", "d"])
    x = np.random.default_rng(0).random((64, 28, 28, 1), dtype="float32")
    aware(x, training=True)
    path = tmp_path / "m.tflite"
    result = tfc.export_tflite(aware, path, representative_dataset=x)
    stored = weights(TFLiteModel(path, delegates=False)).values()
    assert [v.dtype for v, _ in stored if v.size == 3 * 3 * 8 * 16] == [np.float32]
    assert result.ops["NEG"] == 1 and result.agreement.max_lsb <= 2.01
