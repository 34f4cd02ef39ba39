"""Reads recipes from YAML, and says on which line what is wrong."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from tfcompress.recipes.stages import STAGES, Export, Fit, Prune, Stage, name_of
from tfcompress.scheme import nearest

FOLDER = pathlib.Path(__file__).parent


class RecipeError(ValueError):
    """A recipe that cannot be run; the message has the line."""


def parse(source: str | pathlib.Path) -> tuple[Stage, ...]:
    """Returns the stages of YAML, of a file, or of a recipe that comes with the package.

    Raises:
        FileNotFoundError: If there is no such file or recipe.
        RecipeError: If it is no recipe.
    """
    text, name = _read(source)
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}: no YAML: {' '.join(str(error).split())}") from None
    return checked(content, name, node)


def checked(content: Any, name: str, node: Any = None) -> tuple[Stage, ...]:
    """Returns the stages of a recipe that was read.

    Args:
        content: A mapping whose "stages" is a list.
        name: What to call it in errors.
        node: The YAML that it was read from, for its lines.

    Raises:
        RecipeError: If it is no recipe.
    """

    def fail(path: Sequence[Any], problem: str) -> RecipeError:
        line = _line(node, path)
        return RecipeError(f"{name}{f', line {line}' if line else ''}: {problem}")

    if not isinstance(content, dict) or not isinstance(content.get("stages"), list):
        raise fail((), "a recipe is a mapping whose 'stages' is a list.")
    for key in content:
        if key not in ("stages", "description"):
            raise fail((key,), f"unknown key {key!r}; there are 'stages' and 'description'.")
    stages = []
    for index, item in enumerate(content["stages"]):
        item = {item: {}} if isinstance(item, str) else item
        if not isinstance(item, dict) or len(item) != 1:
            raise fail(("stages", index), f"a stage is one name with arguments, not {item!r}.")
        ((kind, arguments),) = item.items()
        if kind not in STAGES:
            known = f"There are {', '.join(STAGES)}.{nearest(kind, STAGES)}"
            raise fail(("stages", index), f"there is no stage {kind!r}. {known}")
        try:
            stages.append(STAGES[kind].model_validate({} if arguments is None else arguments))
        except ValidationError as error:
            where, problem = _problem(error, STAGES[kind])
            raise fail(("stages", index, kind, *where), f"{kind}: {problem}") from None
    for index, problem in order_problems(stages):
        raise fail(("stages", index), f"{name_of(stages[index])}: {problem}")
    return tuple(stages)


def order_problems(stages: Sequence[Stage]) -> Iterator[tuple[int, str]]:
    """Yields (index, problem) of stages that cannot stand where they stand."""
    wrapped: dict[str, int] = {}
    for index, stage in enumerate(stages):
        name = name_of(stage)
        if isinstance(stage, Export):
            if index < len(stages) - 1:
                yield index, "it writes the file, and must be the last stage."
        elif name == "strip":
            wrapped = {}
        elif stage.wraps and name in wrapped:
            yield index, f"the model has it already, from stage {wrapped[name] + 1}: 'strip' first."
        elif stage.wraps:
            wrapped[name] = index
            keeps = isinstance(stage, Prune) and (stage.sparsity == "keep" or stage.until == 0)
            if not keeps and not any(isinstance(later, Fit) for later in stages[index:]):
                yield index, "it needs a 'fit' behind it, in which it takes effect."
        elif wrapped and not isinstance(stage, Fit):
            first = next(iter(wrapped))
            yield index, f"it takes an ordinary model: put it before {first!r}, or 'strip' first."


def shipped() -> list[str]:
    """Returns the names of the recipes that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def _read(source: str | pathlib.Path) -> tuple[str, str]:
    """Returns the text of a recipe, and what to call it."""
    if isinstance(source, str) and "stages:" in source:
        return source, "recipe"
    path = pathlib.Path(source)
    built_in = FOLDER / f"{source}.yaml"
    if not path.suffix and not path.exists() and built_in.is_file():
        path = built_in
    if not path.is_file():
        names = shipped()
        raise FileNotFoundError(
            f"There is no recipe {str(source)!r}: neither a file nor one of {', '.join(names)}."
            f"{nearest(source, names)}"
        )
    return path.read_text(), str(path)


def _problem(error: ValidationError, kind: type[BaseModel]) -> tuple[list[Any], str]:
    """Returns the keys that lead to the first problem, and its text."""
    first = error.errors(include_url=False)[0]
    path: list[str] = []
    known: Any = kind.model_fields
    for part in first["loc"]:  # names of alternatives and of checks are no keys of the file
        if part in known or first["type"] in ("extra_forbidden", "missing"):
            path.append(str(part))
        models = get_args(known[part].annotation) if part in known else ()
        known = next((m.model_fields for m in models if hasattr(m, "model_fields")), known)
    named = ".".join(path)
    if first["type"] == "extra_forbidden":
        there = f"There are {', '.join(known)}." if known else "It takes no arguments."
        return path, f"there is no argument {named!r}. {there}{nearest(path[-1], known)}"
    if first["type"] == "missing":
        return path[:-1], f"the argument {named!r} is missing."
    message = first["msg"].removeprefix("Value error, ").removesuffix(".")
    if first["type"] == "value_error":
        return path, f"{named + ': ' if named else ''}{message}."
    choices = str(first.get("ctx", {}).get("expected", "")).replace(" or ", ", ").split(", ")
    hint = nearest(first["input"], [choice.strip("'") for choice in choices])
    return path, f"{named or 'arguments'}: {message}. Received: {first['input']!r}.{hint}"


def _line(node: Any, path: Sequence[Any]) -> int | None:
    """Returns the line of a place in the YAML."""
    if node is None:
        return None
    line = node.start_mark.line + 1
    for part in path:
        if isinstance(node, yaml.MappingNode):
            found = [(k, v) for k, v in node.value if k.value == str(part)]
            if not found:
                break
            line, node = found[0][0].start_mark.line + 1, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line
