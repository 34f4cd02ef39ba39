import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tests import nets
from tests.conftest import arrays
from tests.distill.helpers import data, distiller_of, teacher_of


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_loss_is_the_mixture_it_says(alpha):
    x, y = data()
    distiller = nets.compiled(distiller_of(alpha=alpha, temperature=2.0))
    wanted = (1 - alpha) * float(
        keras.losses.SparseCategoricalCrossentropy(from_logits=True)(y, distiller.student(x))
    ) + alpha * float(tfc.SoftTargets(2.0)(distiller.teacher(x), distiller.student(x)))
    assert distiller.train_on_batch(x, y)[0] == pytest.approx(wanted, rel=1e-5)


def test_alpha_zero_is_plain_training_to_the_bit():
    x, y = data()
    keras.utils.set_random_seed(4)
    plain = nets.compiled(nets.regularized_classifier())
    keras.utils.set_random_seed(4)
    distiller = nets.compiled(distiller_of(nets.regularized_classifier(), alpha=0.0))
    for _ in range(4):
        assert distiller.train_on_batch(x, y)[0] == plain.train_on_batch(x, y)[0]
    for a, b in zip(arrays(plain), arrays(distiller.student), strict=True):
        np.testing.assert_array_equal(a, b)


def test_alpha_one_needs_neither_labels_nor_a_loss():
    x, _ = data()
    distiller = distiller_of(alpha=1.0)
    distiller.compile(keras.optimizers.Adam(0.02))
    losses = distiller.fit(x, epochs=30, verbose=0).history["loss"]
    assert losses[-1] < 0.3 * losses[0]
    same = np.mean(
        distiller.predict(x, verbose=0).argmax(-1)
        == distiller.teacher.predict(x, verbose=0).argmax(-1)
    )
    assert same > 0.8
    assert distiller.evaluate(x, verbose=0) == 0.0


def test_alpha_below_one_without_labels_says_what_is_missing():
    distiller = distiller_of(alpha=0.5)
    distiller.compile("adam")
    with pytest.raises(ValueError, match=r"alpha=0.5.*pass loss= to compile\(\) and labels"):
        distiller.fit(data()[0], verbose=0)


def test_the_teacher_is_not_touched():
    x, y = data()
    teacher = keras.Sequential(
        [keras.Input((6,)), L.Dense(8), L.BatchNormalization(), L.Dropout(0.5), L.Dense(3)]
    )
    teacher.layers[0].trainable = False
    before, flags = arrays(teacher), [layer.trainable for layer in teacher.layers]
    nets.compiled(distiller_of(teacher=teacher)).fit(x, y, epochs=2, verbose=0)
    for old, new in zip(before, arrays(teacher), strict=True):
        np.testing.assert_array_equal(old, new)
    assert [layer.trainable for layer in teacher.layers] == flags


def test_evaluate_and_predict_use_the_student_alone():
    x, y = data()
    distiller = nets.compiled(distiller_of(alpha=0.7))
    distiller.fit(x, y, epochs=1, verbose=0)
    student = nets.compiled(distiller.student)
    for variable in distiller.teacher.variables:
        variable.assign(variable * np.nan)  # whoever reads the teacher now gets NaN
    loss, accuracy = student.evaluate(x, y, verbose=0)
    metrics = distiller.evaluate(x, y, verbose=0, return_dict=True)
    assert metrics == pytest.approx({"loss": loss, "accuracy": accuracy})
    np.testing.assert_array_equal(distiller.predict(x, verbose=0), student.predict(x, verbose=0))


def test_metrics_tell_both_losses_while_training():
    x, y = data()
    history = (
        nets.compiled(distiller_of(alpha=0.25))
        .fit(x, y, epochs=2, validation_data=(x, y), verbose=0)
        .history
    )
    assert {"loss", "accuracy", "student_loss", "distillation_loss"} <= set(history)
    assert {"val_loss", "val_accuracy"} <= set(history)
    assert "val_distillation_loss" not in history
    mixed = 0.75 * history["student_loss"][0] + 0.25 * history["distillation_loss"][0]
    assert history["loss"][0] == pytest.approx(mixed, rel=1e-4)


def test_several_losses_are_weighted_and_named():
    x, y = data()
    losses = [tfc.SoftTargets(2.0), keras.losses.MeanSquaredError(name="mse")]
    distiller = nets.compiled(
        distiller_of(distillation_losses=losses, distillation_loss_weights=[1.0, 0.5], alpha=1.0)
    )
    metrics = distiller.train_on_batch(x, y, return_dict=True)
    mixed = metrics["soft_targets"] + 0.5 * metrics["mse"]
    assert metrics["distillation_loss"] == pytest.approx(mixed, rel=1e-5)
    assert metrics["loss"] == pytest.approx(mixed, rel=1e-5)


def test_a_sample_of_weight_zero_changes_nothing():
    x, y = data(32)
    weights = np.ones(32, "float32")
    weights[16:] = 0
    results = []
    for junk in (0.0, 100.0):
        keras.utils.set_random_seed(4)
        changed = x.copy()
        changed[16:] += junk
        distiller = nets.compiled(distiller_of(alpha=0.6), metrics=[])
        distiller.train_on_batch(changed, y, sample_weight=weights)
        results.append(arrays(distiller.student))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_several_outputs_and_dict_inputs():
    teacher, student = nets.two_by_two(), nets.two_by_two()
    distiller = tfc.Distiller(teacher, student, alpha=1.0)
    distiller.compile(keras.optimizers.Adam(0.02))
    x = nets.samples_for(teacher, 32)
    losses = distiller.fit(x, epochs=10, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    (term,) = distiller._plan.terms
    assert [loss.student_outputs for loss in term._per_output] == ["linear", "sigmoid"]


@pytest.mark.parametrize("compress", [False, True])
def test_saves_loads_and_trains_on(tmp_path, compress):
    x, y = data()
    student = nets.tiny()
    if compress:
        student = tfc.quantize(tfc.prune(student, tfc.PolynomialDecay(0, 0.5, 0, 6, frequency=2)))
    distiller = nets.compiled(
        distiller_of(student, distillation_losses=[tfc.SoftTargets(4.0)], alpha=0.4)
    )
    distiller.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert (loaded.alpha, loaded.distillation_losses[0].temperature) == (0.4, 4.0)
    first = distiller.fit(x, y, batch_size=16, shuffle=False, verbose=0).history
    second = loaded.fit(x, y, batch_size=16, shuffle=False, verbose=0).history
    assert first["loss"] == second["loss"] and first["accuracy"] == second["accuracy"]


@pytest.mark.parametrize(
    "options",
    [{"jit_compile": True}, {"run_eagerly": True}, {"steps_per_execution": 2}],
    ids=lambda o: next(iter(o)),
)
def test_each_way_of_running(options):
    x, y = data()
    distiller = nets.compiled(distiller_of(tfc.quantize(nets.tiny())), **options)
    history = distiller.fit(x, y, batch_size=16, epochs=2, verbose=0).history["loss"]
    assert history[-1] < history[0]


def test_batchnorm_of_the_student_moves_once_a_step():
    student = keras.Sequential(
        [keras.Input((6,)), L.Dense(4), L.BatchNormalization(momentum=0.5), L.Dense(3)]
    )
    norm, kernel = student.layers[1], student.layers[0]
    x, y = data()
    distiller = nets.compiled(distiller_of(student))
    wanted = 0.5 * np.mean(keras.ops.convert_to_numpy(kernel(x)), axis=0)
    distiller.train_on_batch(x, y)
    np.testing.assert_allclose(norm.moving_mean, wanted, rtol=1e-3, atol=1e-5)
    before = keras.ops.convert_to_numpy(norm.moving_mean).copy()
    distiller.evaluate(x, y, verbose=0)
    np.testing.assert_array_equal(norm.moving_mean, before)


def test_an_activation_that_hides_gradients_is_seen_through():
    """A subclassed teacher must say what it puts out."""

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__(name="hidden")
            self.dense = L.Dense(3)

        def call(self, x):
            return self.dense(x)

    teacher = Subclassed()
    x, y = data()
    teacher(x)
    with pytest.raises(ValueError, match="cannot be seen.*teacher 'hidden'.*teacher_outputs"):
        distiller_of(teacher=teacher)
    loss = tfc.SoftTargets(3.0, teacher_outputs="linear")
    nets.compiled(distiller_of(teacher=teacher, distillation_losses=loss)).train_on_batch(x, y)


BAD = {
    "teacher": (lambda: tfc.Distiller(3, nets.tiny()), TypeError, "teacher must be a Keras 3"),
    "unbuilt": (
        lambda: tfc.Distiller(teacher_of(), keras.Sequential([L.Dense(3)], name="raw")),
        ValueError,
        "student must be built.*'raw'",
    ),
    "shapes": (
        lambda: tfc.Distiller(nets.tiny(), nets.nested_wide()),
        ValueError,
        r"teacher \[\(None, 3\)\], student \[\(None, 5\)\]",
    ),
    "alpha": (lambda: distiller_of(alpha=1.5), ValueError, "alpha=1.5"),
    "temperature": (lambda: distiller_of(temperature=-1), ValueError, "temperature=-1"),
    "temperature twice": (
        lambda: distiller_of(temperature=2.0, distillation_losses=tfc.SoftTargets()),
        ValueError,
        "temperature is for the default loss only",
    ),
    "loss": (lambda: distiller_of(distillation_losses="mse"), TypeError, "Received: 'mse'"),
    "weights": (
        lambda: distiller_of(distillation_loss_weights=[1.0, 2.0]),
        ValueError,
        "must be 1 numbers",
    ),
}


@pytest.mark.parametrize(("act", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named(act, error, message):
    with pytest.raises(error, match=message):
        act()


def test_teacher_and_student_must_be_two():
    model = nets.tiny()
    with pytest.raises(ValueError, match="the same model object"):
        tfc.Distiller(model, model)


def test_the_kind_of_averaged_outputs_is_seen():
    from tfcompress.distill.losses.response import output_kind

    def net(name):
        return keras.Sequential([keras.Input((6,)), L.Dense(3, activation="softmax")], name=name)

    assert output_kind(tfc.ensemble([net("a"), net("b")])) == "softmax"


def softmax_net(activation, name):
    return keras.Sequential([keras.Input((6,)), L.Dense(3, activation=activation)], name=name)


def test_distributions_of_different_kinds_are_refused():
    with pytest.raises(ValueError, match="cannot compare a softmax teacher with a sigmoid"):
        tfc.Distiller(softmax_net("softmax", "a"), softmax_net("sigmoid", "b"))
    with pytest.raises(ValueError, match="DecoupledTargets needs logits or a softmax"):
        loss = tfc.DecoupledTargets()
        tfc.Distiller(softmax_net("sigmoid", "a"), softmax_net("sigmoid", "b"), loss)
    with pytest.raises(ValueError, match=r"all probabilities. Received: a \['softmax'\], b"):
        tfc.ensemble([softmax_net("softmax", "a"), softmax_net(None, "b")])


def test_what_cannot_be_seen_must_be_said():
    class Hidden(L.Layer):
        def __init__(self):
            super().__init__()
            self.dense = L.Dense(3, activation="softmax")

        def build(self, shape):
            self.dense.build(shape)

        def call(self, x):
            return self.dense(x)

    from tfcompress.distill.losses.response import output_kind

    inputs = keras.Input((6,))
    assert output_kind(keras.Model(inputs, Hidden()(inputs))) is None
    inputs = keras.Input((4, 6))
    each = L.TimeDistributed(L.Dense(3, activation="softmax"))(inputs)
    assert output_kind(keras.Model(inputs, each)) == "softmax"
    assert output_kind(keras.Model(inputs, keras.ops.cast(each, "float16"))) == "softmax"


def test_weights_of_positions_are_averaged_for_layers():
    x, y = np.ones((4, 5, 6), "float32"), np.zeros((4, 5), "int64")
    weights = np.random.default_rng(0).random((4, 5)).astype("float32")

    def net(width, name):
        return keras.Sequential(
            [keras.Input((5, 6)), L.Dense(width, name="hidden"), L.Dense(3)], name=name
        )

    values = []
    for sample_weight in (weights, weights.mean(1)):
        losses = [tfc.FeatureMatching("hidden", "hidden"), tfc.SimilarityPreserving()]
        keras.utils.set_random_seed(1)
        distiller = tfc.Distiller(net(4, "t"), net(4, "s"), losses, alpha=1.0)
        distiller.compile("sgd")
        values.append(
            distiller.train_on_batch(x, y, sample_weight=sample_weight, return_dict=True)["loss"]
        )
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_padding_is_left_out():
    ids = np.array([[1, 2, 0, 0, 0], [3, 1, 2, 4, 0]])

    def net(name):
        return keras.Sequential(
            [keras.Input((5,)), L.Embedding(6, 4, mask_zero=True), L.Dense(3)], name=name
        )

    teacher, student = net("t"), net("s")
    distiller = tfc.Distiller(teacher, student, [tfc.SoftTargets(2.0)], alpha=1.0)
    distiller.compile(keras.optimizers.SGD(0.0))
    result = distiller.train_on_batch(ids, np.zeros((2, 5)))
    each = tfc.SoftTargets(2.0).measure(teacher(ids), student(ids))
    wanted = np.mean(keras.ops.convert_to_numpy(each)[ids > 0])
    assert float(result[0] if isinstance(result, (list, tuple)) else result) == pytest.approx(
        wanted
    )


def test_outputs_by_name():
    x, y = data()
    inputs = keras.Input((6,))
    outputs = [L.Dense(3, name="z")(inputs), L.Dense(3, name="a")(inputs)]
    cross = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    teacher = keras.models.clone_model(keras.Model(inputs, outputs))
    distiller = tfc.Distiller(teacher, keras.Model(inputs, outputs), tfc.DecoupledTargets())
    distiller.compile("adam", {"z": cross, "a": cross})
    history = distiller.fit(x, {"z": y, "a": (y + 1) % 3}, verbose=0).history
    assert np.isfinite(history["loss"][0])
