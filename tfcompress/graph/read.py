"""Reads a Keras model: its calls in order, the consumers of its tensors, its layers by path."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

import keras

from tfcompress.archives import check_archive, check_weights_file
from tfcompress.data import InputSpec
from tfcompress.graph.keras_internals import (
    functional_class,
    functional_of,
    inbound_nodes,
    input_struct,
    nodes_in_order,
    output_struct,
    producing_inputs,
    producing_operation,
)
from tfcompress.process import check_process, check_versions

check_versions()


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call of an operation (a layer or a `keras.ops` node) in a model.

    Attributes:
        path: Names of the nested models and of the operation, joined by "/".
        operation: The layer or operation called.
        args: Its positional arguments, with symbolic tensors in them.
        kwargs: Its keyword arguments, likewise.
        inputs: The symbolic tensors among the arguments.
        outputs: The symbolic tensors it returned, flat.
    """

    path: str
    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: list[Any]
    outputs: list[Any]


@dataclasses.dataclass(frozen=True)
class Graph:
    """The calls of one model in the order in which they run; nested models are single calls.

    Attributes:
        path: Path of the model, ending in "/"; "" for the outermost.
        calls: All calls but those of the input layers.
        consumers: The calls that read a tensor, by `id` of the tensor.
        outputs: `id` of every output tensor of the model.
    """

    path: str
    calls: list[Call]
    consumers: dict[int, list[Call]]
    outputs: set[int]


def check_built(model: Any, argument: str = "model") -> None:
    """Rejects what is no Keras model, or has no weights yet.

    Raises:
        TypeError: If `model` is no Keras model.
        ValueError: If it is unbuilt.
        RuntimeError: If this process cannot run it.
    """
    check_process()
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"{argument} must be a Keras 3 model. Received: {model!r} of type "
            f"{type(model).__module__}.{type(model).__name__}"
        )
    if not model.built or not model.layers:
        raise ValueError(
            f"{argument} must be built, so that its weights exist. Received: the unbuilt model "
            f"{model.name!r}. Give it a keras.Input, or call it on data, first."
        )


def input_specs(model: keras.Model) -> list[InputSpec]:
    """Returns what a model expects, in the order of its inputs."""
    return [
        InputSpec(name, tuple(t.shape[1:]), keras.backend.standardize_dtype(t.dtype))
        for name, t in zip(input_names(model), model.inputs, strict=True)
    ]


def input_names(model: keras.Model) -> list[str]:
    """Returns the name of each input: dict keys, else those of the input layers."""
    struct = input_struct(model)
    if isinstance(struct, dict) and len(struct) == len(model.inputs):
        return list(keras.tree.flatten({key: key for key in struct}))
    # The name of the layer is the user's; that of the tensor may be generated.
    return [producing_operation(tensor).name for tensor in model.inputs]


def output_names(model: keras.Model) -> list[str]:
    """Returns a distinct name for each output: dict keys, else the names of the last layers."""
    struct = output_struct(model)
    if isinstance(struct, dict) and len(struct) == len(model.outputs):
        return list(keras.tree.flatten({key: key for key in struct}))
    names: list[str] = []
    for name in layer_names(model.outputs):
        duplicates = sum(n == name or n.startswith(f"{name}_") for n in names)
        names.append(f"{name}_{duplicates}" if duplicates else name)
    return names


def scope_name(name: str) -> str:
    """Returns a name in the form that TensorFlow accepts for a layer; inputs may have any name."""
    return re.sub(r"[^A-Za-z0-9_.>-]", "_", name)


def layer_names(tensors: Iterable[Any]) -> list[str]:
    """Returns the names of the layers that tensors come from, as they were before wrapping."""
    return [layer_name(tensor) for tensor in tensors]


def layer_name(tensor: Any) -> str:
    """Returns the name of the layer that a tensor comes from, as it was before wrapping."""
    operation = producing_operation(tensor)
    if getattr(operation, "is_compression_helper", False) and inbound_nodes(operation):
        return layer_name(producing_inputs(tensor)[0])
    origin = getattr(operation, "origin", None)
    return origin["name"] if origin else operation.name


def is_graph(layer: Any) -> bool:
    """Returns whether `layer` is a Sequential or Functional model, readable as a graph."""
    if isinstance(layer, keras.Sequential):
        return type(layer).call is keras.Sequential.call and layer.built
    functional = functional_class(layer)
    return (
        isinstance(layer, keras.Model)
        and functional is not None
        and type(layer).call is functional.call
    )


def read_graph(model: keras.Model, path: str = "") -> Graph:
    """Reads the calls of `model`.

    Args:
        model: A built Sequential or Functional model.
        path: Path of the model itself if it is nested, ending in "/".
    """
    # A Sequential model contains a Functional one, which is a Function already.
    function = functional_of(model) or model
    if not isinstance(function, keras.Function):
        function = keras.Function(model.inputs, model.outputs)
    calls: list[Call] = []
    consumers: dict[int, list[Call]] = {}
    for node in nodes_in_order(function):
        if node.is_input:
            continue
        call = Call(
            path + node.operation.name,
            node.operation,
            node.arguments.args,
            node.arguments.kwargs,
            list(node.arguments.keras_tensors),
            list(node.outputs),
        )
        calls.append(call)
        for tensor in call.inputs:
            consumers.setdefault(id(tensor), []).append(call)
    return Graph(path, calls, consumers, {id(tensor) for tensor in model.outputs})


def read_graphs(model: keras.Model, path: str = "") -> dict[int, Graph]:
    """Reads a model and all nested models, by `id`, with the path of their first call."""
    graph = read_graph(model, path)
    graphs = {id(model): graph}
    for call in graph.calls:
        if is_graph(call.operation) and id(call.operation) not in graphs:
            graphs = {**read_graphs(call.operation, call.path + "/"), **graphs}
    return graphs


def called_once(model: keras.Model) -> set[int]:
    """Returns the `id` of each operation that one pass of the model calls exactly once.

    Keras' own record of calls (inbound nodes) does not help: it includes calls in models that a
    layer belonged to before, and in every stage of a Sequential model.
    """
    counts: dict[int, int] = {}

    def count(graph: Graph) -> None:
        for call in graph.calls:
            counts[id(call.operation)] = counts.get(id(call.operation), 0) + 1
            if is_graph(call.operation):
                count(read_graph(call.operation))

    count(read_graph(model))
    return {key for key, times in counts.items() if times == 1}


def walk_layers(model: keras.Model, path: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    """Yields (path, layer) for every layer of `model` and of its nested models, once each."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        if is_graph(layer):
            yield from walk_layers(layer, f"{path}{layer.name}/")
        else:
            yield path + layer.name, layer


def load_keras(path: str | pathlib.Path) -> keras.Model:
    """Loads a `.keras` file; rejects files that could run code.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or holds Python code (a Lambda layer).
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No such file: {str(path)!r}")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{str(path)!r} is not a .keras file, or it is damaged.")
    check_archive(path, repr(str(path)))
    check_weights_file(path, repr(str(path)))
    try:
        return keras.saving.load_model(path, safe_mode=True)
    except Exception as error:  # a damaged config may raise anything
        if "unsafe" in str(error):
            raise ValueError(
                f"{str(path)!r} holds Python code (a Lambda layer), which could do anything when "
                "loaded. If you trust it, load it yourself with "
                "keras.saving.load_model(path, safe_mode=False) and pass the model."
            ) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if unknown := re.search(r"Could not locate class '(\w+)'", str(error)):
            reason = (
                f"its class {unknown[1]!r} is not known. Import the module that defines it first "
                "(--import on the command line)."
            )
        raise ValueError(f"{str(path)!r} could not be loaded: {reason}") from error
