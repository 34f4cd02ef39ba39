import json
import subprocess
import sys
import venv
import zipfile

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tests import nets
from tfcompress.tflite.metadata import read_metadata, write_metadata

NAMES = ["cat", "dog", "bird"]


def image_model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3), name="photo")
    x = keras.layers.Conv2D(4, 3, activation="relu", name="c")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="kind")(x), name="animals")


def exported(tmp_path, **options):
    return tfc.export_tflite(
        image_model(),
        tmp_path / "m.tflite",
        representative_dataset=np.random.default_rng(0).random((16, 8, 8, 3)),
        **options,
    )


def test_a_file_says_how_it_was_made_and_checked(tmp_path):
    result = exported(tmp_path, labels=NAMES, normalization=(127.5, 127.5))
    metadata = tfc.inspect_tflite(result.path).metadata
    assert metadata["scheme"] == "int8" and metadata["ranges"] == "measured"
    assert metadata["labels"] == {"labels.txt": NAMES}
    assert metadata["normalization"] == {"photo": [[127.5], [127.5]]}
    assert abs(metadata["agreement"]["rmse"] - result.agreement.rmse) < 1e-4
    assert metadata["versions"]["tfcompress"] == tfc.__version__
    text = str(result)
    for part in ("3: cat, dog, bird", "(x - 127.5) / 127.5", "agreed with its model", "made with"):
        assert part in text
    with zipfile.ZipFile(result.path) as archive:  # as `unzip` sees it
        assert json.loads(archive.read("tfcompress.json"))["scheme"] == "int8"
    assert result.bytes == (tmp_path / "m.tflite").stat().st_size


def test_the_recipe_names_what_the_weights_went_through(tmp_path):
    schedule = tfc.ConstantSparsity(0.5, 0)
    model = tfc.quantize(tfc.prune(nets.tiny(), schedule, pattern="2:4"))
    model(nets.samples_for(model, 32), training=True)
    result = tfc.export_tflite(model, tmp_path / "m.tflite")
    mask, rounding = result.report.metadata["weights"]
    assert mask["transform"] == "MagnitudeMask" and mask["pattern"] == "2:4"
    assert "target_sparsity=0.5" in mask["schedule"] and mask["weights"] == 2
    assert rounding["transform"] == "FakeQuant" and rounding["bits"] == 8
    assert result.report.metadata["ranges"] == "trained"


def test_metadata_changes_nothing_but_the_size(tmp_path):
    x = np.random.default_rng(1).random((8, 8, 8, 3))
    with_it = exported(tmp_path, labels=NAMES)
    outputs = tfc.TFLiteModel(with_it.path).predict(x)
    without = exported(tmp_path, metadata=False)
    assert without.report.metadata is None and with_it.bytes - without.bytes < 1500
    np.testing.assert_array_equal(outputs, tfc.TFLiteModel(without.path).predict(x))


def test_the_same_model_makes_the_same_file(tmp_path):
    model, x = image_model(), np.random.default_rng(0).random((16, 8, 8, 3))
    files = []
    for name in "ab":
        path = tmp_path / f"{name}.tflite"
        tfc.export_tflite(model, path, representative_dataset=x, labels=NAMES)
        files.append(path.read_bytes())
    assert files[0] == files[1]


def test_several_inputs_and_outputs(tmp_path):
    result = tfc.export_tflite(
        nets.two_by_two(),
        tmp_path / "m.tflite",
        labels={"main": NAMES, "side": ["one"]},
        normalization={"b": ([0.0] * 4, [2.0] * 4)},
    )
    metadata = result.report.metadata
    assert metadata["labels"] == {"labels_main.txt": NAMES, "labels_side.txt": ["one"]}
    assert metadata["normalization"] == {"b": [[0.0] * 4, [2.0] * 4]}


BAD = {
    "too few": (dict(labels=["cat"]), ValueError, "each of the 3 channels of output 'kind'"),
    "a string": (dict(labels="cat"), TypeError, "list of strings"),
    "numbers": (dict(labels=[1, 2, 3]), TypeError, "list of strings"),
    "unknown output": (dict(labels={"kin": NAMES}), ValueError, "names the output 'kin'"),
    "no pair": (dict(normalization=3), TypeError, r"pair \(mean, deviation\)"),
    "channels": (dict(normalization=([0, 0], [1, 1])), ValueError, "for its 3 channels"),
    "deviation": (dict(normalization=(0, 0)), ValueError, "deviations above 0"),
    "unknown input": (dict(normalization={"x": (0, 1)}), ValueError, "has: 'photo'"),
    "not asked for": (dict(labels=NAMES, metadata=False), ValueError, "are metadata"),
}


@pytest.mark.parametrize(("options", "kind", "message"), BAD.values(), ids=BAD)
def test_wrong_metadata_is_refused(options, kind, message, tmp_path):
    with pytest.raises(kind, match=message):
        tfc.export_tflite(image_model(), tmp_path / "m.tflite", **options)
    with pytest.raises(ValueError, match="dict by output where there are several"):
        tfc.export_tflite(nets.two_by_two(), tmp_path / "m.tflite", labels=NAMES)


def test_other_files_have_none():
    assert read_metadata(b"no zip") is None
    assert read_metadata(write_metadata(b"", {"scheme": "int8"}))["scheme"] == "int8"


def test_the_reader_of_the_tools_for_phones_understands_it(tmp_path, python):
    """tflite-support's own, in an environment of its own."""
    if sys.version_info >= (3, 12):
        pytest.skip("tflite-support has no wheels for Python above 3.11")
    folder = tmp_path / "reader"
    venv.create(folder, with_pip=True)
    executable = folder / "bin" / "python"
    needs = ["tflite-support==0.4.4", "numpy<2"]
    install = [executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:", *needs]
    if subprocess.run(install, capture_output=True).returncode:
        pytest.skip("tflite-support cannot be installed here: no package registry")
    result = exported(tmp_path, labels=NAMES, normalization=([1, 2, 3], [4, 5, 6]))
    code = f"""
from tflite_support import metadata
reader = metadata.MetadataDisplayer.with_model_file({result.path!r})
print(reader.get_metadata_json())
"""
    try:
        described = json.loads(python(code, executable=executable))
    except AssertionError as error:
        if "libusb" in str(error):
            pytest.skip("tflite-support needs Debian's libusb-1.0-0")
        raise
    assert described["name"] == "animals" and described["min_parser_version"] == "1.0.0"
    (graph,) = described["subgraph_metadata"]
    (photo,), (kind,) = graph["input_tensor_metadata"], graph["output_tensor_metadata"]
    assert photo["name"] == "photo" and kind["name"] == "kind"
    assert photo["content"]["content_properties"] == {"color_space": "RGB"}
    assert photo["process_units"] == [
        {
            "options_type": "NormalizationOptions",
            "options": {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0]},
        }
    ]
    assert kind["associated_files"] == [{"name": "labels.txt", "type": "TENSOR_AXIS_LABELS"}]
