"""Families of KerasHub, built small, become INT8 files that put out what their models do."""

import numpy as np
import pytest

import tfcompress as tfc
from benchmarks.kerashub_families import FAMILIES, built
from benchmarks.kerashub_int8 import shape_of, with_ranges
from tests.nets import some_slow
from tfcompress.export.agreement import measure
from tfcompress.graph.keras_internals import producing_operation

pytest.importorskip("keras_hub", reason="KerasHub needs Python 3.11")

QUICK = ("Bert", "DeiT", "Llama", "MobileNet", "RetinaNet", "ViTDet")
"""Six of different kind, in the default tests."""
REFUSED = "SAM"  # an input has a size of 0, of which the runtime makes another shape
UNREAD = {
    "DebertaV3": "calls tf.gather",
    "XLNet": "reverses the batch",
    "Moonshine": "computes its mask in TensorFlow",
    "DepthAnything": "resizes in TensorFlow",
    "T5": "casts its mask",
}
"""What stays in float, in part."""
LOOSE = {
    "DepthAnything": 0.1,
    "DINOV3": 0.05,
    "FNet": 0.06,
    "Gemma": 0.08,
    "Qwen3": 0.06,
    "SigLIP": 0.05,
    "VAE": 0.2,
    "ViTDet": 0.05,
}
"""RMSE to the model, of what computes in more than the integers that the model knows."""


@pytest.mark.parametrize(
    "name",
    some_slow(
        [name for name in FAMILIES if name != REFUSED],
        [name for name in FAMILIES if name not in (*QUICK, REFUSED)],
    ),
)
def test_the_file_equals_the_model(name, quiet, tmp_path):
    model, draw = built(name)
    generator = np.random.default_rng(1)
    x, probes = draw(generator, 32), draw(generator, 8)
    aware = with_ranges(tfc.quantize(model, input_shape=shape_of(x)), x)
    result = tfc.export_tflite(aware, tmp_path / "m.tflite", verify=False)
    if name not in UNREAD:
        assert result.float_tensors == []
    if not isinstance(probes, dict):
        probes = {producing_operation(aware.inputs[0]).name: probes}
    assert measure(aware, result.path, probes).rmse <= LOOSE.get(name, 0.02)


@pytest.mark.slow
def test_a_broken_file_is_refused(tmp_path):
    model, _ = built(REFUSED)
    with pytest.raises(tfc.ExportError, match="is broken"):
        tfc.export_tflite(model, tmp_path / "m.tflite")
    assert list(tmp_path.iterdir()) == []
