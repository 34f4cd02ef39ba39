import keras
import pytest

import tfcompress as tfc
from tests import nets


def test_tells_bits_sparsity_target_step_and_cost():
    schedule = tfc.PolynomialDecay(0.0, 0.5, 0, 2, frequency=1)
    model = tfc.quantize(tfc.prune(nets.tiny(), schedule, layers="first"))
    for _ in range(3):
        model(nets.samples_for(model), training=True)
    summary = tfc.summary(model)
    first = next(layer for layer in summary.layers if layer.path == "first")
    second = next(layer for layer in summary.layers if layer.path == "second")
    assert (first.bits, first.sparsity, first.target, first.step) == (8, 0.5, 0.5, 3)
    assert (second.bits, second.target, second.step) == (8, None, None)
    assert (first.parameters, first.macs) == (56, 48)
    assert (summary.parameters, summary.macs) == (83, 72)
    assert summary.quantizers == summary.trained_quantizers == 3
    text = str(summary)
    assert "50.0%" in text and "3 activation quantizers, 3 with a range" in text


def test_a_plain_model_and_unknown_work():
    inputs = keras.Input((5, 4))
    model = keras.Model(inputs, keras.layers.GroupQueryAttention(3, 4, 2)(inputs, inputs))
    row = tfc.summary(model).layers[0]
    assert row.macs is None and row.bits == 32
    assert "?" in str(tfc.summary(model))


def test_shared_layers_have_one_row():
    rows = [layer for layer in tfc.summary(nets.shared()).layers if layer.path == "twice"]
    assert len(rows) == 1 and rows[0].macs == 72 and rows[0].parameters == 42


def test_refuses_what_is_no_model():
    with pytest.raises(TypeError, match="must be a Keras 3 model"):
        tfc.summary("model")
