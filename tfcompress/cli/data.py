"""Loads --data: an .npz or .npy file, a folder of images, or a function that returns samples."""

from __future__ import annotations

import importlib
import pathlib
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfcompress.archives import load_arrays
from tfcompress.data import InputSpec, collect

_INPUTS = ("x", "images", "features", "inputs", "arr_0")
_LABELS = ("y", "labels", "targets", "arr_1")
_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")


def load_data(
    source: str, inputs: Sequence[InputSpec], *, split: str = "train"
) -> tuple[Any, np.ndarray | None]:
    """Loads the samples and labels of a --data option.

    Args:
        source: Path of an .npz or .npy file or of a folder of images, or "module:function".
        inputs: What the model expects.
        split: "train" or "test", for files that hold x_train and x_test.

    Returns:
        Samples in a form that all functions of tfcompress accept, and labels or None.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If it does not hold what the model expects.
    """
    path = pathlib.Path(source)
    if path.is_dir():
        return _from_folder(path, inputs)
    if path.is_file() and path.suffix in (".npz", ".npy"):
        return _from_arrays(path, inputs, split)
    if path.is_file():
        raise ValueError(
            f"--data {source!r} has an unknown form: it must be an .npz or .npy file, a folder of "
            "images or of folders of images, or module:function."
        )
    if ":" in source and not pathlib.Path(source).parent.name:
        return _from_function(source, inputs)
    raise FileNotFoundError(
        f"--data names no file, folder or module:function that exists: {source!r}"
    )


def _from_arrays(path: pathlib.Path, inputs: Sequence[InputSpec], split: str) -> tuple[Any, Any]:
    arrays = load_arrays(path, f"--data {str(path)!r}")
    known_labels = (f"y_{split}", *_LABELS)
    labels = next((arrays[name] for name in known_labels if name in arrays), None)
    names = [spec.name for spec in inputs]
    candidates = [name for name in (*names, f"x_{split}", *_INPUTS) if name in arrays]
    others = [name for name in arrays if name not in known_labels]
    if len(inputs) == 1 and (candidates or len(others) == 1):
        return arrays[(candidates or others)[0]], labels
    if all(name in arrays for name in names):
        return {name: arrays[name] for name in names}, labels
    raise ValueError(
        f"--data {str(path)!r} must hold an array for each input of the model, by the names "
        f"{', '.join(map(repr, names))}"
        + (f" (or 'x'), and labels as {_LABELS[0]!r}" if len(inputs) == 1 else "")
        + f". It holds: {', '.join(map(repr, arrays)) or 'nothing'}"
    )


def _from_folder(folder: pathlib.Path, inputs: Sequence[InputSpec]) -> tuple[Any, Any]:
    """Returns images in the size and channels of the model, 0 to 255; subfolders are classes."""
    from PIL import Image, ImageOps  # a dependency of matplotlib

    if len(inputs) != 1 or len(inputs[0].shape) != 3 or inputs[0].shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"--data {str(folder)!r} is a folder of images, and the model does not take images: "
            f"its inputs are {', '.join(f'{s.name!r} {s.shape}' for s in inputs)}"
        )
    height, width, channels = inputs[0].shape
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels or 3]
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and _images_in(path))
    files = [
        (path, label if classes else None)
        for label, class_folder in enumerate(classes or [folder])
        for path in _images_in(class_folder)
    ]
    if not files:
        raise ValueError(f"--data {str(folder)!r} holds no images ({', '.join(_IMAGES)}).")
    images = []
    for path, _ in files:
        try:
            with warnings.catch_warnings(), Image.open(path) as opened:
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                if opened.width * opened.height > (Image.MAX_IMAGE_PIXELS or 2**62):
                    raise ValueError(
                        f"it has {opened.width} x {opened.height} pixels, and the limit is "
                        f"{Image.MAX_IMAGE_PIXELS:,} (PIL.Image.MAX_IMAGE_PIXELS)"
                    )
                image: Image.Image = ImageOps.exif_transpose(opened)
                if image.mode.startswith("I"):  # 16 bits, which converting would clip
                    image = Image.fromarray((np.asarray(image) / 256).astype(np.uint8))
                converted = image.convert(mode)
                size = (width or converted.width, height or converted.height)
                if converted.size != size:
                    converted = converted.resize(size, Image.Resampling.BILINEAR)
                images.append(np.asarray(converted).reshape(size[1], size[0], len(mode)))
        except Exception as error:  # decoders of damaged files raise anything
            raise ValueError(f"{str(path)!r} is no image, or it is damaged: {error}") from error
    if len({image.shape for image in images}) > 1:
        raise ValueError(
            f"--data {str(folder)!r} holds images of several sizes, and the model takes any size: "
            "make them equal first."
        )
    labels = np.array([label for _, label in files]) if classes else None
    return np.stack(images), labels


def _images_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the images in a folder and below, except in hidden folders and those of macOS."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in _IMAGES
        and not any(
            part.startswith(".") or part == "__MACOSX"
            for part in path.relative_to(folder.parent).parts
        )
    ]


def _from_function(source: str, inputs: Sequence[InputSpec]) -> tuple[Any, Any]:
    module_name, _, name = source.partition(":")
    try:
        module = import_module(module_name)
        function = getattr(module, name)
    except AttributeError:
        raise ValueError(f"--data {source!r}: the module has no function {name!r}.") from None
    try:
        result = function()
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        kind = type(error).__name__
        raise ValueError(f"--data {source!r}: the function raised {kind}: {error}") from error
    arrays, labels = collect(result, inputs, argument=f"--data {source}")
    return arrays[inputs[0].name] if len(inputs) == 1 else arrays, labels


def import_module(name: str) -> Any:
    """Imports a module of the user, also from the working directory.

    Raises:
        ValueError: If there is none, or it cannot be imported.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise ValueError(f"There is no module {name!r} here.") from None
        raise ValueError(f"The module {name!r} needs {error.name!r}, which is missing.") from error
    except (Exception, SystemExit) as error:
        kind = type(error).__name__
        raise ValueError(f"The module {name!r} cannot be imported: {kind}: {error}") from error


def normalized(x: Any, normalization: tuple[list[float], list[float]] | None) -> Any:
    """Returns `(x - mean) / deviation` of an array; without `normalization`, the data unchanged."""
    if normalization is None:
        return x
    if not isinstance(x, np.ndarray):
        raise ValueError("--normalize needs --data that is an array of one input.")
    mean, deviation = (np.asarray(values, np.float32) for values in normalization)
    if len(mean) not in (1, x.shape[-1]):
        raise ValueError(
            f"--normalize must give one mean and deviation, or {x.shape[-1]} of each, as the data "
            f"has {x.shape[-1]} channels. Received: {len(mean)} of each."
        )
    return (x.astype(np.float32) - mean) / deviation
