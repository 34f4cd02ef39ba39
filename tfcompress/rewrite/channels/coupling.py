"""Finds which channels of a model must be removed together.

Every channel of every tensor gets a number. A rule for each kind of layer (`rules.py`) defines
which numbers a layer creates, passes on, or couples, and which axes of its weights they index.
Coupled channels form one unit: it is removed as a whole, or not at all. This is the dependency
graph of Fang et al. 2023 (arXiv:2301.12900) at the level of single channels, so that concatenation,
flattening and depthwise multipliers need no special handling.

The numbers of a tensor are an array that broadcasts to its shape without the batch: an axis that
carries no channels has the size 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfcompress.graph.keras_internals import flatten_layers
from tfcompress.graph.read import Call, is_graph, read_graph

Numbers = np.ndarray
Stays = Callable[[np.ndarray], np.ndarray]  # of numbers: which of these channels stay
Rule = Callable[[Any, Call, list[Numbers]], Any]
RULES: dict[Any, Rule] = {}
"""The rule of each class, or of each class of Keras by name."""


class Unresolved(ValueError):
    """How the channels of a layer are coupled is not known."""


@dataclasses.dataclass
class Use:
    """Where channels lie in a weight.

    Attributes:
        variable: The weight.
        path: Path of its layer.
        axes: For each axis that carries channels, their numbers along it.
        made: The axis of the layer's output channels, if it creates channels.
    """

    variable: Any
    path: str
    axes: dict[int, np.ndarray]
    made: int | None


@dataclasses.dataclass(frozen=True)
class Group:
    """Units whose channels come from the same layers; their scores are compared with each other.

    Attributes:
        layers: Paths of the layers that create the channels.
        units: Numbers of the units.
        heads: Whether they are heads of attention.
    """

    layers: tuple[str, ...]
    units: np.ndarray
    heads: bool


class Coupling:
    """The channels of a model and their coupling.

    Args:
        model: A built Sequential or Functional model.
        unknown: What to do with a layer without a rule: "keep" leaves the channels around it alone,
            "raise" raises an error.
    """

    def __init__(self, model: keras.Model, unknown: str = "keep") -> None:
        self.uses: dict[int, Use] = {}
        self.settings: dict[int, list[tuple[str, np.ndarray, Callable[..., Any] | None]]] = {}
        self.tensors: dict[int, np.ndarray] = {}
        self.arguments: dict[int, Callable[[Stays], Any]] = {}  # by `id` of a call's first output
        self.kept: dict[str, str] = {}  # why channels around a layer are left alone, by its path
        self._alive: list[Any] = []
        self._unknown = unknown
        self._count = 0
        self._pairs: list[np.ndarray] = []
        self._fixed: list[np.ndarray] = []
        self._created: dict[tuple[int, str], tuple[str, np.ndarray]] = {}
        self._traced: set[int] = set()
        self.makers: dict[str, Any] = {}  # layers that create channels, by path
        formats = {getattr(layer, "data_format", None) for layer in flatten_layers(model)}
        for tensor in model.inputs:
            first = "channels_first" in formats and len(tensor.shape) > 2
            self.tensors[id(tensor)] = self.fixed(tensor, 0 if first else -1)
        for output in self._trace(model, ""):
            self.fix(output)
        self._find_groups()

    # What rules use.

    def new(self, call: Call, count: int, what: str = "") -> np.ndarray:
        """Returns numbers for the channels that a layer creates, the same at each of its calls."""
        key = (id(call.operation), what)
        if key not in self._created:
            numbers = np.arange(self._count, self._count + count)
            self._count += count
            self._created[key] = (call.path, numbers)
            self.makers[call.path] = call.operation
        return self._created[key][1]

    def fixed(self, tensor: Any, axis: int = -1) -> np.ndarray:
        """Returns numbers that must stay, for one axis of a tensor (the batch not counted)."""
        sizes, shape = tensor.shape[1:], [1] * (len(tensor.shape) - 1)
        if shape and (keras.backend.is_float_dtype(tensor.dtype) or len(shape) > 2):
            shape[axis] = sizes[axis] or 1
        size = int(np.prod(shape))
        numbers = np.arange(self._count, self._count + size).reshape(shape)
        self._count += size
        self.fix(numbers)
        return numbers

    def none(self, rank: int) -> np.ndarray:
        """Returns a number that must stay, for a tensor of `rank` axes that has no channels."""
        numbers = np.full([1] * rank, self._count)
        self._count += 1
        self.fix(numbers)
        return numbers

    def fix(self, numbers: np.ndarray) -> None:
        """Declares that channels must stay."""
        self._fixed.append(np.ravel(numbers))

    def couple(self, first: np.ndarray, second: np.ndarray) -> None:
        """Declares that channels must be removed together, element by element."""
        pair = np.stack([np.ravel(numbers) for numbers in np.broadcast_arrays(first, second)])
        self._pairs.append(pair[:, pair[0] != pair[1]])

    def use(
        self, call: Call, variable: Any, axes: dict[int, np.ndarray], made: int | None = None
    ) -> None:
        """Declares which axes of a weight are channels.

        Args:
            call: The call of the layer.
            variable: The weight; None is ignored.
            axes: Numbers along each axis; negative axes count from the last.
            made: The axis of the layer's output channels, for scores.
        """
        if variable is None:
            return
        rank = len(variable.shape)
        axes = {axis % rank: np.ravel(numbers) for axis, numbers in axes.items()}
        for axis, numbers in axes.items():
            if len(numbers) != variable.shape[axis]:
                raise Unresolved(
                    f"axis {axis} of {variable.path} has {variable.shape[axis]} entries for "
                    f"{len(numbers)} channels"
                )
        earlier = self.uses.get(id(variable))
        if earlier is None:
            made = made % rank if made is not None else None
            self.uses[id(variable)] = Use(variable, call.path, axes, made)
            return
        for axis, numbers in axes.items():  # a layer that is called again
            self.couple(earlier.axes.setdefault(axis, numbers), numbers)

    def set(
        self,
        call: Call,
        entry: str,
        numbers: np.ndarray,
        value: Callable[[np.ndarray], Any] | None = None,
    ) -> None:
        """Declares that an entry of a layer's config is the number of these channels.

        Args:
            call: The call of the layer.
            entry: Name in the config; "layer/units" for the config of a layer inside.
            numbers: The channels.
            value: Computes the entry from a boolean mask of the channels that stay; None uses
                their number.
        """
        entries = self.settings.setdefault(id(call.operation), [])
        earlier = [other for name, other, _ in entries if name == entry]
        if earlier:  # a layer that is called again
            self.couple(earlier[0], numbers)
        else:
            entries.append((entry, numbers, value))

    def call_with(self, call: Call, arguments: Callable[[Stays], Any]) -> None:
        """Declares how the second argument of a call depends on the channels that stay.

        Args:
            call: The call.
            arguments: Computes the second argument.
        """
        self.arguments[id(call.outputs[0])] = arguments

    # The solution.

    def unit_of(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the unit of each channel."""
        return self._labels[numbers]

    def _find_groups(self) -> None:
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        pairs = np.concatenate([np.zeros((2, 0), int), *self._pairs], 1)
        edges = coo_matrix((np.ones(pairs.shape[1]), tuple(pairs)), (self._count, self._count))
        count, self._labels = connected_components(edges, directed=False)
        self.free = np.ones(count, bool)
        for numbers in self._fixed:
            self.free[self._labels[numbers]] = False
        self.units = count
        makers: list[set[int]] = [set() for _ in range(count)]
        created, names = list(self._created.values()), [what for _, what in self._created]
        for index, (_, numbers) in enumerate(created):
            for unit in set(self._labels[numbers]):
                makers[unit].add(index)
        units_by_makers: dict[frozenset[int], list[int]] = {}
        for unit in np.flatnonzero(self.free):
            if makers[unit]:
                units_by_makers.setdefault(frozenset(makers[unit]), []).append(int(unit))
        self.groups = [
            Group(
                tuple(sorted({created[index][0] for index in key})),
                np.array(units),
                all(names[index] == "heads" for index in key),
            )
            for key, units in units_by_makers.items()
        ]

    def _trace(self, model: keras.Model, path: str) -> list[np.ndarray]:
        self._alive.append(model)
        for call in read_graph(model, path).calls:
            self._alive.append(call)
            call = _without_masks(call)
            inputs = [self.tensors[id(tensor)] for tensor in call.inputs]
            if is_graph(call.operation):
                outputs = self._nested(call, inputs)
            else:
                outputs = self._apply_rule(call, inputs)
            for tensor, numbers in zip(call.outputs, outputs, strict=True):
                self.tensors[id(tensor)] = numbers
        return [self.tensors[id(tensor)] for tensor in model.outputs]

    def _nested(self, call: Call, inputs: list[np.ndarray]) -> list[np.ndarray]:
        inner = call.operation
        traced_before = id(inner) in self._traced
        self._traced.add(id(inner))
        for tensor, numbers in zip(inner.inputs, inputs, strict=True):
            if id(tensor) in self.tensors:  # called again, or part of another nested model
                self.couple(self.tensors[id(tensor)], numbers)
            self.tensors.setdefault(id(tensor), numbers)
        if traced_before:
            return [self.tensors[id(tensor)] for tensor in inner.outputs]
        return self._trace(inner, call.path + "/")

    def _apply_rule(self, call: Call, inputs: list[np.ndarray]) -> list[np.ndarray]:
        layer = call.operation
        try:
            rule = rule_for(layer)
            if rule is None:
                raise Unresolved("no rule is known for it")
            outputs = rule(self, call, inputs)
            outputs = outputs if isinstance(outputs, list) else [outputs]
            for tensor, numbers in zip(call.outputs, outputs, strict=True):
                _check_fit(tensor, numbers)
        except Unresolved as error:
            if self._unknown == "raise":
                raise Unresolved(
                    f"layer {call.path!r} ({type(layer).__name__}): how its channels are coupled "
                    f"is not known: {error}. Pass unknown='keep' to leave the channels around it "
                    "alone, or register a rule (tfcompress.rewrite.channels.rules)."
                ) from None
            self.kept[call.path] = str(error)
            for numbers in inputs:
                self.fix(numbers)
            outputs = [self.fixed(tensor) for tensor in call.outputs]
        return outputs


def _without_masks(call: Call) -> Call:
    """Returns the call without the tensors that are only masks of others."""
    masks = {id(t) for t in keras.tree.flatten(call.kwargs.get("mask"))}
    if not masks:
        return call
    rest = {k: v for k, v in call.kwargs.items() if k != "mask"}
    used = {id(value) for value in keras.tree.flatten((call.args, rest))}
    return dataclasses.replace(call, inputs=[t for t in call.inputs if id(t) in used])


def _check_fit(tensor: Any, numbers: np.ndarray) -> None:
    sizes = tensor.shape[1:]
    if numbers.ndim != len(sizes) or any(
        n not in (1, size) and size is not None
        for n, size in zip(numbers.shape, sizes, strict=True)
    ):
        raise Unresolved("it changes the number of channels, and its rule does not support that")


def rule_for(layer: Any) -> Rule | None:
    """Returns the rule of a layer or operation, or of the nearest class it derives from."""
    for kind in type(layer).__mro__:
        if kind in RULES:
            return RULES[kind]
        if kind.__module__.split(".")[0] == "keras":
            return RULES.get(kind.__name__)
        if "call" in vars(kind):
            return None
    return None


def channel_rule(*kinds: Any) -> Callable[[Rule], Rule]:
    """Registers a rule for classes, or for names of Keras' layers and operations.

    A rule takes the `Coupling`, the `Call` and the numbers of each input tensor, and returns
    those of the output, or a list of them.
    """

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(kinds, rule))
        return rule

    return register


def channel_axis(layer: Any, numbers: Numbers) -> int:
    """Returns the axis of the channels, not counting the batch axis."""
    first = getattr(layer, "data_format", "channels_last") == "channels_first"
    return 0 if first else numbers.ndim - 1


def along(numbers: Numbers, axis: int) -> Numbers:
    """Returns the numbers along one axis, which must be the only axis that carries channels."""
    if numbers.size != numbers.shape[axis]:
        raise Unresolved("its channels lie along several axes of its input")
    return numbers.ravel()


def spread(numbers: Numbers, rank: int, axis: int) -> Numbers:
    """Returns numbers along one axis of a tensor of `rank` axes (the batch not counted)."""
    shape = [1] * rank
    shape[axis] = -1
    return numbers.reshape(shape)
