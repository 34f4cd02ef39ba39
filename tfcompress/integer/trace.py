"""Finds in the graph which integer operation produced a tensor, and which quantizer it has."""

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
    outbound_nodes,
    output_index,
    producing_inputs,
    producing_operation,
)
from tfcompress.graph.layers import activation_name, is_float, is_ours, plain
from tfcompress.graph.read import Call, Graph, called_once, is_graph, read_graph, walk_layers
from tfcompress.integer.affine import is_affine
from tfcompress.integer.grid_ops import Requantize
from tfcompress.integer.producers import (
    Accumulation,
    Clipped,
    Int8Quantizer,
    Producer,
    Product,
    Rectified,
    Requantized,
    Table,
    weight_quantizer_of,
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
    accumulates,
    role,
    support_of,
)

_PER_TENSOR = (Product, Requantized)  # with one multiplier for the whole tensor


def producer_of(tensor: Any, output_quantizer: Int8Quantizer) -> Producer | None:
    """Returns the integer operation that computes a symbolic tensor, if it is known.

    Args:
        tensor: The input of a quantizer.
        output_quantizer: This quantizer. A `RuntimeLayer` before it is linked with it.
    """
    operation, inputs = _operation_and_inputs(tensor)
    if operation is None:
        return None
    if is_graph(operation):
        return producer_of(operation.outputs[output_index(tensor)], output_quantizer)
    layer, kind = plain(operation), role(operation)
    if _bits(operation) == 8:
        return Requantized(quantizer_of(tensor) or operation)
    if isinstance(operation, Requantize):
        input_quantizer = quantizer_of(inputs[0])
        return None if input_quantizer is None else Requantized(input_quantizer)
    if quantizers := _output_quantizers(layer):
        return Requantized(quantizers[output_index(tensor)])
    if kind in (RELU, CLIP):
        producer = producer_of(inputs[0], output_quantizer)
        if isinstance(producer, Accumulation) and (high := _upper_limit(layer)) is not None:
            return Clipped(producer, high)
        if not isinstance(producer, Requantized):
            return producer
        return Rectified(producer.input_quantizer) if kind == RELU else None
    if kind == MOVE and inputs:
        producer = producer_of(inputs[0], output_quantizer)
        kept = isinstance(producer, _PER_TENSOR) or support_of(layer).keeps_channels
        return producer if kept else None
    if kind in (LINEAR, NORMALIZATION):
        return _folded_accumulation(operation, inputs[0], ())
    registered = support_of(layer).producer
    if registered is not None:
        return registered(layer, inputs, output_quantizer)
    if is_ours(layer) and hasattr(layer, "link"):
        return layer.link([quantizer_of(t) for t in inputs], output_quantizer)
    return None


def _upper_limit(relu: Any) -> float | None:
    """Returns the upper limit of a ReLU; None if it has none."""
    return 6.0 if activation_name(relu) == "relu6" else getattr(relu, "max_value", None)


def _folded_accumulation(operation: Any, tensor: Any, scalings: tuple[Any, ...]) -> Producer | None:
    """Returns the accumulation of a layer and the normalizations that are folded into it.

    Args:
        operation: The layer, or a normalization that follows it.
        tensor: The input of the operation.
        scalings: The normalizations that follow.
    """
    layer, kind = plain(operation), role(operation)
    if kind == NORMALIZATION:
        if not is_affine(layer):
            return None
        scalings = (operation, *scalings)
        before, inputs = _operation_and_inputs(tensor)
        if before is not None and role(before) in (LINEAR, NORMALIZATION):
            return _folded_accumulation(before, inputs[0], scalings)
        input_quantizer = quantizer_of(tensor)
        return None if input_quantizer is None else Accumulation(None, scalings, input_quantizer)
    weight_quantizer = weight_quantizer_of(getattr(operation, "transforms", ()))
    if weight_quantizer is not None and weight_quantizer.granularity == "tensor" and scalings:
        return None  # folding gives the file a scale per channel, which is finer than the model's
    input_quantizer = quantizer_of(tensor) if accumulates_integers(operation) else None
    return None if input_quantizer is None else Accumulation(operation, scalings, input_quantizer)


def accumulation_of(wrapper: Any, inputs: Sequence[Any]) -> Accumulation | None:
    """Returns the accumulation of a wrapped layer, if its input is quantized.

    None if another call of the layer has inputs with other quantizers. As a side effect, a
    recurrent layer is linked with the quantizers of its inputs.

    Args:
        wrapper: The wrapped layer.
        inputs: The symbolic tensors that it is called on.
    """
    layer = plain(wrapper)
    output_quantizers = _output_quantizers(layer)
    if not (output_quantizers or accumulates_integers(wrapper)):
        return None
    calls = [inputs, *(node.input_tensors for node in inbound_nodes(wrapper))]
    input_quantizers, *others = [[quantizer_of(t) for t in call if is_float(t)] for call in calls]
    if any(list(map(id, other)) != list(map(id, input_quantizers)) for other in others):
        input_quantizers = [None]
    if output_quantizers:
        layer.link(input_quantizers, output_quantizers[0])
    quantizer = None if output_quantizers or not input_quantizers else input_quantizers[0]
    return None if quantizer is None else Accumulation(wrapper, (), quantizer)


def accumulates_integers(operation: Any) -> bool:
    """Returns whether an operation accumulates products with quantized weights, in float32 here."""
    layer = plain(operation)
    return (
        vars(layers).get(type(layer).__name__) is type(layer)
        and accumulates(layer)
        and weight_quantizer_of(getattr(operation, "transforms", ())) is not None
        and getattr(layer, "data_format", "") != "channels_first"
        and layer.compute_dtype == "float32"
        and layer.activity_regularizer is None  # it depends on the unquantized output
        and activation_name(layer) == "linear"
    )


def known_accumulations(model: keras.Model) -> dict[int, Accumulation]:
    """Returns the accumulations of a trained model whose layers are called only once.

    Returns:
        By `id` of the wrapped layer; without one, of the last normalization.
    """
    parts = [part for _, layer in walk_layers(model) for part in flatten_layers(layer)]
    quantizers = [p for p in parts if _bits(p) == 8 and not p.follows and p.is_trained]
    for part in [*quantizers, *filter(rounds_its_output, parts)]:
        link_nested_models(part)
    producers = [quantizer.producer for quantizer in quantizers]
    for producer in producers:
        producers += [part for part, _ in getattr(producer, "parts", ())]
    once = called_once(model)
    accumulations: dict[int, Accumulation] = {}
    for producer in producers:
        if isinstance(producer, Clipped):
            producers.append(producer.producer)
        if isinstance(producer, Accumulation):
            owner = producer.wrapper or producer.scalings[-1]
            if id(owner) in once:
                accumulations[id(owner)] = producer
    return accumulations


def quantizer_of(tensor: Any) -> Int8Quantizer | None:
    """Returns the int8 quantizer that a symbolic tensor comes from, directly or through MOVEs."""
    operation, inputs = _operation_and_inputs(tensor)
    if operation is None:
        return None
    if getattr(operation, "follows", False):
        return operation.leader()
    if _bits(operation):
        return operation if _bits(operation) == 8 else None
    if is_graph(operation):
        return quantizer_of(operation.outputs[output_index(tensor)])
    if quantizers := _output_quantizers(plain(operation)):
        return quantizers[output_index(tensor)]
    if role(operation) == TABLE:
        return _table(operation)
    if isinstance(operation, layers.InputLayer):
        return getattr(operation, _INPUT_QUANTIZER, _InputQuantizer()).quantizer
    return quantizer_of(inputs[0]) if role(operation) == MOVE and inputs else None


def _table(embedding: Any) -> Table | None:
    """Returns the quantization parameters of an embedding, if its weights are quantized."""
    weight_quantizer = weight_quantizer_of(getattr(embedding, "transforms", ()))
    if type(plain(embedding)) is not layers.Embedding or weight_quantizer is None:
        return None
    if plain(embedding).compute_dtype != "float32":
        return None
    return Table(embedding)


def quantizer_after(graph: Graph, call: Call) -> Any:
    """Returns the quantizer after a JOIN, directly or after further JOINs and MOVEs."""
    for reader in graph.consumers.get(id(call.outputs[0]), []):
        if _bits(reader.operation):
            return reader.operation
        if role(reader.operation) in (JOIN, MOVE):
            return quantizer_after(graph, reader)
    return None


@dataclasses.dataclass(frozen=True)
class _InputQuantizer:
    """The quantizer of an input of a nested model.

    In a class of its own, so that Keras does not track the quantizer as a sublayer.
    """

    quantizer: Any = None


_INPUT_QUANTIZER = "_tfcompress_input_quantizer"


def rounds_its_output(wrapper: Any) -> bool:
    """Returns whether the output of a wrapped layer is quantized without a quantizer after it."""
    layer = plain(wrapper)
    quantized = isinstance(layer, layers.Embedding) or bool(_output_quantizers(layer))
    return layer is not wrapper and quantized


def link_nested_models(layer: Any) -> None:
    """Sets the input quantizers of nested models that are called on the output of a layer.

    The producers inside and after these models are updated.

    Args:
        layer: A quantizer, or a layer that `rounds_its_output`.
    """
    seen: set[int] = set()
    for node in outbound_nodes(layer):
        _set_input_quantizers(node, seen)


def _set_input_quantizers(node: Any, seen: set[int]) -> None:
    if id(node) in seen:  # a model may be called on its own output
        return
    seen.add(id(node))
    operation = node.operation
    if is_graph(operation):
        count = len(operation.inputs)  # masks may follow
        arguments = [n.arguments.keras_tensors[:count] for n in inbound_nodes(operation)]
        for tensor, *outer in zip(operation.inputs, *arguments, strict=True):
            quantizers = {id(quantizer): quantizer for quantizer in map(quantizer_of, outer)}
            # If the calls of a model have inputs with different quantizers, there is none to set.
            quantizer = next(iter(quantizers.values())) if len(quantizers) == 1 else None
            setattr(producing_operation(tensor), _INPUT_QUANTIZER, _InputQuantizer(quantizer))
        calls = read_graph(operation).calls
        for call in calls:
            _update(call.operation, call.inputs, call.kwargs)
        for call in calls:
            for inner in inbound_nodes(call.operation) if is_graph(call.operation) else ():
                _set_input_quantizers(inner, seen)
        _update_after(operation, seen)
    elif role(operation) == MOVE:
        for following in outbound_nodes(operation):
            _set_input_quantizers(following, seen)


def _update(layer: Any, inputs: Sequence[Any], kwargs: Any) -> None:
    """Updates the accumulation of a wrapped layer, or the producer of a quantizer."""
    if getattr(layer, "is_compression_wrapper", False):
        layer.accumulation = accumulation_of(layer, inputs)
    elif _bits(layer) == 8 and not kwargs.get("averaged"):
        layer.producer = producer_of(inputs[0], layer)


def _update_after(operation: Any, seen: set[int]) -> None:
    """Updates the layers that read the output of an operation."""
    for node in outbound_nodes(operation):
        following = node.operation
        if is_graph(following):
            _set_input_quantizers(node, seen)
            continue
        _update(following, node.input_tensors, node.arguments.kwargs)
        if not _bits(following) and role(following) != OUTPUT:
            _update_after(following, seen)


def _operation_and_inputs(tensor: Any) -> tuple[Any, Any]:
    """Returns the operation that computes a symbolic tensor, and its inputs."""
    origin = history(tensor)
    return (None, ()) if origin is None else (origin.operation, producing_inputs(tensor))


def _output_quantizers(layer: Any) -> list[Any]:
    """Returns the quantizers of a layer that quantizes its own outputs, one for each output."""
    return (
        layer.output_quantizers() if is_ours(layer) and hasattr(layer, "output_quantizers") else []
    )


def _bits(operation: Any) -> int:
    return operation.bits if hasattr(operation, "qparams") else 0
