"""describe_layer: custom layers are quantized as described."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import tfcompress as tfc
from tfcompress.graph import describe as custom
from tfcompress.graph.read import walk_layers


class Project(L.Layer):
    def build(self, shape):
        self.matrix = self.add_weight(shape=(shape[-1], 6), name="matrix")
        self.shift = self.add_weight(shape=(1, 6), name="shift")

    def call(self, x):
        return ops.matmul(x, self.matrix) + self.shift


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    monkeypatch.setattr(custom, "_DESCRIBED", {})


def net(layer):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((8,)), layer, L.ReLU(), L.Dense(3)])


def trained(model):
    x = np.random.default_rng(0).normal(size=(256, 8)).astype("float32")
    aware = tfc.quantize(model)
    aware.compile("adam", "mse")
    aware.fit(x, x[:, :3], epochs=3, verbose=0)
    return aware


def test_a_described_layer_is_as_exact_as_dense(tmp_path):
    tfc.describe_layer(Project, role="linear", channel_axes={"matrix": -1}, uncompressed=["shift"])
    aware = trained(net(Project(name="project")))
    result = tfc.export_tflite(aware, tmp_path / "m.tflite")
    assert not result.float_tensors
    assert result.agreement.max_lsb <= 1
    # The ReLU is fused: nothing is quantized between the accumulator and the ReLU.
    assert not any("project" in layer.name and "quantizer" in layer.name for layer in aware.layers)


def test_undescribed_its_code_is_read(tmp_path):
    aware = trained(net(Project(name="project")))
    assert any(path.startswith("project/matmul") for path, _ in walk_layers(aware))
    assert not tfc.export_tflite(aware, tmp_path / "m.tflite").float_tensors


def test_names_left_alone():
    tfc.describe_layer(Project, uncompressed=["matrix", "shift"])
    with pytest.raises(ValueError, match="matches no layer"):
        tfc.prune(net(Project(name="project")), 0.5, layers="project")


def test_it_holds_for_subclasses():
    class Special(Project):
        pass

    tfc.describe_layer(Project, role="linear")
    assert custom.description(Special()).role == "linear"


def test_wrong_arguments():
    with pytest.raises(ValueError, match="Did you mean 'linear'"):
        tfc.describe_layer(Project, role="linaer")
    with pytest.raises(TypeError, match="layer_class"):
        tfc.describe_layer(Project())
