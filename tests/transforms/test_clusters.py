import keras
import numpy as np
import pytest
from keras import ops
from scipy.cluster.vq import kmeans2

import tfcompress as tfc
from tfcompress.testing import check_transform
from tfcompress.transforms import Clusters, FakeQuant, KeepZeros, MagnitudeMask


def attached(weight, channel_axes=(1,), **options):
    transform = Clusters(**options)
    transform.attach(weight.shape, channel_axes)
    transform.start(ops.convert_to_tensor(weight))
    return transform


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def values_of(transform, weight):
    return ops.convert_to_numpy(transform.call(ops.convert_to_tensor(weight)))


def centroids_of(transform):
    return np.sort(np.append(transform.centroids.numpy().ravel(), 0.0))


@pytest.mark.parametrize("assignment", ["hard", "soft"])
def test_the_contract(assignment):
    companions = [FakeQuant, lambda: MagnitudeMask(0.5), KeepZeros]
    check_transform(lambda: Clusters(4, assignment=assignment), others=companions)


@pytest.mark.parametrize("init", ["kmeans++", "linear", "density"])
@pytest.mark.parametrize("assignment", ["hard", "soft"])
def test_each_weight_gets_its_nearest_centroid(init, assignment):
    weight = normal(40, 30)
    transform = attached(weight, number_of_clusters=9, init=init, assignment=assignment)
    centroids = centroids_of(transform)
    nearest = centroids[np.abs(weight[..., None] - centroids).argmin(-1)]
    np.testing.assert_allclose(values_of(transform, weight), nearest, atol=1e-6)
    assert len(np.unique(nearest)) == 9 and 0 in centroids


def test_each_channel_has_its_own():
    weight = normal(50, 3) * [1.0, 10.0, 100.0]
    transform = attached(weight.astype("float32"), number_of_clusters=6, per_channel=True)
    clustered = values_of(transform, weight.astype("float32"))
    for channel in range(3):
        assert len(np.unique(clustered[:, channel])) <= 6
        error = np.std(clustered[:, channel] - weight[:, channel])
        assert error < 0.5 * np.std(weight[:, channel])


def test_kmeans_finds_what_scipy_finds_and_better_than_the_others():
    weight = normal(60, 50)
    errors = {}
    for init in ("kmeans++", "linear", "density"):
        transform = attached(weight, number_of_clusters=16, init=init)
        errors[init] = np.mean((values_of(transform, weight) - weight) ** 2)
    found, _ = kmeans2(weight.reshape(-1, 1), 16, minit="++", iter=30, seed=1)
    best = np.mean(np.min((weight[..., None] - found[:, 0]) ** 2, -1))
    assert errors["kmeans++"] < 1.3 * best
    assert errors["kmeans++"] < min(errors["linear"], errors["density"])


def test_zeros_stay_zero():
    weight = normal(30, 20)
    weight[weight < 0.3] = 0
    transform = attached(weight, number_of_clusters=5)
    assert (values_of(transform, weight)[weight == 0] == 0).all()


def test_few_distinct_weights_stay_as_they_are():
    weight = np.float32([[0.5, -1.0], [0.5, 2.0], [0.0, 2.0]])
    np.testing.assert_array_equal(values_of(attached(weight, number_of_clusters=8), weight), weight)


def test_gradients_of_centroids_are_means_and_those_of_weights_pass():
    weight = np.float32([[0.9, 1.1, -2.0, 0.02]])
    transform = attached(weight, number_of_clusters=3)
    transform.centroids.assign(np.float32([1.0, -2.0]).reshape(transform.centroids.shape))
    upstream = np.float32([[1.0, 3.0, 5.0, 7.0]])
    import tensorflow as tf

    stored = tf.Variable(weight)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(transform.call(stored) * upstream)
    of_weight, of_centroids = tape.gradient(loss, [stored, transform.centroids.value])
    np.testing.assert_allclose(of_weight, upstream)
    np.testing.assert_allclose(np.ravel(of_centroids), [2.0, 5.0])


def test_a_soft_assignment_is_drawn_to_all_near_centroids():
    """At the middle between two centroids a weight decides by how far it is drawn, not at once."""
    import tensorflow as tf

    weight = np.float32([[0.49, 1.0, -1.0, 0.0]])
    transform = attached(weight, number_of_clusters=3, assignment="soft")
    transform.centroids.assign(np.float32([1.0, -1.0]).reshape(transform.centroids.shape))
    stored = tf.Variable(weight)
    with tf.GradientTape() as tape:
        values = transform.call(stored)
        loss = values[0, 0]
    gradient = tape.gradient(loss, stored).numpy()
    assert values[0, 0] == 0.0  # the value is that of the nearest
    temperature, w, c = (2 / 3) ** 2, 0.49, np.array([-1.0, 0.0, 1.0])

    def soft(w):
        share = np.exp(-((w - c) ** 2) / temperature)
        return (share * c).sum() / share.sum()

    np.testing.assert_allclose(gradient[0, 0], (soft(w + 1e-4) - soft(w - 1e-4)) / 2e-4, rtol=1e-3)
    assert (gradient[0, 1:] == 0).all()


def test_a_centroid_that_lost_its_weights_is_used_again():
    weight = normal(40, 40)
    transform = attached(weight, number_of_clusters=12)
    pruned = np.where(np.abs(weight) < 0.8, 0, weight).astype("float32")
    before = len(np.unique(values_of(transform, pruned)))
    for _ in range(20):
        transform.update(ops.convert_to_tensor(pruned))
    after = values_of(transform, pruned)
    assert before < len(np.unique(after)) == 12
    assert (after[pruned == 0] == 0).all()


def test_bad_arguments():
    for number in (1, 129, 2.5, True):
        with pytest.raises(ValueError, match="number_of_clusters must be a whole number"):
            Clusters(number)
    with pytest.raises(ValueError, match="init"):
        Clusters(init="random")
    with pytest.raises(ValueError, match="assignment"):
        tfc.cluster(keras.layers.Dense(3), assignment="firm")
