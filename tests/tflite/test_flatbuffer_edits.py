import copy

import keras
import numpy as np
from keras import layers as L
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.tools import flatbuffer_utils

import tfcompress as tfc
from tfcompress.tflite.flatbuffer_edits import without_copies


def two_of_a_kind(units, tmp_path):
    """Returns a float file with two equal kernels, each stored for itself, and its samples."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((units,))
    model = keras.Model(inputs, L.Dense(units)(L.Dense(units, "tanh")(inputs)))
    model.layers[2].set_weights(model.layers[1].get_weights())
    tfc.export_tflite(model, tmp_path / "m.tflite", metadata=False)
    parts = flatbuffer_utils.convert_bytearray_to_object(
        bytearray((tmp_path / "m.tflite").read_bytes())
    )
    graph = parts.subgraphs[0]
    first, last = (op for op in graph.operators if len(op.inputs) == 3)
    assert first.inputs[1] == last.inputs[1]  # the converter merged the two
    kernel, buffer = copy.copy(graph.tensors[first.inputs[1]]), type(parts.buffers[0])()
    buffer.data = parts.buffers[kernel.buffer].data
    parts.buffers.append(buffer)
    kernel.buffer = len(parts.buffers) - 1
    graph.tensors.append(kernel)
    last.inputs[1] = len(graph.tensors) - 1
    apart = bytes(flatbuffer_utils.convert_object_to_bytearray(parts))
    return apart, np.random.default_rng(0).normal(size=(8, units)).astype("float32")


def buffers(content):
    view = schema.Model.GetRootAsModel(content, 0)
    sizes = (view.Buffers(i).DataLength() for i in range(view.BuffersLength()))
    return sorted(size for size in sizes if size)


def test_large_constants_that_are_alike_are_stored_once(tmp_path):
    content, x = two_of_a_kind(32, tmp_path)
    assert buffers(content).count(32 * 32 * 4) == 2
    merged = without_copies(content)
    assert buffers(merged).count(32 * 32 * 4) == 1
    assert len(merged) < len(content) - 3000
    before, after = (tfc.TFLiteModel(c).predict(x) for c in (content, merged))
    np.testing.assert_array_equal(before, after)


def test_a_file_is_not_written_anew_for_a_few_bytes(tmp_path):
    content, _ = two_of_a_kind(3, tmp_path)
    assert buffers(content).count(36) == 2
    assert without_copies(content) is content
