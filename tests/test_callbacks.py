import glob

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tests import nets
from tests.conftest import arrays
from tfcompress.graph.keras_internals import flatten_layers
from tfcompress.quantization.state import quantizers


def data(model, count=64):
    x = nets.samples_for(model, count)
    return x, np.arange(count) % model.output_shape[-1]


def test_sparsity_and_ranges_are_logged(tmp_path):
    import tensorflow as tf

    schedule = tfc.PolynomialDecay(0.0, 0.5, 0, 4, frequency=1)
    model = nets.compiled(tfc.quantize(tfc.prune(nets.small_residual(), schedule)))
    x, y = data(model)
    history = model.fit(
        x, y, epochs=3, batch_size=32, verbose=0, callbacks=[tfc.CompressionSummaries(tmp_path)]
    ).history
    rows = [r for r in tfc.summary(model).layers if r.sparsity is not None]
    share = sum(r.sparsity * r.kernel_size for r in rows) / sum(r.kernel_size for r in rows)
    assert history["sparsity"][-1] == pytest.approx(share) and history["sparsity"][0] < share
    (file,) = glob.glob(f"{tmp_path}/compression/events*")
    logged = {}
    for event in tf.compat.v1.train.summary_iterator(file):
        for value in event.summary.value:
            logged[value.tag, event.step] = float(tf.make_ndarray(value.tensor))
    assert logged["sparsity/out", 2] == 0.5
    quantizer = next(q for q in quantizers(model) if q.name == "out_quantizer")
    assert logged["range/out/maximum", 2] == pytest.approx(quantizer.range()[1])
    ranges = [(logged["range/out/minimum", e], logged["range/out/maximum", e]) for e in range(3)]
    assert len(set(ranges)) == 3


@pytest.mark.parametrize("learned", [False, True])
def test_ranges_and_statistics_stay_once_frozen(learned):
    scheme = tfc.QuantizationScheme(activation_range="learned" if learned else None)
    model = nets.compiled(tfc.quantize(nets.small_residual(), scheme), 0.01)
    x, y = data(model)
    seen = []

    def note(epoch, logs):
        norm = [
            a for v, a in zip(model.variables, arrays(model), strict=True) if "moving" in v.path
        ]
        kernels = [
            a for v, a in zip(model.variables, arrays(model), strict=True) if "kernel" in v.path
        ]
        seen.append(([q.range() for q in quantizers(model)], norm, kernels))

    model.fit(
        x,
        y,
        epochs=5,
        batch_size=16,
        verbose=0,
        callbacks=[
            tfc.FreezeQuantization(3),
            keras.callbacks.LambdaCallback(on_epoch_end=note),
        ],
    )
    ranges, norms, kernels = zip(*seen, strict=True)
    assert ranges[1] != ranges[2] and ranges[2] == ranges[3] == ranges[4]
    assert any(np.any(a != b) for a, b in zip(norms[1], norms[2], strict=True))
    for a, b in zip(norms[2], norms[4], strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(np.any(a != b) for a, b in zip(kernels[3], kernels[4], strict=True))
    assert all(layer.trainable for layer in flatten_layers(model))
    model.fit(x, y, verbose=0)  # and moves again
    assert [q.range() for q in quantizers(model)] != ranges[4]


def test_frozen_normalization_trains_as_it_infers():
    model = nets.compiled(nets.small_residual())
    x, y = data(model)
    model.fit(x, y, epochs=2, verbose=0)
    losses = []
    model.fit(
        x,
        y,
        epochs=1,
        batch_size=64,
        verbose=0,
        callbacks=[
            tfc.FreezeQuantization(0),
            keras.callbacks.LambdaCallback(on_train_batch_end=lambda b, logs: losses.append(logs)),
        ],
    )
    again = nets.compiled(model)
    before = again.evaluate(x, y, verbose=0)[0]
    after = again.fit(x, y, batch_size=64, verbose=0, callbacks=[tfc.FreezeQuantization(0)])
    assert after.history["loss"][0] == pytest.approx(before, rel=1e-4)


def test_a_run_that_was_stopped_leaves_nothing_frozen():
    model = nets.compiled(tfc.quantize(nets.small_residual()))
    x, y = data(model)
    model.fit(x, y, verbose=0)

    def stop(batch, logs):
        raise KeyboardInterrupt

    callback = tfc.FreezeQuantization(0)
    stopper = keras.callbacks.LambdaCallback(on_train_batch_end=stop)
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, verbose=0, callbacks=[callback, stopper])
    before = [q.range() for q in quantizers(model)]
    model.fit(10 * x, y, verbose=0, callbacks=[tfc.FreezeQuantization(9), callback])
    assert all(layer.trainable for layer in flatten_layers(model))
    model.fit(10 * x, y, verbose=0)
    assert [q.range() for q in quantizers(model)] != before


def test_a_shuffled_dataset_is_read_once():
    import tensorflow as tf

    model = nets.compiled(nets.tiny())
    x, y = data(model, 64)
    shuffled = tf.data.Dataset.from_tensor_slices(x).shuffle(64).batch(16)
    same = tfc.TeacherAgreement(shuffled, model)
    model.optimizer.learning_rate = 0.0
    history = model.fit(x, y, epochs=2, verbose=0, callbacks=[same]).history
    assert history["agreement"] == [1.0, 1.0]


def test_the_teachers_agreement_is_logged():
    keras.utils.set_random_seed(0)
    teacher, student = nets.tiny(), nets.tiny("tanh")
    x = nets.samples_for(teacher, 256)
    distiller = tfc.Distiller(teacher, student, alpha=1.0)
    distiller.compile(keras.optimizers.Adam(0.02))
    history = distiller.fit(x, epochs=20, verbose=0, callbacks=[tfc.TeacherAgreement(x)]).history
    teacher_classes = teacher.predict(x, verbose=0).argmax(-1)
    same = np.mean(student.predict(x, verbose=0).argmax(-1) == teacher_classes)
    assert history["agreement"][-1] == pytest.approx(same) and same > 0.8
    assert history["agreement"][0] < same
    plain = nets.compiled(nets.tiny())
    history = plain.fit(x, teacher_classes, verbose=0, callbacks=[tfc.TeacherAgreement(x, teacher)])
    assert 0 <= history.history["agreement"][0] <= 1


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="epoch must be"):
        tfc.FreezeQuantization(-1)
    model = nets.compiled(nets.tiny())
    x, y = data(model)
    with pytest.raises(ValueError, match="teacher must be a Keras model"):
        model.fit(x, y, verbose=0, callbacks=[tfc.TeacherAgreement(x)])
