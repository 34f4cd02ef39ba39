"""Reads the Python code of a layer: runs it on symbolic tensors, which records what it calls.

The record is complete if the code does nothing else: it draws no random numbers, does not depend on
values, and does the same in training. Weights of the layer itself become layers of the record
(`OwnWeight`), as do constants that sublayers are called on. Code that computes with the batch size
is read with a stand-in for it (see `any_batch.py`).
"""

from __future__ import annotations

import collections
import contextlib
import functools
import inspect
from collections.abc import Iterator
from typing import Any

import keras
from keras import tree

from tfcompress.graph.any_batch import settings_of
from tfcompress.graph.code_layers import Constant, OwnWeight
from tfcompress.graph.describe import description
from tfcompress.graph.keras_internals import (
    flatten_layers,
    own_variables,
    seeds_of,
    sublayers,
    with_class,
)
from tfcompress.graph.layers import einsum_letters, is_ours
from tfcompress.graph.read import Call, is_graph, read_graph, walk_layers


class Unreadable(Exception):
    """Says why the code of a layer cannot be read."""


def runs_code(layer: Any) -> bool:
    """Returns whether a layer is custom: of neither Keras nor tfcompress, nor described."""
    if not isinstance(layer, keras.layers.Layer) or is_graph(layer) or not layer.built:
        return False
    if is_ours(layer) or description(layer) is not None:
        return False
    return type(layer) not in vars(keras.layers).values()


def read_code(
    layer: Any, args: Any, kwargs: Any, kind: type[keras.Model], *, in_place: bool = False
) -> Any:
    """Returns the graph of the calls in a layer's code.

    Args:
        layer: A layer or a model.
        args: Its arguments; tensors are symbolic.
        kwargs: Its arguments by name.
        kind: The class of the graph.
        in_place: Whether to read the code of custom sublayers in place, instead of recording a call
            of them, as needed where they return more than tensors.

    Raises:
        Unreadable: If the code does anything else than calling layers and `keras.ops`.
    """
    tensors = symbolic((args, kwargs))
    inputs = args[0] if kind is keras.Model else tensors
    takes_training = "training" in inspect.signature(layer.call).parameters
    modes: list[Any] = [True, False, None] if takes_training else [None]
    parts = [layer, *(_custom_parts(layer) if in_place else [])]
    graphs = []
    with contextlib.ExitStack() as changes:
        changes.enter_context(_refusing(layer))
        changes.enter_context(_knowing_shapes(layer))
        changes.enter_context(_recording_weights(parts, tensors))
        changes.enter_context(_recording_constants(layer, tensors))
        for part in parts[1:]:
            changes.enter_context(with_class(part, _run_in_place))
        scope = changes.enter_context(_Reading())
        for mode in modes:
            training = {"training": mode} if takes_training else {}
            try:
                outputs = layer.call(*args, **{**kwargs, **training})
                if kind is not keras.Model:
                    outputs = tree.map_structure(lambda t: _recorded(t, tensors), outputs)
                graphs.append(kind(inputs, outputs, name=layer.name))
            except Exception as error:  # code may do anything unsupported with symbolic tensors
                reason = " ".join(str(error).split())[:200]
                raise Unreadable(f"its code fails on symbolic tensors ({reason})") from error
    if any(id(weight) in scope.read for weight in layer.weights):
        raise Unreadable("it reads a weight where it is not seen, as in a function of its own")
    traces = [_trace_of(graph) for graph in graphs]
    calls = read_graph(graphs[-1]).calls
    if any(hasattr(v, "assign") for c in calls for v in tree.flatten((c.args, c.kwargs))):
        raise Unreadable("it calculates with a weight where it is not seen")
    if any(map(_fixes_training, calls)):
        raise Unreadable("it passes a fixed `training` argument")
    if any(trace != traces[-1] for trace in traces):
        raise Unreadable("it does something else in training")
    graphs[-1].trainable = layer.trainable
    return graphs[-1]


class _Reading(keras.StatelessScope):
    """Remembers which variables are read for their values: a record takes these as constants."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[int] = set()

    def get_current_value(self, variable: Any) -> Any:
        """Returns the value of a variable."""
        self.read.add(id(variable))
        return super().get_current_value(variable)


@contextlib.contextmanager
def _refusing(layer: Any) -> Iterator[None]:
    """Lets code fail that calls a sublayer which was never built, or draws random numbers."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("it calls a sublayer that is not built, or draws random numbers")

    changed = [(vars(part), "build") for part in flatten_layers(layer) if not part.built]
    # Sublayers of Keras that draw numbers, such as Dropout, are recorded, not run.
    changed += [
        (vars(seeds), "next") for part in [layer, *_custom_parts(layer)] for seeds in seeds_of(part)
    ]
    for attributes, name in changed:
        attributes[name] = refuse
    try:
        yield
    finally:
        for attributes, name in changed:
            attributes.pop(name, None)


@contextlib.contextmanager
def _knowing_shapes(layer: Any) -> Iterator[None]:
    """Lets Keras tell ranks and sizes of symbolic tensors that are known."""
    dense = [part for part in flatten_layers(layer) if isinstance(part, keras.layers.EinsumDense)]
    for part in dense:
        vars(part)["compute_output_shape"] = functools.partial(einsum_shape, part)
    rank = keras.ops.ndim
    keras.ops.ndim = lambda x: len(x.shape)
    try:
        yield
    finally:
        keras.ops.ndim = rank
        for part in dense:
            vars(part).pop("compute_output_shape")


def einsum_shape(layer: Any, input_shape: Any) -> tuple[int | None, ...]:
    """Returns the shape of the output of an `EinsumDense`, where Keras gives up known sizes."""
    letters, kernel, result = einsum_letters(layer)
    known = dict(zip(kernel, layer.kernel.shape, strict=True))
    if len(letters) != len(input_shape):  # an ellipsis
        return type(layer).compute_output_shape(layer, input_shape)
    known |= dict(zip(letters, input_shape, strict=True))
    return tuple(known[letter] for letter in result)


@contextlib.contextmanager
def _recording_weights(parts: list[Any], inputs: list[Any]) -> Iterator[None]:
    """Puts symbolic tensors in place of the weights that code itself computes with."""
    replaced: list[tuple[dict[str, Any], str, Any]] = []
    tensors: dict[int, Any] = {}
    for part in parts:
        for name, variable in own_variables(part).items():
            if id(variable) not in tensors:
                tensors[id(variable)] = _own_weight(part, variable)(inputs[0])
            replaced.append((vars(part), name, variable))
            vars(part)[name] = tensors[id(variable)]
    try:
        yield
    finally:
        for attributes, name, variable in replaced:
            attributes[name] = variable


def _own_weight(part: Any, variable: Any) -> OwnWeight:
    """Returns a layer around a variable of a layer."""
    name = variable.path.split("/")[-1]
    own = OwnWeight(variable.shape, name, name=f"{part.name}_{name}", dtype=variable.dtype)
    own.trainable = variable.trainable
    own.weight = variable
    own.built = True
    return own


@contextlib.contextmanager
def _recording_constants(layer: Any, inputs: list[Any]) -> Iterator[None]:
    """Records calls of sublayers on constants, which Keras would just run."""

    def recorded(part: Any, call: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            (array,) = map(keras.ops.convert_to_numpy, args)
        except Exception:  # backends raise different errors for values that are not known yet
            return call(*args, **kwargs)
        numbers = Constant.of(array)(inputs[0])
        recording = vars(part).pop("call")
        try:
            return part(numbers, **kwargs)
        finally:
            vars(part)["call"] = recording

    children = [part for part in sublayers(layer) if part.weights and not is_graph(part)]
    for part in children:
        vars(part)["call"] = functools.partial(recorded, part, part.call)
    try:
        yield
    finally:
        for part in children:
            vars(part).pop("call", None)


@contextlib.contextmanager
def unique_names(layer: Any) -> Iterator[None]:
    """Gives sublayers of one name in different places different names, for a time."""
    parts = [part for part in flatten_layers(layer) if part is not layer]
    counts = collections.Counter(part.name for part in parts)
    changed = [(part, part.name) for part in parts if counts[part.name] > 1]
    seen: collections.Counter[str] = collections.Counter()
    for part, name in changed:
        seen[name] += 1
        part.name = f"{name}_part{seen[name]}"
    try:
        yield
    finally:
        for part, name in changed:
            part.name = name


def _run_in_place(layer: Any, *args: Any, **kwargs: Any) -> Any:
    return layer.call(*args, **kwargs)


def _custom_parts(layer: Any) -> list[Any]:
    """Returns the sublayers whose code can be read in place."""
    return [part for part in flatten_layers(layer) if part is not layer and runs_code(part)]


def _recorded(value: Any, inputs: list[Any]) -> Any:
    """Returns an output of code; a constant as a layer that returns it."""
    if isinstance(value, keras.KerasTensor):
        return value
    array = keras.ops.convert_to_numpy(value)
    return Constant.of(array)(inputs[0])


def _fixes_training(call: Call) -> bool:
    """Returns whether the code passes a fixed `training` argument."""
    if not isinstance(call.operation, keras.layers.Layer):
        return False
    argument = inspect.signature(call.operation.call).parameters.get("training")
    return argument is not None and call.kwargs.get("training") not in (None, argument.default)


def weights_of(graph: keras.Model) -> Iterator[tuple[tuple[str, int], Any]]:
    """Returns ((path of the layer, index), weight) of all weights of a graph."""
    for path, layer in walk_layers(graph):
        for index, weight in enumerate(layer.weights):
            yield (path, index), weight


def _trace_of(graph: keras.Model) -> list[Any]:
    """Returns the calls of a graph, comparable with those of another graph of the same layers."""
    labels = {id(tensor): f"input {index}" for index, tensor in enumerate(graph.inputs)}
    trace = []
    for call in read_graph(graph).calls:
        layer = isinstance(call.operation, keras.layers.Layer)
        identity = id(call.operation) if layer else str(settings_of(call.operation))
        trace.append((identity, described(call, labels)))
        for tensor in call.outputs:
            labels[id(tensor)] = f"result {len(labels)}"
    return [*trace, [labels[id(tensor)] for tensor in graph.outputs]]


def described(call: Call, labels: dict[int, str]) -> str:
    """Returns the arguments of a call as text: tensors by label, or by shape and dtype."""

    def text(value: Any) -> str:
        if isinstance(value, keras.KerasTensor):
            return labels.get(id(value), f"{value.shape} {value.dtype}")
        return f"{type(value).__name__} {value!r}"

    kwargs = {name: value for name, value in call.kwargs.items() if name != "training"}
    return str(tree.map_structure(text, (call.args, kwargs)))


def symbolic(values: Any) -> list[Any]:
    """Returns the symbolic tensors in a structure, each once."""
    unique = {id(v): v for v in tree.flatten(values) if isinstance(v, keras.KerasTensor)}
    return list(unique.values())
