"""Training on other Keras backends; the saved model is exported on TensorFlow."""

import importlib.util

import keras
import numpy as np
import pytest

import tfcompress as tfc

TRAIN = """
import keras, numpy as np
import tfcompress as tfc
from tests import nets
from tfcompress.demo.data import load

assert keras.backend.backend() == {backend!r}
keras.utils.set_random_seed(0)
data = load()
x, y = data.x_train[:512], data.y_train[:512]
schedule = tfc.PolynomialDecay(0.0, 0.5, 0, 8, frequency=2)
student = tfc.quantize(tfc.prune(nets.{net}(), schedule))
teacher = nets.dense()
distiller = tfc.Distiller(teacher, student, alpha=0.5)
losses = []
for model in (student, distiller):
    nets.compiled(model)
    losses += model.fit(x, y, epochs=2, batch_size=32, verbose=0).history["loss"]
assert np.isfinite(losses).all() and min(losses[1:]) < losses[0]
distiller.evaluate(x[:64], y[:64], verbose=0)
cache = tfc.cache_teacher(teacher, (x[:128], y[:128]), "cache", verbose=False)
stored = cache.rows(np.arange(128))["output_0"]
np.testing.assert_allclose(stored, teacher.predict(x[:128], verbose=0), 1e-3, 1e-4)
learner = nets.compiled(tfc.Distiller(cache, nets.dense(), alpha=1.0))
history = learner.fit(cache.dataset(32, seed=0), epochs=3, verbose=0).history["loss"]
assert history[-1] < history[0]
rows = [r for r in tfc.summary(student).layers if r.target]
assert rows and all(0.5 <= r.sparsity < 0.51 for r in rows)  # small weights round to zero, too
student.save("student.keras")
np.save("outputs.npy", student.predict(data.x_test[:64], verbose=0))
stripped = tfc.strip(tfc.prune(nets.{net}(), 0.5))
clustered = tfc.cluster(nets.dense(), 8)
nets.compiled(clustered).fit(x, y, epochs=1, verbose=0)
kernels = [weight for weight in tfc.strip(clustered).get_weights() if weight.ndim == 2]
assert kernels and all(len(np.unique(kernel)) <= 8 for kernel in kernels)
try:
    tfc.export_tflite(student, "m.tflite")
except tfc.ExportError as error:
    assert "KERAS_BACKEND=tensorflow" in str(error)
else:
    raise AssertionError("exported without TensorFlow as the backend")
"""


CASES = [
    ("jax", "residual"),
    pytest.param("jax", "conv", marks=pytest.mark.slow),
    pytest.param("jax", "recurrent", marks=pytest.mark.slow),
    pytest.param("torch", "recurrent", marks=pytest.mark.slow),
    pytest.param("torch", "residual", marks=pytest.mark.slow),
    pytest.param("torch", "conv", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("backend", "net"), CASES)
def test_a_model_trained_elsewhere_is_exported_here(backend, net, python, tmp_path, quiet):
    if not importlib.util.find_spec(backend):
        pytest.skip(f"{backend} is not installed")
    one_thread = "--xla_cpu_multi_thread_eigen=false"  # sums in one order
    python(TRAIN.format(backend=backend, net=net), KERAS_BACKEND=backend, XLA_FLAGS=one_thread)
    from tfcompress.demo.data import load

    images = load().x_test[:64]
    model = keras.saving.load_model(tmp_path / "student.keras")
    wanted = np.load(tmp_path / "outputs.npy")
    outputs = model.predict(images, verbose=0)
    # Another order of summation: a value between two quantized values may be rounded either way.
    assert np.sqrt(np.mean((outputs - wanted) ** 2)) < 0.01 * wanted.std()
    result = tfc.export_tflite(model, tmp_path / "m.tflite")
    assert result.float_tensors == [] and result.agreement.max_lsb <= 2.01
    file = tfc.TFLiteModel(result.path)
    assert np.mean(file.predict(images).argmax(-1) == wanted.argmax(-1)) > 0.95
