"""Makes a file again by the recipe inside it, and compares the bytes."""

from __future__ import annotations

import dataclasses
import io
import pathlib
import zipfile
from typing import Any

import keras

from tfcompress.files import temporary_folder
from tfcompress.recipes.parse import RecipeError
from tfcompress.recipes.recipe import Recipe
from tfcompress.recipes.run import run_recipe, surroundings
from tfcompress.tflite.metadata import read_metadata


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """How a file that was made again compares with the first.

    Attributes:
        same_bytes: Whether all bytes are the same.
        same_model: Whether they are but for the metadata, which hold the versions.
        differing: What was otherwise than when the file was made: {name: (then, now)}.
    """

    same_bytes: bool
    same_model: bool
    differing: dict[str, tuple[str, str]]

    def __str__(self) -> str:
        if self.same_bytes:
            return "the same bytes"
        others = ", ".join(f"{k} was {a}, is {b}" for k, (a, b) in self.differing.items())
        if self.same_model:
            return f"the same model; only the metadata differ: {others}"
        return f"other bytes. {others or 'Versions and machine are the same as then'}."


def read_record(content: bytes, name: str = "the file") -> dict[str, Any]:
    """Returns the recipe in a file, with the hashes of its sources and the versions.

    Raises:
        RecipeError: If there is none.
    """
    record = (read_metadata(content) or {}).get("recipe")
    if record is None:
        raise RecipeError(
            f"{name} holds no recipe: it was not written by `tfcompress run`, `run_recipe` or a "
            "search."
        )
    return record


def reproduce(
    content: bytes, model: keras.Model, data: Any, name: str = "the file", *, verbose: bool = True
) -> Reproduction:
    """Makes a file again.

    Args:
        content: A `.tflite` file with a recipe inside.
        model: The model that it was made from.
        data: The data that it was made with.
        name: What to call the file in errors.
        verbose: Whether to show progress.

    Raises:
        RecipeError: If the file has no recipe.
        ValueError: If model or data are others.
    """
    record = read_record(content, name)
    recipe = Recipe.from_dict({"stages": record["stages"]})
    with temporary_folder() as folder:
        path = pathlib.Path(folder, "again.tflite")
        run_recipe(recipe, model, data, path, seed=record["seed"], verbose=verbose, expected=record)
        again = path.read_bytes()
    now = surroundings()
    return Reproduction(
        same_bytes=again == content,
        same_model=_without_metadata(again) == _without_metadata(content),
        differing={
            key: (value, now[key])
            for key, value in record["versions"].items()
            if now.get(key) != value
        },
    )


def _without_metadata(content: bytes) -> bytes:
    """Returns the file without the zip at its end."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return content[: min(entry.header_offset for entry in archive.infolist())]
