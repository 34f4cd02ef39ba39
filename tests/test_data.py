import numpy as np
import pytest

from tfcompress.data import InputSpec, collect, samples

ONE = [InputSpec("x", (4, 2), "float32")]
TWO = [InputSpec("a", (4,), "float32"), InputSpec("b", (None,), "int32")]
X = np.arange(80, dtype="float64").reshape(10, 4, 2)
A, B = np.ones((6, 4)), np.ones((6, 3))
Y = np.arange(10)


def stream(*items):
    return lambda: iter(items)


FORMS = {
    "array": X,
    "list of samples": list(X),
    "array and labels": (X, Y),
    "dict": {"x": X, "more": 1},
    "list of one array": [X],
    "generator function": lambda: (x for x in X),
    "generator": (x for x in X),
    "batches": stream(X[:5], X[5:]),
    "labelled batches": stream((X[:5], Y[:5]), (X[5:], Y[5:])),
    "lists of one, as TFLite wants them": stream(*([x[None]] for x in X)),
    "dicts": stream(*({"x": x[None]} for x in X)),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_gives_the_same_arrays(form):
    got = samples(form, ONE)
    assert list(got) == ["x"] and got["x"].dtype == np.float32
    np.testing.assert_array_equal(got["x"], X.astype("float32"))


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("labelled", [True, False])
def test_tf_data(batched, labelled):
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices((X, Y) if labelled else X)
    dataset = dataset.batch(4) if batched else dataset
    got, labels = collect(dataset, ONE)
    np.testing.assert_array_equal(got["x"], X.astype("float32"))
    if labelled:
        np.testing.assert_array_equal(np.ravel(labels), Y)
    else:
        assert labels is None


@pytest.mark.parametrize(
    "form",
    [(A, B), [A, B], {"b": B, "a": A}, ((A, B), np.ones(6)), ({"a": A, "b": B}, np.ones(6))],
)
def test_several_inputs(form):
    got = samples(form, TWO)
    assert got["a"].shape == (6, 4) and got["b"].shape == (6, 3) and got["b"].dtype == np.int32


def test_a_limit_spreads_over_arrays_and_ends_streams():
    got = samples(X, ONE, limit=3)["x"]
    np.testing.assert_array_equal(got[:, 0, 0], [0, 32, 72])

    def endless():
        while True:
            yield X[:4]

    assert len(samples(endless, ONE, limit=6)["x"]) == 6


BAD = {
    "nothing": (None, TypeError, "data is missing"),
    "empty array": (X[:0], ValueError, "data is empty"),
    "empty stream": (stream(), ValueError, "data is empty"),
    "empty list": ([], ValueError, "data is empty"),
    "wrong shape": (np.ones((3, 4, 3)), ValueError, r"must be \(4, 2\). Received: \(3, 4, 3\)"),
    "NaN": (np.full((2, 4, 2), np.nan), ValueError, "holds 16 NaN or infinite values"),
    "infinity": (np.full((2, 4, 2), np.inf), ValueError, "NaN or infinite"),
    "text": (np.array([["a"]]), TypeError, "must hold numbers"),
    "missing key": ({"y": X}, ValueError, "lacks the input.*'x'.*Received the keys: 'y'"),
    "labels too short": ((X, Y[:3]), ValueError, "10 samples but 3 labels"),
    "a number": (3.5, ValueError, "wrong shape"),
}


@pytest.mark.parametrize(("data", "error", "message"), BAD.values(), ids=BAD)
def test_bad_data_is_named(data, error, message):
    with pytest.raises(error, match=message):
        samples(data, ONE)


def test_inputs_of_different_length_and_number():
    with pytest.raises(ValueError, match="different lengths"):
        samples((A, B[:2]), TWO)
    with pytest.raises(ValueError, match="2 arrays, one for each of the inputs 'a', 'b'"):
        samples([A], TWO)


def test_batches_by_number_and_other_frameworks():
    import keras

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return X[4 * index : 4 * index + 4], Y[4 * index : 4 * index + 4]

    got, labels = collect(Batches(), ONE)
    np.testing.assert_array_equal(got["x"], X.astype("float32"))
    np.testing.assert_array_equal(labels, Y)

    class Foreign:  # a tensor of another framework
        def __init__(self, value):
            self._value = value

        def __array__(self, dtype=None, copy=None):
            return np.asarray(self._value, dtype)

    got = samples(stream(Foreign(X[:5]), Foreign(X[5:])), ONE)
    np.testing.assert_array_equal(got["x"], X.astype("float32"))


def test_sizes_that_differ_are_named():
    with pytest.raises(ValueError, match=r"different sizes at input 'b': \(3\) and \(5\)"):
        samples(stream((A, B), (A, np.ones((6, 5)))), TWO)


def test_images_as_bytes_and_tokens_of_any_length():
    images = [InputSpec("image", (None, None, 3), "float32")]
    got = samples(np.full((2, 5, 6, 3), 200, np.uint8), images)["image"]
    assert got.dtype == np.float32 and got.max() == 200
    tokens = [InputSpec("ids", (None,), "int32")]
    assert samples([[1, 2, 3], [4, 5, 6]], tokens)["ids"].dtype == np.int32
