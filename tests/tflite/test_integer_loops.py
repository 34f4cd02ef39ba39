"""What a pass of a loop hands to the next stays in integers."""

import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tfcompress.tensorflow_internals import flatbuffer_schema
from tfcompress.tflite import convert, integer_loops
from tfcompress.tflite.parts import objects_of


def before_and_after(layer, tmp_path, monkeypatch, io_dtype="float32", **inputs):
    """Returns two files of a model, without and with integers in its loop."""
    contents = []

    def carried(content):
        contents[:] = [content, integer_loops.carry_integers(content)]
        return contents[1]

    monkeypatch.setattr(convert, "carry_integers", carried)
    keras.utils.set_random_seed(0)
    x = keras.Input((20, 5), **inputs)
    x_test = np.random.default_rng(0).normal(size=(32, 20, 5)).astype("float32")
    tfc.export_tflite(
        keras.Model(x, layer(x)),
        tmp_path / "m.tflite",
        representative_dataset=x_test,
        io_dtype=io_dtype,
    )
    return contents


def run(content, values):
    model = tfc.TFLiteModel(content)
    interpreter = model.interpreter
    outputs = []
    for value in values:
        interpreter.set_tensor(model.inputs[0].index, value[None])
        interpreter.invoke()
        outputs.append([interpreter.get_tensor(info.index).copy() for info in model.outputs])
    return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]


WAYS = {
    "the last output": lambda: L.LSTM(4),
    "every output": lambda: L.GRU(4, return_sequences=True),
    "both": lambda: L.LSTM(4, return_sequences=True, return_state=True),
}


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("io_dtype", ["float32", "int8"])
def test_the_values_are_the_same(name, io_dtype, tmp_path, monkeypatch):
    before, after = before_and_after(WAYS[name](), tmp_path, monkeypatch, io_dtype)
    x = np.random.default_rng(1).normal(size=(16, 20, 5)).astype("float32")
    if io_dtype == "int8":
        x = np.clip(np.round(50 * x), -128, 127).astype("int8")
    for one, other in zip(run(before, x), run(after, x), strict=True):
        np.testing.assert_array_equal(one, other)
        assert len(np.unique(one)) > 10
    assert len(after) < len(before)


@pytest.mark.parametrize("name", WAYS)
def test_loops_hold_no_floats(name, tmp_path, monkeypatch):
    before, after = before_and_after(WAYS[name](), tmp_path, monkeypatch)
    float32 = flatbuffer_schema().TensorType.FLOAT32
    counts = [
        sum(t.type == float32 for graph in objects_of(content).subgraphs[1:] for t in graph.tensors)
        for content in (before, after)
    ]
    assert counts[0] > 0 and counts[1] == 0


def test_files_without_loops_stay_as_they_are(tmp_path):
    inputs = keras.Input((5,))
    x = np.random.default_rng(0).normal(size=(32, 5)).astype("float32")
    model = keras.Model(inputs, L.Dense(3)(inputs))
    path = tfc.export_tflite(model, tmp_path / "m.tflite", representative_dataset=x).path
    with open(path, "rb") as file:
        content = file.read()
    assert integer_loops.carry_integers(content) is content
