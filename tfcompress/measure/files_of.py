"""Models and paths as files that can be measured."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import keras

from tfcompress.export.export_tflite import export_tflite
from tfcompress.files import temporary_folder
from tfcompress.graph.inline import as_graph
from tfcompress.graph.read import load_keras
from tfcompress.lowering.strip import without_transforms
from tfcompress.tflite.run import TFLiteModel


def loaded(name: str, model: Any) -> keras.Model | TFLiteModel:
    """Returns a model or file.

    Args:
        name: What to call it in errors.
        model: A Keras model, a `TFLiteModel`, or the path of a `.keras` or `.tflite` file.

    Raises:
        TypeError: If it is none of these.
    """
    if isinstance(model, keras.Model):
        return as_graph(model, name)
    if isinstance(model, TFLiteModel):
        return model
    if not isinstance(model, (str, os.PathLike)):
        raise TypeError(
            f"{name} must be a Keras model, a TFLiteModel or the path of a .keras or .tflite "
            f"file. Received: {type(model).__name__}"
        )
    if pathlib.Path(model).suffix == ".keras":
        return load_keras(pathlib.Path(model))
    return TFLiteModel(model)


def as_file(name: str, model: Any, num_threads: int = 1) -> TFLiteModel:
    """Returns the file to measure: of a Keras model its float32 file.

    Args:
        name: What to call it in errors.
        model: As for `loaded`.
        num_threads: Number of threads of the interpreter.
    """
    model = loaded(name, model)
    if isinstance(model, TFLiteModel):
        same = model.num_threads == num_threads
        return model if same else TFLiteModel(model.content, num_threads)
    with temporary_folder() as folder:
        path = pathlib.Path(folder) / "model.tflite"
        export_tflite(without_transforms(model), path, scheme="float32", verbose=False)
        return TFLiteModel(path.read_bytes(), num_threads)
