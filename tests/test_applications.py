"""Every family of keras.applications puts out as a file what it does in Keras."""

import keras
import numpy as np
import pytest

import tfcompress as tfc
from benchmarks.applications_int8 import MODELS, SIZES, build
from tfcompress.export.agreement import measure
from tfcompress.graph.keras_internals import flatten_layers, producing_operation

QUICK = ("MobileNetV3Small",)


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]
)
def test_the_file_equals_the_model(name, tmp_path):
    size = SIZES.get(name, 64)
    aware = tfc.quantize(build(name, size))
    for layer in flatten_layers(aware):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    generator = np.random.default_rng(0)
    # Blobs of many sizes: as smooth as photographs, and no two batches alike.
    coarse = [generator.uniform(0, 255, (48, n, n, 3)) for n in (2, 5, 16)]
    x = np.mean([keras.ops.image.resize(c, (size, size)) for c in coarse], axis=0)
    x = x.astype("float32")
    aware(x[:16], training=True)
    aware(x[16:32], training=True)
    result = tfc.export_tflite(aware, tmp_path / "m.tflite", verify=False)
    assert result.float_tensors == []
    name = producing_operation(aware.inputs[0]).name
    result_agreement = measure(aware, result.path, {name: x[32:]})
    # Bit-exact, unless an accumulator is within 1e-7 of the middle of two quantized values.
    assert result_agreement.rmse < 0.02, result_agreement
