"""Reads the Python code of a layer: runs it on symbolic tensors, which records what it calls.

The record is complete if the code does nothing else: it draws no random numbers, does not depend on
values, and does the same in training. Weights of the layer itself become layers of the record
(`OwnWeight`), as do constants that sublayers are called on. Code that computes with the batch size
runs with a stand-in for it, a prime, and `for_any_batch` replaces what was computed from it.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import inspect
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import tree

from tfcompress.graph.keras_internals import (
    flatten_layers,
    own_variables,
    seeds_of,
    sublayers,
    with_class,
)
from tfcompress.graph.layers import einsum_letters, is_ours
from tfcompress.graph.read import Call, is_graph, read_graph, walk_layers

_STAND_INS = (1009, 1013, 1019, 1021, 1031, 1033)
"""Batch sizes to read code with: none should divide a size of the network."""
class Unreadable(Exception):
    """Says why the code of a layer cannot be read."""


@keras.saving.register_keras_serializable("tfcompress")
class Constant(keras.layers.Layer):
    """Returns a constant that custom code creates, such as position indices; ignores its input.

    Args:
        value: The constant, as a list.
        number_type: Its dtype.
        shape: Its shape; None for that of the list, which does not tell it where a size is 0.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    def __init__(self, value: Any, number_type: str, shape: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.value, self.number_type = value, number_type
        self.shape = tuple(np.shape(value) if shape is None else shape)

    @classmethod
    def of(cls, array: Any) -> Constant:
        """Returns the layer for an array."""
        return cls(array.tolist(), str(array.dtype), array.shape)

    def call(self, inputs: Any) -> Any:
        """Returns the constant."""
        return keras.ops.reshape(
            keras.ops.convert_to_tensor(self.value, self.number_type), self.shape
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        own = {"value": self.value, "number_type": self.number_type, "shape": self.shape}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("tfcompress")
class OwnWeight(keras.layers.Layer):
    """Returns a weight that custom code computes with; ignores its input.

    Args:
        shape: The shape of the weight.
        weight_name: Its name.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    def __init__(self, shape: Any, weight_name: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shape, self.weight_name = tuple(shape), weight_name

    def build(self, input_shape: Any = None) -> None:
        """Creates the weight."""
        self.weight = self.add_weight(
            shape=self.shape, initializer="zeros", name=self.weight_name, trainable=self.trainable
        )

    def call(self, inputs: Any) -> Any:
        """Returns the weight."""
        return keras.ops.copy(self.weight)  # a tensor, not the variable

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        own = {"shape": self.shape, "weight_name": self.weight_name}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("tfcompress")
class RepeatForBatch(keras.layers.Layer):
    """Repeats a tensor of one sample for each sample of the batch of a second one.

    Args:
        axis: The axis of the first tensor that has the size 1, and becomes the batch.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    def __init__(self, axis: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.axis = axis

    def call(self, inputs: Any) -> Any:
        """Returns the first tensor, with the batch of the second."""
        one, other = inputs
        shape = [*one.shape]
        shape[self.axis] = keras.ops.shape(other)[0]
        return keras.ops.broadcast_to(one, shape)

    def compute_output_spec(self, inputs: Any) -> Any:
        """Returns shape and dtype of the first tensor, with the batch of the second."""
        one, other = inputs
        shape = [*one.shape]
        shape[self.axis] = other.shape[0]
        return keras.KerasTensor(shape, one.dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "axis": self.axis}


def runs_code(layer: Any) -> bool:
    """Returns whether a layer is custom: of neither Keras nor tfcompress."""
    if not isinstance(layer, keras.layers.Layer) or is_graph(layer) or not layer.built:
        return False
    return not is_ours(layer) and type(layer) not in vars(keras.layers).values()


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
    if any(map(_fixes_training, calls)):
        raise Unreadable("it passes a fixed `training` argument")
    if any(trace != traces[-1] for trace in traces):
        raise Unreadable("it does something else in training")
    graphs[-1].trainable = layer.trainable
    return graphs[-1]


class _Reading(keras.StatelessScope):
    """Remembers which variables are read for their values, which a record would take as constants."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[int] = set()

    def get_current_value(self, variable: Any) -> Any:
        """Returns the value of a variable."""
        self.read.add(id(variable))
        return super().get_current_value(variable)


def stand_in_for(layer: Any, shapes: Any) -> int:
    """Returns a size for a batch that divides no size of a layer or its inputs."""
    sizes = {n for shape in shapes for n in shape if n}
    sizes |= {n for weight in layer.weights for n in weight.shape}
    return next((p for p in _STAND_INS if not any(n % p == 0 for n in sizes)), _STAND_INS[0])


def _one_sample(value: Any, size: int) -> tuple[Any, int] | None:
    """Returns the entry that a constant has for each sample, and the axis; None if it has none.

    Raises:
        ValueError: If the entries differ.
    """
    shape = np.shape(value)
    axes = [axis for axis, n in enumerate(shape) if n and n % size == 0]
    if not axes:
        return None
    array = keras.ops.convert_to_numpy(value)
    one = array.take([0], axes[0])
    if len(axes) > 1 or shape[axes[0]] != size or np.any(array != one):
        raise ValueError("a constant depends on the batch")
    return one, axes[0]


def without_batch(structure: Any, size: int, like: Any) -> Any:
    """Replaces constants that have an equal entry for each sample by one that is repeated.

    Args:
        structure: Arguments of a recorded call, in a new graph.
        size: The stand-in for the batch that it was recorded with.
        like: A tensor of the new graph that has the batch.

    Raises:
        ValueError: If a constant depends on the batch otherwise.
    """

    def repeated(value: Any) -> Any:
        if isinstance(value, keras.KerasTensor) or not hasattr(value, "shape"):
            return value
        found = _one_sample(value, size)
        if found is None:
            return value
        one, axis = found
        return RepeatForBatch(axis)([Constant.of(one)(like), like])

    return tree.map_structure(repeated, structure)


def for_any_batch(call: Call, args: Any, kwargs: Any, size: int, like: Any) -> Any:
    """Emits an operation that mentions the stand-in for the batch, for a batch of any size.

    Args:
        call: The call of an operation of `keras.ops`.
        args: Its arguments in the new graph.
        kwargs: Its arguments by name in the new graph.
        size: The stand-in.
        like: A tensor of the new graph that has the batch.

    Returns:
        The output; None if the operation does not mention it.

    Raises:
        ValueError: If it depends on the batch otherwise than by repeating samples or reshaping.
    """
    if isinstance(call.operation, Constant):
        constant = call.operation
        array = np.array(constant.value, constant.number_type).reshape(constant.shape)
        return None if _one_sample(array, size) is None else without_batch(array, size, like)
    if isinstance(call.operation, keras.layers.Layer):
        return None
    name, plain = _settings(call.operation)
    if not _mentions((plain, args, kwargs), size):
        return None
    x = args[0] if args else None
    shape = list(call.outputs[0].shape)
    if name == "Reshape" and None not in shape and sum(n % size == 0 for n in shape) == 1:
        return keras.ops.reshape(x, [-1 if n % size == 0 else n for n in shape])
    alone = sum(map(lambda n: _mentions(n, size), shape)) == 1 and size in shape
    axis = shape.index(size) if alone else 0
    if name in ("BroadcastTo", "Tile", "Repeat") and alone:
        one = [*shape[:axis], 1, *shape[axis + 1 :]]
        missing = len(shape) - len(x.shape)
        if missing:
            x = keras.ops.reshape(x, (*[1] * missing, *x.shape))
        if x.shape[axis] == 1:
            if list(x.shape) != one:
                if name != "BroadcastTo":
                    raise ValueError(f"{name} depends on the batch and on more")
                x = keras.ops.broadcast_to(x, one)
            return RepeatForBatch(axis)([x, like])
        if [n for i, n in enumerate(x.shape) if i != axis] == shape[:axis] + shape[axis + 1 :]:
            return x
    if name == "Slice" and alone and axis == 0 and not any(map(keras.ops.is_tensor, tree.flatten(args[1]))):
        starts = list(args[1])
        if starts[0] == 0:
            ends = [slice(n, n + m) for n, m in zip(starts[1:], shape[1:], strict=True)]
            return x[(slice(None), *ends)]
    raise ValueError(f"{name} depends on the batch")


def _mentions(structure: Any, size: int) -> bool:
    """Returns whether whole numbers in a structure are multiples of the stand-in."""
    numbers = [n for n in tree.flatten(structure) if isinstance(n, int) and not isinstance(n, bool)]
    slices = [s for s in tree.flatten(structure) if isinstance(s, slice)]
    numbers += [n for s in slices for n in (s.start, s.stop) if isinstance(n, int)]
    return any(n and n % size == 0 for n in numbers)


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
    return [
        part
        for part in flatten_layers(layer)
        if part is not layer and runs_code(part)
    ]


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
        identity = id(call.operation) if layer else str(_settings(call.operation))
        trace.append((identity, described(call, labels)))
        for tensor in call.outputs:
            labels[id(tensor)] = f"result {len(labels)}"
    return [*trace, [labels[id(tensor)] for tensor in graph.outputs]]


def _settings(operation: Any) -> Any:
    plain = {k: v for k, v in vars(operation).items() if not k.startswith("_") and k != "name"}
    return type(operation).__name__, plain


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
