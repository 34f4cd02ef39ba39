import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc

G = np.random.default_rng(0)


def normal(*shape):
    return G.normal(size=shape).astype("float32")


def test_feature_matching_is_the_mean_of_squares():
    teacher, student = normal(4, 3, 3, 5), normal(4, 3, 3, 5)
    loss = tfc.FeatureMatching("a", "a")
    assert float(loss(teacher, student)) == pytest.approx(np.mean((teacher - student) ** 2))
    cosine = tfc.FeatureMatching("a", "a", distance="cosine")
    product = np.sum(teacher * student, -1)
    product /= np.linalg.norm(teacher, axis=-1) * np.linalg.norm(student, axis=-1)
    assert float(cosine(teacher, student)) == pytest.approx(np.mean(1 - product), rel=1e-5)
    assert float(cosine(teacher, 5 * teacher)) == pytest.approx(0, abs=1e-6)


def test_the_projector_is_learned_and_maps_onto_the_teachers_width():
    teacher, student = normal(4, 3, 3, 5), normal(4, 3, 3, 2)
    loss = tfc.FeatureMatching("a", "b")
    loss.prepare((None, 3, 3, 5), (None, 3, 3, 2))
    kernel = keras.ops.convert_to_numpy(loss.projector.kernel)
    assert kernel.shape == (2, 5) and len(loss.trainable_variables) == 1
    wanted = np.mean((teacher - student @ kernel) ** 2)
    assert float(loss(teacher, student)) == pytest.approx(wanted, rel=1e-5)


def test_attention_transfer_follows_the_paper():
    teacher, student = normal(4, 3, 3, 8), normal(4, 3, 3, 2)

    def maps(x):
        flat = np.mean(x**2, -1).reshape(len(x), -1)
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)

    wanted = np.mean((maps(teacher) - maps(student)) ** 2)
    loss = tfc.AttentionTransfer("a", "a")(teacher, student)
    assert float(loss) == pytest.approx(wanted, rel=1e-4)


def test_fsp_is_the_difference_of_gram_matrices():
    early, late = normal(3, 8, 8, 4), normal(3, 4, 4, 6)
    other = normal(3, 8, 8, 4), normal(3, 4, 4, 6)

    def flow(a, b):
        a = a.reshape(3, 4, 2, 4, 2, 4).max((2, 4))
        return np.einsum("bhwm,bhwn->bmn", a, b) / 16

    wanted = np.mean((flow(early, late) - flow(*other)) ** 2)
    loss = tfc.FSP(("a", "b"), ("a", "b"))([early, late], list(other))
    assert float(loss) == pytest.approx(wanted, rel=1e-4)


def test_attention_maps_of_differing_heads_are_averaged():
    teacher, student = G.random((2, 4, 5, 5)), G.random((2, 3, 5, 5))
    wanted = np.mean((teacher.mean(1) - student.mean(1)) ** 2)
    assert float(tfc.AttentionMaps("a", "a")(teacher, student)) == pytest.approx(wanted, rel=1e-4)


def test_tinybert_maps_layers_evenly():
    losses = tfc.tinybert_losses(
        [f"a{i}" for i in range(6)],
        [f"b{i}" for i in range(3)],
        [f"h{i}" for i in range(6)],
        [f"g{i}" for i in range(3)],
    )
    pairs = [(loss.teacher_layer, loss.student_layer) for loss in losses]
    assert pairs[:3] == [("a1", "b0"), ("a3", "b1"), ("a5", "b2")] and len(pairs) == 6
    with pytest.raises(ValueError, match="2 layers to learn from 1"):
        tfc.tinybert_losses(["a"], ["b", "c"], [], [])


BAD_SHAPES = {
    "no projector": (
        tfc.FeatureMatching("t", "s", projector=None),
        (None, 7, 7, 64),
        (None, 7, 7, 32),
        r"'t', shaped \(None, 7, 7, 64\).*'s', shaped \(None, 7, 7, 32\).*Dense\(64\)",
    ),
    "size": (
        tfc.FeatureMatching("t", "s"),
        (None, 7, 7, 64),
        (None, 14, 14, 32),
        r"Resizing\(7, 7\).*Conv2D\(64, 1\)",
    ),
    "rank": (tfc.FeatureMatching("t", "s"), (None, 7, 7, 64), (None, 64), "same rank"),
    "maps": (
        tfc.AttentionTransfer("t", "s"),
        (None, 7, 7, 64),
        (None, 14, 14, 64),
        "both must have positions",
    ),
    "attention": (
        tfc.AttentionMaps("t", "s"),
        (None, 4, 8, 8),
        (None, 4, 9, 9),
        "queries and keys",
    ),
    "FSP": (
        tfc.FSP(("a", "b"), ("a", "b")),
        [(None, 8, 8, 4), (None, 4, 4, 6)],
        [(None, 8, 8, 4), (None, 4, 4, 5)],
        "widths must be the same",
    ),
}


@pytest.mark.parametrize(
    ("loss", "teacher", "student", "message"), BAD_SHAPES.values(), ids=BAD_SHAPES
)
def test_shapes_that_cannot_be_compared_are_shown(loss, teacher, student, message):
    with pytest.raises(ValueError, match=message):
        loss.prepare(teacher, student)


def test_the_projector_that_the_error_names_fixes_it():
    projector = keras.Sequential([L.Resizing(7, 7), L.Conv2D(64, 1)])
    loss = tfc.FeatureMatching("t", "s", projector=projector)
    loss.prepare((None, 7, 7, 64), (None, 14, 14, 32))
    assert float(loss(normal(2, 7, 7, 64), normal(2, 14, 14, 32))) > 0


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="distance='l1'"):
        tfc.FeatureMatching("a", "b", distance="l1")
    with pytest.raises(ValueError, match="student_layer=None"):
        tfc.FeatureMatching("a", None)
    with pytest.raises(ValueError, match="teacher_layers='a'"):
        tfc.FSP("a", ("a", "b"))
    with pytest.raises(ValueError, match="power=0"):
        tfc.AttentionTransfer("a", "b", power=0)
