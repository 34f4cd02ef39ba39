import json

import pytest

from tests.conftest import ROOT
from tfcompress.demo import data, main
from tfcompress.demo.models import resnet
from tfcompress.tflite.inspect import inspect_tflite

KEYS = {"accuracy", "bytes", "gzip_bytes", "parameters", "macs", "latency_ms"}


def test_embedded_data():
    loaded = data.load()
    assert loaded.x_train.shape == (10_000, 28, 28, 1) and loaded.x_test.shape == (5_000, 28, 28, 1)
    assert loaded.x_train.min() == 0 and loaded.x_train.max() == 1
    assert set(loaded.y_train) == set(range(10)) and "embedded" in loaded.source
    assert len(data.CLASSES) == 10


@pytest.mark.skipif(not data._DEBIAN.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_all_of_the_data_where_debian_has_it():
    loaded = data.load(full=True)
    assert len(loaded.x_train) == 60_000 and "Debian" in loaded.source
    assert (loaded.x_train[:10_000] == data.load().x_train).all()


def test_without_any_source_full_says_so(monkeypatch, tmp_path):
    import keras

    monkeypatch.setattr(data, "_DEBIAN", tmp_path / "none")

    def offline():
        raise OSError("no network")

    monkeypatch.setattr(keras.datasets.fashion_mnist, "load_data", offline)
    with pytest.raises(FileNotFoundError, match="Without --full"):
        data.load(full=True)


def check(folder):
    report_json = json.loads((folder / "demo.json").read_text())
    for key in ("teacher", "student_float", "student_int8"):
        assert set(report_json[key]) == KEYS
    assert "embedded subset" in report_json["data"]
    report = inspect_tflite(folder / "student.tflite")
    assert report.bytes == report_json["student_int8"]["bytes"] and report.float_tensors == []
    assert (folder / "demo.png").read_bytes()[:4] == b"\x89PNG"
    assert report_json["teacher"]["parameters"] == 78_426
    return report_json


def test_a_short_demo_writes_everything(tmp_path, monkeypatch, quiet):
    small = data.load()
    small = data.Data(
        small.source,
        small.x_train[:256],
        small.y_train[:256],
        small.x_test[:100],
        small.y_test[:100],
    )
    monkeypatch.setattr(main, "load", lambda full: small)
    monkeypatch.setattr(main, "TEACHER_EPOCHS", 1)
    monkeypatch.setattr(main, "STUDENT_EPOCHS", 5)
    result = main.run_demo(tmp_path / "out", quiet=True)
    report_json = check(tmp_path / "out")
    assert result.as_dict() == report_json
    assert report_json["sparsity"] == pytest.approx(main.SPARSITY, abs=0.05)
    from tfcompress.tables import as_text

    assert "latency" in as_text(result)


@pytest.mark.slow
def test_the_demo_shows_what_it_promises(tmp_path):
    main.run_demo(tmp_path, quiet=True)
    report_json = check(tmp_path)
    teacher, student = report_json["teacher"], report_json["student_int8"]
    assert teacher["accuracy"] - student["accuracy"] <= 0.015
    assert teacher["gzip_bytes"] / student["gzip_bytes"] >= 12
    assert abs(report_json["keras_accuracy"] - student["accuracy"]) <= 0.003


def test_the_teacher_has_the_size_it_is_known_by():
    assert resnet().count_params() == 78_426
    assert (ROOT / "tfcompress" / "demo" / "fashion_mnist.npz").stat().st_size < 8_000_000
