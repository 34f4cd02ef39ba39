import hashlib
import json
import os
import shutil
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

import tfcompress as tfc
from tests import nets
from tests.conftest import arrays
from tfcompress.distill import cached as cached_module
from tfcompress.distill.features import Feature
from tfcompress.distill.shards import alone

G = np.random.default_rng(0)
X, Y = G.normal(size=(50, 6)).astype("float32"), G.integers(0, 3, 50)
HINTS = [tfc.SoftTargets(2.0), tfc.FeatureMatching("first", "first")]


def teacher_of(seed=3):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [keras.Input((6,)), L.Dense(16, activation="relu", name="first"), L.Dense(3, name="out")],
        name="teacher",
    )


def cached(path, data=(X, Y), teacher=None, losses=None, **options):
    options = {"shard_size": 16, "batch_size": 8, "verbose": False, **options}
    return tfc.cache_teacher(teacher or teacher_of(), data, path, losses or HINTS, **options)


def digest(folder):
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = str(path.relative_to(folder))
            digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return digests


@pytest.mark.parametrize("shuffle", [True, False, 7])
def test_what_is_joined_belongs_to_the_sample(shuffle, tmp_path):
    teacher = teacher_of()
    cache = cached(tmp_path / "t", teacher=teacher)
    assert len(cache) == 50 and repr(cache).endswith("50 samples of 'teacher')")
    seen = []
    for _ in range(2):  # epochs
        for x, y in cache.dataset(8, shuffle=shuffle):
            stored_outputs = x["teacher"]
            np.testing.assert_allclose(stored_outputs["output_0"], teacher(x["inputs"]), 1e-5, 1e-6)
            hidden = teacher.get_layer("first")(x["inputs"])
            np.testing.assert_allclose(stored_outputs["feature_0"], hidden, rtol=2e-3, atol=1e-3)
            rows = [int(np.flatnonzero((row == X).all(1))[0]) for row in x["inputs"].numpy()]
            np.testing.assert_array_equal(y, Y[rows])
            seen += rows
    assert sorted(seen) == sorted([*range(50), *range(50)])
    assert (seen[:50] == list(range(50))) == (shuffle is False)


def test_features_of_one_shape_are_not_mixed_up(tmp_path, monkeypatch):
    # Losses name layers in another order than the pass meets them.
    keras.utils.set_random_seed(0)
    teacher = keras.Sequential(
        [keras.Input((6,))] + [L.Dense(5, activation="tanh", name=f"h{i}") for i in range(3)]
    )
    losses = [tfc.FeatureMatching(f"h{i}", f"h{i}", name=f"l{i}") for i in (2, 0, 1)]
    cache = cached(tmp_path / "t", teacher=teacher, losses=losses)
    for limit in (2**30, 0):  # in memory and from disk
        monkeypatch.setattr(cached_module, "_IN_MEMORY", limit)
        for x, _ in cache.dataset(8):
            values, expected = x["inputs"], []
            for layer in teacher.layers:
                values = layer(values)
                expected.append(values)
            for i, number in enumerate((2, 0, 1)):
                stored = x["teacher"][f"feature_{i}"]
                np.testing.assert_allclose(stored, expected[number], rtol=2e-3, atol=1e-3)


def test_training_on_a_cache_is_training_with_the_teacher(tmp_path):
    results = []
    teacher = teacher_of()
    cache = cached(tmp_path / "t", losses=[tfc.SoftTargets(2.0)], teacher=teacher)
    for source in (teacher, cache):
        keras.utils.set_random_seed(5)
        distiller = tfc.Distiller(source, nets.tiny(), [tfc.SoftTargets(2.0)], alpha=0.6)
        nets.compiled(distiller)
        if source is cache:
            distiller.fit(cache.dataset(10, shuffle=False), epochs=3, verbose=0)
            assert distiller.evaluate(X, Y, verbose=0)[1] > 0  # plain data
            assert distiller.predict(X, verbose=0).shape == (50, 3)
        else:
            distiller.fit(X, Y, batch_size=10, shuffle=False, epochs=3, verbose=0)
        results.append(arrays(distiller.student))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("form", ["batched", "unbatched", "features only", "weighted"])
def test_every_form_of_data(form, tmp_path):
    whole = tf.data.Dataset.from_tensor_slices
    data = {
        "batched": whole((X, Y)).batch(7),
        "unbatched": whole((X, Y)),
        "features only": X,
        "weighted": (X, Y, np.ones(50, "float32")),
    }[form]
    cache = cached(tmp_path / "t", data)
    distiller = tfc.Distiller(cache, nets.tiny(), HINTS, alpha=1.0)
    distiller.compile("adam")
    distiller.fit(cache.dataset(16), verbose=0)
    assert len(cache) == 50


def test_augmentation_is_the_same_for_teacher_and_student(tmp_path):
    def augment(x, seed):
        return x + tf.random.stateless_normal(x.shape, seed)

    teacher = teacher_of()
    cache = cached(tmp_path / "t", teacher=teacher, augment=augment, seed=4)
    for x, _ in cache.dataset(8):
        np.testing.assert_allclose(x["teacher"]["output_0"], teacher(x["inputs"]), rtol=1e-4)
        assert not any((row == X).all(1).any() for row in x["inputs"].numpy())
    with pytest.raises(ValueError, match="another augmentation"):
        cached(tmp_path / "t", teacher=teacher)
    with pytest.raises(ValueError, match="other data: samples 0 to 16"):
        cached(tmp_path / "t", teacher=teacher, seed=4, augment=lambda x, seed: 2 * x)


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_the_largest_logits_and_the_mass_of_the_rest(activation, tmp_path):
    keras.utils.set_random_seed(3)
    teacher = keras.Sequential([keras.Input((6,)), L.Dense(20, activation=activation)])
    cache = cached(tmp_path / "t", X, teacher, [tfc.SoftTargets(1.0)], top_k=4)
    (x,) = next(iter(cache.dataset(50, shuffle=False)))
    got, exact = x["teacher"]["output_0"].numpy(), teacher(X).numpy()
    if activation is None:
        got, exact = (keras.ops.convert_to_numpy(keras.ops.softmax(v)) for v in (got, exact))
    np.testing.assert_allclose(got.sum(-1), 1, rtol=1e-4)
    largest = np.argsort(exact, axis=-1)[:, -4:]
    pick = [np.take_along_axis(v, largest, -1) for v in (got, exact)]
    np.testing.assert_allclose(*pick, rtol=1e-3)
    rest = np.take_along_axis(got, np.argsort(exact, axis=-1)[:, :16], -1)
    np.testing.assert_allclose(rest, rest.mean(-1, keepdims=True).repeat(16, -1), rtol=1e-3)


CHANGED = {
    "another teacher": ({"teacher": 4}, "another teacher"),
    "other data": ({"data": (X + 1, Y)}, "other data: samples 0 to 16"),
    "another order": ({"data": (X[::-1].copy(), Y)}, "come in another order"),
    "fewer samples": ({"data": (X[:32], Y[:32])}, "holds 50 samples; the dataset has 32"),
    "more samples": (
        {"data": (np.concatenate([X, X[:14], X[:5]]),)},
        "other data: samples 48 to 64|dataset has more",
    ),
    "other losses": ({"losses": [tfc.SoftTargets()]}, "made with other losses"),
    "another top_k": ({"top_k": 2}, "another top_k"),
}


@pytest.mark.parametrize(("change", "message"), CHANGED.values(), ids=CHANGED)
def test_what_changed_is_refused(change, message, tmp_path):
    cached(tmp_path / "t")
    before = digest(tmp_path)
    if "teacher" in change:
        change = {"teacher": teacher_of(change["teacher"])}
    with pytest.raises(ValueError, match=message):
        cached(tmp_path / "t", **change)
    assert digest(tmp_path) == before


def test_losses_that_need_what_is_not_kept_are_refused(tmp_path):
    cache = cached(tmp_path / "t", losses=[tfc.SoftTargets()])
    with pytest.raises(ValueError, match=r"does not hold first \(output\)"):
        tfc.Distiller(cache, nets.tiny(), HINTS)
    distiller = tfc.Distiller(cache, nets.tiny(), alpha=1.0)
    distiller.compile("adam")
    with pytest.raises(ValueError, match=r"fit on teacher.dataset"):
        distiller.fit(X, verbose=0)


def test_a_finished_cache_does_not_run_the_teacher(tmp_path, monkeypatch):
    teacher = teacher_of()
    cached(tmp_path / "t", teacher=teacher)
    monkeypatch.setattr("tfcompress.distill.cache._runner", lambda *_: None)
    assert len(cached(tmp_path / "t", teacher=teacher)) == 50


def test_saves_and_loads_with_its_distiller(tmp_path):
    distiller = tfc.Distiller(cached(tmp_path / "t"), nets.tiny(), HINTS)
    nets.compiled(distiller).fit(distiller.teacher.dataset(10), verbose=0)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    assert loaded.teacher.path == str(tmp_path / "t")
    with pytest.raises(ValueError, match="opened without its data"):
        loaded.teacher.dataset()
    loaded.fit(cached(tmp_path / "t").dataset(10), verbose=0)


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"samples of shape \(5,\); the teacher takes \(6,\)"):
        cached(tmp_path / "t", np.ones((4, 5), "float32"))
    with pytest.raises(ValueError, match="dataset is empty"):
        cached(tmp_path / "e", X[:0])
    with pytest.raises(FileNotFoundError, match="No cache of a teacher"):
        tfc.CachedTeacher(tmp_path / "nothing")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"holds other files \('thesis.tex'\)"):
        cached(tmp_path / "full")


def test_killed_at_any_moment_it_goes_on(python, tmp_path):
    """Twenty processes are killed at random moments; the finished cache is as without kills."""
    code = """
import os, random, signal, sys, time
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np, keras, tensorflow
import tfcompress as tfc
from tests.distill.test_cache import HINTS, teacher_of
from tfcompress.distill import cache as module

def run(path):
    x = np.random.default_rng(1).normal(size=(1000, 6)).astype("float32")
    tfc.cache_teacher(teacher_of(), x, path, HINTS, shard_size=10, batch_size=10, verbose=False)

random.seed(0)
killed = 0
for trial in range(20):
    child = os.fork()  # before TensorFlow starts any thread
    if not child:
        run("disturbed")
        os._exit(0)
    deadline, shards = time.time() + 30, random.randrange(2 * trial, 5 * trial + 2)
    while time.time() < deadline and not os.waitpid(child, os.WNOHANG)[0]:
        if os.path.isdir("disturbed") and len(os.listdir("disturbed")) > shards:
            time.sleep(random.random() * 0.02)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            killed += 1
            break
run("disturbed")
run("undisturbed")
print(killed)
"""
    killed = int(python(code).strip().splitlines()[-1])
    assert killed >= 15
    assert digest(tmp_path / "disturbed") == digest(tmp_path / "undisturbed")
    assert json.loads((tmp_path / "disturbed/manifest.json").read_text())["samples"] == 1000


def test_an_unfinished_cache_is_not_used(tmp_path):
    cached(tmp_path / "t")
    shutil.rmtree(tmp_path / "t/shard-00001")
    manifest = tmp_path / "t/manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "samples": None}))
    with pytest.raises(ValueError, match="never finished"):
        tfc.CachedTeacher(tmp_path / "t")
    assert len(cached(tmp_path / "t")) == 50
    assert Feature("first") in tfc.CachedTeacher(tmp_path / "t").shapes()[1]
    assert not [name for name in os.listdir(tmp_path / "t") if name.startswith(".")]


def with_dropout():
    keras.utils.set_random_seed(3)
    return keras.Sequential([keras.Input((6,)), L.Dense(9), L.Dropout(0.5), L.Dense(3)])


def test_a_teacher_is_itself_after_loading_and_under_another_name(tmp_path):
    teacher = with_dropout()
    teacher.save(tmp_path / "t.keras")
    cached(tmp_path / "t", teacher=teacher, losses=[tfc.SoftTargets()])
    teacher(X, training=True)  # moves the seeds of Dropout
    for same in (teacher, keras.saving.load_model(tmp_path / "t.keras"), with_dropout()):
        assert len(cached(tmp_path / "t", teacher=same, losses=[tfc.SoftTargets()])) == 50


def test_a_teacher_of_the_same_weights_that_computes_something_else(tmp_path):
    cached(tmp_path / "t")
    linear = keras.Sequential(
        [keras.Input((6,)), L.Dense(16, name="first"), L.Dense(3, name="out")], name="teacher"
    )
    linear.set_weights(teacher_of().get_weights())
    with pytest.raises(ValueError, match="another teacher"):
        cached(tmp_path / "t", teacher=linear)


def test_two_processes_do_not_write_to_one_folder(tmp_path):
    """The second waits for the first."""
    said, entered = [], threading.Event()

    def write(name, seconds):
        with alone(tmp_path):
            said.append(f"{name} begins")
            entered.set()
            time.sleep(seconds)
            said.append(f"{name} ends")

    first = threading.Thread(target=write, args=("first", 0.3))
    first.start()
    entered.wait()
    write("second", 0)
    first.join()
    assert said == ["first begins", "first ends", "second begins", "second ends"]


@pytest.mark.parametrize("form", ["arrays", "dataset"])
def test_processes_share_every_batch(form, tmp_path):
    data = (X, Y) if form == "arrays" else tf.data.Dataset.from_tensor_slices((X, Y))
    cache = cached(tmp_path / "t", data=data)
    whole = list(cache.dataset(8, seed=3, drop_remainder=True))
    parts = [list(cache.dataset(8, seed=3, process=(rank, 4))) for rank in range(4)]
    assert [len(part) for part in parts] == [6] * 4 and len(whole) == 6
    for batch, *own in zip(whole, *parts, strict=True):
        joined = tf.nest.map_structure(lambda *a: np.concatenate(a), *own)
        tf.nest.map_structure(np.testing.assert_array_equal, joined, batch)
    with pytest.raises(ValueError, match="divides batch_size=8"):
        cache.dataset(8, seed=3, process=(0, 3))
    with pytest.raises(ValueError, match="the same seed="):
        cache.dataset(8, process=(0, 2))


def test_labels_of_many_lengths(tmp_path):
    ragged = tf.RaggedTensor.from_row_lengths(np.arange(100), [2] * 50)
    cache = cached(tmp_path / "t", data=(X, ragged))
    for x, y in cache.dataset(8):
        rows = [int(np.flatnonzero((row == X).all(1))[0]) for row in x["inputs"].numpy()]
        np.testing.assert_array_equal(y.to_tensor()[:, 0], 2 * np.array(rows))


def test_inputs_by_name_lists_and_endless_data(tmp_path):
    inputs = [keras.Input((6,), name="tokens"), keras.Input((2,), name="extra")]
    teacher = keras.Model(inputs, L.Dense(3)(L.Concatenate()(inputs)))
    data = {"extra": np.ones((20, 2), "float32"), "tokens": np.ones((20, 6), "float32")}
    assert len(cached(tmp_path / "d", (data,), teacher, [tfc.SoftTargets()])) == 20
    with pytest.raises(TypeError, match="dataset must be arrays.*Received a list"):
        cached(tmp_path / "l", [X, Y])
    with pytest.raises(ValueError, match="repeats without end"):
        cached(tmp_path / "r", tf.data.Dataset.from_tensor_slices((X, Y)).repeat())


def test_a_subclassed_teacher(tmp_path):
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__(name="hidden")
            self.first = L.Dense(5, name="first")
            self.out = L.Dense(3, name="out")

        def call(self, x):
            return self.out(self.first(x))

    teacher = Subclassed()
    teacher(X[:7])
    batches = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    cache = cached(tmp_path / "t", batches, teacher, [tfc.FeatureMatching("first", "first")])
    assert len(cache) == 50
    assert cache.shapes()[1] == {Feature("first"): (None, 5)}
    with pytest.raises(ValueError, match="does not hold the outputs"):
        tfc.Distiller(cache, nets.tiny())
