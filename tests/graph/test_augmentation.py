"""Layers that do nothing at inference leave nothing in the file."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import tfcompress as tfc
from tests.agreeing import equals_its_file, trained
from tfcompress.graph.augmentation import trains_only

X = np.random.default_rng(0).uniform(0, 255, (48, 16, 16, 3)).astype("float32")


class DropPath(L.Layer):
    """Stochastic depth, as people write it themselves."""

    def __init__(self, rate=0.5, **kwargs):
        super().__init__(**kwargs)
        self.rate, self.seeds = rate, keras.random.SeedGenerator(0)

    def call(self, x, training=False):
        if not training:
            return x
        kept = keras.random.uniform((ops.shape(x)[0], 1, 1, 1), seed=self.seeds) > self.rate
        return ops.where(kept, x / (1 - self.rate), 0.0)

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}


AUGMENTED = {
    "before scaling": lambda: [L.RandomFlip(), L.RandomZoom(0.1), L.Rescaling(1 / 255)],
    "behind scaling": lambda: [L.Rescaling(1 / 255), L.RandomFlip(), L.RandomRotation(0.1)],
    "nested": lambda: [
        keras.Sequential([keras.Input((16, 16, 3)), L.RandomFlip(), L.RandomContrast(0.1)]),
        L.Rescaling(1 / 255),
    ],
    "Pipeline": lambda: [L.Pipeline([L.RandomFlip(), L.RandomRotation(0.1)]), L.Rescaling(1 / 255)],
    "own": lambda: [L.Rescaling(1 / 255), L.Conv2D(4, 3), DropPath()],
}


@pytest.mark.parametrize("name", AUGMENTED)
def test_nothing_is_left_of_it(name, tmp_path):
    keras.utils.set_random_seed(0)
    layers = [*AUGMENTED[name](), L.Conv2D(8, 3, activation="relu"), L.Flatten(), L.Dense(4)]
    model = keras.Sequential([keras.Input((16, 16, 3)), *layers])
    wanted = model.predict(X, verbose=0)
    equals_its_file(trained(tfc.quantize(model), X, wanted), X, tmp_path)
    result = tfc.export_tflite(model, tmp_path / "ptq.tflite", representative_dataset=X)
    assert result.float_tensors == []
    one, other = (str(tfc.layer_errors(model, result.path, X[:16])) for _ in range(2))
    assert one == other


def test_which_layers_these_are():
    inputs = keras.Input((8, 8, 3))
    for layer, is_identity in (
        (L.RandomFlip(), True),
        (L.Dropout(0.5), True),
        (DropPath(), True),
        (L.RandomCrop(6, 6), False),
        (L.AutoContrast(), False),
        (L.BatchNormalization(), False),
        (L.ReLU(), False),
    ):
        assert not trains_only(layer)  # nobody called it
        layer(inputs)
        assert trains_only(layer) is is_identity
