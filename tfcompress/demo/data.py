"""Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747; MIT license) for the demo.

The embedded subset, `fashion_mnist.npz`, holds the first 10,000 training and the first 5,000 test
images of the original files, as uint8.
"""

from __future__ import annotations

import dataclasses
import gzip
import pathlib

import numpy as np

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_DEBIAN = pathlib.Path("/usr/share/datasets/fashion-mnist")
_EMBEDDED = pathlib.Path(__file__).with_name("fashion_mnist.npz")


@dataclasses.dataclass(frozen=True)
class Data:
    """Images of shape (n, 28, 28, 1) with values in [0, 1], and integer labels.

    Attributes:
        source: A description of their origin.
        x_train: Training images.
        y_train: Training labels.
        x_test: Test images.
        y_test: Test labels.
    """

    source: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load(full: bool = False) -> Data:
    """Loads the embedded subset, or all of Fashion-MNIST.

    Args:
        full: Whether to load all 60,000 and 10,000 images, from Debian's dataset-fashion-mnist
            where it is installed, else through keras.datasets.

    Raises:
        FileNotFoundError: If `full` is asked for and there is neither package nor network.
    """
    if not full:
        with np.load(_EMBEDDED) as arrays:
            parts = [arrays[key] for key in ("x_train", "y_train", "x_test", "y_test")]
        return _data("the embedded subset of Fashion-MNIST", *parts)
    if _DEBIAN.is_dir():
        parts = [
            read_idx(_DEBIAN / f"{split}-{kind}-ubyte.gz")
            for split in ("train", "t10k")
            for kind in ("images-idx3", "labels-idx1")
        ]
        return _data("Fashion-MNIST from Debian's dataset-fashion-mnist", *parts)
    import keras  # the embedded data does not need Keras

    try:
        (x_train, y_train), (x_test, y_test) = keras.datasets.fashion_mnist.load_data()
    except Exception as error:
        raise FileNotFoundError(
            "Fashion-MNIST is not here: install the Debian package dataset-fashion-mnist, or "
            f"connect to the network for keras.datasets ({error}). Without --full, the embedded "
            "subset is used."
        ) from error
    return _data("Fashion-MNIST from keras.datasets", x_train, y_train, x_test, y_test)


def read_idx(path: pathlib.Path) -> np.ndarray:
    """Reads a gzipped IDX file of unsigned bytes."""
    content = gzip.decompress(path.read_bytes())
    rank = content[3]
    shape = np.frombuffer(content, ">i4", rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _data(
    source: str, x_train: np.ndarray, y_train: np.ndarray, x_test: np.ndarray, y_test: np.ndarray
) -> Data:
    description = f"{source} ({len(x_train):,} training and {len(x_test):,} test images)"
    images = [x[..., None].astype(np.float32) / np.float32(255) for x in (x_train, x_test)]
    return Data(
        description, images[0], y_train.astype(np.int64), images[1], y_test.astype(np.int64)
    )
