"""Untrusted archives: damaged ones raise our own errors, large ones are not unpacked."""

import io
import json
import zipfile

import h5py
import keras
import numpy as np
import pytest

from tests import nets
from tfcompress.archives import LIMIT, check_archive, load_arrays
from tfcompress.graph.read import load_keras


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "m.keras"
    nets.tiny().save(path)
    return path


def test_a_bomb_is_refused_by_its_headers(tmp_path, monkeypatch):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(3_000_000))
    monkeypatch.setenv(LIMIT, "2000000")
    with pytest.raises(ValueError, match=rf"unpacks to 3,000,000 bytes.*{LIMIT}=3000000"):
        check_archive(path, "bomb")
    monkeypatch.setenv(LIMIT, "3000000")
    check_archive(path, "bomb")


def test_weights_that_are_packed_twice_are_counted(saved, tmp_path, monkeypatch):
    inner = io.BytesIO()
    with h5py.File(inner, "w") as weights:
        weights.create_dataset("w", data=np.zeros(1_000_000, "float32"), compression="gzip")
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w") as archive, zipfile.ZipFile(saved) as good:
        archive.writestr("config.json", good.read("config.json"))
        archive.writestr("metadata.json", good.read("metadata.json"))
        archive.writestr("model.weights.h5", inner.getvalue())
    monkeypatch.setenv(LIMIT, "100000")
    with pytest.raises(ValueError, match="unpacks to 4,000,000 bytes"):
        load_keras(path)


def test_whole_files_are_loaded(saved, tmp_path):
    assert load_keras(saved).count_params() == nets.tiny().count_params()
    arrays = {
        "x": np.ones((3, 2)),
        "y": np.arange(3),
        "empty": np.zeros((0, 4)),
        "one": np.array(2),
    }
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    loaded = load_arrays(tmp_path / "a.npz", "it")
    assert {k: v.shape for k, v in loaded.items()} == {k: v.shape for k, v in arrays.items()}
    np.save(tmp_path / "a.npy", arrays["x"])
    np.testing.assert_array_equal(load_arrays(tmp_path / "a.npy", "it")["x"], arrays["x"])


def test_arrays_that_claim_more_than_they_have(tmp_path):
    content = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**7, 10**7)}
    np.lib.format.write_array_header_1_0(content, header)
    (tmp_path / "a.npy").write_bytes(content.getvalue())
    with pytest.raises(ValueError, match="is said to be in"):
        load_arrays(tmp_path / "a.npy", "it")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", content.getvalue())
    with pytest.raises(ValueError, match="is said to be in"):
        load_arrays(tmp_path / "a.npz", "it")


def test_objects_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{}], object))
    with pytest.raises(ValueError, match="Python objects"):
        load_arrays(tmp_path / "a.npz", "it")


@pytest.mark.parametrize("kind", ["keras", "npz", "npy"])
def test_every_damage_is_an_error_of_ours(kind, saved, tmp_path):
    """Bytes changed at random positions, and truncated files."""
    good = tmp_path / f"good.{kind}"
    if kind == "keras":
        good.write_bytes(saved.read_bytes())
    elif kind == "npz":
        np.savez_compressed(good, x=np.arange(1000.0), y=np.arange(10))
    else:
        np.save(good, np.arange(1000.0))
    content = good.read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for number in range(60):
        damaged = bytearray(content)
        if number % 5 == 0:
            del damaged[int(generator.integers(len(damaged))) :]
        for _ in range(int(generator.integers(1, 6))):
            if damaged:
                damaged[int(generator.integers(len(damaged)))] = int(generator.integers(256))
        bad = tmp_path / f"bad.{kind}"
        bad.write_bytes(bytes(damaged))
        try:
            load_keras(bad) if kind == "keras" else load_arrays(bad, "it")
        except ValueError:
            refused += 1
    assert refused > 10


def test_a_config_that_leads_nowhere(saved, tmp_path):
    for wrong in (
        [],
        {"class_name": 3},
        {"module": "os", "class_name": "system", "config": {}},
        "x",
    ):
        path = tmp_path / "bad.keras"
        with zipfile.ZipFile(path, "w") as archive, zipfile.ZipFile(saved) as good:
            archive.writestr("config.json", json.dumps(wrong))
            for name in ("metadata.json", "model.weights.h5"):
                archive.writestr(name, good.read(name))
        with pytest.raises(ValueError, match="could not be loaded"):
            load_keras(path)
    assert keras.backend.backend()


def test_images(tmp_path, monkeypatch):
    from PIL import Image

    from tfcompress.cli.data import load_data
    from tfcompress.data import InputSpec

    spec = [InputSpec("x", (4, 2, 3), "float32")]
    picture = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10)
    exif = picture.getexif()
    exif[0x0112] = 6  # to be turned by a quarter
    (tmp_path / "turned").mkdir()
    picture.save(tmp_path / "turned" / "a.png", exif=exif)
    x, _ = load_data(str(tmp_path / "turned"), spec)
    np.testing.assert_array_equal(x[0], np.rot90(np.asarray(picture), -1))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    with pytest.raises(ValueError, match="is no image, or it is damaged: .*pixels"):
        load_data(str(tmp_path / "turned"), spec)
    monkeypatch.undo()
    content = (tmp_path / "turned" / "a.png").read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[int(generator.integers(len(damaged)))] = int(generator.integers(256))
        (tmp_path / "turned" / "a.png").write_bytes(bytes(damaged))
        try:
            load_data(str(tmp_path / "turned"), spec)
        except ValueError as error:
            assert "a.png" in str(error) or "holds images" in str(error)
