"""Files are written atomically, to the path and with the permissions that the user expects."""

import os
import pathlib
import stat
import subprocess
import sys
import threading

import numpy as np
import pytest
from matplotlib.figure import Figure

import tfcompress as tfc
from tests import nets
from tfcompress.files import check_path, replacing, save_figure, temporary_folder, write_whole

OLD, NEW = b"old", b"new content"


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(OLD)
    return path


def only(path):
    """Returns whether nothing else is in the folder of a file."""
    return [p.name for p in path.parent.iterdir()] == [path.name]


def test_permissions_stay_and_new_files_have_those_of_the_process(target):
    target.chmod(0o640)
    write_whole(target, NEW)
    assert target.read_bytes() == NEW and stat.S_IMODE(target.stat().st_mode) == 0o640
    assert only(target)
    before = os.umask(0o027)
    try:
        write_whole(target.with_name("other"), NEW)
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.with_name("other").stat().st_mode) == 0o640


def test_nobody_reads_what_is_not_finished(target):
    target.chmod(0o644)
    with replacing(target) as part:
        assert stat.S_IMODE(part.stat().st_mode) == 0o600
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    with replacing(target, private=True):
        pass
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_links_are_followed(target, tmp_path):
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "link.tflite"
    link.symlink_to(target)
    write_whole(link, NEW)
    assert link.is_symlink() and target.read_bytes() == NEW
    dangling = tmp_path / "links" / "new.tflite"
    dangling.symlink_to(tmp_path / "made.tflite")
    write_whole(check_path(dangling), NEW)
    assert dangling.is_symlink() and (tmp_path / "made.tflite").read_bytes() == NEW
    lost = tmp_path / "links" / "lost.tflite"
    lost.symlink_to(tmp_path / "nowhere" / "made.tflite")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        check_path(lost)


def test_streams_are_written_to(tmp_path):
    write_whole(check_path("/dev/null"), NEW)
    assert pathlib.Path("/dev/null").is_char_device()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_whole(check_path(pipe), NEW)
    reader.join()
    assert read == [NEW] and pipe.is_fifo()


def test_long_names_work_or_fail_before_the_work(tmp_path):
    longest = tmp_path / ("n" * 248 + ".tflite")
    write_whole(check_path(longest), NEW)
    assert longest.read_bytes() == NEW
    with pytest.raises(ValueError, match="name of 256 bytes"):
        check_path(tmp_path / ("n" * 249 + ".tflite"))
    with pytest.raises(ValueError, match="name of 258 bytes"):
        check_path(tmp_path / ("é" * 129))


@pytest.mark.parametrize("suffix", [".h5", ".keras", ".onnx", ".JSON"])
def test_endings_of_other_kinds_are_refused(suffix, tmp_path):
    with pytest.raises(ValueError, match=r"a TFLite model is written. Name it 'm.tflite'"):
        tfc.export_tflite(nets.tiny(), tmp_path / f"m{suffix}")
    assert not list(tmp_path.iterdir())
    for other in ("m", "m.lite", "m.v1.2"):
        assert check_path(tmp_path / other, ".tflite")


FULL_DISK = """
import resource, signal, pathlib, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from tfcompress.files import save_figure, write_whole
from matplotlib.figure import Figure
target = pathlib.Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
figure = Figure()
figure.subplots().plot([1, 2])
for write in (lambda: write_whole(target, bytes(5000)), lambda: save_figure(figure, target, 100)):
    try:
        write()
    except OSError as error:
        print(error)
"""


def test_an_existing_file_survives_a_full_disk(tmp_path):
    """A limit on the size of files does what a full disk does: writing fails in the middle."""
    target = tmp_path / "plot.png"
    target.write_bytes(OLD)
    command = [sys.executable, "-c", FULL_DISK, str(target)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.count(f"File too large: '{target}'") == 2
    assert target.read_bytes() == OLD and only(target)


def test_what_goes_wrong_on_the_way_leaves_the_old_file(target):
    with pytest.raises(KeyError), replacing(target) as part:
        part.write_bytes(NEW)
        raise KeyError
    assert target.read_bytes() == OLD and only(target)


def test_the_form_of_a_figure_follows_its_name(tmp_path):
    figure = Figure()
    save_figure(figure, tmp_path / "a.svg", 50)
    assert (tmp_path / "a.svg").read_bytes().startswith(b"<?xml")
    with pytest.raises(ValueError, match=r"must end in one of .*\.png"):
        save_figure(figure, tmp_path / "a.tflite", 50)


KILLED = """
import os, pathlib, signal, sys
from tfcompress.files import replacing, temporary_folder
with temporary_folder() as folder, replacing(pathlib.Path(sys.argv[1])) as part:
    pathlib.Path(folder, "data").write_bytes(b"secret")
    print(folder, os.stat(folder).st_mode & 0o077, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_run_leaves_goes_at_the_next(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "model.tflite"
    command = [sys.executable, "-c", KILLED, str(target)]
    folder, mode = subprocess.run(command, capture_output=True, text=True).stdout.split()
    assert mode == "0" and os.path.exists(folder) and len(list(target.parent.iterdir())) == 1
    monkeypatch.setattr("tempfile.tempdir", None)
    own = tmp_path / "tmp" / "tfcompress-notes"  # somebody else's
    own.write_text("")
    write_whole(target, NEW)
    assert only(target)
    with temporary_folder() as other:
        assert {p.name for p in (tmp_path / "tmp").iterdir()} == {own.name, os.path.basename(other)}


def test_two_runs_at_once_do_not_take_each_others_files(tmp_path):
    target = tmp_path / "model.tflite"
    contents = [bytes([n]) * 100_000 for n in range(8)]
    threads = [
        threading.Thread(target=lambda c=c: [write_whole(target, c) for _ in range(20)])
        for c in contents
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if target.exists():
            assert len(np.unique(np.frombuffer(target.read_bytes(), np.uint8))) == 1
    assert only(target)
