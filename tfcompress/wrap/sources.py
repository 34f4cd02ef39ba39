"""What computed a tensor, read from the graph: the integers that a quantizer will round."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from tfcompress.graph.cost import plain
from tfcompress.graph.expand import MaskScores
from tfcompress.graph.read import Call, Graph, called_once, is_graph, read_graph, walk_layers
from tfcompress.wrap.canonicalize import activation_name
from tfcompress.wrap.fixed import GridCrossing
from tfcompress.wrap.forms import is_affine
from tfcompress.wrap.integers import (
    Grid,
    Joined,
    Leaky,
    MatrixProduct,
    Moved,
    Product,
    Source,
    Sum,
    Table,
    rounding_of,
)
from tfcompress.wrap.recurrent import RuntimeRecurrent
from tfcompress.wrap.roles import (
    CLIP,
    JOIN,
    LINEAR,
    MOVE,
    NORMALIZATION,
    OUTPUT,
    RELU,
    TABLE,
    is_float,
    keras_name,
    role,
)
from tfcompress.wrap.runtime import RuntimeLayer

_SCALARS = (Product, Moved)
_PRODUCTS = {"Multiply": Product, "Matmul": MatrixProduct, "Dot": MatrixProduct}


def source_of(tensor: Any, result: Grid) -> Source | None:
    """Returns what computed a symbolic tensor in integers, if that is known.

    Args:
        tensor: What a quantizer is called on.
        result: That quantizer; a layer that rounds for itself is told of it.
    """
    operation, inputs = _made_by(tensor)
    if operation is None:
        return None
    if is_graph(operation):
        return source_of(operation.outputs[tensor._keras_history.tensor_index], result)
    layer, kind = plain(operation), role(operation)
    if _bits(operation) == 8:
        return Moved(grid_of(tensor) or operation)
    if isinstance(operation, GridCrossing):
        crossed = grid_of(inputs[0])
        return None if crossed is None else Moved(crossed)
    if isinstance(layer, RuntimeRecurrent):
        return Moved(layer.results()[tensor._keras_history.tensor_index])
    if isinstance(layer, MaskScores):  # what is masked is off the grid by any rule
        return source_of(inputs[0], result)
    if kind in (RELU, CLIP):
        source = source_of(inputs[0], result)
        return None if isinstance(source, Moved) else source  # by 31 binary digits: as floats do
    if kind == MOVE and inputs:
        source = source_of(inputs[0], result)
        return source if isinstance(source, _SCALARS) or isinstance(layer, _BY_CHANNEL) else None
    if kind in (LINEAR, NORMALIZATION):
        return _sum(operation, inputs[0], ())
    if keras_name(layer) in _PRODUCTS and len(inputs) == 2:
        a, b = map(grid_of, inputs)
        return None if a is None or b is None else _PRODUCTS[keras_name(layer)]((a, b))
    if keras_name(layer) == "Concatenate":
        sizes = [t.shape[layer.axis] for t in inputs]
        if None not in sizes:
            sources = [source_of(t, result) for t in inputs]
            return Joined(tuple(zip(sources, sizes, strict=True)), layer.axis)
    if keras_name(layer) == "Stack":
        sources = [source_of(t, result) for t in inputs]
        last = layer.axis in (-1, len(inputs[0].shape))
        if not last or all(isinstance(source, _SCALARS) for source in sources):
            return Joined(tuple((source, 1) for source in sources), layer.axis)
    if keras_name(layer) == "LeakyReLU" and layer.negative_slope > 0:
        read = grid_of(inputs[0])
        return None if read is None else Leaky(read, layer.negative_slope)
    if isinstance(layer, RuntimeLayer):
        return layer.link([grid_of(t) for t in inputs], result)
    return None


_BY_CHANNEL = (
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.UpSampling1D,
    layers.UpSampling2D,
    layers.Dropout,
)
"""What moves values about and keeps each in its channel, the last axis."""


def _sum(operation: Any, given: Any, scalings: tuple[Any, ...]) -> Source | None:
    layer, kind = plain(operation), role(operation)
    if kind == NORMALIZATION:
        if not is_affine(layer):
            return None
        scalings = (operation, *scalings)
        before, inputs = _made_by(given)
        if before is not None and role(before) in (LINEAR, NORMALIZATION):
            return _sum(before, inputs[0], scalings)
        read = grid_of(given)
        return None if read is None else Sum(None, scalings, read)
    rounding = rounding_of(getattr(operation, "transforms", ()))
    if rounding is not None and rounding.granularity == "tensor" and scalings:
        return None  # the file has a finer grid for each channel than the model
    read = grid_of(given) if adds_integers(operation) else None
    return None if read is None else Sum(operation, scalings, read)


def sum_of(wrapper: Any, given: Sequence[Any]) -> Sum | None:
    """Returns what a wrapped layer adds up, called on symbolic tensors; None if not on integers.

    None as well if another call of the layer reads other grids. A recurrent layer is told the grids
    that it reads, if there are any.
    """
    layer = plain(wrapper)
    steps = isinstance(layer, RuntimeRecurrent)
    if not (steps or adds_integers(wrapper)):
        return None
    calls = [given, *(node.input_tensors for node in wrapper._inbound_nodes)]
    read, *others = [[grid_of(t) for t in call if is_float(t)] for call in calls]
    if any(list(map(id, other)) != list(map(id, read)) for other in others):
        read = [None]
    if steps:
        layer.link(read, layer.results()[0])
    grid = None if steps or not read else read[0]
    return None if grid is None else Sum(wrapper, (), grid)


def adds_integers(operation: Any) -> bool:
    """Returns whether an operation adds up products with rounded weights, in float32 here."""
    layer = plain(operation)
    return (
        type(layer) in _SUMS
        and rounding_of(getattr(operation, "transforms", ())) is not None
        and getattr(layer, "data_format", "") != "channels_first"
        and layer.compute_dtype == "float32"
        and layer.activity_regularizer is None  # it looks at what the layer itself returns
        and activation_name(layer) == "linear"
    )


_SUMS = (
    layers.Dense,
    layers.Conv1D,
    layers.Conv2D,
    layers.DepthwiseConv1D,
    layers.DepthwiseConv2D,
    layers.Conv1DTranspose,
    layers.Conv2DTranspose,
)


def known_sums(model: keras.Model) -> dict[int, Sum]:
    """Returns what a trained model adds up in integers and scales, each in one place only.

    Returns:
        By `id` of the wrapped layer; of the last normalization where there is none before it.
    """
    parts = [part for _, layer in walk_layers(model) for part in layer._flatten_layers()]
    rounding = [p for p in parts if _bits(p) == 8 and not p.follows and p.is_trained]
    for part in [*rounding, *filter(has_own_grid, parts)]:
        tell_nested_models(part)
    sources = [quantizer.source for quantizer in rounding]
    for source in sources:
        sources += [part for part, _ in getattr(source, "parts", ())]
    once = called_once(model)
    found: dict[int, Sum] = {}
    for source in sources:
        if isinstance(source, Sum):
            owner = source.wrapper or source.scalings[-1]
            if id(owner) in once:
                found[id(owner)] = source
    return found


def grid_of(tensor: Any) -> Grid | None:
    """Returns the quantizer of 8 bits that a symbolic tensor comes from, moved about or not."""
    operation, inputs = _made_by(tensor)
    if operation is None:
        return None
    if getattr(operation, "follows", False):
        return operation.leader()
    if _bits(operation):
        return operation if _bits(operation) == 8 else None
    if is_graph(operation):
        return grid_of(operation.outputs[tensor._keras_history.tensor_index])
    if isinstance(plain(operation), RuntimeRecurrent):
        return plain(operation).results()[tensor._keras_history.tensor_index]
    if role(operation) == TABLE:
        return _table(operation)
    if isinstance(operation, layers.InputLayer):
        return getattr(operation, _ENTERED, _Entered()).grid
    return grid_of(inputs[0]) if role(operation) == MOVE and inputs else None


def _table(embedding: Any) -> Table | None:
    """Returns the grid of an embedding's rows, if it is rounded to 8 bits."""
    rounding = rounding_of(getattr(embedding, "transforms", ()))
    plainly = type(plain(embedding)) is layers.Embedding
    if not plainly or rounding is None or plain(embedding).compute_dtype != "float32":
        return None
    return Table(embedding)


def grid_behind(graph: Graph, call: Call) -> Any:
    """Returns the quantizer that follows a concatenation, or others and what only moves values."""
    for reader in graph.consumers.get(id(call.outputs[0]), []):
        if _bits(reader.operation):
            return reader.operation
        if role(reader.operation) in (JOIN, MOVE):
            return grid_behind(graph, reader)
    return None


@dataclasses.dataclass(frozen=True)
class _Entered:
    """The grid of an input of a nested model; in a class of its own, so that Keras lets it be."""

    grid: Any = None


_ENTERED = "_tfcompress_grid"


def has_own_grid(wrapper: Any) -> bool:
    """Returns whether a wrapped layer returns integers of a grid, without a quantizer behind it."""
    layer = plain(wrapper)
    return layer is not wrapper and isinstance(layer, (layers.Embedding, RuntimeRecurrent))


def tell_nested_models(maker: Any) -> None:
    """Tells nested models that are called on what a layer rounds which grid they read.

    Args:
        maker: A quantizer, or a layer that `has_own_grid`.
    """
    seen: set[int] = set()
    for node in maker._outbound_nodes:
        _tell(node, seen)


def _tell(node: Any, seen: set[int]) -> None:
    if id(node) in seen:  # a model may be called on what it returned
        return
    seen.add(id(node))
    operation = node.operation
    if is_graph(operation):
        count = len(operation.inputs)  # masks may follow
        given = [n.arguments.keras_tensors[:count] for n in operation._inbound_nodes]
        for tensor, *calls in zip(operation.inputs, *given, strict=True):
            grids = {id(grid): grid for grid in map(grid_of, calls)}
            # Called on several grids, it knows of none.
            grid = next(iter(grids.values())) if len(grids) == 1 else None
            setattr(tensor._keras_history.operation, _ENTERED, _Entered(grid))
        calls = read_graph(operation).calls
        for call in calls:
            _find_again(call.operation, call.inputs, call.kwargs)
        for call in calls:
            for inner in call.operation._inbound_nodes if is_graph(call.operation) else ():
                _tell(inner, seen)
        _find_again_behind(operation, seen)
    elif role(operation) == MOVE:
        for following in operation._outbound_nodes:
            _tell(following, seen)


def _find_again(layer: Any, inputs: Sequence[Any], kwargs: Any) -> None:
    """Finds out again what a layer adds up, or what a quantizer rounds."""
    if getattr(layer, "is_compression_wrapper", False):
        layer.sum = sum_of(layer, inputs)
    elif _bits(layer) == 8 and not kwargs.get("averaged"):
        layer.source = source_of(inputs[0], layer)


def _find_again_behind(operation: Any, seen: set[int]) -> None:
    for node in operation._outbound_nodes:
        following = node.operation
        if is_graph(following):
            _tell(node, seen)
            continue
        _find_again(following, node.input_tensors, node.arguments.kwargs)
        if not _bits(following) and role(following) != OUTPUT:
            _find_again_behind(following, seen)


def _made_by(tensor: Any) -> tuple[Any, Any]:
    """Returns the operation that made a symbolic tensor and the tensors that it was called on."""
    history = getattr(tensor, "_keras_history", None)
    if history is None:
        return None, ()
    node = history.operation._inbound_nodes[history.node_index]
    return history.operation, node.input_tensors


def _bits(operation: Any) -> int:
    return operation.bits if hasattr(operation, "grid") else 0
