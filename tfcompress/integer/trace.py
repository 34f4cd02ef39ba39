"""What computed a tensor, read from the graph: the integers that a quantizer will round."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from tfcompress.graph.keras_internals import (
    flatten_layers,
    history,
    inbound_nodes,
    maker,
    maker_inputs,
    outbound_nodes,
    output_index,
)
from tfcompress.graph.layers import activation_name, is_float, plain
from tfcompress.graph.read import Call, Graph, called_once, is_graph, read_graph, walk_layers
from tfcompress.integer.affine import is_affine
from tfcompress.integer.grid_ops import Requantize
from tfcompress.integer.producers import (
    Accumulation,
    Int8Quantizer,
    Producer,
    Product,
    Requantized,
    Table,
    rounding_of,
)
from tfcompress.integer.roles import (
    CLIP,
    JOIN,
    LINEAR,
    MOVE,
    NORMALIZATION,
    OUTPUT,
    RELU,
    TABLE,
    role,
    support_of,
)

_SCALARS = (Product, Requantized)


def producer_of(tensor: Any, result: Int8Quantizer) -> Producer | None:
    """Returns what computed a symbolic tensor in integers, if that is known.

    Args:
        tensor: What a quantizer is called on.
        result: That quantizer; a layer that rounds for itself is told of it.
    """
    operation, inputs = _made_by(tensor)
    if operation is None:
        return None
    if is_graph(operation):
        return producer_of(operation.outputs[output_index(tensor)], result)
    layer, kind = plain(operation), role(operation)
    if _bits(operation) == 8:
        return Requantized(quantizer_of(tensor) or operation)
    if isinstance(operation, Requantize):
        crossed = quantizer_of(inputs[0])
        return None if crossed is None else Requantized(crossed)
    if grids := _output_quantizers(layer):
        return Requantized(grids[output_index(tensor)])
    if kind in (RELU, CLIP):
        source = producer_of(inputs[0], result)
        return (
            None if isinstance(source, Requantized) else source
        )  # by 31 binary digits: as floats do
    if kind == MOVE and inputs:
        source = producer_of(inputs[0], result)
        return source if isinstance(source, _SCALARS) or support_of(layer).keeps_channels else None
    if kind in (LINEAR, NORMALIZATION):
        return _sum(operation, inputs[0], ())
    producer = support_of(layer).producer
    if producer is not None:
        return producer(layer, inputs, result)
    if hasattr(layer, "link"):
        return layer.link([quantizer_of(t) for t in inputs], result)
    return None


def _sum(operation: Any, given: Any, scalings: tuple[Any, ...]) -> Producer | None:
    layer, kind = plain(operation), role(operation)
    if kind == NORMALIZATION:
        if not is_affine(layer):
            return None
        scalings = (operation, *scalings)
        before, inputs = _made_by(given)
        if before is not None and role(before) in (LINEAR, NORMALIZATION):
            return _sum(before, inputs[0], scalings)
        read = quantizer_of(given)
        return None if read is None else Accumulation(None, scalings, read)
    rounding = rounding_of(getattr(operation, "transforms", ()))
    if rounding is not None and rounding.granularity == "tensor" and scalings:
        return None  # the file has a finer grid for each channel than the model
    read = quantizer_of(given) if accumulates_integers(operation) else None
    return None if read is None else Accumulation(operation, scalings, read)


def accumulation_of(wrapper: Any, given: Sequence[Any]) -> Accumulation | None:
    """Returns what a wrapped layer adds up, called on symbolic tensors; None if not on integers.

    None as well if another call of the layer reads other grids. A recurrent layer is told the grids
    that it reads, if there are any.
    """
    layer = plain(wrapper)
    steps = _output_quantizers(layer)
    if not (steps or accumulates_integers(wrapper)):
        return None
    calls = [given, *(node.input_tensors for node in inbound_nodes(wrapper))]
    read, *others = [[quantizer_of(t) for t in call if is_float(t)] for call in calls]
    if any(list(map(id, other)) != list(map(id, read)) for other in others):
        read = [None]
    if steps:
        layer.link(read, steps[0])
    grid = None if steps or not read else read[0]
    return None if grid is None else Accumulation(wrapper, (), grid)


def accumulates_integers(operation: Any) -> bool:
    """Returns whether an operation adds up products with rounded weights, in float32 here."""
    layer = plain(operation)
    return (
        vars(layers).get(type(layer).__name__) is type(layer)
        and support_of(layer).accumulates
        and rounding_of(getattr(operation, "transforms", ())) is not None
        and getattr(layer, "data_format", "") != "channels_first"
        and layer.compute_dtype == "float32"
        and layer.activity_regularizer is None  # it looks at what the layer itself returns
        and activation_name(layer) == "linear"
    )


def known_accumulations(model: keras.Model) -> dict[int, Accumulation]:
    """Returns what a trained model adds up in integers and scales, each in one place only.

    Returns:
        By `id` of the wrapped layer; of the last normalization where there is none before it.
    """
    parts = [part for _, layer in walk_layers(model) for part in flatten_layers(layer)]
    rounding = [p for p in parts if _bits(p) == 8 and not p.follows and p.is_trained]
    for part in [*rounding, *filter(rounds_its_output, parts)]:
        tell_nested_models(part)
    sources = [quantizer.producer for quantizer in rounding]
    for source in sources:
        sources += [part for part, _ in getattr(source, "parts", ())]
    once = called_once(model)
    found: dict[int, Accumulation] = {}
    for source in sources:
        if isinstance(source, Accumulation):
            owner = source.wrapper or source.scalings[-1]
            if id(owner) in once:
                found[id(owner)] = source
    return found


def quantizer_of(tensor: Any) -> Int8Quantizer | None:
    """Returns the quantizer of 8 bits that a symbolic tensor comes from, moved about or not."""
    operation, inputs = _made_by(tensor)
    if operation is None:
        return None
    if getattr(operation, "follows", False):
        return operation.leader()
    if _bits(operation):
        return operation if _bits(operation) == 8 else None
    if is_graph(operation):
        return quantizer_of(operation.outputs[output_index(tensor)])
    if grids := _output_quantizers(plain(operation)):
        return grids[output_index(tensor)]
    if role(operation) == TABLE:
        return _table(operation)
    if isinstance(operation, layers.InputLayer):
        return getattr(operation, _ENTERED, _Entered()).grid
    return quantizer_of(inputs[0]) if role(operation) == MOVE and inputs else None


def _table(embedding: Any) -> Table | None:
    """Returns the grid of an embedding's rows, if it is rounded to 8 bits."""
    rounding = rounding_of(getattr(embedding, "transforms", ()))
    plainly = type(plain(embedding)) is layers.Embedding
    if not plainly or rounding is None or plain(embedding).compute_dtype != "float32":
        return None
    return Table(embedding)


def quantizer_behind(graph: Graph, call: Call) -> Any:
    """Returns the quantizer that follows a concatenation, or others and what only moves values."""
    for reader in graph.consumers.get(id(call.outputs[0]), []):
        if _bits(reader.operation):
            return reader.operation
        if role(reader.operation) in (JOIN, MOVE):
            return quantizer_behind(graph, reader)
    return None


@dataclasses.dataclass(frozen=True)
class _Entered:
    """The grid of an input of a nested model; in a class of its own, so that Keras lets it be."""

    grid: Any = None


_ENTERED = "_tfcompress_grid"


def rounds_its_output(wrapper: Any) -> bool:
    """Returns whether a wrapped layer returns integers of a grid, without a quantizer behind it."""
    layer = plain(wrapper)
    rounded = isinstance(layer, layers.Embedding) or bool(_output_quantizers(layer))
    return layer is not wrapper and rounded


def tell_nested_models(maker: Any) -> None:
    """Tells nested models that are called on what a layer rounds which grid they read.

    Args:
        maker: A quantizer, or a layer that `rounds_its_output`.
    """
    seen: set[int] = set()
    for node in outbound_nodes(maker):
        _tell(node, seen)


def _tell(node: Any, seen: set[int]) -> None:
    if id(node) in seen:  # a model may be called on what it returned
        return
    seen.add(id(node))
    operation = node.operation
    if is_graph(operation):
        count = len(operation.inputs)  # masks may follow
        given = [n.arguments.keras_tensors[:count] for n in inbound_nodes(operation)]
        for tensor, *calls in zip(operation.inputs, *given, strict=True):
            grids = {id(grid): grid for grid in map(quantizer_of, calls)}
            # Called on several grids, it knows of none.
            grid = next(iter(grids.values())) if len(grids) == 1 else None
            setattr(maker(tensor), _ENTERED, _Entered(grid))
        calls = read_graph(operation).calls
        for call in calls:
            _find_again(call.operation, call.inputs, call.kwargs)
        for call in calls:
            for inner in inbound_nodes(call.operation) if is_graph(call.operation) else ():
                _tell(inner, seen)
        _find_again_behind(operation, seen)
    elif role(operation) == MOVE:
        for following in outbound_nodes(operation):
            _tell(following, seen)


def _find_again(layer: Any, inputs: Sequence[Any], kwargs: Any) -> None:
    """Finds out again what a layer adds up, or what a quantizer rounds."""
    if getattr(layer, "is_compression_wrapper", False):
        layer.accumulation = accumulation_of(layer, inputs)
    elif _bits(layer) == 8 and not kwargs.get("averaged"):
        layer.producer = producer_of(inputs[0], layer)


def _find_again_behind(operation: Any, seen: set[int]) -> None:
    for node in outbound_nodes(operation):
        following = node.operation
        if is_graph(following):
            _tell(node, seen)
            continue
        _find_again(following, node.input_tensors, node.arguments.kwargs)
        if not _bits(following) and role(following) != OUTPUT:
            _find_again_behind(following, seen)


def _made_by(tensor: Any) -> tuple[Any, Any]:
    """Returns the operation that made a symbolic tensor and the tensors that it was called on."""
    found = history(tensor)
    return (None, ()) if found is None else (found.operation, maker_inputs(tensor))


def _output_quantizers(layer: Any) -> list[Any]:
    """Returns the quantizers that a layer rounds its outputs by itself with, if it does."""
    return layer.output_quantizers() if hasattr(layer, "output_quantizers") else []


def _bits(operation: Any) -> int:
    return operation.bits if hasattr(operation, "qparams") else 0
