"""Runs a model on samples in little memory, with access to the values of every layer."""

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
_LARGE_BATCH = 256
_LARGEST = 2**24  # elements of one tensor of a batch: 64 MiB


def largest_tensor(model: keras.Model) -> int:
    """Returns the number of elements per sample of the largest tensor inside a model."""
    calls = [call for graph in read_graphs(model).values() for call in graph.calls]
    shapes = [t.shape for call in calls for t in call.outputs]
    return max((math.prod(size or 1 for size in shape[1:]) for shape in shapes), default=1)


def fixed_batch(model: keras.Model) -> int | None:
    """Returns how many samples a model must be called on at once; None for any number.

    This is the batch size of its inputs. It is 1 if an output has no batch axis, because such an
    output would combine several samples.
    """
    sizes = {tensor.shape[0] for tensor in model.inputs if len(tensor.shape)} - {None}
    if sizes:
        return int(max(sizes))
    whole = any(not tensor.shape or tensor.shape[0] is not None for tensor in model.outputs)
    return 1 if whole else None


def batch_size_for(model: keras.Model, most: int = _BATCH) -> int:
    """Returns a batch size for a model: `most`, or fewer if its tensors are large."""
    size = int(np.clip(_LARGEST // largest_tensor(model), 1, most))
    return fixed_batch(model) or size


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

    A Keras model keeps the outputs of all its layers until its call ends, which for images may be
    many times the size of its weights. Here each value is released after its last use.

    Args:
        model: A Sequential or Functional model.
        samples: Arrays by input name.
        batch_size: Samples per batch; None is 32, or fewer if tensors are large.
        note: Receives each call with its inputs and its outputs, both flat.
    """
    graphs = read_graphs(model)
    fixed = fixed_batch(model)
    if fixed or batch_size is None:
        batch_size = batch_size_for(model)
    sample_count = len(next(iter(samples.values())))
    for start in range(0, sample_count, batch_size):
        count = min(batch_size, sample_count - start)
        # A model with a fixed batch size gets copies of the last sample to fill the batch.
        rows = np.minimum(
            np.arange(start, start + (batch_size if fixed else count)), sample_count - 1
        )
        inputs = [samples[name][rows] for name in input_names(model)]
        outputs = _outputs(model, graphs, inputs, note)
        yield [value[:count] if count < len(rows) == value.shape[0] else value for value in outputs]


def outputs_of(
    model: keras.Model, samples: Mapping[str, np.ndarray], note: Note | None = None
) -> list[np.ndarray]:
    """Returns the outputs of a model on all samples, flat; see `run`."""
    # In large batches where nothing depends on them: calling an operation takes longer than a small
    # tensor does.
    size = None if note else batch_size_for(model, _LARGE_BATCH)
    batches = zip(*run(model, samples, size, note), strict=True)
    to_numpy = keras.ops.convert_to_numpy
    return [np.concatenate([np.atleast_1d(to_numpy(p)) for p in parts]) for parts in batches]


def _outputs(
    model: keras.Model, graphs: Mapping[int, Graph], inputs: list[Any], note: Note | None
) -> list[Any]:
    """Returns the outputs of a model; removes the inputs from the list."""
    values = {
        id(t): keras.ops.convert_to_tensor(inputs.pop(0), dtype=t.dtype) for t in model.inputs
    }
    graph = graphs[id(model)]
    pending_reads = Counter({key: len(calls) for key, calls in graph.consumers.items()})
    pending_reads.update(id(t) for t in model.outputs)
    for call in graph.calls:
        values |= {
            id(t): value
            for t, value in zip(
                call.outputs, _call_outputs(call, graphs, values, pending_reads, note), strict=True
            )
            if pending_reads[id(t)]
        }
    return [values[id(t)] for t in model.outputs]


def _call_outputs(
    call: Call,
    graphs: Mapping[int, Graph],
    values: dict[int, Any],
    pending_reads: Counter[int],
    note: Note | None,
) -> list[Any]:
    """Returns the outputs of a call, flat, and releases values that no later call reads."""

    def lookup(value: Any) -> Any:
        return values[id(value)] if isinstance(value, keras.KerasTensor) else value

    args, kwargs = tree.map_structure(lookup, (call.args, call.kwargs))
    inputs = [values[id(t)] for t in call.inputs]
    for tensor in call.inputs:
        pending_reads[id(tensor)] -= 1
        if not pending_reads[id(tensor)]:
            values.pop(id(tensor), None)
    operation = call.operation
    if (
        is_graph(operation)
        and len(inputs) == len(operation.inputs) == 1
        and _passes_unchanged(operation, inputs)
    ):
        del args, kwargs
        outputs = _outputs(operation, graphs, [*inputs] if note else inputs, note)
    else:
        outputs = tree.flatten(at_inference(operation, args, kwargs))
    if note is not None:
        note(call, inputs, outputs)
    return outputs


def at_inference(operation: Any, args: Any, kwargs: Any) -> Any:
    """Calls an operation as a model does at inference; some layers default to training."""
    if isinstance(operation, keras.layers.Layer):
        kwargs = {**kwargs, "training": False}  # also for the layers inside it
    return operation(*args, **kwargs)


def _passes_unchanged(model: keras.Model, inputs: list[Any]) -> bool:
    """Returns whether Keras passes a tensor unchanged to the layers of a nested model."""
    masked = mask_of(inputs[0]) is not None
    return not masked and len(inputs[0].shape) == len(model.inputs[0].shape)
