import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tests import nets
from tfcompress.tflite.io_tensors import CollectedOutput
from tfcompress.tflite.run import accuracy


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A small quantized classifier as files of every kind, with the Keras model."""
    folder = tmp_path_factory.mktemp("files")
    keras.utils.set_random_seed(0)
    model = tfc.quantize(nets.tiny())
    x = nets.samples_for(model, 64)
    model(x, training=True)
    files = {}
    for io_dtype in ("float32", "int8", "uint8"):
        path = folder / f"{io_dtype}.tflite"
        tfc.export_tflite(model, path, io_dtype=io_dtype, representative_dataset=x)
        files[io_dtype] = path
    tfc.export_tflite(nets.two_by_two(), folder / "two.tflite")
    files["two"] = folder / "two.tflite"
    tfc.export_tflite(nets.tiny(), folder / "open.tflite", batch_size=None)
    files["open"] = folder / "open.tflite"
    return model, x, files


def test_integer_inputs_and_outputs_are_converted_for_the_user(exported):
    model, x, files = exported
    outputs = {
        name: tfc.TFLiteModel(files[name]).predict(x) for name in ("float32", "int8", "uint8")
    }
    scale = tfc.TFLiteModel(files["int8"]).outputs[0].scale
    assert scale > 0 and outputs["int8"].dtype == np.float32
    for got in outputs.values():
        assert np.abs(got - model.predict(x, verbose=0)).max() <= 2.01 * scale
    np.testing.assert_allclose(outputs["int8"], outputs["float32"], atol=1e-5)


def test_names_shapes_and_types(exported):
    model = tfc.TFLiteModel(exported[2]["int8"])
    (input_info,), (output_info,) = model.inputs, model.outputs
    assert (input_info.dtype, input_info.shape, output_info.shape, output_info.name) == (
        "int8",
        (1, 6),
        (1, 3),
        "second",
    )
    assert tfc.TFLiteModel(exported[2]["float32"]).inputs[0].dtype == "float32"


def test_several_inputs_and_outputs_go_by_name(exported):
    model = tfc.TFLiteModel(exported[2]["two"])
    assert {i.name for i in model.inputs} == {"a", "b"}
    assert {o.name for o in model.outputs} == {"main", "side"}
    x = nets.samples_for(nets.two_by_two(), 5)
    outputs = model.predict(x)
    assert outputs["main"].shape == (5, 3) and outputs["side"].shape == (5, 1)
    with pytest.raises(ValueError, match="single output"):
        model.evaluate(x, np.zeros(5))


def test_two_outputs_that_are_one_tensor(tmp_path):
    inputs = keras.Input((6,))
    scores = L.Dense(3, name="scores")(inputs)
    model = keras.Model(inputs, [scores, scores, L.Dense(2, name="more")(scores)])
    x = nets.samples_for(model, 32)
    tfc.export_tflite(model, tmp_path / "m.tflite", representative_dataset=x)
    outputs = tfc.TFLiteModel(tmp_path / "m.tflite").predict(x)
    assert len(outputs) == 3
    np.testing.assert_array_equal(outputs["scores"], outputs["scores_1"])


def test_an_open_batch_takes_any_number(exported):
    model = tfc.TFLiteModel(exported[2]["open"])
    assert model.inputs[0].shape == (None, 6)
    x = nets.samples_for(nets.tiny(), 150)
    together = model.predict(x)
    one_by_one = np.concatenate([model.predict(x[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(together[:5], one_by_one, atol=1e-6)
    assert model.benchmark(runs=3, warmup=1).median_ms > 0
    assert model.predict(x).shape == (150, 3)


def test_tf_data_and_evaluate(exported):
    import tensorflow as tf

    model, x, files = exported
    file = tfc.TFLiteModel(files["int8"])
    y = file.predict(x).argmax(-1)
    y[:16] = (y[:16] + 1) % 3
    assert file.evaluate(x, y) == 0.75
    assert file.evaluate(x, np.eye(3)[y]) == 0.75
    assert file.evaluate(tf.data.Dataset.from_tensor_slices((x, y)).batch(10)) == 0.75
    with pytest.raises(ValueError, match="y is missing"):
        file.evaluate(x)
    with pytest.raises(ValueError, match="y has 3 labels for 64 samples"):
        file.evaluate(x, y[:3])


def test_accuracy_of_one_unit():
    assert accuracy(np.array([[0.2], [0.9]]), [0, 1]) == 1.0
    assert accuracy(np.array([[-2.0], [0.4]]), [0, 1]) == 1.0
    assert accuracy(np.array([[-2.0], [0.4]]), [[1], [1]]) == 0.5


def test_benchmark_and_arena(exported):
    file = tfc.TFLiteModel(exported[2]["int8"], num_threads=2)
    result = file.benchmark(runs=20, warmup=2)
    assert 0 < result.p10_ms <= result.median_ms <= result.p90_ms
    assert (result.runs, result.threads) == (20, 2) and "ms" in str(result)
    # Input, hidden and output must fit, and little more is needed.
    assert 8 <= file.arena_bytes() < 4096


def test_arena_of_a_known_net(tmp_path):
    """One 3x3 convolution: input and output are alive at once, 4 bytes a number."""
    model = keras.Sequential([keras.Input((32, 32, 8)), L.Conv2D(8, 1)])
    result = tfc.export_tflite(model, tmp_path / "m.tflite")
    both = 2 * 32 * 32 * 8 * 4
    assert both <= result.report.arena_bytes <= 1.1 * both + 4096


BAD = {
    "missing": (lambda p: p / "none.tflite", FileNotFoundError, "No such file"),
    "not a model": (lambda p: _written(p, b"hello, this is text"), ValueError, "lacks the mark"),
    "empty": (lambda p: _written(p, b""), ValueError, "not a TFLite model"),
    "a number": (lambda p: 3, TypeError, "path_or_bytes"),
}


def _written(folder, content):
    path = folder / "bad.tflite"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("make", "error", "message"), BAD.values(), ids=BAD)
def test_bad_files_are_refused(make, error, message, tmp_path):
    with pytest.raises(error, match=message):
        tfc.TFLiteModel(make(tmp_path))


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
def test_a_truncated_file_is_refused(exported, keep):
    content = exported[2]["int8"].read_bytes()
    with pytest.raises(ValueError, match="not a usable TFLite model"):
        tfc.TFLiteModel(content[: int(len(content) * keep)])


def test_threads_must_be_a_number(exported):
    with pytest.raises(ValueError, match="num_threads must be an integer >= 1. Received: 0"):
        tfc.TFLiteModel(exported[2]["int8"], 0)


def test_imports_without_tensorflow(python):
    out = python("""
import sys
for name in ("tensorflow", "keras", "wrapt", "rich"):
    sys.modules[name] = None
import tfcompress.tflite.run
import tfcompress
print(tfcompress.TFLiteModel.__name__)
""")
    assert out.strip() == "TFLiteModel"


def test_importing_the_package_is_light(python):
    out = python("""
import sys, tfcompress
print([m for m in ("tensorflow", "keras", "matplotlib") if m in sys.modules])
""")
    assert out.strip() == "[]"


def test_outputs_whose_first_axis_is_not_the_batch():
    collected = CollectedOutput(5)
    for value, batch in ((np.zeros((2, 3)), 2), (np.ones((2, 3)), 1), (np.ones((2, 3)), 2)):
        collected.add(value, batch)
    assert collected.array().shape == (6, 3) and collected.array()[:2].max() == 0
    whole = CollectedOutput(3)
    for value in (np.zeros((2, 3)), np.ones((2, 3))):
        whole.add(value, 2)
    np.testing.assert_array_equal(whole.array()[:, 0], [0, 0, 1])
