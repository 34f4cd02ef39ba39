"""The registry of lowering rules: stages, order, and rules registered twice."""

import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tfcompress.lowering import lowering_rules
from tfcompress.lowering.lower import lower
from tfcompress.lowering.lowering_rules import Stage, lowering_rule, rules_of


def test_every_stage_has_rules_and_each_says_what_it_does():
    for stage in Stage:
        rules = rules_of(stage)
        assert rules and all(rule.__doc__.strip().endswith(".") for rule in rules)
        assert len({rule.__name__ for rule in rules}) == len(rules)


def test_two_rules_of_one_order_are_refused():
    with pytest.raises(ValueError, match="has the order 10 already"):
        lowering_rule(Stage.WHOLE, 10)(lambda lowering, site: None)


def test_a_rule_of_a_smaller_order_is_tried_first(monkeypatch):
    monkeypatch.setattr(
        lowering_rules, "_RULES", {s: list(r) for s, r in lowering_rules._RULES.items()}
    )
    tried = []

    def second(lowering, site):
        tried.append("second")
        return keras.ops.multiply(lowering.clone(site.layer)(site.args[0]), 2.0)

    def first(lowering, site):
        tried.append("first")

    lowering_rule(Stage.OPERATION, 2)(second)
    lowering_rule(Stage.OPERATION, 1)(first)
    model = keras.Sequential([keras.Input((3,)), L.Dense(2)])
    lowered = lower(model)
    assert tried == ["first", "second"]
    x = keras.ops.ones((1, 3))
    assert keras.ops.max(keras.ops.abs(lowered(x) - 2 * model(x))) < 1e-6


def test_layers_with_equal_kernels(tmp_path):
    """As initializers with a seed make them for query, key and value of some attention layers."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 8))
    parts = [L.Dense(8, name=name) for name in ("query", "key", "value")]
    query, key, value = (part(inputs) for part in parts)
    for part in parts[1:]:
        part.kernel.assign(parts[0].kernel)
    scores = keras.ops.matmul(query, keras.ops.transpose(key, (0, 2, 1)))
    model = keras.Model(inputs, keras.ops.matmul(keras.ops.softmax(scores), value))
    x = np.random.default_rng(0).normal(size=(64, 6, 8)).astype("float32")
    aware = tfc.quantize(model)
    aware(x, training=True)
    result = tfc.export_tflite(aware, tmp_path / "m.tflite")
    assert result.float_tensors == [] and result.agreement.max_lsb == 0
