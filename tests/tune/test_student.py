"""Students: sizes as asked, weights taken over, outputs of the teacher's shape."""

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tests import nets
from tfcompress.graph.cost import macs
from tfcompress.rewrite.depth import residual_blocks
from tfcompress.rewrite.separable import Separate


def residual_net(blocks=4, width=32, size=16):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((size, size, 3))
    x = keras.layers.Conv2D(width, 3, padding="same", name="stem")(inputs)
    for index in range(blocks):
        y = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
        y = keras.layers.Conv2D(width, 3, padding="same", name=f"conv{index}")(y)
        x = keras.layers.Add(name=f"block{index}")([x, y])
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
    return keras.Model(inputs, keras.layers.Dense(10, name="logits")(x))


def test_width_is_the_share_of_every_layer():
    model = residual_net()
    small = tfc.student(model, 0.5)
    convolutions = [layer for layer in small.layers if hasattr(layer, "filters")]
    assert [layer.filters for layer in convolutions] == [16] * 5
    assert small.outputs[0].shape == model.outputs[0].shape
    assert model.get_layer("stem").filters == 32
    kept = small.get_layer("logits").kernel  # rows of the big model's
    rows = {tuple(row) for row in np.asarray(model.get_layer("logits").kernel)}
    assert all(tuple(row) in rows for row in np.asarray(kept))
    assert [layer.filters for layer in tfc.student(model, 0.4, round_to=8).layers[1:2]] == [16]


def test_depth_is_the_share_of_the_blocks_that_can_go():
    model = residual_net(4)
    names = [block.name for block in residual_blocks(tfc.student(model, 1.0, depth=0.5))]
    assert names == ["block1", "block2"]  # the ends go, evenly
    assert residual_blocks(tfc.student(model, 1.0, depth=0.0)) == []
    with pytest.warns(tfc.CompressionWarning, match="none of the 4"):
        assert len(residual_blocks(tfc.student(model, 1.0, depth=0.9))) == 4
    plain = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="has none that can"):
        tfc.student(plain, depth=0.5)


def test_separable_kernels_are_the_nearest_ones():
    """A kernel that is a depthwise separable one is found again: the outputs are the same."""
    generator = np.random.default_rng(0)
    inputs = keras.Input((8, 8, 6))
    layer = keras.layers.Conv2D(12, 3, 2, padding="same", activation="relu", name="conv")
    model = keras.Model(inputs, layer(inputs))
    spatial, factors = generator.normal(size=(3, 3, 6, 1)), generator.normal(size=(6, 12))
    layer.set_weights([spatial * factors[None, None], generator.normal(size=12)])
    separable = Separate({"conv"}).run(model)
    x = generator.normal(size=(4, 8, 8, 6)).astype("float32")
    np.testing.assert_allclose(separable(x), model(x), atol=1e-5)
    names = [type(part).__name__ for part in separable.layers[1:]]
    assert names == ["DepthwiseConv2D", "Conv2D"]
    assert separable.count_params() == 9 * 6 + 6 * 12 + 12


def test_all_at_once_and_trained_by_its_teacher():
    model = residual_net(3, size=24)
    small = tfc.student(model, 0.5, 0.67, resolution=16, separable=True)
    assert small.inputs[0].shape == (None, 16, 16, 3)
    assert macs(small) < macs(model) / 20
    wide = tfc.student(model, 0.5, 0.67, separable=True)
    distiller = tfc.Distiller(model, wide, alpha=1.0)
    distiller.compile("adam")
    x = np.random.default_rng(0).normal(size=(32, 24, 24, 3)).astype("float32")
    history = distiller.fit(x, epochs=5, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]


def test_a_nested_model_takes_what_its_caller_does():
    inner = residual_net(1, size=8)
    features = keras.Model(inner.inputs, inner.layers[-2].output, name="inside")
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.AveragePooling2D(2)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(features(x)))
    small = tfc.student(model, 1.0, resolution=32)
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    assert small(x).shape == (2, 2)


def test_a_nested_model_that_is_called_twice_takes_both_sizes():
    inner = residual_net(1, size=16)
    inputs = keras.Input((16, 16, 3)), keras.Input((16, 16, 3))
    model = keras.Model(inputs, keras.layers.Add()([inner(x) for x in inputs]))
    small = tfc.student(model, 1.0, resolution=24)
    x = np.random.default_rng(0).normal(size=(2, 24, 24, 3)).astype("float32")
    assert small([x, x]).shape == (2, 10)


def test_a_resolution_that_the_model_does_not_take():
    layers = [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(2)]
    with pytest.raises(ValueError, match="images of its own size only"):
        tfc.student(keras.Sequential(layers), 1.0, resolution=4)
    with pytest.raises(ValueError, match="resolution is a height and a width"):
        tfc.student(residual_net(), resolution=(1, 2, 3))
    for wrong in ({"width": 0}, {"width": 1.5}, {"depth": -0.1}, {"width": True}):
        with pytest.raises(ValueError, match="is the share that stays"):
            tfc.student(residual_net(), **wrong)


@pytest.mark.parametrize("name", ["conv", "residual"])
def test_students_of_usual_nets_go_into_a_file(name, tmp_path):
    model = nets.NETS[name]()
    small = tfc.student(model, 0.5, separable=True)
    shape = (16, *model.inputs[0].shape[1:])
    x = np.random.default_rng(0).random(shape).astype("float32")
    result = tfc.export_tflite(small, tmp_path / "m.tflite", representative_dataset=x)
    assert not result.float_tensors and small.count_params() < 0.6 * model.count_params()
