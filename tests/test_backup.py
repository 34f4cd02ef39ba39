"""Training that was stopped ends as if it had not been."""

import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc

X = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
Y = np.arange(64) % 3


class Dies(keras.callbacks.Callback):
    """Ends the process, as it were, in the middle of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.at = epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.now, batch) == (self.at, 1):
            raise MemoryError


def net():
    keras.utils.set_random_seed(3)
    layers = [L.Dense(16, activation="relu"), L.Dropout(0.3), L.GaussianNoise(0.1), L.Dense(3)]
    return keras.Sequential([keras.Input((8,)), *layers])


def compiled(model):
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def trained(model, folder=None, dies=()):
    callbacks = [tfc.BackupAndRestore(folder)] if folder else []
    options = {"epochs": 4, "batch_size": 16, "shuffle": False, "verbose": 0}
    for epoch in dies:
        with pytest.raises(MemoryError):
            model().fit(X, Y, callbacks=[*callbacks, Dies(epoch)], **options)
        callbacks = [tfc.BackupAndRestore(folder)]
    last = model()
    history = last.fit(X, Y, callbacks=callbacks, **options).history
    return [np.array(v) for v in last.variables], len(history["loss"])


MODELS = {
    "plain": lambda: compiled(net()),
    "quantized and pruned": lambda: compiled(
        tfc.quantize(tfc.prune(net(), tfc.PolynomialDecay(0.0, 0.8, 2, 12, frequency=1)))
    ),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("dies", [(2,), (0, 1, 3)])
def test_it_ends_with_the_same_weights(model, dies, tmp_path):
    whole, _ = trained(model)
    resumed, epochs = trained(model, tmp_path, dies)
    assert epochs == 4 - max(dies)
    for a, b in zip(whole, resumed, strict=True):
        np.testing.assert_array_equal(a, b)
    assert list(tmp_path.iterdir()) == []


def test_a_distiller_goes_on(tmp_path):
    def make():
        distiller = tfc.Distiller(net(), tfc.quantize(net()), alpha=0.5)
        distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return distiller

    whole, _ = trained(make)
    resumed, epochs = trained(make, tmp_path, (2,))
    assert epochs == 2
    for a, b in zip(whole, resumed, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_keras_loses_is_the_state_of_random_layers(tmp_path):
    """Else this callback would not be needed."""
    model = compiled(net())
    model.fit(X, Y, verbose=0)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    (drop,), (other,) = ([x for x in m.layers if isinstance(x, L.Dropout)] for m in (model, again))
    assert np.any(np.array(drop.seed_generator.state) != np.array(other.seed_generator.state))


def test_backups_of_other_models_and_damaged_ones_are_refused(tmp_path):
    model = compiled(net())
    keep = tfc.BackupAndRestore(tmp_path, delete_checkpoint=False)
    model.fit(X, Y, epochs=1, verbose=0, callbacks=[keep])
    other = compiled(keras.Sequential([keras.Input((8,)), L.Dense(3)]))
    with pytest.raises(ValueError, match="is of another model: it holds"):
        other.fit(X, Y, verbose=0, callbacks=[tfc.BackupAndRestore(tmp_path)])
    (tmp_path / "state.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is damaged. Delete it"):
        model.fit(X, Y, verbose=0, callbacks=[tfc.BackupAndRestore(tmp_path)])


def test_weights_of_half_precision_are_kept(tmp_path):
    keras.utils.set_random_seed(0)
    layers = [L.Dense(4, dtype="bfloat16"), L.Dense(3)]
    model = compiled(keras.Sequential([keras.Input((8,)), *layers]))
    keep = tfc.BackupAndRestore(tmp_path, delete_checkpoint=False)
    model.fit(X, Y, epochs=1, verbose=0, callbacks=[keep])
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[tfc.BackupAndRestore(tmp_path)])
    assert list(tmp_path.iterdir()) == []
