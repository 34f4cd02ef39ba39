"""Float inputs that hold indices of words or categories are not quantized."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import tfcompress as tfc
from tfcompress.errors import CompressionWarning
from tfcompress.quantization.activation_quantizer import ActivationQuantizer

WORDS = 5000


def plain(x):
    return L.Flatten()(L.Embedding(WORDS, 4)(x))


def nested(x):
    inside = keras.Sequential([keras.Input((6,)), L.Embedding(WORDS, 4), L.Flatten()])
    return L.Dense(8, activation="relu")(inside(x))


def masked(x):
    kept = ops.cast(ops.not_equal(x, 0), "float32")
    return ops.sum(L.Embedding(WORDS, 4)(x) * kept[:, :, None], axis=1)


def shifted(x):
    return L.Flatten()(L.Embedding(WORDS, 4)(x - 1.0))


def beside_numbers(x):
    """A row of two categories and of measured values."""
    first = L.Embedding(WORDS, 4)(x[:, 0])
    second = L.Embedding(WORDS, 3)(ops.cast(x[:, 1], "int32"))
    joined = L.Concatenate()([first, second, x[:, 2:]])
    return L.Dense(8, activation="relu")(joined)


class Positions(L.Layer):
    """Words and their positions, as in the examples of Keras."""

    def __init__(self, count, width, **kwargs):
        super().__init__(**kwargs)
        self.words = L.Embedding(WORDS, width)
        self.positions = L.Embedding(count, width)

    def call(self, x):
        return self.words(x) + self.positions(ops.arange(0, ops.shape(x)[-1]))


class Opaque(L.Layer):
    """Looks words up in a layer that cannot be expanded, because it has its own weights."""

    def build(self, shape):
        self.words = L.Embedding(WORDS, 4)
        self.words.build(shape)
        self.gain = self.add_weight(shape=(), initializer="ones")

    def call(self, x):
        return self.words(x) * self.gain


FLOATS = {"masked": 1, "shifted": 2, "beside_numbers": 3, "Opaque": 2}
"""Number of float tensors allowed: those computed or sliced from a float input."""

MODELS = {
    "plain": plain,
    "nested": nested,
    "masked": masked,
    "shifted": shifted,
    "beside_numbers": beside_numbers,
    "Positions": lambda x: L.Flatten()(Positions(6, 4)(x)),
    "Opaque": lambda x: L.Flatten()(Opaque()(x)),
}


def rows(count, name=""):
    generator = np.random.default_rng(0)
    x = generator.integers(1, WORDS, (count, 6)).astype("float32")
    if name == "beside_numbers":
        x[:, 2:] = generator.normal(size=(count, 4))
    if name == "masked":
        x[:, 3:] *= generator.integers(0, 2, (count, 3))
    return x


@pytest.mark.parametrize("name", MODELS)
def test_trained_and_measured_models_look_up_the_same_rows(name, tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    model = keras.Model(inputs, L.Dense(4)(MODELS[name](inputs)))
    x = rows(128, name)
    y = model.predict(x, verbose=0)
    aware = tfc.quantize(model)
    aware.compile(keras.optimizers.SGD(0.0), "mse")
    aware.fit(x, y, batch_size=128, epochs=1, verbose=0)
    assert np.std(aware.predict(x, verbose=0) - y) < 0.03 * np.std(y)
    trained = tfc.export_tflite(aware, tmp_path / "trained.tflite")
    assert trained.agreement.rmse < 1e-3
    assert len(trained.float_tensors) <= FLOATS.get(name, 0), trained.float_tensors
    measured = tfc.export_tflite(model, tmp_path / "measured.tflite", representative_dataset=x)
    assert measured.agreement.rmse < 0.03
    with pytest.warns(CompressionWarning, match="drops the activation ranges"):
        stripped = tfc.strip(aware)
    assert np.std(stripped.predict(x, verbose=0) - y) < 0.03 * np.std(y)


def test_only_the_numbers_of_a_row_are_rounded():
    inputs = keras.Input((6,))
    model = tfc.quantize(keras.Model(inputs, L.Dense(4)(beside_numbers(inputs))))
    x = rows(64, "beside_numbers")
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(x, np.zeros((64, 4)), verbose=0)
    quantizers = [part for part in model.layers if isinstance(part, ActivationQuantizer)]
    assert quantizers and all(max(part.range()) < 10 for part in quantizers)


def test_an_input_of_numbers_and_words_may_enter_a_nested_model_as_both():
    inside = keras.Input((1,))
    word = L.Flatten()(L.Embedding(WORDS, 4)(inside))
    block = keras.Model(inside, [word, L.Dense(2)(inside)])
    inputs = keras.Input((1,))
    aware = tfc.quantize(keras.Model(inputs, block(inputs)))
    x = np.arange(0, WORDS, 50, dtype="float32")[:, None]
    aware.compile(keras.optimizers.SGD(0.0), "mse")
    zeros = [np.zeros((len(x), 4)), np.zeros((len(x), 2))]
    aware.fit(x, zeros, batch_size=len(x), verbose=0)
    embedded, _ = aware.predict(x, verbose=0)
    assert len(np.unique(np.round(embedded, 6), axis=0)) > 80  # as many rows as words, nearly


def test_integers_cannot_stand_for_float_indices(tmp_path):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, L.Dense(4)(plain(inputs)))
    with pytest.raises(tfc.ExportError, match="dtype='int32'"):
        tfc.export_tflite(
            model, tmp_path / "m.tflite", representative_dataset=rows(64), io_dtype="int8"
        )
    inputs = keras.Input((6,))
    model = keras.Model(inputs, L.Dense(4)(beside_numbers(inputs)))
    data = rows(64, "beside_numbers")
    with pytest.raises(tfc.ExportError, match="'input_layer"):
        tfc.export_tflite(
            model, tmp_path / "m.tflite", representative_dataset=data, io_dtype="int8"
        )
    assert not list(tmp_path.iterdir())


CATEGORIES = {
    "one_hot": (1, lambda x: L.CategoryEncoding(20, "one_hot")(x)),
    "one_hot of several": (3, lambda x: L.Flatten()(L.CategoryEncoding(20, "one_hot")(x))),
    "multi_hot": (3, lambda x: L.CategoryEncoding(20, "multi_hot")(x)),
    "count": (3, lambda x: L.CategoryEncoding(20, "count")(x)),
    "ops": (3, lambda x: L.Flatten()(ops.one_hot(ops.cast(x, "int32"), 20))),
    "bins": (
        3,
        lambda x: L.CategoryEncoding(8, "multi_hot")(L.Discretization([2.0, 3.0, 7.0, 11.0])(x)),
    ),
}


@pytest.mark.parametrize("name", CATEGORIES)
def test_categories_become_integers(name, tmp_path):
    keras.utils.set_random_seed(0)
    count, encode = CATEGORIES[name]
    inputs = keras.Input((count,))
    model = keras.Model(inputs, L.Dense(4)(encode(inputs)))
    x = np.random.default_rng(0).integers(0, 20, (96, count)).astype("float32")
    aware = tfc.quantize(model)
    aware.compile(keras.optimizers.SGD(0.0), "mse")
    aware.fit(x, np.zeros((96, 4)), batch_size=96, verbose=0)
    result = tfc.export_tflite(aware, tmp_path / "m.tflite")
    assert result.agreement.rmse < 1e-3
    assert result.float_tensors == [] or name == "count"  # which has no integer sum
