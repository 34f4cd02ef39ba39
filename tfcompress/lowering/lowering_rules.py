"""The table of rules by which a trained model becomes what the converter gets.

How to lower a layer
--------------------
Where the form that a layer has in Keras would cost accuracy in the file, or does not convert, write
a rule: a function of the `Lowering` and of a `Site`, the call that is looked at. It returns what
the call becomes, or None if the rule is not for it. Put it into the file of the layer's family in
`rules/`, which is found by itself, and register it:

    @lowering_rule(Stage.OPERATION, 65)
    def pad_with_the_minimum(lowering: Lowering, site: Site) -> Any: ...

Rules are asked stage by stage, and in a stage by their number, smallest first; the first that does
not return None is taken. `lower.py` calls the layer as it is where no rule is for it. One that only
depends on the class of an operation can be a `lowered_form`.
"""

from __future__ import annotations

import bisect
import dataclasses
import enum
from collections.abc import Callable
from typing import Any

from tfcompress.graph.read import Call, Graph
from tfcompress.lowering.affine_conv import Affine, Flat
from tfcompress.lowering.context import Lowering


class Stage(enum.IntEnum):
    """When a rule is asked, and what it may find.

    Attributes:
        WHOLE: Before the transformed weights of a wrapper are computed.
        DEFERRED: Operands may be `Affine` or `Flat`: still to be scaled, or images.
        OPERANDS: Operands are tensors, as from here on. What is returned is (args, kwargs), and
            every rule of the stage is asked.
        OPERATION: The last.
    """

    WHOLE = 0
    DEFERRED = 1
    OPERANDS = 2
    OPERATION = 3


@dataclasses.dataclass(frozen=True)
class Site:
    """A call of the trained model, and what was made for its operands.

    Attributes:
        graph: The model that the call is in.
        call: The call.
        layer: Its layer without a wrapper, or its operation.
        args: What was made for its positional arguments.
        kwargs: Likewise.
    """

    graph: Graph
    call: Call
    layer: Any
    args: Any
    kwargs: Any

    @property
    def operation(self) -> Any:
        """The layer, wrapped or not."""
        return self.call.operation

    @property
    def is_deferred(self) -> bool:
        """Whether the first operand is not yet what the model knows."""
        return bool(self.args) and isinstance(self.args[0], (Flat, Affine))


Rule = Callable[[Lowering, Site], Any]
_RULES: dict[Stage, list[tuple[float, str, Rule]]] = {stage: [] for stage in Stage}
_FORMS: dict[str, tuple[Callable[..., Any], bool]] = {}


def lowering_rule(stage: Stage, order: float) -> Callable[[Rule], Rule]:
    """Registers a rule.

    Args:
        stage: When it is asked.
        order: Its place in the stage; no two rules have the same.
    """

    def register(rule: Rule) -> Rule:
        if any(order == other for other, _, _ in _RULES[stage]):
            raise ValueError(f"a rule of stage {stage.name} has the order {order} already")
        bisect.insort(_RULES[stage], (order, rule.__name__, rule))
        return rule

    return register


def rules_of(stage: Stage) -> list[Rule]:
    """Returns the rules of a stage in their order."""
    return [rule for _, _, rule in _RULES[stage]]


def lowered_form(
    *names: str, integers_only: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function of an operation and its operands that returns what it becomes.

    Args:
        *names: Classes of the operation or layer.
        integers_only: Whether that is only for files that hold integers.
    """

    def register(form: Callable[..., Any]) -> Callable[..., Any]:
        _FORMS.update(dict.fromkeys(names, (form, integers_only)))
        return form

    return register


def form_of(operation: Any, integers: bool) -> Callable[..., Any] | None:
    """Returns the form that is registered for an operation, if there is one.

    Args:
        operation: The operation or layer.
        integers: Whether the file will hold integers.
    """
    form, integers_only = _FORMS.get(type(operation).__name__, (None, False))
    return form if integers or not integers_only else None
