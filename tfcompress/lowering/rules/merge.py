"""Operations on several tensors: concatenation, sums and products."""

from __future__ import annotations

from typing import Any

import keras
from keras import tree

from tfcompress.graph.layers import is_float, plain
from tfcompress.graph.read import Call
from tfcompress.integer.grid_ops import Requantize
from tfcompress.integer.roles import JOIN, MOVE, PAIR, SUM, role
from tfcompress.integer.trace import quantizer_behind, quantizer_of
from tfcompress.lowering.context import Lowering
from tfcompress.lowering.einsum import apart
from tfcompress.lowering.lowering_rules import Site, Stage, lowering_rule
from tfcompress.quantization.activation_quantizer import ActivationQuantizer
from tfcompress.quantization.layers.recurrent import RuntimeRecurrent


@lowering_rule(Stage.OPERANDS, 10)
def requantize_joined(lowering: Lowering, site: Site) -> Any:
    """Rounds what is concatenated onto the grid of the result, where it comes from another.

    The converter does not by itself, or does so before what moves it about, for all that read it.
    """
    if role(site.layer) != JOIN:
        return None
    joins = site.call.inputs
    crossings = [found for t in joins if (found := _crossing(lowering, t))]
    across = any(map(lowering.reads_integers, crossings))
    if not (crossings or any(_is_moved(lowering, t) for t in joins)):
        return None
    joined = quantizer_behind(site.graph, site.call)
    if not joined:
        return None
    operands = _tensors((site.args, site.kwargs))
    old = {id(new): t for t, new in zip(site.call.inputs, operands, strict=True)}

    def put(t: Any) -> Any:
        if is_float(t) and _is_moved(lowering, old[id(t)]):
            return lowering.fixed(joined)(Requantize.barrier(t))
        enters = is_float(t) and (across or _crossing(lowering, old[id(t)]))
        return lowering.fixed(joined)(t) if enters else t

    return tree.map_structure(put, (site.args, site.kwargs))


@lowering_rule(Stage.OPERANDS, 20)
def tell_operands_apart(lowering: Lowering, site: Site) -> Any:
    """Tells the operands of a difference or product apart that share a grid.

    The converter moves reshapes of such tensors (what a nested model returns of two images)
    behind the operation, and loses the grid of the result.
    """
    if role(site.layer) != PAIR:
        return None
    grid, *others = map(quantizer_of, site.call.inputs)
    first, *rest = _tensors((site.args, site.kwargs))
    alike = others == [grid] and first is not rest[0] and first.shape == rest[0].shape
    if not alike or not isinstance(grid, ActivationQuantizer):
        return None
    walled = lowering.fixed(grid)(Requantize.barrier(first))
    return tree.map_structure(lambda t: walled if t is first else t, (site.args, site.kwargs))


@lowering_rule(Stage.OPERATION, 60)
def add_matrices(lowering: Lowering, site: Site) -> Any:
    """Adds matrices of 16 bits in a form where neither is taken for a bias."""
    makers = [made.operation for t in site.call.inputs if (made := lowering.producer(t))]
    wide = any(getattr(operation, "bits", 8) == 16 for operation in makers)
    ranks = [len(tensor.shape) for tensor in site.call.inputs]
    if not (wide and role(site.operation) == SUM and ranks == [2, 2]):
        return None
    return apart(*tree.flatten(site.args))


def _is_moved(lowering: Lowering, tensor: Any) -> bool:
    """Returns whether a tensor comes from a grid of its own, moved about or looped over."""
    producer = lowering.producer_before(tensor, MOVE)
    made = producer and plain(producer.operation)
    moved = producer is not lowering.producer(tensor)
    kinds = (RuntimeRecurrent, ActivationQuantizer) if moved else RuntimeRecurrent
    return isinstance(made, kinds)


def _crossing(lowering: Lowering, tensor: Any) -> Call | None:
    """Returns the crossing that a tensor comes from, moved about or not, if there is one."""
    producer = lowering.producer_before(tensor, MOVE)
    return producer if isinstance(getattr(producer, "operation", None), Requantize) else None


def _tensors(given: Any) -> list[Any]:
    return [value for value in tree.flatten(given) if isinstance(value, keras.KerasTensor)]
