"""Expands layers and models that call others in Python code into graphs of these calls.

The code is run on symbolic tensors, which records the layers and `keras.ops` that it calls. The
record is complete if the code does nothing else: it has no weights or random numbers of its own,
does not depend on values, and does the same in training. A custom layer becomes a nested model
(`Expanded`), which `strip` reverts; a subclassed model becomes a Functional one of the same layers.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
from collections.abc import Iterator
from typing import Any

import keras
from keras import tree

from tfcompress.graph.clone import Rewriter
from tfcompress.graph.expand import Expanded, Original
from tfcompress.graph.keras_internals import (
    build_shapes,
    flatten_layers,
    has_own_state,
    inbound_nodes,
    mask_of,
    outbound_nodes,
    sublayers,
)
from tfcompress.graph.layers import is_ours
from tfcompress.graph.read import (
    Call,
    Graph,
    check_built,
    is_graph,
    read_graph,
    walk_layers,
)


def as_graph(model: Any, argument: str = "model") -> keras.Model:
    """Returns a model whose layers can be read: the model itself, or an equivalent one.

    Args:
        model: A built Keras model of any kind. It is not changed.
        argument: What to call it in errors.

    Returns:
        The model if neither it nor anything in it calls layers in Python code; else a copy with
        the same weights, in which this code is expanded as far as it can be traced.

    Raises:
        TypeError: If `model` is no Keras model.
        ValueError: If it is unbuilt, or subclassed and cannot be called on symbolic tensors.
    """
    check_built(model, argument)
    if is_graph(model):
        code = any(_runs_code(layer) for _, layer in walk_layers(model))
        return _Inline(model).run(model) if code else model
    inputs = _inputs_of(model, argument)
    with _forgetting_calls(model):
        graph = _read(model, [inputs], {}, keras.Model)
        if graph is not None and (tokens := _tokens(graph)):
            inputs = tree.map_structure(
                lambda t: keras.Input(batch_shape=t.shape, dtype="int32") if id(t) in tokens else t,
                inputs,
            )
            graph = _read(model, [inputs], {}, keras.Model)
        if graph is not None and _runs(expanded := _Inline(graph).run(graph)):
            return expanded
    try:
        return keras.Model(inputs, model(inputs), name=f"{model.name}_graph")
    except Exception as error:
        raise ValueError(
            f"{argument} must be a Sequential or Functional model, or a subclassed one that can be "
            f"called on a keras.Input. Received: {model.name!r} ({type(model).__name__}), which "
            f"cannot: {str(error).strip().splitlines()[0]}. Use layers and keras.ops in its call()."
        ) from error


class _Inline(Rewriter):
    """Replaces each layer whose code can be traced by a nested model."""

    def __init__(self, model: keras.Model) -> None:
        super().__init__()
        self._expanded: dict[int, Any] = {}
        self._kinds: dict[int, set[str]] = {}
        self._note_kinds(model)

    def _note_kinds(self, model: keras.Model) -> None:
        """Records the distinct ways in which each layer is called."""
        for call in read_graph(model).calls:
            if is_graph(call.operation):
                self._note_kinds(call.operation)
            self._kinds.setdefault(id(call.operation), set()).add(_described(call, {}))

    def visit(self, graph: Graph, call: Call, args: Any, kwargs: Any) -> Any:
        layer = call.operation
        if id(layer) not in self._expanded:
            self._expanded[id(layer)] = self._expand(call) if _runs_code(layer) else None
        expanded = self._expanded[id(layer)]
        if expanded is None:
            shape = getattr(layer, "newshape", ())
            if type(layer).__name__ == "Reshape" and [*shape].count(None) == 1 and -1 not in shape:
                # The batch size is unknown here, but was known to code that saw values.
                return keras.ops.reshape(args[0], [-1 if size is None else size for size in shape])
            return super().visit(graph, call, args, kwargs)
        return expanded(_symbolic((args, kwargs)))

    def _expand(self, call: Call) -> Any:
        layer = call.operation
        kinds = self._kinds.get(id(layer), set())
        masked = any(mask_of(t) is not None for t in call.inputs)
        source = _arguments(layer, call)
        if len(kinds) != 1 or masked or source is None or layer.activity_regularizer:
            return None
        new_inputs = {id(t): keras.Input(batch_shape=t.shape, dtype=t.dtype) for t in call.inputs}
        args, kwargs = tree.map_structure(
            lambda value: new_inputs.get(id(value), value), (call.args, call.kwargs)
        )
        with _forgetting_calls(layer):
            graph = _read(layer, args, kwargs, Expanded)
            if graph is None:
                return None
            self._note_kinds(graph)
            expanded = self._attempt(lambda: self._rebuild(graph, call.path + "/"))
            if expanded is None or not _runs(expanded):
                return None
            locations = {id(variable): location for location, variable in _weights(graph)}
            weights = [locations[id(weight)] for weight in layer.weights]
        expanded.source = json.dumps({**source, "weights": weights})
        expanded.layer_class = type(layer)
        if not _is_restorable(expanded, layer):
            expanded.original = Original(layer)
        return expanded

    def _attempt(self, rebuild: Any) -> Any:
        """Returns the rebuilt model; None, with all records undone, if a layer rejects a shape."""
        n = len(self._originals), len(self._carried), len(self._initializers)
        try:
            return rebuild()
        except Exception:  # the layer's code knows sizes that its graph does not
            for original in self._originals[n[0] :]:
                self._replacements.pop(id(original), None)
            del self._originals[n[0] :], self._carried[n[1] :], self._initializers[n[2] :]
            return None


@keras.saving.register_keras_serializable("tfcompress")
class Constant(keras.layers.Layer):
    """Returns a constant that custom code creates, such as position indices; ignores its input.

    Args:
        value: The constant, as a list.
        number_type: Its dtype.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    def __init__(self, value: Any, number_type: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.value, self.number_type = value, number_type

    def call(self, inputs: Any) -> Any:
        """Returns the constant."""
        return keras.ops.convert_to_tensor(self.value, self.number_type)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        own = {"value": self.value, "number_type": self.number_type}
        return {**super().get_config(), **own}


@contextlib.contextmanager
def _recording_constants(layer: Any, inputs: list[Any]) -> Iterator[None]:
    """Records calls of sublayers on constants, which Keras would just run.

    Args:
        layer: The layer or model.
        inputs: The symbolic tensors that it is called on.
    """

    def recorded(part: Any, call: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            (array,) = map(keras.ops.convert_to_numpy, args)
        except Exception:  # backends raise different errors for values that are not known yet
            return call(*args, **kwargs)
        numbers = Constant(array.tolist(), str(array.dtype))(inputs[0])
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


def _runs_code(layer: Any) -> bool:
    """Returns whether a layer is custom: of neither Keras nor tfcompress."""
    if not isinstance(layer, keras.layers.Layer) or is_graph(layer) or not layer.built:
        return False
    return not is_ours(layer) and type(layer) not in vars(keras.layers).values()


def _read(layer: Any, args: Any, kwargs: Any, kind: type[keras.Model]) -> Any:
    """Returns the graph of the calls in a layer's code; None if the code does anything else."""
    parts = flatten_layers(layer)
    if has_own_state(layer) or not all(part.built for part in parts):
        return None
    inputs = args[0] if kind is keras.Model else _symbolic((args, kwargs))
    takes_training = "training" in inspect.signature(layer.call).parameters
    modes: list[Any] = [True, False, None] if takes_training else [None]
    graphs = []
    for mode in modes:
        training = {"training": mode} if takes_training else {}
        # Code that does something unsupported with symbolic tensors raises some exception.
        recording = _recording_constants(layer, _symbolic((args, kwargs)))
        with contextlib.suppress(Exception), keras.StatelessScope(), recording:
            outputs = layer.call(*args, **{**kwargs, **training})
            graphs.append(kind(inputs, outputs, name=layer.name))
    if len(graphs) < len(modes):
        return None
    traces = [_trace_of(graph) for graph in graphs]
    graph = graphs[-1]
    fixed = any(map(_fixes_training, read_graph(graph).calls))
    reached = {id(variable) for _, variable in _weights(graph)}
    hidden = any(id(weight) not in reached for weight in layer.weights)
    if fixed or hidden or any(trace != traces[-1] for trace in traces):
        return None
    graph.trainable = layer.trainable
    return graph


def _runs(model: keras.Model) -> bool:
    """Returns whether a traced graph runs: the code may have depended on a batch size of None."""
    if any(None in t.shape[1:] for t in model.inputs):
        return True  # the supported sizes are not known
    zeros = [keras.ops.zeros((t.shape[0] or 2, *t.shape[1:]), t.dtype) for t in model.inputs]
    with contextlib.suppress(Exception):
        model(tree.pack_sequence_as(model.input, zeros), training=False)
        return True
    return False


def _fixes_training(call: Call) -> bool:
    """Returns whether the code passes a fixed `training` argument."""
    if not isinstance(call.operation, keras.layers.Layer):
        return False
    argument = inspect.signature(call.operation.call).parameters.get("training")
    return argument is not None and call.kwargs.get("training") not in (None, argument.default)


def _weights(graph: keras.Model) -> Iterator[tuple[tuple[str, int], Any]]:
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
        trace.append((identity, _described(call, labels)))
        for tensor in call.outputs:
            labels[id(tensor)] = f"result {len(labels)}"
    return [*trace, [labels[id(tensor)] for tensor in graph.outputs]]


def _settings(operation: Any) -> Any:
    plain = {k: v for k, v in vars(operation).items() if not k.startswith("_") and k != "name"}
    return type(operation).__name__, plain


def _described(call: Call, labels: dict[int, str]) -> str:
    """Returns the arguments of a call as text: tensors by label, or by shape and dtype."""

    def text(value: Any) -> str:
        if isinstance(value, keras.KerasTensor):
            return labels.get(id(value), f"{value.shape} {value.dtype}")
        return f"{type(value).__name__} {value!r}"

    kwargs = {name: value for name, value in call.kwargs.items() if name != "training"}
    return str(tree.map_structure(text, (call.args, kwargs)))


def _tokens(graph: keras.Model) -> set[int]:
    """Returns the `id` of the inputs that only embeddings consume: they are integers."""
    consumers = read_graph(graph).consumers
    return {
        id(tensor)
        for tensor in graph.inputs
        if "float" in tensor.dtype
        and consumers.get(id(tensor))
        and all(isinstance(c.operation, keras.layers.Embedding) for c in consumers[id(tensor)])
    }


def _symbolic(values: Any) -> list[Any]:
    """Returns the symbolic tensors in a structure, each once."""
    unique = {id(v): v for v in tree.flatten(values) if isinstance(v, keras.KerasTensor)}
    return list(unique.values())


def _arguments(layer: Any, call: Call) -> dict[str, Any] | None:
    """Returns the layer's config and call arguments; None if JSON cannot represent them."""
    try:
        signature = inspect.signature(layer.call)
        arguments = signature.bind(*call.args, **call.kwargs).arguments
        kinds = {signature.parameters[name].kind for name in arguments}
        if kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
            return None
        inputs = _symbolic((call.args, call.kwargs))  # the inputs of the graph
        indices = {id(tensor): index for index, tensor in enumerate(inputs)}
        source: dict[str, Any] = {"inputs": {}, "options": {}}
        for name, value in arguments.items():
            tensors = [isinstance(v, keras.KerasTensor) for v in tree.flatten(value)]
            if any(tensors) and not all(tensors):
                return None
            if any(tensors):
                source["inputs"][name] = tree.map_structure(lambda t: indices[id(t)], value)
            elif value is not None:
                source["options"][name] = value
        json.dumps(source)
    except TypeError:
        return None
    try:
        source["layer"] = keras.saving.serialize_keras_object(layer)
        json.dumps(source)
    except Exception:  # get_config() of a custom layer may raise anything
        source["layer"] = None
    return source


def _is_restorable(expanded: Expanded, layer: Any) -> bool:
    """Returns whether a layer rebuilt from its config has weights of the same shapes."""
    inputs = [keras.KerasTensor(t.shape, t.dtype) for t in expanded.inputs]
    with contextlib.suppress(Exception):
        restored = expanded.layer()
        restored(**expanded.arguments(inputs))
        return [w.shape for w in restored.weights] == [w.shape for w in layer.weights]
    return False


def _inputs_of(model: Any, argument: str) -> Any:
    """Returns symbolic inputs for the shapes that a subclassed model was built for."""
    shapes = list(build_shapes(model).values())
    if len(shapes) != 1:
        raise ValueError(
            f"{argument} {model.name!r} is subclassed, and the shapes of its inputs are not known. "
            f"Pass keras.Model(inputs, {model.name}(inputs)) with inputs = keras.Input(...)."
        )

    def input_for(shape: Any) -> Any:
        if isinstance(shape, dict):
            return {name: input_for(value) for name, value in shape.items()}
        if all(size is None or isinstance(size, int) for size in shape):
            return keras.Input(shape[1:], dtype=model.variable_dtype)
        return [input_for(value) for value in shape]

    return input_for(shapes[0])


@contextlib.contextmanager
def _forgetting_calls(layer: Any) -> Iterator[None]:
    """Removes the records of calls made meanwhile from the layers inside."""
    counts = [
        (nodes, len(nodes))
        for part in flatten_layers(layer)
        for nodes in (inbound_nodes(part), outbound_nodes(part))
    ]
    try:
        yield
    finally:
        for nodes, count in counts:
            del nodes[count:]
