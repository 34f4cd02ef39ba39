import os
import time

import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tests import nets
from tfcompress.export import export_tflite as export
from tfcompress.export.agreement import _followed_in_part
from tfcompress.post_training import adaround
from tfcompress.tensorflow_internals import signatures
from tfcompress.tflite.run import TFLiteModel


def seen(model, count=32):
    """Returns a model whose ranges were updated by some data."""
    model(nets.samples_for(model, count), training=True)
    return model


@pytest.mark.parametrize("make", nets.GRAPHS.values(), ids=nets.GRAPHS)
@pytest.mark.parametrize("scheme", ["float32", "float16", "dynamic_int8", "int8", "int16x8", "qat"])
def test_every_graph_under_every_scheme(make, scheme, tmp_path):
    model = make()
    x = nets.samples_for(model, 64)
    options = {"scheme": scheme}
    if scheme in ("int8", "int16x8"):
        options["representative_dataset"] = x
    if scheme == "qat":
        model, options = tfc.quantize(model), {}
        for seed in range(8):
            model(nets.samples_for(model, 64, seed), training=True)
    result = tfc.export_tflite(model, tmp_path / "m.tflite", **options)
    assert result.scheme == ("int8" if scheme == "qat" else scheme)
    if result.scheme == "int8":
        assert result.float_tensors == []
    outputs = TFLiteModel(result.path).predict(x)
    wanted = model.predict(x, verbose=0)
    outputs = outputs if isinstance(wanted, dict) else {"y": outputs}
    for key, value in (wanted if isinstance(wanted, dict) else {"y": wanted}).items():
        limits = {"float32": 1e-4, "float16": 5e-3, "int16x8": 0.05}
        limit = limits.get(scheme, 0.1) * np.std(value)
        assert np.sqrt(np.mean((outputs[key] - value) ** 2)) <= limit


def test_the_scheme_is_what_the_model_was_trained_for(tmp_path):
    path = tmp_path / "m.tflite"
    model = nets.tiny()
    x = nets.samples_for(model, 32)
    assert tfc.export_tflite(model, path).scheme == "float32"
    assert tfc.export_tflite(model, path, representative_dataset=x).scheme == "int8"
    result = tfc.export_tflite(seen(tfc.quantize(model)), path)
    assert (result.scheme, result.trained) == ("int8", True)
    assert result.agreement.source == "training" and result.agreement.samples == 32


def test_names_of_inputs_and_outputs_survive(tmp_path):
    model = seen(tfc.quantize(nets.two_by_two()))
    result = tfc.export_tflite(model, tmp_path / "m.tflite", io_dtype="int8")
    file = TFLiteModel(result.path)
    assert {i.name for i in file.inputs} == {"a", "b"}
    assert {o.name for o in file.outputs} == {"main", "side"}
    assert list(signatures(file.interpreter)) == ["serving_default"]
    runner = file.interpreter.get_signature_runner()
    outputs = runner(a=np.zeros((1, 6), np.int8), b=np.zeros((1, 4), np.int8))
    assert set(outputs) == {"main", "side"}


@pytest.mark.parametrize("batch_size", [1, 4, None])
@pytest.mark.parametrize("trained", [True, False])
def test_batches(batch_size, trained, tmp_path):
    keras.utils.set_random_seed(0)
    model = nets.small_residual()
    x = nets.samples_for(model, 18)
    if trained:
        model = seen(tfc.quantize(model))
    result = tfc.export_tflite(
        model, tmp_path / "m.tflite", batch_size=batch_size, representative_dataset=x
    )
    file = TFLiteModel(result.path)
    assert file.inputs[0].shape == (batch_size, 8, 8, 2)
    assert file.predict(x).shape == (18, 3)


def test_mixed_float16_becomes_a_float32_file(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = seen(tfc.quantize(nets.small_residual()))
        result = tfc.export_tflite(model, tmp_path / "m.tflite")
        assert result.float_tensors == [] and "float16" not in result.dtypes
        # Without ranges to drop, the float file is compared in float16's precision.
        plain = tfc.export_tflite(nets.small_residual(), tmp_path / "f.tflite")
        assert plain.agreement.rmse < 1e-3
    finally:
        keras.config.set_dtype_policy("float32")


def test_a_sparse_file_is_smaller(tmp_path):
    model = keras.Sequential([keras.Input((256,)), L.Dense(256), L.Dense(256)])
    pruned = tfc.prune(model, 0.9)
    pruned(np.ones((1, 256)), training=True)
    dense = tfc.export_tflite(pruned, tmp_path / "d.tflite")
    sparse = tfc.export_tflite(pruned, tmp_path / "s.tflite", sparse=True)
    assert sparse.bytes < 0.5 * dense.bytes


def test_the_result_prints_what_matters(tmp_path):
    result = tfc.export_tflite(seen(tfc.quantize(nets.tiny())), tmp_path / "m.tflite")
    text = str(result)
    for part in ("m.tflite", "gzip", "FULLY_CONNECTED 2", "int8", "float tensors", "RMSE"):
        assert part in text
    assert result.bytes == os.path.getsize(result.path) and result.gzip_bytes < result.bytes
    assert result.seconds > 0


def test_a_large_model_says_what_it_does(tmp_path, capsys):
    tfc.export_tflite(nets.tiny(), tmp_path / "m.tflite", verbose=True)
    said = capsys.readouterr().out
    assert "converting" in said and "checking" in said and "wrote" in said
    tfc.export_tflite(nets.tiny(), tmp_path / "m.tflite")
    assert capsys.readouterr().out == ""


def test_the_converter_is_quiet(tmp_path, capfd):
    tfc.export_tflite(nets.tiny(), tmp_path / "m.tflite")
    capfd.readouterr()
    tfc.export_tflite(nets.tiny(), tmp_path / "m.tflite", scheme="dynamic_int8")
    assert "error" not in capfd.readouterr().err.lower()


# Files that must never be written.


def broken(make, process, **options):
    """Stands for the converter's silent failure: a file with no weights in it."""
    model = make()
    empty = keras.models.clone_model(model)
    empty.set_weights([np.zeros_like(w) for w in model.get_weights()])
    return real_convert(lambda: empty, process, **options)


real_convert = export.convert


@pytest.mark.parametrize("scheme", ["float32", "dynamic_int8", "int8", "qat"])
def test_a_file_with_missing_weights_is_refused(scheme, tmp_path, monkeypatch):
    model = nets.small_residual()
    options = {"scheme": scheme}
    if scheme in ("int8", "int16x8"):
        options["representative_dataset"] = nets.samples_for(model, 32)
    if scheme == "qat":
        model, options = tfc.quantize(model), {}
        for seed in range(16):
            model(nets.samples_for(model, seed=seed), training=True)
    monkeypatch.setattr(export, "convert", broken)
    target = tmp_path / "m.tflite"
    target.write_bytes(b"the old file")
    with pytest.raises(tfc.ExportError, match="does not compute what its model computes"):
        tfc.export_tflite(model, target, **options)
    assert target.read_bytes() == b"the old file" and os.listdir(tmp_path) == ["m.tflite"]


@pytest.mark.parametrize("correct_bias", [True, False])
def test_errors_of_the_converter_do_not_hide_behind_the_rounding(
    correct_bias, tmp_path, monkeypatch
):
    """A fifth of the deviation: little enough for 8 bits, too much for the converter."""
    model = keras.Sequential([keras.Input((6,)), L.Dense(8, activation="relu"), L.Dense(4)])
    data = nets.samples_for(model, 64)
    wanted = np.asarray(model(data))

    def inexact(make, process, **options):
        lowered = make()
        (bias,) = (w for w in lowered.weights if w.shape == (4,))
        bias.assign_add(np.full(4, 0.2 * wanted.std()))
        return real_convert(lambda: lowered, process, **options)

    monkeypatch.setattr(export, "convert", inexact)
    scheme = tfc.QuantizationScheme(correct_bias=correct_bias)
    with pytest.raises(tfc.ExportError, match="the converter did not keep its integers"):
        tfc.export_tflite(model, tmp_path / "m.tflite", scheme=scheme, representative_dataset=data)
    assert not os.listdir(tmp_path)


def test_few_samples_in_the_pass_that_corrects_biases(tmp_path, monkeypatch):
    """As of images with large tensors inside."""
    monkeypatch.setattr(adaround, "_SAMPLES", (6, 6))
    model = nets.small_residual()
    result = tfc.export_tflite(
        model, tmp_path / "m.tflite", representative_dataset=nets.samples_for(model, 32)
    )
    assert result.agreement.rmse < 0.1


def test_an_output_of_the_whole_batch_is_written_unchecked(tmp_path):
    inputs = keras.Input((6,))
    x = L.Dense(4)(inputs)
    model = keras.Model(inputs, [x, keras.ops.sum(x)])
    data = nets.samples_for(model, 32)
    tfc.export_tflite(model, tmp_path / "m.tflite", representative_dataset=data, verify=False)
    assert os.listdir(tmp_path) == ["m.tflite"]


def test_a_poor_ptq_warns_with_figures(tmp_path):
    model = keras.Sequential([keras.Input((6,)), L.Dense(4)])
    kernel = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
    model.layers[0].set_weights([kernel, np.zeros(4, "float32")])
    data = nets.samples_for(model, 200)
    data[::50] = 40 * np.sign(
        data[::50]
    )  # a few outliers stretch the ranges until little is left for the rest
    with pytest.warns(tfc.CompressionWarning, match=r"poor copy of its model: .* is off by 0\.1"):
        result = tfc.export_tflite(model, tmp_path / "m.tflite", representative_dataset=data)
    assert os.path.exists(result.path) and result.agreement.rmse < 0.1  # which the outliers make


def test_loops_which_the_converter_cannot_calibrate_are_exported(tmp_path):
    model = keras.Sequential([keras.Input((5, 3)), L.LSTM(4)])
    data = nets.samples_for(model, 64)
    scheme = tfc.QuantizationScheme(activation_range="min_max")
    result = tfc.export_tflite(
        model, tmp_path / "m.tflite", scheme=scheme, representative_dataset=data
    )
    assert result.scheme == "int8" and result.agreement.rmse < 0.1


def untrained():
    return tfc.quantize(nets.tiny())


X = np.ones((8, 6), "float32")
NAN = np.full((8, 6), np.nan, "float32")
BAD = {
    "not a model": ({"model": "model.keras"}, TypeError, "model must be a Keras 3 model"),
    "unbuilt": ({"model": keras.Sequential([L.Dense(2)])}, ValueError, "must be built"),
    "untrained ranges": ({"model": untrained}, ValueError, "ranges of model 'tiny' were never"),
    "untrained ranges, with data": (
        {"model": untrained, "representative_dataset": X},
        ValueError,
        "never trained",
    ),
    "dropping ranges": (
        {"model": lambda: seen(untrained()), "scheme": "float32"},
        ValueError,
        "would drop the ranges",
    ),
    "unknown scheme": ({"scheme": "int4"}, ValueError, "scheme='int4'. Did you mean 'int8'"),
    "int8 without data": ({"scheme": "int8"}, ValueError, "representative_dataset="),
    "empty data": ({"representative_dataset": X[:0]}, ValueError, "is empty"),
    "wrong shape": (
        {"representative_dataset": np.ones((8, 5))},
        ValueError,
        r"representative_dataset has the wrong shape.*\(6\). Received: \(8, 5\)",
    ),
    "NaN": ({"representative_dataset": NAN}, ValueError, "48 NaN or infinite values"),
    "no folder": ({"path": "missing/m.tflite"}, FileNotFoundError, "no folder 'missing'"),
    "a folder": ({"path": "."}, IsADirectoryError, "path is a folder"),
    "no path": ({"path": 3}, TypeError, "path must be a file path. Received: path=3"),
    "unknown io_dtype": ({"io_dtype": "int16"}, ValueError, "io_dtype='int16'"),
    "integers of a float file": ({"io_dtype": "int8"}, ValueError, "needs scheme='int8'"),
    "batch": ({"batch_size": 0}, ValueError, "batch_size must be None or an integer >= 1"),
    "verbose": ({"verbose": "loud"}, ValueError, "verbose"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_at_once(arguments, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export, "convert", None)  # so that getting this far fails
    arguments = {"model": nets.tiny, "path": "m.tflite", **arguments}
    model = arguments.pop("model")
    model = model() if callable(model) and not isinstance(model, keras.Model) else model
    started = time.perf_counter()
    with pytest.raises(error, match=message):
        tfc.export_tflite(model, **arguments)
    assert time.perf_counter() - started < 1
    assert os.listdir(tmp_path) == []


def test_a_folder_without_permission(tmp_path, monkeypatch):
    tmp_path.chmod(0o500)
    if os.geteuid() == 0:  # root may write everywhere; let the system say otherwise
        monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(PermissionError, match="no permission"):
        tfc.export_tflite(nets.tiny(), tmp_path / "m.tflite")
    assert os.listdir(tmp_path) == []


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="disk full"):
        tfc.export_tflite(nets.tiny(), tmp_path / "m.tflite")
    assert os.listdir(tmp_path) == []


def test_another_backend_is_told_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(tfc.ExportError, match="KERAS_BACKEND=tensorflow"):
        tfc.export_tflite(nets.tiny(), tmp_path / "m.tflite")


@pytest.mark.parametrize(
    ("merge", "in_part"), [(keras.layers.Maximum, True), (keras.layers.Concatenate, False)]
)
def test_of_the_larger_of_two_the_model_does_not_know_which(merge, in_part):
    """The file rounds each in its own way, so a difference of one LSB is not its error."""
    inputs = keras.Input((8, 8, 3))
    a, b = (keras.layers.Conv2D(4, 3)(inputs) for _ in range(2))
    x = keras.layers.ReLU()(merge()([a, b]))
    aware = tfc.quantize(keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(x))))
    assert _followed_in_part(aware) is in_part


@pytest.mark.filterwarnings("ignore:.*poor copy")
def test_a_float16_file_may_be_as_far_off_as_its_weights(tmp_path):
    """Two large weights almost cancel each other, and float16 has three digits of each."""
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(2, use_bias=False), keras.layers.Dense(1)]
    )
    model.layers[0].set_weights([np.array([[1, 1], [0, 2**-10]], np.float32)])
    model.layers[1].set_weights([np.array([[1000.3], [-1000.1]], np.float32), np.zeros(1)])
    result = tfc.export_tflite(model, tmp_path / "m.tflite", scheme="float16")
    assert 0.05 < result.agreement.rmse < 1


def test_what_adaround_fits_does_not_judge_the_file(monkeypatch, tmp_path):
    model = nets.tiny()
    x = nets.samples_for(model, 60)
    fitted, judged = [], []

    def noted(notes, place, function):
        return lambda *args: notes.append(args[place]) or function(*args)

    monkeypatch.setattr(export, "post_training", noted(fitted, 2, export.post_training))
    monkeypatch.setattr(export, "Check", noted(judged, 1, export.Check))
    for scheme, apart in (
        (tfc.QuantizationScheme(rounding="adaround"), True),
        ("w4a8", True),
        ("int8", False),
    ):
        tfc.export_tflite(model, tmp_path / "m.tflite", scheme=scheme, representative_dataset=x)
        rows = {row.tobytes() for row in next(iter(judged.pop().samples.values()))}
        seen = {row.tobytes() for row in next(iter(fitted.pop().values()))}
        assert 16 <= len(rows) <= 20 or not apart
        assert rows.isdisjoint(seen) == apart and len(seen) + apart * len(rows) == 60
