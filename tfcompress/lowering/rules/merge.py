"""Operations on several tensors: concatenation, addition and multiplication."""

from __future__ import annotations

from typing import Any

import keras
from keras import tree

from tfcompress.graph.layers import is_float, plain
from tfcompress.graph.read import Call
from tfcompress.integer.grid_ops import Requantize
from tfcompress.integer.roles import JOIN, MOVE, PAIR, SUM, role
from tfcompress.integer.trace import quantizer_after, quantizer_of
from tfcompress.lowering.context import Lowering
from tfcompress.lowering.einsum import add_as_images
from tfcompress.lowering.lowering_rules import Site, Stage, lowering_rule
from tfcompress.quantization.activation_quantizer import ActivationQuantizer
from tfcompress.quantization.layers.recurrent import RuntimeRecurrent


@lowering_rule(Stage.OPERANDS, 10)
def requantize_joined(lowering: Lowering, site: Site) -> Any:
    """Requantizes joined operands to the output's parameters, where they have others.

    The converter does not insert this, or inserts it before data movement, for all consumers.
    """
    if role(site.layer) != JOIN:
        return None
    inputs = site.call.inputs
    requantizations = [call for t in inputs if (call := _requantization(lowering, t))]
    from_integers = any(map(lowering.reads_integers, requantizations))
    if not (requantizations or any(_is_moved(lowering, t) for t in inputs)):
        return None
    output_quantizer = quantizer_after(site.graph, site.call)
    if not output_quantizer:
        return None
    operands = _tensors((site.args, site.kwargs))
    old = {id(new): t for t, new in zip(site.call.inputs, operands, strict=True)}

    def requantize(t: Any) -> Any:
        if is_float(t) and _is_moved(lowering, old[id(t)]):
            return lowering.fake_quant(output_quantizer)(Requantize.barrier(t))
        needed = is_float(t) and (from_integers or _requantization(lowering, old[id(t)]))
        return lowering.fake_quant(output_quantizer)(t) if needed else t

    return tree.map_structure(requantize, (site.args, site.kwargs))


@lowering_rule(Stage.OPERANDS, 20)
def separate_operands(lowering: Lowering, site: Site) -> Any:
    """Separates the operands of a difference or product that share a quantizer.

    The converter moves reshapes of such tensors (for example two outputs of one nested model)
    behind the operation, and loses the quantization parameters of the result.
    """
    if role(site.layer) != PAIR:
        return None
    quantizer, *others = map(quantizer_of, site.call.inputs)
    first, *rest = _tensors((site.args, site.kwargs))
    shared = others == [quantizer] and first is not rest[0] and first.shape == rest[0].shape
    if not shared or not isinstance(quantizer, ActivationQuantizer):
        return None
    separate = lowering.fake_quant(quantizer)(Requantize.barrier(first))
    return tree.map_structure(lambda t: separate if t is first else t, (site.args, site.kwargs))


@lowering_rule(Stage.OPERATION, 60)
def add_matrices(lowering: Lowering, site: Site) -> Any:
    """Adds int16 matrices in a form in which none of them passes for a bias."""
    producers = [call.operation for t in site.call.inputs if (call := lowering.producer(t))]
    int16 = any(getattr(operation, "bits", 8) == 16 for operation in producers)
    ranks = [len(tensor.shape) for tensor in site.call.inputs]
    if not (int16 and role(site.operation) == SUM and ranks == [2, 2]):
        return None
    return add_as_images(*tree.flatten(site.args))


def _is_moved(lowering: Lowering, tensor: Any) -> bool:
    """Returns whether a tensor is a moved or averaged one, or comes from a recurrent layer."""
    producer = lowering.producer_before(tensor, MOVE)
    operation = producer and plain(producer.operation)
    moved = producer is not lowering.producer(tensor)
    if producer and type(producer.kwargs.get("averaged")) in (int, float):
        return True  # by a convolution or MEAN, to which the converter would give other parameters
    kinds = (RuntimeRecurrent, ActivationQuantizer) if moved else RuntimeRecurrent
    return isinstance(operation, kinds)


def _requantization(lowering: Lowering, tensor: Any) -> Call | None:
    """Returns the requantization that produced a tensor, looking through data movement."""
    producer = lowering.producer_before(tensor, MOVE)
    return producer if isinstance(getattr(producer, "operation", None), Requantize) else None


def _tensors(arguments: Any) -> list[Any]:
    return [value for value in tree.flatten(arguments) if isinstance(value, keras.KerasTensor)]
