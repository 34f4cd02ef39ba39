import keras
import numpy as np
import pytest

from tests import nets
from tests.conftest import arrays
from tfcompress.graph.clone import Rewriter


@pytest.mark.parametrize("make", nets.GRAPHS.values(), ids=nets.GRAPHS)
def test_a_plain_rewriting_makes_an_equal_model(make):
    model = make()
    before = arrays(model)
    copy = Rewriter().run(model)
    assert type(copy) is type(model)
    assert copy.get_config() == model.get_config()
    x = nets.samples_for(model, 8)
    first, second = model.predict(x, verbose=0), copy.predict(x, verbose=0)
    keras.tree.map_structure(np.testing.assert_array_equal, first, second)
    for variable in copy.variables:
        variable.assign(variable + 1 if "float" in variable.dtype else variable)
    for old, now in zip(before, arrays(model), strict=True):
        np.testing.assert_array_equal(old, now)


def test_frozen_layers_stay_frozen():
    model = nets.tiny()
    model.layers[0].trainable = False
    copy = Rewriter().run(model)
    assert [layer.trainable for layer in copy.layers] == [False, True]
