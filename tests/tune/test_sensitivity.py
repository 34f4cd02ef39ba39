import keras
import numpy as np
from keras import layers as L

import tfcompress as tfc


def test_a_layer_that_rounding_spoils_comes_first(tmp_path, capsys):
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(128, 8)).astype("float32")
    x[:, 0] = 0
    model = keras.Sequential(
        [keras.Input((8,)), L.Dense(8, name="a"), L.Dense(8, name="b"), L.Dense(4, name="c")]
    )
    kernel, bias = model.get_layer("a").get_weights()
    kernel[0] = 50  # multiplies an input that is always zero, and sets the scale
    model.get_layer("a").set_weights([kernel, bias])
    result = tfc.sensitivity(model, x)
    assert result.rows[0].layer == "a" and result.rows[0].sqnr < 20 < result.rows[-1].sqnr
    assert {(row.layer, row.candidate) for row in result.rows} == {
        (layer, scheme) for layer in "abc" for scheme in ("int8", "w4a8")
    }
    four, eight = (
        next(r.sqnr for r in result.rows if (r.layer, r.candidate) == ("c", scheme))
        for scheme in ("w4a8", "int8")
    )
    assert eight - four > 10  # 4 bits are about 24 dB
    assert "a" in str(result) and "dB" in capsys.readouterr().out
    result.plot(tmp_path / "s.png")
    assert (tmp_path / "s.png").stat().st_size > 1000
    only = tfc.sensitivity(model, x, candidates=["int8"], layers="b", verbose=False)
    assert [row.layer for row in only.rows] == ["b"]
