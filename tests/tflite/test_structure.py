"""Files with broken references are refused before native code reads them."""

import contextlib

import keras
import numpy as np
import pytest
from keras import layers as L
from tensorflow.lite.tools import flatbuffer_utils

import tfcompress as tfc
from tfcompress.tflite.structure import check_structure

X = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype("float32")


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "m.tflite"
    layers = [L.Conv2D(4, 3, activation="relu"), L.Flatten(), L.Dense(3)]
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
    tfc.export_tflite(model, path, representative_dataset=X)
    return path.read_bytes()


def no_operators(model):
    model.subgraphs[0].operators = []


def unknown_kind(model):
    model.subgraphs[0].operators[1].opcodeIndex = 99


def unknown_input(model):
    model.subgraphs[0].operators[1].inputs[0] = 999


def no_input(model):
    model.subgraphs[0].operators[1].inputs[0] = -1


def unknown_output(model):
    model.subgraphs[0].operators[1].outputs[0] = -1


def wrong_order(model):
    model.subgraphs[0].operators.reverse()


def unknown_buffer(model):
    model.subgraphs[0].tensors[0].buffer = 999


def negative_shape(model):
    model.subgraphs[0].tensors[0].shape = [1, -8, 8, 3]


def with_scales(model, several):
    for tensor in model.subgraphs[0].tensors:
        scales = tensor.quantization and tensor.quantization.scale
        if scales is not None and (len(scales) > 1) == several:
            return tensor
    raise AssertionError("there is none")


def too_many_scales(model):
    with_scales(model, True).quantization.scale = np.ones(99, np.float32)


def infinite_scale(model):
    with_scales(model, False).quantization.scale = np.array([np.inf], np.float32)


def other_options(model):
    model.subgraphs[0].operators[1].builtinOptionsType = 0
    model.subgraphs[0].operators[1].builtinOptions = None


def unknown_signature(model):
    model.signatureDefs[0].inputs[0].tensorIndex = 999


DAMAGES = (
    no_operators,
    unknown_kind,
    unknown_input,
    no_input,
    unknown_output,
    wrong_order,
    unknown_buffer,
    negative_shape,
    too_many_scales,
    infinite_scale,
    other_options,
    unknown_signature,
)


def test_a_good_file_passes(content):
    check_structure(content)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_what_is_not_there_is_named(damage, content, tmp_path):
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    damage(model)
    path = tmp_path / "bad.tflite"
    path.write_bytes(flatbuffer_utils.convert_object_to_bytearray(model))
    for function in (tfc.TFLiteModel, tfc.inspect_tflite):
        with pytest.raises(ValueError, match="is not a usable TFLite model"):
            function(path)


@pytest.mark.parametrize("seed", range(20))
def test_cut_or_changed_bytes_raise_nothing_else(seed, content):
    generator = np.random.default_rng(seed)
    bad = bytearray(content[: generator.integers(8, len(content))] if seed % 2 else content)
    for position in generator.integers(8, len(bad), 30):
        bad[position] = generator.integers(256)
    with contextlib.suppress(ValueError):
        check_structure(bytes(bad))
