"""Canonical forms: one layer rewritten as several simpler ones with the same result.

Quantizers stand between operations, so a layer of several operations is split first. A rule turns
a plain Keras layer into a chain of layers: plain ones, or a `RuntimeLayer`, which also quantizes
its intermediate results as the runtime does. The wrapped model keeps the config of the original
beside the parts, and `strip` restores it. To add a rule, register it with `canonical_form` in the
file of the layer's family in `layers/`; `tests/quantization/test_canonicalize.py` checks each for
equality.
"""

from __future__ import annotations

from typing import Any

from tfcompress.scheme import PREFERENCES


class Rule:
    """A reversible rewriting of a layer; rules of different files match different layers.

    Attributes:
        preferences: The values of `QuantizationScheme.prefer` with which the rule is applied.
    """

    preferences: tuple[str, ...] = PREFERENCES

    def matches(self, layer: Any) -> bool:
        """Returns whether the rule rewrites `layer`."""
        raise NotImplementedError

    def parts(self, layer: Any) -> list[Any]:
        """Returns unbuilt layers which, applied in sequence, compute the same.

        Their variables, in sequence, are those of the original in its order.
        """
        raise NotImplementedError


RULES: list[Rule] = []


def canonical_form(rule: type[Rule]) -> type[Rule]:
    """Registers a rule; within a file, the first rule that matches is applied."""
    RULES.append(rule())
    return rule


def parts_of(layer: Any, prefer: str = PREFERENCES[0]) -> list[Any] | None:
    """Returns the parts of a layer by the rules, applied recursively; None without a rule.

    Args:
        layer: A plain Keras layer.
        prefer: One of `PREFERENCES`.
    """
    applied = (rule for rule in RULES if prefer in rule.preferences and rule.matches(layer))
    rule = next(applied, None)
    if rule is None:
        return None
    return [final for part in rule.parts(layer) for final in parts_of(part, prefer) or [part]]
