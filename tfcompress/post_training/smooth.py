"""Smoothing: channels with outliers are divided in a normalization, and multiplied behind it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import layers

from tfcompress.graph.clone import Rewriter
from tfcompress.graph.kernel_axes import array
from tfcompress.graph.layers import einsum_letters
from tfcompress.graph.plain_layers import ChannelScale
from tfcompress.graph.read import Call, Graph, called_once, is_graph, read_graph
from tfcompress.graph.run import outputs_of

_NORMALIZATIONS = (layers.LayerNormalization, layers.RMSNormalization, ChannelScale)
_STRENGTH = 0.5  # 0 leaves activations as they are, 1 makes all their channels alike

Reader = tuple[Any, int]  # a kernel, and the axis of it that is summed over the channels


def smooth(model: keras.Model, samples: Mapping[str, np.ndarray]) -> keras.Model:
    """Returns an equivalent model with more even channels behind its normalizations.

    A channel may be divided by any factor in the scale and the offset of a normalization, if all
    that reads it are projections whose kernels multiply it again. The factor is the root of the
    channel's largest value on the samples, over that of its largest weight: the quantization error
    moves from activations, which have one scale for all channels, to weights. Normalizations that
    a residual connection reads as well stay as they are.

    Args:
        model: A built Sequential or Functional model, not wrapped. It is not changed.
        samples: Arrays by input name.

    References:
        Xiao et al. 2022, arXiv:2211.10438 (SmoothQuant).
    """
    groups = dict(_groups(model, called_once(model)))
    if not groups:
        return model
    largest = _largest_outputs(model, list(groups), samples)
    values: dict[int, np.ndarray] = {}
    for layer, readers in groups.items():
        weights = np.max([_by_channel(values, *reader) for reader in readers], axis=0)
        usable = (largest[layer] > 0) & (weights > 0)
        factors = np.ones(len(weights))
        factors[usable] = largest[layer][usable] ** _STRENGTH / weights[usable] ** (1 - _STRENGTH)
        factors /= np.exp(np.mean(np.log(factors)))
        for variable in layer.weights:
            values[id(variable)] = array(variable) / factors
        for kernel, axis in readers:
            shape = [-1 if index == axis else 1 for index in range(len(kernel.shape))]
            values[id(kernel)] = values.get(id(kernel), array(kernel)) * factors.reshape(shape)
    return _WithValues(values).run(model)


class _WithValues(Rewriter):
    def __init__(self, values: dict[int, np.ndarray]) -> None:
        super().__init__()
        self._values = values

    def value_of(self, variable: Any) -> Any:
        value = self._values.get(id(variable))
        return variable if value is None else value.astype(np.float32)


def _by_channel(values: dict[int, np.ndarray], kernel: Any, axis: int) -> np.ndarray:
    whole = values.get(id(kernel), array(kernel))
    return np.abs(np.moveaxis(whole, axis, 0)).reshape(whole.shape[axis], -1).max(1)


def _groups(model: keras.Model, once: set[int]) -> Iterator[tuple[Any, list[Reader]]]:
    """Yields each normalization that can be smoothed, and the kernels that read it."""
    graph = read_graph(model)
    for call in graph.calls:
        if is_graph(call.operation):
            if id(call.operation) in once:
                yield from _groups(call.operation, once)
        elif _has_scale(call) and id(call.operation) in once:
            readers = _readers(graph, call.outputs[0], once)
            if readers:
                yield call.operation, readers


def _has_scale(call: Call) -> bool:
    layer = call.operation
    if type(layer) not in _NORMALIZATIONS:
        return False
    axis = layer.axis if not isinstance(layer, ChannelScale) else -1
    last = axis in (-1, [-1], (-1,), [len(call.inputs[0].shape) - 1])
    scaled = isinstance(layer, layers.RMSNormalization) or layer.scale
    return last and scaled and not getattr(layer, "rms_scaling", False)


def _readers(graph: Graph, tensor: Any, once: set[int]) -> list[Reader] | None:
    """Returns the kernels that read a tensor; None if anything else does."""
    if id(tensor) in graph.outputs:
        return None
    found: list[Reader] = []
    for reader in graph.consumers.get(id(tensor), []):
        operation = reader.operation
        if isinstance(operation, layers.Dropout):
            kernels = _readers(graph, reader.outputs[0], once)
        elif id(operation) not in once:
            kernels = None
        elif is_graph(operation):
            kernels = _readers_inside(operation, reader, tensor, once)
        else:
            kernels = _kernels(reader, tensor)
        if kernels is None:
            return None
        found += kernels
    return list({(id(kernel), axis): (kernel, axis) for kernel, axis in found}.values())


def _readers_inside(model: Any, call: Call, tensor: Any, once: set[int]) -> list[Reader] | None:
    """Returns the kernels in a nested model that read one of its inputs."""
    inside = read_graph(model)
    found: list[Reader] = []
    for inner, outer in zip(model.inputs, call.inputs, strict=False):
        if outer is tensor:
            kernels = _readers(inside, inner, once)
            if kernels is None:
                return None
            found += kernels
    return found


def _kernels(call: Call, tensor: Any) -> list[Reader] | None:
    """Returns the kernels of a layer that multiply the channels of a tensor."""
    layer = call.operation
    if type(layer) is layers.Dense:
        return [(layer.kernel, 0)]
    if isinstance(layer, layers.EinsumDense):
        letters, kernel, result = einsum_letters(layer)
        channel = letters[-1]
        fits = channel in kernel and channel not in result and len(letters) == len(tensor.shape)
        return [(layer.kernel, kernel.index(channel))] if fits else None
    if type(layer) is layers.MultiHeadAttention:
        names = ("query", "value", "key")
        given = {**dict(zip(names, call.args, strict=False)), **call.kwargs}
        given.setdefault("key", given.get("value"))
        read = [name for name in names if given.get(name) is tensor]
        others = [v for k, v in given.items() if k not in names and v is tensor]
        return None if others else [(getattr(layer, f"{n}_dense").kernel, 0) for n in read]
    return None


def _largest_outputs(
    model: keras.Model, normalizations: list[Any], samples: Mapping[str, np.ndarray]
) -> dict[Any, np.ndarray]:
    """Returns the largest magnitude of each channel that normalizations put out."""
    largest: dict[Any, np.ndarray] = {}

    def noting(layer: Any, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        outputs = call(*args, **kwargs)
        values = np.abs(keras.ops.convert_to_numpy(outputs))
        most = values.reshape(-1, values.shape[-1]).max(0).astype(np.float64)
        largest[layer] = np.maximum(largest.get(layer, 0.0), most)
        return outputs

    with contextlib.ExitStack() as changes:
        for layer in normalizations:
            vars(layer)["call"] = functools.partial(noting, layer, layer.call)
            changes.callback(vars(layer).pop, "call")
        outputs_of(model, samples)
    return largest
