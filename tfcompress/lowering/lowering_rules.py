"""The registry of rules that lower a trained model for the converter.

How to lower a layer
--------------------
If the Keras form of a layer would cost accuracy in the file, or does not convert, write a rule: a
function of the `Lowering` and of a `Site`, the call to lower. It returns the outputs that replace
the call, or None if the rule does not apply. Put it into the file of the layer's family in
`rules/`, whose modules are imported automatically, and register it:

    @lowering_rule(Stage.OPERATION, 65)
    def pad_with_minimum(lowering: Lowering, site: Site) -> Any: ...

Rules are tried stage by stage, and in a stage by their order, smallest first; the first result that
is not None is used, except in stage OPERANDS, whose rules are all applied. The order matters where
two rules fit one call: say beside the later one why. If no rule applies, `lower.py` calls a copy of
the layer. A rule that depends on the class of an operation only can be a `lowered_form`.
"""

from __future__ import annotations

import bisect
import dataclasses
import enum
from collections.abc import Callable
from typing import Any

from tfcompress.graph.read import Call, Graph
from tfcompress.lowering.affine_conv import Affine, ImageForm
from tfcompress.lowering.context import Lowering


class Stage(enum.IntEnum):
    """When a rule is tried, and which operands it may get.

    Attributes:
        WHOLE: Before the transformed weights of a wrapper are computed; operands as in DEFERRED.
        DEFERRED: Operands may be `Affine` (not yet scaled) or `ImageForm` (in another shape).
        OPERANDS: Operands are tensors, here and in later stages. Rules return (args, kwargs), and
            every rule of the stage is applied.
        OPERATION: The last stage.
    """

    WHOLE = 0
    DEFERRED = 1
    OPERANDS = 2
    OPERATION = 3


@dataclasses.dataclass(frozen=True)
class Site:
    """A call of the trained model, and its lowered operands.

    Attributes:
        graph: The model that the call is in.
        call: The call.
        layer: Its layer without a wrapper, or its operation.
        args: Its lowered positional arguments.
        kwargs: Its lowered keyword arguments.
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
        """Whether the first operand is not yet a tensor of its original shape."""
        return bool(self.args) and isinstance(self.args[0], (ImageForm, Affine))


Rule = Callable[[Lowering, Site], Any]
_RULES: dict[Stage, list[tuple[float, str, Rule]]] = {stage: [] for stage in Stage}
_FORMS: dict[str, tuple[Callable[..., Any], bool]] = {}


def lowering_rule(stage: Stage, order: float) -> Callable[[Rule], Rule]:
    """Registers a rule.

    Args:
        stage: When it is tried.
        order: Its position in the stage; each position can be used once.
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
    """Registers a function of an operation and its operands that returns the lowered outputs.

    Args:
        *names: Classes of the operation or layer.
        integers_only: Whether it is used for integer files only.
    """

    def register(form: Callable[..., Any]) -> Callable[..., Any]:
        if known := [name for name in names if name in _FORMS]:
            raise ValueError(f"a form of {known[0]} is registered already")
        _FORMS.update(dict.fromkeys(names, (form, integers_only)))
        return form

    return register


def form_of(operation: Any, integers: bool) -> Callable[..., Any] | None:
    """Returns the lowered form that is registered for an operation, if there is one.

    Args:
        operation: The operation or layer.
        integers: Whether the file will be quantized.
    """
    form, integers_only = _FORMS.get(type(operation).__name__, (None, False))
    return form if integers or not integers_only else None
