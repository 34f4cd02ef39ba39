"""Runs a model on samples in little memory, so that layers can be watched on the way."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import tree

from tfcompress.graph.read import Call, Graph, is_graph, read_graphs

_BATCH = 32
_LARGEST = 2**24  # numbers of one tensor of a batch: 64 MiB


def largest_tensor(model: keras.Model) -> int:
    """Returns how many numbers of one sample the largest tensor inside a model holds."""
    calls = [call for graph in read_graphs(model).values() for call in graph.calls]
    shapes = [t.shape for call in calls for t in call.outputs]
    return max((math.prod(size or 1 for size in shape[1:]) for shape in shapes), default=1)


def batch_size_for(model: keras.Model) -> int:
    """Returns how many samples `run` passes through a model at once, if it is not told."""
    return int(np.clip(_LARGEST // largest_tensor(model), 1, _BATCH))


def packed(model: keras.Model, features: Mapping[str, np.ndarray]) -> Any:
    """Returns arrays by input name in the structure that a model is called with."""
    arrays = [features[t._keras_history.operation.name] for t in model.inputs]
    structure = getattr(model, "_inputs_struct", None)
    if len(arrays) == 1 and not isinstance(structure, (dict, list, tuple)):
        return arrays[0]
    return tree.pack_sequence_as(structure, arrays)


def run(
    model: keras.Model, samples: Mapping[str, np.ndarray], batch_size: int | None = None
) -> Iterator[list[Any]]:
    """Runs a model eagerly at inference, and yields the outputs of each batch, flat.

    A Keras model keeps the outputs of all its layers until it ends, which for images may be many
    times its weights. Here each value is let go after its last use.

    Args:
        model: A Sequential or Functional model.
        samples: Arrays by input name.
        batch_size: Samples of a batch; None is 32, or fewer where tensors are large.
    """
    graphs = read_graphs(model)
    if batch_size is None:
        batch_size = batch_size_for(model)
    for start in range(0, len(next(iter(samples.values()))), batch_size):
        rows = slice(start, start + batch_size)
        given = [samples[t._keras_history.operation.name][rows] for t in model.inputs]
        yield _outputs(model, graphs, given)


def outputs_of(model: keras.Model, samples: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Returns the outputs of a model on all samples, flat; see `run`."""
    batches = zip(*run(model, samples), strict=True)
    return [np.concatenate([np.asarray(part) for part in parts]) for parts in batches]


def _outputs(model: keras.Model, graphs: Mapping[int, Graph], given: list[Any]) -> list[Any]:
    """Returns the outputs of a model; takes its inputs out of the list."""
    values = {id(t): keras.ops.convert_to_tensor(given.pop(0), dtype=t.dtype) for t in model.inputs}
    graph = graphs[id(model)]
    left = Counter({key: len(calls) for key, calls in graph.consumers.items()})
    left.update(id(t) for t in model.outputs)
    for call in graph.calls:
        values |= {
            id(t): value
            for t, value in zip(call.outputs, _made(call, graphs, values, left), strict=True)
            if left[id(t)]
        }
    return [values[id(t)] for t in model.outputs]


def _made(
    call: Call, graphs: Mapping[int, Graph], values: dict[int, Any], left: Counter[int]
) -> list[Any]:
    """Returns what a call returns, flat, and lets go of what no later one reads."""

    def lookup(value: Any) -> Any:
        return values[id(value)] if isinstance(value, keras.KerasTensor) else value

    args, kwargs = tree.map_structure(lookup, (call.args, call.kwargs))
    given = [values[id(t)] for t in call.inputs]
    for tensor in call.inputs:
        left[id(tensor)] -= 1
        if not left[id(tensor)]:
            values.pop(id(tensor), None)
    operation = call.operation
    if is_graph(operation) and len(given) == len(operation.inputs) == 1 and _fits(operation, given):
        del args, kwargs
        return _outputs(operation, graphs, given)
    return tree.flatten(at_inference(operation, args, kwargs))


def at_inference(operation: Any, args: Any, kwargs: Any) -> Any:
    """Calls an operation as a model would at inference: some layers train unless told."""
    if isinstance(operation, keras.layers.Layer):
        kwargs = {**kwargs, "training": False}  # for the layers inside it as well
    return operation(*args, **kwargs)


def _fits(model: keras.Model, given: list[Any]) -> bool:
    """Returns whether Keras would hand a tensor on to what is inside of a model as it is."""
    masked = getattr(given[0], "_keras_mask", None) is not None
    return not masked and len(given[0].shape) == len(model.inputs[0].shape)
