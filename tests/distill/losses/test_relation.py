import keras
import numpy as np
import pytest

import tfcompress as tfc

G = np.random.default_rng(0)
TEACHER, STUDENT = G.normal(size=(6, 4)), G.normal(size=(6, 3))


def huber(x):
    return np.where(np.abs(x) < 1, 0.5 * x**2, np.abs(x) - 0.5)


def test_rkd_distance_follows_the_paper():
    def distances(x):
        d = np.linalg.norm(x[:, None] - x[None], axis=-1)
        return d / d[d > 0].mean()

    wanted = huber(distances(TEACHER) - distances(STUDENT)).mean()
    assert float(tfc.RKDDistance()(TEACHER, STUDENT)) == pytest.approx(wanted, rel=1e-4)


def test_rkd_angle_follows_the_paper():
    def cosines(x):
        edges = x[None] - x[:, None]
        length = np.linalg.norm(edges, axis=-1, keepdims=True)
        edges = np.divide(edges, length, where=length > 0, out=np.zeros_like(edges))
        return np.einsum("ijd,ikd->ijk", edges, edges)

    wanted = huber(cosines(TEACHER) - cosines(STUDENT)).mean()
    assert float(tfc.RKDAngle()(TEACHER, STUDENT)) == pytest.approx(wanted, rel=1e-4)


def test_similarity_preserving_follows_the_paper():
    def similarities(x):
        gram = x @ x.T
        return gram / np.linalg.norm(gram, axis=1, keepdims=True)

    wanted = np.sum((similarities(TEACHER) - similarities(STUDENT)) ** 2) / 36
    assert float(tfc.SimilarityPreserving()(TEACHER, STUDENT)) == pytest.approx(wanted, rel=1e-4)


ALL = [tfc.RKDDistance, tfc.RKDAngle, tfc.SimilarityPreserving]


@pytest.mark.parametrize("loss", ALL)
def test_any_shape_of_features_is_one_vector_a_sample(loss):
    teacher, student = G.normal(size=(5, 3, 3, 2)), G.normal(size=(5, 7))
    flat = loss()(teacher.reshape(5, -1), student)
    assert float(loss()(teacher, student)) == pytest.approx(float(flat))


@pytest.mark.parametrize("loss", ALL)
def test_a_sample_of_weight_zero_changes_nothing(loss):
    weight = np.array([1, 1, 1, 1, 0, 0], "float32")
    values = []
    for junk in (0.0, 1e6, np.nan):
        teacher, student = TEACHER.copy(), STUDENT.copy()
        teacher[4:] += junk
        student[4:] -= junk
        values.append(float(loss()(teacher, student, sample_weight=weight)))
    assert values[0] == values[1] == values[2]
    # The relations of the others are those they have among themselves.
    power = 3 if loss is tfc.RKDAngle else 2
    alone = float(loss()(TEACHER[:4], STUDENT[:4])) * (4 / 6) ** power
    assert values[0] == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("loss", ALL)
def test_equal_samples_have_finite_gradients(loss):
    import tensorflow as tf

    student = tf.Variable(np.ones((4, 3), "float32"))
    with tf.GradientTape() as tape:
        value = loss()(TEACHER[:4], student)
    assert np.isfinite(keras.ops.convert_to_numpy(tape.gradient(value, student))).all()
