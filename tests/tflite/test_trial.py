"""Files of others are tried in a process of its own."""

import os
import signal

import pytest

import tfcompress as tfc
from tests import nets
from tests.conftest import ROOT
from tfcompress.tflite import trial
from tfcompress.tflite.run import interpreter_module

STUDENT = (ROOT / "tflite_models/fashion_mnist_student_int8.tflite").read_bytes()


@pytest.fixture(autouse=True)
def anew(monkeypatch):
    monkeypatch.setattr(trial, "_known", set())
    monkeypatch.setattr(trial, "_own", set())


def tried(content):
    trial.try_file(content, interpreter_module().__name__)


def test_a_good_file_is_tried_once():
    tried(STUDENT)
    (process,) = trial._running
    process._process.send_signal(signal.SIGSTOP)  # would never answer
    try:
        tried(STUDENT)
    finally:
        process._process.send_signal(signal.SIGCONT)


def test_what_kills_the_process_is_an_error_and_the_next_has_another(monkeypatch):
    monkeypatch.setattr(trial, "check_structure", lambda content: None)
    with pytest.raises(ValueError):
        tried(STUDENT[:2000] + bytes(len(STUDENT) - 2000))
    tried(STUDENT)


def test_a_file_that_takes_too_long(monkeypatch):
    monkeypatch.setattr(trial, "_SECONDS", 0.5)
    tried(STUDENT)
    (process,) = trial._running
    process._process.send_signal(signal.SIGSTOP)  # as one that hangs
    with pytest.raises(ValueError, match="did not open and run it within"):
        tried(STUDENT + bytes(4))
    monkeypatch.undo()
    trial.claim(STUDENT)  # its own files take what they need
    tried(STUDENT)


def test_an_interrupt_does_not_mix_up_answers(monkeypatch):
    tried(STUDENT)
    good, bad = STUDENT + b" ", STUDENT[:100] + b"x" * 400 + STUDENT[500:]
    monkeypatch.setattr(trial, "check_structure", lambda content: None)

    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(trial._running[0], "_answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tried(good)
    with pytest.raises(ValueError):
        tried(bad)
    tried(good)


def test_what_crashes_on_export_is_an_error_of_the_export(tmp_path, monkeypatch):
    monkeypatch.setattr(trial._Process, "open", lambda self, content, limited: "it crashes")
    with pytest.raises(tfc.ExportError, match="The runtime here cannot run the file: .*it crashes"):
        tfc.export_tflite(nets.tiny(), tmp_path / "m.tflite")
    assert os.listdir(tmp_path) == []
