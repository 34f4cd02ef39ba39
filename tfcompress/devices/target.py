"""Targets: what a runtime or chip takes of a file, as data."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

_FOLDER = pathlib.Path(__file__).with_name("targets")


@dataclasses.dataclass(frozen=True)
class Target:
    """A runtime or chip.

    Attributes:
        name: Its name.
        verified: Whether what is known of it is compared with its own tool.
        source: Where the list comes from.
        date: The day on which it was looked at.
        others: What runs the operations that it does not take; "" where nothing does.
        partition: What it costs if operations are left to others.
        rest_is_left: Whether all operations from the first on that it does not take are left.
        needs: What a file needs: `weight_bits` and `activation_bits` that it computes with,
            `io_dtypes` of its ends, each with everything that is possible; `prefer` and, if not
            XNNPACK's, `kernels` of the scheme.
        types: Of data and results of operations that have no `types` of their own; None for any.
        limits: Of every operation.
        operations: By kind: `types` of data and results, further `limits`.
        changes: What helps, by kind of operation.
    """

    name: str
    verified: bool
    source: str
    date: str
    others: str
    partition: str
    rest_is_left: bool
    needs: Mapping[str, Any]
    types: list[str] | None
    limits: list[dict[str, Any]]
    operations: Mapping[str, dict[str, Any]]
    changes: Mapping[str, str]

    def reason_against(self, facts: Mapping[str, Any]) -> str:
        """Returns why the target does not take an operation, "" if it does.

        Args:
            facts: What `facts_of` returns.
        """
        known = self.operations.get(facts["kind"])
        if known is None:
            return "no such operation"
        types = known.get("types", self.types)
        if types is not None and facts["types"] not in types:
            taken = f"; taken are {', '.join(types)}" if len(types) < _MANY else ""
            return f"computes {facts['types']}{taken}"
        for limit in (*self.limits, *known.get("limits", ())):
            if broken := _broken(limit, facts):
                return broken
        return ""


_MANY = 10


def _broken(limit: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """Returns which part of a limit does not hold."""
    rules = {fact: rule for fact, rule in limit.items() if fact not in ("when", "why")}
    if not all(_holds(facts.get(fact), rule) for fact, rule in limit.get("when", {}).items()):
        return ""
    for fact, rule in rules.items():
        if fact in facts and not _holds(facts[fact], rule):
            text = f"{fact.replace('_', ' ')} is {facts[fact]}, not {_in_words(rule)}"
            return f"{limit['why']} ({text})" if "why" in limit else text
    return ""


def _holds(value: Any, rule: Any) -> bool:
    """Returns whether a fact obeys a rule: "<=3", ">=1", a list of what is possible, or a value."""
    if isinstance(rule, str) and rule[:2] in ("<=", ">="):
        if value is None:
            return False
        number = float(rule[2:])
        return bool(value <= number if rule[0] == "<" else value >= number)
    return value in rule if isinstance(rule, list) else value == rule


def _in_words(rule: Any) -> str:
    if isinstance(rule, list):
        return " or ".join(map(str, rule))
    return str(rule)


TARGETS = tuple(sorted(path.stem for path in _FOLDER.glob("*.json")))
"""The targets of which there is data."""


@functools.cache
def target_named(name: str) -> Target:
    """Returns a target.

    Args:
        name: One of `TARGETS`.
    """
    entries = json.loads((_FOLDER / f"{name}.json").read_text())
    if (like := entries.pop("like", None)) is not None:
        entries = {**json.loads((_FOLDER / f"{like}.json").read_text()), **entries}
    return Target(name=name, **entries)
