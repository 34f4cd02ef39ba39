import pytest

from tests import nets
from tfcompress.graph.read import walk_layers
from tfcompress.graph.select import select


@pytest.fixture
def layers():
    return list(walk_layers(nets.nested())) + list(walk_layers(nets.tiny()))


def test_each_form_of_selection(layers):
    assert select(layers, None) == {"block/inner", "head/out", "first", "second"}
    assert select(layers, "block/*") == {"block/inner"}
    assert select(layers, ["fir*", "second"]) == {"first", "second"}
    assert select(layers, lambda layer: layer.units == 3) == {"head/out", "second"}


def test_no_match_names_the_nearest(layers):
    with pytest.raises(ValueError, match=r"'blok/inner' matches no layer.*Nearest.*block/inner"):
        select(layers, "blok/inner")
    with pytest.raises(ValueError, match="'nothing'"):
        select(layers, ["first", "nothing"])
    with pytest.raises(ValueError, match="selects none"):
        select(layers, lambda layer: False)


@pytest.mark.parametrize("bad", [3, [], [1]])
def test_other_things_are_refused(layers, bad):
    with pytest.raises(TypeError, match="layers must be"):
        select(layers, bad)
