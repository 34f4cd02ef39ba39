"""Runs a model on samples in little memory, so that layers can be watched on the way."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import tree

from tfcompress.graph.keras_internals import input_struct, mask_of, output_struct
from tfcompress.graph.read import Call, Graph, input_names, is_graph, read_graphs

Note = Callable[[Call, list[Any], list[Any]], None]
_BATCH = 32
_LARGEST = 2**24  # numbers of one tensor of a batch: 64 MiB


def largest_tensor(model: keras.Model) -> int:
    """Returns how many numbers of one sample the largest tensor inside a model holds."""
    calls = [call for graph in read_graphs(model).values() for call in graph.calls]
    shapes = [t.shape for call in calls for t in call.outputs]
    return max((math.prod(size or 1 for size in shape[1:]) for shape in shapes), default=1)


def fixed_batch(model: keras.Model) -> int | None:
    """Returns how many samples a model must be called on at once; None for any number.

    That is what its inputs say; and one where an output has no axis of the batch, for then more
    samples would be something else.
    """
    sizes = {tensor.shape[0] for tensor in model.inputs if len(tensor.shape)} - {None}
    if sizes:
        return int(max(sizes))
    whole = any(not tensor.shape or tensor.shape[0] is not None for tensor in model.outputs)
    return 1 if whole else None


def batch_size_for(model: keras.Model) -> int:
    """Returns how many samples `run` passes through a model at once, if it is not told."""
    found = int(np.clip(_LARGEST // largest_tensor(model), 1, _BATCH))
    return fixed_batch(model) or found


def predict(model: keras.Model, features: Mapping[str, np.ndarray]) -> Any:
    """Returns the outputs of a model for arrays by input name, as `Model.predict` does."""
    if fixed_batch(model) is None:
        return model.predict(packed(model, features), verbose=0)
    return tree.pack_sequence_as(output_struct(model), outputs_of(model, features))


def packed(model: keras.Model, features: Mapping[str, np.ndarray]) -> Any:
    """Returns arrays by input name in the structure that a model is called with."""
    arrays = [features[name] for name in input_names(model)]
    structure = input_struct(model)
    if len(arrays) == 1 and not isinstance(structure, (dict, list, tuple)):
        return arrays[0]
    return tree.pack_sequence_as(structure, arrays)


def run(
    model: keras.Model,
    samples: Mapping[str, np.ndarray],
    batch_size: int | None = None,
    note: Note | None = None,
) -> Iterator[list[Any]]:
    """Runs a model eagerly at inference, and yields the outputs of each batch, flat.

    A Keras model keeps the outputs of all its layers until it ends, which for images may be many
    times its weights. Here each value is let go after its last use.

    Args:
        model: A Sequential or Functional model.
        samples: Arrays by input name.
        batch_size: Samples of a batch; None is 32, or fewer where tensors are large.
        note: Is given each call with what it is called on and what it returns, both flat.
    """
    graphs = read_graphs(model)
    fixed = fixed_batch(model)
    if fixed or batch_size is None:
        batch_size = batch_size_for(model)
    total = len(next(iter(samples.values())))
    for start in range(0, total, batch_size):
        count = min(batch_size, total - start)
        # A model of a fixed batch is called on the last sample again and again.
        rows = np.minimum(np.arange(start, start + (batch_size if fixed else count)), total - 1)
        given = [samples[name][rows] for name in input_names(model)]
        made = _outputs(model, graphs, given, note)
        yield [value[:count] if count < len(rows) == value.shape[0] else value for value in made]


def outputs_of(
    model: keras.Model, samples: Mapping[str, np.ndarray], note: Note | None = None
) -> list[np.ndarray]:
    """Returns the outputs of a model on all samples, flat; see `run`."""
    batches = zip(*run(model, samples, note=note), strict=True)
    to_numpy = keras.ops.convert_to_numpy
    return [np.concatenate([np.atleast_1d(to_numpy(p)) for p in parts]) for parts in batches]


def _outputs(
    model: keras.Model, graphs: Mapping[int, Graph], given: list[Any], note: Note | None
) -> list[Any]:
    """Returns the outputs of a model; takes its inputs out of the list."""
    values = {id(t): keras.ops.convert_to_tensor(given.pop(0), dtype=t.dtype) for t in model.inputs}
    graph = graphs[id(model)]
    left = Counter({key: len(calls) for key, calls in graph.consumers.items()})
    left.update(id(t) for t in model.outputs)
    for call in graph.calls:
        values |= {
            id(t): value
            for t, value in zip(call.outputs, _made(call, graphs, values, left, note), strict=True)
            if left[id(t)]
        }
    return [values[id(t)] for t in model.outputs]


def _made(
    call: Call,
    graphs: Mapping[int, Graph],
    values: dict[int, Any],
    left: Counter[int],
    note: Note | None,
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
        made = _outputs(operation, graphs, [*given] if note else given, note)
    else:
        made = tree.flatten(at_inference(operation, args, kwargs))
    if note is not None:
        note(call, given, made)
    return made


def at_inference(operation: Any, args: Any, kwargs: Any) -> Any:
    """Calls an operation as a model would at inference: some layers train unless told."""
    if isinstance(operation, keras.layers.Layer):
        kwargs = {**kwargs, "training": False}  # for the layers inside it as well
    return operation(*args, **kwargs)


def _fits(model: keras.Model, given: list[Any]) -> bool:
    """Returns whether Keras would hand a tensor on to what is inside of a model as it is."""
    masked = mask_of(given[0]) is not None
    return not masked and len(given[0].shape) == len(model.inputs[0].shape)
