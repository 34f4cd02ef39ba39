import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tests import nets
from tfcompress.distill.losses.response import output_kind


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.fixture
def logits():
    generator = np.random.default_rng(0)
    return generator.normal(size=(6, 4)) * 3, generator.normal(size=(6, 4)) * 3


@pytest.mark.parametrize("temperature", [1.0, 3.0, 10.0])
def test_is_the_closed_form(logits, temperature):
    teacher, student = logits
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    wanted = temperature**2 * np.mean(np.sum(p * np.log(p / q), -1))
    assert float(tfc.SoftTargets(temperature)(teacher, student)) == pytest.approx(wanted, rel=1e-4)


def test_probabilities_give_what_their_logits_give(logits):
    teacher, student = logits
    wanted = float(tfc.SoftTargets(2.0)(teacher, student))
    loss = tfc.SoftTargets(2.0, teacher_outputs="softmax", student_outputs="softmax")
    assert float(loss(softmax(teacher), softmax(student))) == pytest.approx(wanted, rel=1e-3)
    mixed = tfc.SoftTargets(2.0, teacher_outputs="softmax")
    assert float(mixed(softmax(teacher), student)) == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("form", ["linear", "sigmoid"])
def test_one_unit_is_a_bernoulli_distribution(logits, form):
    teacher, student = (x[:, :1] for x in logits)
    p, q = sigmoid(teacher / 2), sigmoid(student / 2)
    wanted = 4 * np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    loss = tfc.SoftTargets(2.0, teacher_outputs=form, student_outputs=form)
    outputs = (teacher, student) if form == "linear" else (sigmoid(teacher), sigmoid(student))
    assert float(loss(*outputs)) == pytest.approx(wanted, rel=1e-3)


def test_sample_weights_and_positions(logits):
    teacher, student = logits
    each = [
        float(tfc.SoftTargets()(t[None], s[None])) for t, s in zip(teacher, student, strict=True)
    ]
    weights = np.array([0, 1, 2, 0, 0.5, 0])
    got = float(tfc.SoftTargets()(teacher, student, sample_weight=weights))
    assert got == pytest.approx(np.sum(weights * each) / 6, rel=1e-5)
    folded = float(tfc.SoftTargets()(teacher.reshape(2, 3, 4), student.reshape(2, 3, 4)))
    assert folded == pytest.approx(np.mean(each), rel=1e-5)


def test_the_size_of_the_gradient_does_not_depend_on_the_temperature(logits):
    import tensorflow as tf

    teacher, student = (tf.constant(x / 10, tf.float32) for x in logits)
    sizes = []
    for temperature in (10.0, 40.0):
        with tf.GradientTape() as tape:
            tape.watch(student)
            loss = tfc.SoftTargets(temperature)(teacher, student)
        sizes.append(float(tf.norm(tape.gradient(loss, student))))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def model(*layers):
    return keras.Sequential([keras.Input((6,)), *layers])


KINDS = {
    "logits": (lambda: model(L.Dense(3)), "linear"),
    "fused softmax": (lambda: model(L.Dense(3, activation="softmax")), "softmax"),
    "softmax layer": (lambda: model(L.Dense(3), L.Softmax()), "softmax"),
    "activation layer": (lambda: model(L.Dense(1), L.Activation("sigmoid")), "sigmoid"),
    "behind a reshape": (
        lambda: model(L.Dense(4, activation="softmax"), L.Reshape((2, 2))),
        "softmax",
    ),
    "nested": (lambda: model(model(L.Dense(3, activation="softmax"))), "softmax"),
    "quantized": (lambda: tfc.quantize(model(L.Dense(3, activation="softmax"))), "softmax"),
    "pruned": (lambda: tfc.prune(model(L.Dense(3, activation="softmax"))), "softmax"),
    "quantized logits": (lambda: tfc.quantize(nets.tiny()), "linear"),
}


@pytest.mark.parametrize(("make", "wanted"), KINDS.values(), ids=KINDS)
def test_logits_and_probabilities_are_told_apart(make, wanted):
    assert output_kind(make()) == wanted


def test_operations_of_keras_ops_too():
    inputs = keras.Input((4,))
    assert output_kind(keras.Model(inputs, keras.ops.softmax(inputs))) == "softmax"
    assert output_kind(keras.Model(inputs, keras.ops.sigmoid(inputs))) == "sigmoid"
    two = keras.Model(inputs, [keras.ops.sigmoid(inputs), keras.ops.relu(inputs)])
    assert [output_kind(two, i) for i in (0, 1)] == ["sigmoid", "linear"]


def test_bad_values_are_named():
    with pytest.raises(ValueError, match="temperature=0"):
        tfc.SoftTargets(0)
    with pytest.raises(ValueError, match="teacher_outputs='logits'"):
        tfc.SoftTargets(teacher_outputs="logits")


def test_hard_targets_are_the_cross_entropy_with_the_teachers_choice(logits):
    teacher, student = logits
    wanted = -np.mean(np.log(softmax(student))[np.arange(6), teacher.argmax(-1)])
    assert float(tfc.HardTargets()(teacher, student)) == pytest.approx(wanted, rel=1e-4)
    one = tfc.HardTargets()
    q = sigmoid(student[:, :1])
    wanted = -np.mean(np.log(np.where(teacher[:, :1] > 0, q, 1 - q)))
    assert float(one(teacher[:, :1], student[:, :1])) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("labels", ["integers", "column", "one-hot"])
def test_decoupled_targets_add_up_to_soft_targets(logits, labels):
    """KL = TCKD + (1 - p) NCKD for every sample (Zhao et al. 2022, section 3.2)."""
    teacher, student = logits
    y = np.array([0, 1, 2, 3, 0, 1])
    formatted = {"integers": y, "column": y[:, None], "one-hot": np.eye(4)[y]}[labels]
    target = tfc.DecoupledTargets(3.0, other_weight=0.0)
    others = tfc.DecoupledTargets(3.0, target_weight=0.0, other_weight=1.0)
    p = softmax(teacher / 3.0)[np.arange(6), y]
    for i in range(6):
        part = slice(i, i + 1)
        tckd = float(target(teacher[part], student[part], labels=formatted[part]))
        nckd = float(others(teacher[part], student[part], labels=formatted[part]))
        soft = float(tfc.SoftTargets(3.0)(teacher[part], student[part]))
        assert tckd + (1 - p[i]) * nckd == pytest.approx(soft, rel=1e-4)


def test_decoupled_targets_need_labels_and_three_classes(logits):
    with pytest.raises(ValueError, match="needs labels"):
        tfc.DecoupledTargets()(*logits)
    with pytest.raises(ValueError, match="at least three classes"):
        tfc.DecoupledTargets().prepare((None, 2), (None, 2))
