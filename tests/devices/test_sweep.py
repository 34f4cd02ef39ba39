"""Every kind of layer on tflite-micro and on an Ethos-U: none crashes, and what lacks is named."""

import numpy as np
import pytest

import tfcompress as tfc
from tests import test_layers

pytest.importorskip("tflite_micro")
pytest.importorskip("ethosu")

LACKS = {
    **dict.fromkeys(
        (name for name in test_layers.INTEGER if "3D" in name and "Upsampling" not in name),
        "STRIDED_SLICE",  # of five axes
    ),
    "Embedding": "SELECT",
    "gelu": "GELU",
    "selu": "SELECT",
    "exponential": "EXP",
    "UpSampling2D": "TILE",
}
SCHEME = tfc.QuantizationScheme(activation_range="min_max", correct_bias=False, prefer="exactness")


@pytest.mark.slow
@pytest.mark.parametrize("name", test_layers.INTEGER)
def test_a_layer(name, tmp_path):
    path = tmp_path / "m.tflite"
    _, data = test_layers.exported(name, SCHEME, path)
    few = {key: value[:4] for key, value in data.items()}
    result = tfc.run_micro(path, few)
    if result.missing:
        assert [*result.missing] == [LACKS[name]]
    else:
        expected = tfc.TFLiteModel(path).predict(few)
        pairs = [(expected, result.outputs)]
        if isinstance(expected, dict):
            pairs = [(value, result.outputs[key]) for key, value in expected.items()]
        for one, other in pairs:
            assert np.abs(one - other).max() < 0.02 * np.ptp(one)
    compiled = tfc.compile_ethos_u(path)
    kinds = [kind for kind, _, _ in compiled.reasons]
    assert {kind: kinds.count(kind) for kind in kinds} == compiled.on_cpu
    assert 0 < compiled.share_on_npu <= 1 or len(compiled.on_cpu) == compiled.operations
