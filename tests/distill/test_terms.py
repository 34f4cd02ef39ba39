"""Losses on layers, and every loss alike, in a distiller."""

import json

import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tests import nets
from tests.conftest import arrays
from tests.distill.helpers import data, hinted, named_teacher


@pytest.mark.parametrize(
    "options",
    [{"jit_compile": True}, {"run_eagerly": True}, {"steps_per_execution": 2}, {}],
    ids=["XLA", "eager", "several steps", "graph"],
)
@pytest.mark.parametrize("compress", [False, True])
def test_losses_on_layers_train_in_each_way(options, compress):
    x, y = data()
    student = nets.tiny()
    if compress:
        student = tfc.quantize(tfc.prune(student, 0.5))
    distiller = nets.compiled(hinted(student, alpha=0.7), **options)
    projector = distiller.distillation_losses[1].projector.kernel
    before = keras.ops.convert_to_numpy(projector).copy()
    history = distiller.fit(x, y, batch_size=16, epochs=4, verbose=0).history
    assert history["distillation_loss"][-1] < history["distillation_loss"][0]
    names = {"soft_targets", "feature_matching", "rkd_distance", "similarity_preserving"}
    assert names <= set(history) and not any(n.startswith("val") for n in history)
    assert np.abs(keras.ops.convert_to_numpy(projector) - before).max() > 1e-4
    assert len(distiller.student.trainable_variables) == 4


def test_each_model_runs_once_a_step_however_many_losses(monkeypatch):
    distiller = hinted()
    distiller.compile("adam", "mse", run_eagerly=True)
    calls, original = [], L.Dense.call

    def counted(self, *args, **kwargs):
        calls.append(self.name)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(L.Dense, "call", counted)
    x, _ = data(8)
    distiller.train_on_batch(x, np.zeros((8, 3), "float32"))
    calls.remove("projector")
    assert sorted(calls) == ["first", "hidden", "out", "second"]


def test_batchnorm_moves_once_a_step_with_losses_on_layers():
    student = named_teacher("student", 4)
    norm = student.get_layer("norm")
    norm.momentum = 0.5
    x, y = data()
    losses = [tfc.FeatureMatching("norm", "norm"), tfc.FeatureMatching("hidden", "hidden")]
    distiller = nets.compiled(hinted(student, losses=losses))
    teacher = arrays(distiller.teacher)
    wanted = 0.5 * np.mean(keras.ops.convert_to_numpy(student.get_layer("hidden")(x)), axis=0)
    distiller.train_on_batch(x, y)
    np.testing.assert_allclose(norm.moving_mean, wanted, rtol=1e-3, atol=1e-5)
    before = keras.ops.convert_to_numpy(norm.moving_mean).copy()
    distiller.evaluate(x, y, verbose=0)
    np.testing.assert_array_equal(norm.moving_mean, before)
    for a, b in zip(teacher, arrays(distiller.teacher), strict=True):
        np.testing.assert_array_equal(a, b)


EVERY_LOSS = {
    "soft": tfc.SoftTargets,
    "hard": tfc.HardTargets,
    "DKD": tfc.DecoupledTargets,
    "features": lambda: tfc.FeatureMatching("hidden", "first"),
    "cosine": lambda: tfc.FeatureMatching("hidden", "first", distance="cosine"),
    "RKD distance": lambda: tfc.RKDDistance("hidden", "first"),
    "RKD angle": tfc.RKDAngle,
    "similarity": lambda: tfc.SimilarityPreserving("hidden", "first"),
    "Keras loss": keras.losses.MeanSquaredError,
}


@pytest.mark.parametrize("make", EVERY_LOSS.values(), ids=EVERY_LOSS)
def test_a_sample_of_weight_zero_changes_nothing_in_any_loss(make):
    x, y = data(16)
    weights = np.repeat([1.0, 0.0], 8).astype("float32")
    results = []
    for junk in (0.0, 100.0):
        keras.utils.set_random_seed(4)
        changed = x.copy()
        changed[8:] += junk
        distiller = nets.compiled(hinted(losses=[make()], alpha=0.6), metrics=[])
        distiller.train_on_batch(changed, y, sample_weight=weights)
        results.append(arrays(distiller.student))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_class_weight_reaches_the_distillation_losses():
    x, y = data(32)
    weights = []
    for weight in ({0: 1.0, 1: 0.0, 2: 0.0}, {0: 1.0, 1: 1.0, 2: 1.0}):
        distiller = nets.compiled(hinted(alpha=1.0))
        distiller.fit(x, y, batch_size=32, class_weight=weight, verbose=0)
        weights.append(arrays(distiller.student)[0])
    assert np.abs(weights[0] - weights[1]).max() > 1e-5


def test_alpha_zero_is_plain_training_whatever_the_losses():
    x, y = data()
    teacher = named_teacher()
    results = []
    for distil in (False, True):
        keras.utils.set_random_seed(4)
        student = nets.regularized_classifier()
        model = student
        if distil:
            loss = tfc.FeatureMatching("hidden", student.layers[0].name)
            model = tfc.Distiller(teacher, student, [loss], alpha=0.0)
        nets.compiled(model).fit(x, y, batch_size=16, shuffle=False, epochs=2, verbose=0)
        results.append(arrays(student))
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_weights_follow_schedules_and_functions_of_the_step():
    x, y = data()
    cosine = keras.optimizers.schedules.CosineDecay(2.0, 4)
    losses = [tfc.SoftTargets(2.0), tfc.SoftTargets(5.0, name="softer")]
    weights = [cosine, lambda step: keras.ops.where(step < 2, 0.0, 1.0)]
    distiller = nets.compiled(hinted(losses=losses, distillation_loss_weights=weights, alpha=1.0))
    for step in range(5):
        metrics = distiller.train_on_batch(x, y, return_dict=True)
        distiller.reset_metrics()
        wanted = float(cosine(step)) * metrics["soft_targets"] + (step >= 2) * metrics["softer"]
        assert metrics["distillation_loss"] == pytest.approx(wanted, rel=1e-4)
    with pytest.raises(ValueError, match="cannot be saved"):
        distiller.get_config()


def test_several_teachers_are_averaged():
    x, _ = data()
    teachers = [named_teacher("one", 1), named_teacher("two", 2)]
    mean = 0.5 * (teachers[0].predict(x, verbose=0) + teachers[1].predict(x, verbose=0))
    distiller = hinted(
        teacher=teachers,
        losses=[tfc.SoftTargets(2.0), tfc.FeatureMatching("two/hidden", "first")],
        alpha=1.0,
    )
    np.testing.assert_allclose(distiller.teacher.predict(x, verbose=0), mean, rtol=1e-4, atol=1e-6)
    weighted = tfc.ensemble(teachers, [1, 3])
    wanted = 0.25 * teachers[0].predict(x, verbose=0) + 0.75 * teachers[1].predict(x, verbose=0)
    np.testing.assert_allclose(weighted.predict(x, verbose=0), wanted, rtol=1e-4, atol=1e-6)
    distiller.compile("adam")
    assert np.isfinite(distiller.fit(x, verbose=0).history["loss"][0])
    with pytest.raises(ValueError, match="names of their own"):
        tfc.ensemble([named_teacher(), named_teacher()])
    with pytest.raises(ValueError, match=r"weights=\[1\]"):
        tfc.ensemble(teachers, [1])


def test_losses_on_layers_save_load_and_train_on(tmp_path):
    x, y = data()
    schedule = keras.optimizers.schedules.CosineDecay(1.0, 100)
    distiller = nets.compiled(
        hinted(distillation_loss_weights=[1.0, schedule, 0.5, 0.5], alpha=0.4)
    )
    distiller.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    first = distiller.fit(x, y, batch_size=16, shuffle=False, verbose=0).history
    second = loaded.fit(x, y, batch_size=16, shuffle=False, verbose=0).history
    assert first == second


def test_losses_of_keras_inside_ours():
    x, y = data()
    losses = [
        keras.distillation.LogitsDistillation(2.0),
        keras.distillation.FeatureDistillation(
            teacher_layer_name="out", student_layer_name="second"
        ),
    ]
    distiller = nets.compiled(hinted(losses=losses, alpha=1.0))
    metrics = distiller.train_on_batch(x, y, return_dict=True)
    soft = nets.compiled(hinted(losses=[tfc.SoftTargets(2.0)], alpha=1.0))
    assert metrics["LogitsDistillation"] > 0 and metrics["FeatureDistillation"] > 0
    assert soft.train_on_batch(x, y, return_dict=True)["loss"] > 0
    with pytest.raises(ValueError, match="LogitsDistillation ignores sample_weight"):
        distiller.fit(x, y, sample_weight=np.ones(64), verbose=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: tfc.SoftTargets(2.0),
        tfc.HardTargets,
        lambda: tfc.FeatureMatching("hidden", "first"),
        lambda: tfc.RKDAngle("hidden", "first"),
        lambda: tfc.SimilarityPreserving(),
    ],
)
def test_our_losses_inside_keras(make):
    x, y = data()
    distiller = keras.distillation.Distiller(named_teacher(), nets.tiny(), make())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.Adam(0.01), loss)
    history = distiller.fit(x, y, epochs=8, verbose=0).history
    assert np.isfinite(history["loss"]).all() and history["loss"][-1] < history["loss"][0]


def test_what_keras_cannot_give_is_said():
    with pytest.raises(ValueError, match=r"DecoupledTargets needs labels.*tfcompress.Distiller"):
        keras.distillation.Distiller(named_teacher(), nets.tiny(), tfc.DecoupledTargets())


def test_a_distillation_head_of_its_own():
    """As DeiT: labels teach one head, the teacher the other."""
    x, y = data()
    inputs = keras.Input((6,))
    hidden = L.Dense(8, activation="relu")(inputs)
    heads = {"class": L.Dense(3, name="class")(hidden), "token": L.Dense(3, name="token")(hidden)}
    student = keras.Model(inputs, heads)
    loss = tfc.HardTargets(student_layer="token")
    distiller = tfc.Distiller(named_teacher(), student, loss, alpha=0.5)
    cross = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.Adam(0.02), {"class": cross, "token": None})
    targets = {"class": y, "token": y}
    history = distiller.fit(x, targets, epochs=40, verbose=0).history
    assert history["distillation_loss"][-1] < 0.5 * history["distillation_loss"][0]
    assert history["student_loss"][-1] < history["student_loss"][0]


def test_shapes_and_paths_are_checked_before_training():
    with pytest.raises(ValueError, match=r"shaped \(None, 16\).*shaped \(None, 8\).*Dense\(16\)"):
        hinted(losses=[tfc.FeatureMatching("hidden", "first", projector=None)])
    with pytest.raises(ValueError, match="teacher_layer='hiden' names no layer.*hidden"):
        hinted(losses=[tfc.FeatureMatching("hiden", "first")])
    with pytest.raises(ValueError, match="name student_layer, because the student has 2"):
        tfc.Distiller(nets.two_by_two(), nets.two_by_two(), tfc.RKDAngle("both", None))


def test_two_replicas(python):
    """Each replica hears its own layers, also where quantizers make them take turns."""
    out = python(
        """
import numpy as np, keras, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import tfcompress as tfc
from tests import nets
from tests.distill.helpers import data, hinted
x, y = data()
losses = []
for devices in (["CPU:0"], ["CPU:0", "CPU:1"]):
    with tf.distribute.MirroredStrategy(devices).scope():
        keras.utils.set_random_seed(2)
        pair = [tfc.FeatureMatching("hidden", "first"), tfc.SoftTargets(2.0)]
        distiller = nets.compiled(hinted(tfc.quantize(nets.tiny()), losses=pair, alpha=0.5))
    for _ in range(3):
        losses.append(float(distiller.train_on_batch(x, y)[0]))
print(losses)
"""
    )
    losses = json.loads(out.strip().splitlines()[-1])
    assert losses[0] == pytest.approx(losses[3], rel=1e-3)
    assert losses[2] == pytest.approx(losses[5], rel=2e-2)


def test_inputs_keep_their_precision_under_mixed_float16():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        inputs = keras.Input((6,), dtype="float32")
        x = L.Rescaling(1e-5, dtype="float32")(inputs)
        student = keras.Model(inputs, L.Dense(3, name="first", dtype="float32")(x))
        big = np.full((4, 6), 1e5, "float32")
        wanted = student.predict(big, verbose=0)
        assert np.isfinite(wanted).all()
        distiller = hinted(student, losses=[tfc.FeatureMatching("hidden", "first")], alpha=1.0)
        np.testing.assert_array_equal(distiller.predict(big, verbose=0), wanted)
        distiller.compile("adam")
        x, _ = data()
        assert np.isfinite(distiller.fit(x, verbose=0).history["loss"][0])
    finally:
        keras.config.set_dtype_policy("float32")


def test_a_projector_of_ones_own_trains_as_a_layer_does():
    projector = keras.Sequential(
        [L.Dense(16, kernel_regularizer=keras.regularizers.L2(0.1)), L.BatchNormalization()]
    )
    loss = tfc.FeatureMatching("hidden", "first", projector=projector)
    distiller = nets.compiled(hinted(losses=[loss], alpha=1.0), metrics=[])
    mean = keras.ops.convert_to_numpy(projector.layers[1].moving_mean).copy()
    x, y = data()
    metrics = distiller.train_on_batch(x, y, return_dict=True)
    assert np.abs(keras.ops.convert_to_numpy(projector.layers[1].moving_mean) - mean).max() > 1e-4
    assert metrics["loss"] > metrics["distillation_loss"] + 1e-3  # the regularizer


def test_a_loss_with_a_projector_serves_one_pair_of_shapes():
    loss = tfc.FeatureMatching("hidden", "first")
    hinted(losses=[loss])
    larger = keras.Sequential([keras.Input((6,)), L.Dense(5, name="first"), L.Dense(3)])
    with pytest.raises(ValueError, match=r"\[8\], and now gets .*\[5\]. Make a new loss"):
        hinted(larger, losses=[loss])


def test_layers_of_several_tensors_are_named():
    inputs = keras.Input((4, 6))
    x, *_ = L.LSTM(3, return_state=True, name="lstm")(inputs)
    model = keras.Model(inputs, x)
    with pytest.raises(ValueError, match="'lstm' of model .* puts out several tensors"):
        hinted(model, keras.models.clone_model(model), [tfc.FeatureMatching("lstm", "lstm")])


def test_evaluation_leaves_projectors_out():
    projector = L.Dense(16, kernel_regularizer=keras.regularizers.L2(10.0))
    loss = tfc.FeatureMatching("hidden", "first", projector=projector)
    distiller = nets.compiled(hinted(losses=[loss]))
    x, y = data()
    evaluated = distiller.evaluate(x, y, verbose=0)
    wanted = nets.compiled(distiller.student).evaluate(x, y, verbose=0)
    assert evaluated == pytest.approx(wanted)
