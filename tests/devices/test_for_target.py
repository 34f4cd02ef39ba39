"""Schemes, ends and files for a target: refused or rewritten before training, checked after."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tests.cli.conftest import run

pytest.importorskip("tflite_micro")
pytest.importorskip("ethosu")

X = np.random.default_rng(0).random((32, 12, 12, 3)).astype("float32")


def net(activation="relu", up=False):
    inputs = keras.Input((12, 12, 3))
    x = L.Conv2D(8, 3, activation=activation)(inputs)
    x = L.UpSampling2D(2)(x) if up else x
    return keras.Model(inputs, L.Dense(4)(L.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize(
    ("scheme", "target", "message"),
    [
        (
            "w4a8",
            "ethos-u55",
            "scheme='w4a8' has weights of 4 bits, and 'ethos-u55' computes with 8",
        ),
        ("int16x8", "edgetpu", "activations of 16 bits.*Use scheme='int8'"),
        ("int8", "coreml", "weights of 8 bits.*16 or 32.*Use scheme='float32'"),
        (tfc.QuantizationScheme(overrides={"dense": "w4a8"}), "ethos-u85", r"overrides\['dense'\]"),
        ("int8", "tpu", "target must be one of 'xnnpack'.*Received: target='tpu'"),
    ],
)
def test_a_scheme_that_the_target_cannot_compute_is_refused_before_training(
    scheme, target, message
):
    with pytest.raises(ValueError, match=message):
        tfc.quantize(net(), scheme, target=target)


def test_what_tflite_micro_lacks_is_refused_before_training():
    with pytest.raises(tfc.ExportError, match="cannot run on tflite-micro") as error:
        tfc.quantize(net("gelu", up=True), target="tflite-micro")
    text = str(error.value)
    assert "conv2d" in text and "GELU: no kernel. What helps: another activation" in text
    assert text.count("TILE") == 1  # two of them with one reason


def test_the_forms_are_those_of_the_target(tmp_path):
    """`gelu` is computed in float by default; for the NPU it is an integer operation."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", tfc.CompressionWarning)
        model = tfc.quantize(net("gelu"), target="ethos-u55")
    model.compile("adam", "mse")
    model.fit(X, np.zeros((32, 4)), verbose=0)
    result = tfc.export_tflite(model, tmp_path / "m.tflite", target="ethos-u55-64")
    assert result.on_target.fits and result.on_target.target == "ethos-u55-64"
    assert tfc.TFLiteModel(result.path).inputs[0].dtype == "int8"
    assert "operations" in str(result)
    assert tfc.compile_ethos_u(result.path, "ethos-u55-64").share_on_npu == 1


def test_a_model_with_other_forms_is_warned_of(tmp_path):
    model = tfc.quantize(net("gelu"))
    model.compile("adam", "mse")
    model.fit(X, np.zeros((32, 4)), verbose=0)
    with pytest.raises(tfc.ExportError, match="cannot run on ethos-u55.*\n.*GELU: no kernel"):
        tfc.export_tflite(model, tmp_path / "m.tflite", target="ethos-u55")
    assert not [*tmp_path.iterdir()]  # nothing half-written


def test_what_an_npu_leaves_to_its_cpu_is_warned_of(tmp_path):
    inputs = keras.Input((12, 12, 3))
    x = L.DepthwiseConv2D(3, strides=4)(L.Conv2D(8, 3)(inputs))
    model = keras.Model(inputs, L.Conv2D(4, 1)(x))
    with pytest.warns(tfc.CompressionWarning, match="ethos-u55 takes .* in 2 parts") as caught:
        result = tfc.export_tflite(
            model, tmp_path / "m.tflite", representative_dataset=X, target="ethos-u55"
        )
    assert any(w.filename == __file__ for w in caught)
    assert [issue.operation for issue in result.on_target.issues] == ["DEPTHWISE_CONV_2D"]
    assert result.on_target.partitions == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "float32"}, "scheme='float32' has weights of 32 bits"),
        ({"io_dtype": "float32"}, "io_dtype='float32' is not possible for 'ethos-u85'"),
    ],
)
def test_floats_are_refused_where_only_integers_go(tmp_path, options, message):
    data = {} if "scheme" in options else {"representative_dataset": X}
    with pytest.raises(ValueError, match=message):
        tfc.export_tflite(net(), tmp_path / "m.tflite", target="ethos-u85", **data, **options)


def test_commands(tmp_path):
    net().save(tmp_path / "m.keras")
    np.savez(tmp_path / "d.npz", x=X)
    options = ("--data", tmp_path / "d.npz", "--target", "ethos-u55", "-o", tmp_path / "m.tflite")
    assert run("export", tmp_path / "m.keras", *options).exit_code == 0
    file = tmp_path / "m.tflite"
    assert run("check", file, "--target", "ethos-u55", "--predict").exit_code == 0
    assert run("check", file, "--target", "coreml").exit_code == 1
    assert "not verified" in run("check", file, "--target", "edgetpu").stdout
