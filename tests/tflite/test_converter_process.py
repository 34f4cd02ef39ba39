"""The converter in a process of its own."""

import concurrent.futures
import os
import signal
import sys

import keras
import pytest
import tensorflow as tf
from keras import layers

import tfcompress as tfc
from tests import nets
from tfcompress.export import export_tflite as export_module
from tfcompress.graph.read import input_names, output_names
from tfcompress.lowering.lower import lower
from tfcompress.tflite import convert, converter_process


def export(model, tmp_path, **options):
    return tfc.export_tflite(model, tmp_path / "m.tflite", **options)


def small():
    return keras.Sequential([keras.Input((4,)), layers.Dense(3)])


def test_one_process_serves_the_exports_that_follow(tmp_path):
    export(small(), tmp_path)
    (kept,) = converter_process._idle
    export(small(), tmp_path)
    assert converter_process._idle == [kept] and kept.is_usable()


def test_a_process_that_was_killed_is_replaced(tmp_path):
    export(small(), tmp_path)
    (kept,) = converter_process._idle
    kept._process.kill()
    kept._process.wait()
    assert export(small(), tmp_path).agreement.rmse < 1e-6
    assert converter_process._idle == [kept] and kept.is_usable()


def test_what_crashes_the_converter_is_an_error(tmp_path, monkeypatch):
    # The calibrator ends its process at a loop of Keras. What would unroll it and what would refuse
    # it are left out.
    monkeypatch.setattr(export_module, "lower", lambda model, int16: lower(model))
    monkeypatch.setattr(convert, "_save", lambda *args, save=convert._save: save(*args) and [])
    model = keras.Sequential([keras.Input((6, 3)), layers.LSTM(4)])
    data = nets.samples_for(model)
    with pytest.raises(tfc.ExportError, match=r"crashed on this model.*SIG"):
        export(model, tmp_path, scheme="int16x8", representative_dataset=data)
    assert not list(tmp_path.iterdir()) and not converter_process._idle
    assert export(small(), tmp_path).agreement.rmse < 1e-6


def test_a_process_that_ends_during_conversion_is_an_error(tmp_path, monkeypatch):
    def killed(process, *request, call=converter_process.ConverterProcess._call):
        process._process.send_signal(signal.SIGKILL)
        return call(process, *request)

    monkeypatch.setattr(converter_process.ConverterProcess, "_call", killed)
    with pytest.raises(tfc.ExportError, match="SIGKILL, perhaps for want of memory"):
        export(small(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_process_that_ends_before_it_is_needed_is_replaced(tmp_path):
    with converter_process.converter_process(keep=False) as process:
        process._process.kill()
        process._process.wait()
        with process.serving():
            assert process.is_usable()


def test_threads_take_turns_and_leave_tensorflow_as_it_was(tmp_path):
    from tensorflow.lite.python import convert as theirs

    native = theirs.wrap_converter
    models = [small() for _ in range(3)]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        paths = [tmp_path / f"{i}.tflite" for i in range(3)]
        results = list(pool.map(tfc.export_tflite, models, paths))
    assert all(result.agreement.rmse < 1e-6 for result in results)
    assert theirs.wrap_converter is native


def test_an_error_of_the_converter_leaves_its_process_running():
    with converter_process.converter_process(keep=False) as process, process.serving():
        from tensorflow.lite.python import convert as theirs

        with pytest.raises(RuntimeError):
            theirs.wrap_converter.wrapped_convert(b"", b"", None, None)
        assert process.is_usable()


def test_a_forked_process_starts_its_own(tmp_path, monkeypatch):
    export(small(), tmp_path)
    (kept,) = converter_process._idle
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert not kept.is_usable()


def test_another_version_of_tensorflow_is_loaded_the_long_way(tmp_path, monkeypatch):
    text = converter_process._CHILD.read_text()
    changed = text.replace("import pywrap_tensorflow", "import moved_elsewhere")
    assert changed != text
    (tmp_path / "child.py").write_text(changed)
    monkeypatch.setattr(converter_process, "_CHILD", tmp_path / "child.py")
    monkeypatch.setattr(converter_process, "_idle", [])
    assert export(small(), tmp_path).agreement.rmse < 1e-6
    for process in converter_process._idle:
        process.end()


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_done_meanwhile_is_done_once(fails, tmp_path):
    done = []

    def act():
        done.append(True)
        if fails:
            raise RuntimeError("forgotten")

    model = nets.small_residual()
    with converter_process.converter_process(keep=False) as process:
        process.meanwhile = act
        for _ in range(2):
            convert.convert(
                lambda: lower(model),
                process,
                inputs=input_names(model),
                outputs=output_names(model),
                scheme="float32",
                io_dtype="float32",
                batch_size=1,
                sparse=False,
            )
    assert done == [True]


class Talking(layers.Layer):
    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, inputs):
        if not isinstance(inputs, keras.KerasTensor) and not tf.inside_function():
            print("heard", file=sys.stderr)
        return inputs * self.scale


def test_what_a_model_says_meanwhile_is_heard(tmp_path, capfd):
    tfc.describe_layer(Talking)  # or its code would be read, not run
    model = keras.Sequential([keras.Input((4,)), Talking(), layers.Dense(3)])
    capfd.readouterr()
    export(model, tmp_path)
    assert "heard" in capfd.readouterr().err
