"""The lists of targets: what they say, and that they say what the tools do."""

import json

import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tests.devices.conftest import export
from tfcompress.devices.check import check_target, predicted
from tfcompress.devices.facts import facts_of
from tfcompress.devices.micro_file import MicroFile
from tfcompress.devices.target import _FOLDER, TARGETS, target_named
from tfcompress.tensorflow_internals import flatbuffer_schema

EXACT = tfc.QuantizationScheme(prefer="exactness", activation_range="min_max", correct_bias=False)


def odd(x):
    """Strides, kernels and sizes at limits of the NPUs, and operations that some lack."""
    x = L.Conv2D(6, 3, strides=4, padding="same", activation="relu")(x)
    x = L.UpSampling2D(4, interpolation="bilinear")(x)
    x = L.DepthwiseConv2D(3, strides=2)(x)
    x = L.AveragePooling2D(9, strides=1, padding="same")(x)
    x = keras.ops.maximum(x, keras.ops.flip(x, axis=1))
    x = L.Activation("selu")(x)
    x = x[:, ::2, 1:, :]
    x = L.Conv2DTranspose(4, 3, strides=3)(x)
    x = keras.ops.mean(x, axis=-1, keepdims=True) * x
    return L.Softmax(axis=-1)(L.Permute((2, 1, 3))(x))


@pytest.fixture(scope="module")
def odd_file(tmp_path_factory):
    return export(tmp_path_factory.mktemp("odd") / "m.tflite", odd, scheme=EXACT)[0]


@pytest.mark.parametrize("target", ["tflite-micro", "ethos-u55", "ethos-u65", "ethos-u85"])
def test_lists_agree_with_the_tools_on_every_operation(odd_file, gelu_file, integer_file, target):
    pytest.importorskip("tflite_micro")
    pytest.importorskip("ethosu")
    for path in (odd_file, gelu_file, integer_file[0]):
        said, done = (tfc.check_target(path, target, tool=tool) for tool in (False, True))
        assert [i.index for i in said.issues] == [i.index for i in done.issues]
        assert said.partitions == done.partitions and said.operations == done.operations
    assert not tfc.check_target(odd_file, target, tool=False).fits


@pytest.mark.parametrize("name", TARGETS)
def test_every_list_is_whole(name):
    target = target_named(name)
    kinds = {k for k in vars(flatbuffer_schema().BuiltinOperator) if not k.startswith("_")}
    assert {*target.operations} <= kinds | {"ethos-u", "DECODE"} | {"RELU_0_TO_1"}
    assert target.others in ("", "tflite-micro", "xnnpack") and target.partition.endswith(".")
    assert target.source and target.date and target.needs["io_dtypes"]
    assert {*target.changes} <= {*kinds}
    content = json.loads((_FOLDER / f"{name}.json").read_text())
    known = {"kind", "types", "weights", "bias", "inputs", "rank", "when", "why"}
    known |= {"batch", "depth", "height", "width", "area", "open_sizes", "constant_weights"}
    known |= {"constant_bias", "constant_parameters", "per_axis", "weight_scales", "same_scales"}
    known |= {"kernel_height", "kernel_width", "kernel_area", "stride", "strides", "dilation"}
    known |= {"padding", "weight_sum", "activation", "keeps_batch", "is_depth", "reduced"}
    known |= {
        "reduced_axis",
        "reduces_depth",
        "smallest_axis",
        "pads",
        "scaling",
        "resizes",
        "largest_scaling",
        "scales_by_powers",
    }
    known |= {"align_corners", "half_pixel_centers", "strides_over_image", "axis_is_batch"}
    limits = [*content.get("limits", ())]
    limits += [x for o in content.get("operations", {}).values() for x in o.get("limits", ())]
    for limit in limits:
        assert {*limit} | {*limit.get("when", {})} <= known, limit


def test_facts(odd_file):
    file = MicroFile(odd_file)
    facts = [facts_of(file, graph, operator) for graph, operator in file.operators]
    by_kind = {each["kind"]: each for each in facts}
    conv = by_kind["CONV_2D"]
    assert (conv["strides"], conv["kernel_area"], conv["padding"]) == ([4, 4], 9, "SAME")
    assert (conv["types"], conv["weights"], conv["bias"]) == ("int8", "int8", "int32")
    assert conv["constant_weights"] and conv["weight_scales"] == "channel"
    weights = next(t for t in file.graphs[0].tensors if list(t.shape) == [6, 3, 3, 8])
    values = np.frombuffer(bytes(file.objects.buffers[weights.buffer].data), np.int8)
    assert conv["weight_sum"] == abs(values.reshape(6, -1).astype(int)).sum(1).max()
    assert by_kind["RESIZE_BILINEAR"]["scaling"] == [4, 4]
    assert by_kind["QUANTIZE"]["types"] in ("float32 > int8", "int8")
    slices = [each for each in facts if each["kind"] == "STRIDED_SLICE"]
    assert all(each["strides_over_image"] for each in slices)
    assert by_kind["TRANSPOSE"]["order"] == [0, 2, 1, 3]


def test_a_broken_limit_is_named():
    target = target_named("ethos-u55")
    facts = {"kind": "DEPTHWISE_CONV_2D", "types": "int8", "weights": "int8", "stride": 4}
    assert target.reason_against(facts) == "stride is 4, not <=3"
    assert target.reason_against({**facts, "stride": 3}) == ""
    assert "weights of 8 bits (weights is int4" in target.reason_against(
        {**facts, "weights": "int4"}
    )
    assert target.reason_against({"kind": "ATAN2", "types": "float32"}) == "no such operation"


def test_the_edge_tpu_leaves_all_behind_the_first():
    add, gelu = {"kind": "ADD", "types": "int8"}, {"kind": "GELU", "types": "int8"}
    reasons = predicted(target_named("edgetpu"), [add, gelu, add])
    assert reasons == ["", "no such operation", "is behind one not taken"]


def test_softmax_over_many_classes(tmp_path):
    """Found on nets with 1,000 classes: the kernel of tflite-micro aborts."""
    pytest.importorskip("tflite_micro")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, L.Dense(600, activation="softmax")(inputs))
    x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
    path = tmp_path / "m.tflite"
    tfc.export_tflite(model, path, scheme=EXACT, representative_dataset=x, io_dtype="int8")
    for tool in (False, True):
        (issue,) = check_target(path, "tflite-micro", tool=tool).issues
        assert issue.operation == "SOFTMAX" and "logits" in issue.change
