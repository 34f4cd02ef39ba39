"""Layers with strings and tables stay in the app; the rest is compressed."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

import tfcompress as tfc

GENERATOR = np.random.default_rng(0)
WORDS = tf.constant(GENERATOR.choice(["cat", "dog", "bird", "fox"], (64, 1)))
AGES = GENERATOR.normal(40, 10, (64, 1)).astype("float32")
INCOMES = GENERATOR.uniform(0, 100, (64, 1)).astype("float32")
ZIPS = GENERATOR.choice([100, 200, 300], (64, 1))
TEXTS = tf.constant([["the cat sat"], ["a dog ran far"]] * 32)


def tabular():
    animal = keras.Input((1,), dtype="string", name="animal")
    age, income = keras.Input((1,), name="age"), keras.Input((1,), name="income")
    place = keras.Input((1,), dtype="int64", name="place")
    words = L.StringLookup(vocabulary=["cat", "dog", "bird"], output_mode="one_hot")
    places, scaled = L.IntegerLookup(), L.Normalization()
    places.adapt(ZIPS)
    scaled.adapt(AGES)
    bins = L.Discretization(bin_boundaries=[10.0, 20.0, 50.0], output_mode="one_hot")
    number = L.Flatten()(L.Embedding(5, 3)(places(place)))
    features = [words(animal), scaled(age), bins(income), number]
    x = L.Dense(16, activation="relu")(L.Concatenate()(features))
    return keras.Model([animal, age, income, place], L.Dense(2)(x)), [WORDS, AGES, INCOMES, ZIPS]


def vectorizer():
    layer = L.TextVectorization(max_tokens=20, output_sequence_length=6)
    layer.adapt(TEXTS)
    return layer


def reader():
    return keras.Sequential(
        [
            keras.Input((6,), dtype="int64"),
            L.Embedding(20, 4),
            L.GlobalAveragePooling1D(),
            L.Dense(2),
        ]
    )


def text():
    return keras.Sequential([keras.Input((1,), dtype="string"), vectorizer(), *reader().layers])


def nested():
    inner, outer = keras.Input((1,), dtype="string"), keras.Input((1,), dtype="string")
    preprocessing = keras.Model(inner, vectorizer()(inner), name="preprocessing")
    return keras.Model(outer, reader()(preprocessing(outer)))


def nested_whole():
    inner = keras.Input((1,), dtype="string")
    whole = keras.Model(inner, reader()(vectorizer()(inner)), name="whole")
    return keras.Sequential([keras.Input((1,), dtype="string"), whole, L.Dense(3)])


def hashed():
    words = keras.Input((1,), dtype="string", name="words")
    place = keras.Input((1,), dtype="int64", name="place")
    crossed = L.HashedCrossing(10, output_mode="one_hot")((words, place))
    number = L.Flatten()(L.Embedding(8, 3)(L.Hashing(8)(words)))
    return keras.Model([words, place], L.Dense(2)(L.Concatenate()([crossed, number])))


def features():
    space = keras.utils.FeatureSpace(
        {
            "animal": "string_categorical",
            "age": "float_normalized",
            "place": "integer_categorical",
            "income": "float_discretized",
        },
        output_mode="concat",
    )
    columns = {"animal": WORDS, "age": AGES, "place": ZIPS, "income": INCOMES}
    flat = {name: values[:, 0] for name, values in columns.items()}
    space.adapt(tf.data.Dataset.from_tensor_slices(flat))
    encoded = space.get_encoded_features()
    rest = keras.Model(encoded, L.Dense(2)(L.Dense(8, activation="relu")(encoded)))
    return keras.Model(space.get_inputs(), rest(encoded)), columns


MODELS = {
    "mixed columns": tabular,
    "text": lambda: (text(), TEXTS),
    "nested preprocessing": lambda: (nested(), TEXTS),
    "all of it nested": lambda: (nested_whole(), TEXTS),
    "hashes": lambda: (hashed(), [WORDS, ZIPS]),
    "FeatureSpace": features,
}


@pytest.mark.parametrize("name", MODELS)
def test_the_two_parts_are_the_model(name, tmp_path):
    keras.utils.set_random_seed(0)
    model, x = MODELS[name]()
    wanted = model.predict(x, verbose=0)
    preprocessing, rest = tfc.split_preprocessing(model)
    prepared = preprocessing.predict(x, verbose=0)
    assert set(prepared) == set(rest.input)
    np.testing.assert_allclose(rest.predict(prepared, verbose=0), wanted, atol=1e-6)
    assert not {id(w) for w in rest.weights} & {id(w) for w in model.weights}
    result = tfc.export_tflite(rest, tmp_path / "m.tflite", representative_dataset=prepared)
    assert result.agreement.rmse < 0.1 and not result.float_tensors
    aware = tfc.quantize(tfc.prune(rest, 0.5))
    aware.compile("sgd", "mse")
    aware.fit(prepared, wanted, verbose=0)
    tfc.export_tflite(aware, tmp_path / "aware.tflite")
    for path in ("pre", "rest"):
        one = preprocessing if path == "pre" else rest
        one.save(tmp_path / f"{path}.keras")
    loaded = keras.models.load_model(tmp_path / "pre.keras").predict(x, verbose=0)
    for key, array in loaded.items():
        np.testing.assert_array_equal(array, prepared[key])


@pytest.mark.parametrize("name", ["mixed columns", "all of it nested"])
def test_the_whole_is_refused_before_anything_is_done(name, tmp_path):
    model, x = MODELS[name]()
    for function in (
        tfc.quantize,
        lambda m: tfc.export_tflite(m, tmp_path / "m.tflite"),
        lambda m: tfc.export_tflite(m, tmp_path / "m.tflite", representative_dataset=x),
    ):
        with pytest.raises(ValueError, match=r"preprocessing, model = tfc.split_preprocessing"):
            function(model)
    assert not list(tmp_path.iterdir())


def test_nothing_to_split():
    with pytest.raises(ValueError, match="no preprocessing that must be split off"):
        tfc.split_preprocessing(reader())
    inputs = keras.Input((1,), dtype="string")
    with pytest.raises(ValueError, match="nothing but preprocessing"):
        tfc.split_preprocessing(keras.Model(inputs, vectorizer()(inputs)))
