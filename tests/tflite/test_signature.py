"""Inputs and outputs of a file: names, order, structure and types of the model's."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from keras import layers as L
from keras import ops

import tfcompress as tfc


def rows(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=(64, *shape)).astype("float32")


def checked(model, x, folder, scheme, **options):
    """Exports a model, and compares the file output by output; returns it."""
    data = x if scheme == "int8" else None
    path = str(folder / "m.tflite")
    tfc.export_tflite(model, path, scheme=scheme, representative_dataset=data, **options)
    file = tfc.TFLiteModel(path)
    got = file.predict(x)
    got = [got] if isinstance(got, np.ndarray) else [*got.values()]
    wanted = keras.tree.flatten(model.predict(x, verbose=0))
    for actual, expected in zip(got, wanted, strict=True):
        assert np.sqrt(np.mean((actual - expected) ** 2)) < 0.1 * expected.std()
    # By position, as phones index.
    interpreter = Interpreter(path)
    interpreter.allocate_tensors()
    sizes = [tuple(d["shape"])[1:] for d in interpreter.get_output_details()]
    assert sizes == [expected.shape[1:] for expected in wanted]
    sizes = [tuple(d["shape"])[1:] for d in interpreter.get_input_details()]
    assert sizes == [tuple(t.shape[1:]) for t in model.inputs]
    return file


NAMES = ["in", "my input", "ünï", "_x", "x.y", "1x", "class", "self", "A", "x:0", "None", "input"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scheme", ["float32", "int8"])
def test_any_name(name, scheme, tmp_path):
    first, second = keras.Input((6,), name=name + "2"), keras.Input((5,), name=name)
    outputs = {"o " + name: L.Dense(2)(first), name + "_": L.Dense(3)(second) * 2.0}
    model = keras.Model([first, second], outputs)
    x = [rows(6), rows(5)]
    file = checked(model, x, tmp_path, scheme)
    assert [info.name for info in file.inputs] == [name + "2", name]
    assert [info.name for info in file.outputs] == sorted(outputs)
    by_name = {name: x[1], name + "2": x[0]}
    for key, value in file.predict(by_name).items():
        np.testing.assert_array_equal(value, file.predict(tuple(x))[key])
    if scheme == "int8":
        assert tfc.layer_errors(model, file, tuple(x)).rows


@pytest.mark.parametrize("names", [("b", "a"), ("a", "b"), ("input_10", "input_9")])
def test_inputs_of_one_shape_do_not_change_places(names, tmp_path):
    first, second = (keras.Input((6,), name=name) for name in names)
    model = keras.Model([first, second], L.Dense(3)(first) - 2 * L.Dense(3)(second))
    file = checked(model, [rows(6), 10 * rows(6, seed=1)], tmp_path, "float32")
    assert [info.name for info in file.inputs] == [*names]


A, B, C = (keras.Input((6,), name="a"), keras.Input((4,), name="b"), keras.Input((6,), name="c"))
OF_A, OF_B, OF_C = rows(6), rows(4, seed=1), rows(6, seed=2)
STRUCTURES = {
    "dict": ({"q": A, "k": B, "v": C}, {"q": OF_A, "k": OF_B, "v": OF_C}, ["k", "q", "v"]),
    "dict in a dict": (
        {"z": {"p": A, "q": B}, "y": C},
        {"z": {"p": OF_A, "q": OF_B}, "y": OF_C},
        ["c", "a", "b"],
    ),
    "list of a dict": ([{"p": A, "q": B}, C], [{"p": OF_A, "q": OF_B}, OF_C], ["a", "b", "c"]),
    "tuples": ((C, (A, B)), (OF_C, (OF_A, OF_B)), ["c", "a", "b"]),
}


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("scheme", ["float32", "int8"])
def test_any_structure(name, scheme, tmp_path):
    structure, x, names = STRUCTURES[name]
    outputs = {"sum": L.Dense(3)(A) * 2 + L.Dense(3)(B) + L.Dense(3)(C), "one": [L.Dense(2)(A)]}
    file = checked(keras.Model(structure, outputs), x, tmp_path, scheme)
    assert [info.name for info in file.inputs] == names


def test_datasets_as_keras_users_have_them(tmp_path):
    model = keras.Model([A, C], L.Dense(3)(A) - L.Dense(3)(C))
    slices = tf.data.Dataset.from_tensor_slices
    for data in (
        slices(((OF_A, OF_C),)).batch(8),
        slices(((OF_A, OF_C), OF_A[:, 0])).batch(8),
        lambda: ([OF_A[i : i + 4], OF_C[i : i + 4]] for i in range(0, 32, 4)),
        slices({"a": OF_A, "c": OF_C}).batch(8),
    ):
        result = tfc.export_tflite(model, tmp_path / "m.tflite", representative_dataset=data)
        assert result.agreement.rmse < 0.05


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("trained", [False, True])
def test_a_fixed_batch(batch, trained, tmp_path):
    x = rows(5, 6)[:30]  # no multiple of it
    inputs = keras.Input(batch_shape=(batch, 5, 6), name="x")
    outputs = ops.reshape(L.Dense(6)(inputs), (batch, 30))
    model = keras.Model(inputs, outputs)
    wanted = np.concatenate([np.asarray(model(x[i : i + batch])) for i in range(0, 28, batch)])
    data = x
    if trained:
        model = tfc.quantize(model)
        model.compile(keras.optimizers.SGD(0.0), "mse")
        model.fit(x[:28], wanted, batch_size=batch, verbose=0)
        wanted = np.concatenate([np.asarray(model(x[i : i + batch])) for i in range(0, 28, batch)])
        data = None
    result = tfc.export_tflite(model, tmp_path / "m.tflite", representative_dataset=data)
    file = tfc.TFLiteModel(result.path)
    assert file.inputs[0].shape[0] == batch
    outputs = file.predict(x)
    assert outputs.shape == (30, 30)
    assert np.sqrt(np.mean((outputs[:28] - wanted) ** 2)) < 0.05 * wanted.std()
    with pytest.raises(ValueError, match=f"takes {batch} samples at once"):
        tfc.export_tflite(model, tmp_path / "m.tflite", representative_dataset=data, batch_size=7)


def test_outputs_of_the_whole_batch(tmp_path):
    """Without an axis of the batch, or of another length: one sample at a time."""
    inputs = keras.Input((8,), name="x")
    scores = L.Dense(8)(inputs)
    model = keras.Model(inputs, [scores, ops.sum(scores), ops.reshape(scores, (-1,))])
    file = checked_alone(model, rows(8)[:6], tmp_path)
    assert file.outputs[0].shape == (1, 8)


def checked_alone(model, x, folder):
    tfc.export_tflite(model, folder / "m.tflite", scheme="float32")
    file = tfc.TFLiteModel(folder / "m.tflite")
    outputs = [*file.predict(x).values()]
    for row in range(len(x)):
        for got, one in zip(outputs, model(x[row : row + 1]), strict=True):
            one = np.atleast_1d(one)
            np.testing.assert_allclose(got[row * len(one) : (row + 1) * len(one)], one, atol=1e-5)
    return file


EXTREMES = {
    "class": lambda x: ops.argmax(L.Dense(4)(x), -1),
    "least": lambda x: ops.argmin(L.Dense(4)(x), -1),
    "kept": lambda x: ops.argmax(L.Dense(4)(x), -1, keepdims=True),
    "likeliest": lambda x: ops.argmax(L.Softmax()(L.Dense(4)(x)), -1),
}


@pytest.mark.parametrize("name", EXTREMES)
@pytest.mark.parametrize("scheme", ["float32", "int8"])
def test_classes_are_one_operation(name, scheme, tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    model = keras.Model(inputs, EXTREMES[name](inputs))
    data = rows(6) if scheme == "int8" else None
    result = tfc.export_tflite(
        model, tmp_path / "m.tflite", scheme=scheme, representative_dataset=data
    )
    assert {"ARG_MAX", "ARG_MIN"} & {*result.ops}
    classes = tfc.TFLiteModel(result.path).predict(rows(6))
    assert np.mean(classes == model.predict(rows(6), verbose=0)) > (
        0.9 if data is not None else 0.999
    )
    if scheme == "int8":
        assert result.float_tensors == []


@pytest.mark.parametrize("io_dtype", ["float32", "int8", "uint8"])
def test_inputs_are_rounded_as_the_model_does(io_dtype, tmp_path):
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).uniform(0, 1, (24, 16, 16, 16)).astype("float32")
    inputs = keras.Input((16, 16, 16))
    aware = tfc.quantize(keras.Model(inputs, L.ReLU()(L.Conv2D(32, 1)(inputs))))
    aware.compile(keras.optimizers.SGD(0.0), "mse")
    aware.fit(x, aware.predict(x, verbose=0), verbose=0)
    tfc.export_tflite(aware, tmp_path / "m.tflite", io_dtype=io_dtype)
    outputs = tfc.TFLiteModel(tmp_path / "m.tflite").predict(x)
    np.testing.assert_allclose(outputs, aware.predict(x, verbose=0), atol=1e-5)
