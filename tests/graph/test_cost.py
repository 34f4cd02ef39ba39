import keras
import pytest
from keras import layers as L

import tfcompress as tfc
from tests import nets
from tfcompress.demo.models import resnet
from tfcompress.graph.cost import macs, parameters

CASES = {
    "dense": (L.Dense(4), (6,), 24),
    "dense on positions": (L.Dense(4), (5, 6), 120),
    "conv": (L.Conv2D(4, 3), (8, 8, 2), 6 * 6 * 3 * 3 * 2 * 4),
    "conv with stride": (L.Conv2D(4, 3, 2, padding="same"), (8, 8, 2), 4 * 4 * 3 * 3 * 2 * 4),
    "grouped": (L.Conv2D(4, 3, groups=2), (8, 8, 2), 6 * 6 * 3 * 3 * 1 * 4),
    "depthwise": (L.DepthwiseConv2D(3), (8, 8, 2), 6 * 6 * 9 * 2),
    "separable": (L.SeparableConv2D(4, 3), (8, 8, 2), 6 * 6 * (9 * 2 + 2 * 4)),
    "transposed": (L.Conv2DTranspose(4, 3, 2), (8, 8, 2), 8 * 8 * 9 * 2 * 4),
    "conv1d": (L.Conv1D(4, 3), (8, 2), 6 * 3 * 2 * 4),
    "einsum": (L.EinsumDense("abc,cd->abd", (None, 7)), (5, 6), 5 * 6 * 7),
    "lstm": (L.LSTM(4), (5, 3), 5 * (3 * 16 + 4 * 16)),
    "embedding": (L.Embedding(10, 4), (5,), 0),
    "pooling": (L.MaxPooling2D(), (8, 8, 2), 0),
}


@pytest.mark.parametrize(("layer", "shape", "wanted"), CASES.values(), ids=CASES)
def test_macs_of_each_layer(layer, shape, wanted):
    assert macs(keras.Sequential([keras.Input(shape), layer])) == wanted


def test_the_demo_teacher_has_the_size_it_is_known_by():
    assert parameters(resnet()) == resnet().count_params() == 78_426


@pytest.mark.parametrize("make", nets.GRAPHS.values(), ids=nets.GRAPHS)
def test_wrapping_changes_no_cost(make):
    model = make()
    wrapped = tfc.quantize(tfc.prune(model, 0.5))
    assert parameters(wrapped) == parameters(model) == model.count_params()
    assert macs(wrapped) == macs(model)


def test_shared_layers_weigh_once_and_work_twice():
    assert parameters(nets.shared()) == 42
    assert macs(nets.shared()) == 72
