"""Checks that every weight transform, and every pair of them, must pass."""

import keras
import numpy as np

from tfcompress.wrap.strip import strip
from tfcompress.wrap.wrapper import CompressionWrapper


def check_transform(make, tmp_path, others=()):
    """Checks the transform that `make()` makes, alone and with each of `others`."""
    for companions in [(), *[(other,) for other in others]]:
        _check_combination([make, *companions], tmp_path)


def _check_combination(makers, tmp_path):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(16, 6)).astype("float32")
    y = generator.normal(size=(16, 4)).astype("float32")
    layer = CompressionWrapper(keras.layers.Dense(4, name="dense"), [make() for make in makers])
    model = keras.Sequential([keras.Input((6,)), layer])
    (weight, transforms), *_ = layer.pipelines()
    assert [t.order for t in transforms] == sorted(t.order for t in transforms)

    for transform in transforms:
        value = transform.call(keras.ops.convert_to_tensor(weight))
        assert value.shape == weight.shape
        if transform.keeps_zeros:
            zeros = keras.ops.zeros(weight.shape)
            assert not np.any(transform.call(zeros)), f"{transform} moves zeros"

    before = keras.ops.convert_to_numpy(weight).copy()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    history = model.fit(x, y, epochs=5, batch_size=8, verbose=0).history["loss"]
    assert np.isfinite(history).all() and history[-1] < history[0], "no gradient reaches the weight"
    assert np.any(keras.ops.convert_to_numpy(weight) != before)

    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    assert [t.get_config() for t in loaded.layers[0].transforms] == [
        t.get_config() for t in layer.transforms
    ]
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))

    stripped = strip(layer)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(stripped(x)), model.predict(x, verbose=0), atol=1e-5
    )
    used = keras.ops.convert_to_numpy(layer.effective_value(weight, transforms))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(stripped.kernel), used)
    masks = [keras.ops.convert_to_numpy(t.mask) for t in transforms if hasattr(t, "mask")]
    for mask in masks:
        assert not np.any(used[mask == 0]), "a later transform brought back a pruned weight"
