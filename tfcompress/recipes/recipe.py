"""Recipe: a whole compression, in stages, read from YAML and checked before anything runs."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import yaml

from tfcompress.files import write_whole
from tfcompress.recipes.parse import RecipeError, checked, order_problems, parse, shipped
from tfcompress.recipes.stages import STAGES, Export, Quantize, Stage, name_of


def as_dicts(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """Returns stages as values that JSON and YAML can hold."""
    return [{name_of(stage): stage.arguments()} for stage in stages]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Stages from a model to a file: rewrites, wrappers, trainings, and the export.

    In YAML, `stages` is a list of one-key mappings: the name of a function of this package and its
    arguments (`fit` and `export` beside them); `schema()` describes them all. Nothing is run before
    the whole recipe was checked.

    Args:
        stages: The stages in order. `export`, if there is one, is the last.

    Raises:
        RecipeError: If the order is impossible.

    Example:
        >>> import tfcompress as tfc
        >>> recipe = tfc.Recipe.from_yaml("stages: [quantize, fit: {epochs: 2}, export]")
        >>> [type(stage).__name__ for stage in recipe.stages]
        ['Quantize', 'Fit', 'Export']
    """

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        for index, problem in order_problems(self.stages):
            raise RecipeError(f"stage {index + 1}, {name_of(self.stages[index])}: {problem}")

    @classmethod
    def from_yaml(cls, source: str | pathlib.Path) -> Recipe:
        """Reads a recipe.

        Args:
            source: A path, the name of one of the recipes that come with the package
                (`Recipe.names()`), or YAML.

        Raises:
            FileNotFoundError: If there is no such file or recipe.
            RecipeError: If it is no recipe; the message has the line, the rule, and the nearest
                name.
        """
        return cls(parse(source))

    @classmethod
    def from_dict(cls, content: Any) -> Recipe:
        """Returns the recipe of what `as_dict` returned."""
        return cls(checked(content, "recipe"))

    @staticmethod
    def names() -> list[str]:
        """Returns the names of the recipes that come with the package."""
        return shipped()

    @staticmethod
    def schema() -> dict[str, Any]:
        """Returns the JSON schema of recipes, with which editors complete and check them."""
        choices: list[dict[str, Any]] = []
        definitions: dict[str, Any] = {}
        for name, kind in STAGES.items():
            described = kind.model_json_schema(ref_template="#/$defs/{model}")
            definitions |= described.pop("$defs", {})
            definitions[kind.__name__] = {**described, "type": ["object", "null"]}
            choices.append(
                {
                    "type": "object",
                    "properties": {name: {"$ref": f"#/$defs/{kind.__name__}"}},
                    "required": [name],
                    "additionalProperties": False,
                }
            )
            if not described.get("required"):
                choices.append({"const": name})
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "A recipe of tfcompress",
            "type": "object",
            "properties": {
                "description": {"type": "string"},
                "stages": {"type": "array", "items": {"anyOf": choices}},
            },
            "required": ["stages"],
            "additionalProperties": False,
            "$defs": definitions,
        }

    def as_dict(self) -> dict[str, Any]:
        """Returns the recipe as values that JSON and YAML can hold."""
        return {"stages": as_dicts(self.stages)}

    def to_yaml(self, path: str | pathlib.Path | None = None) -> str:
        """Returns the recipe as YAML, and writes it if a path is given."""
        plain = json.loads(json.dumps(self.as_dict()))
        text = yaml.safe_dump(plain, sort_keys=False, default_flow_style=None)
        if path is not None:
            write_whole(pathlib.Path(path), text.encode())
        return text

    def for_target(self, target: str | None) -> Recipe:
        """Returns the recipe with a device for each stage that can have one and names none.

        Args:
            target: The device; None changes nothing.
        """
        stages = [
            stage.model_copy(update={"target": target})
            if isinstance(stage, (Quantize, Export)) and stage.target is None
            else stage
            for stage in self.stages
        ]
        return Recipe(tuple(stages))

    @property
    def export(self) -> Export | None:
        """The last stage, if it is an export."""
        last = self.stages[-1] if self.stages else None
        return last if isinstance(last, Export) else None
