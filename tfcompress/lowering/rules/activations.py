"""Activations that are fused, and clipping that the output range does."""

from __future__ import annotations

from typing import Any

from keras import layers

from tfcompress.graph.layers import plain
from tfcompress.integer.grid_ops import Requantize
from tfcompress.integer.roles import CLIP, MOVE, RELU, role
from tfcompress.lowering.affine_conv import clip_range, image_form
from tfcompress.lowering.clipping import clipped_by_range, has_int16_output
from tfcompress.lowering.context import Lowering
from tfcompress.lowering.lowering_rules import Site, Stage, lowering_rule
from tfcompress.quantization.activation_quantizer import ActivationQuantizer


@lowering_rule(Stage.OPERANDS, 30)
def separate_relu(lowering: Lowering, site: Site) -> Any:
    """Keeps the converter from fusing a ReLU of a quantized tensor into what computed that."""
    if role(site.operation) != RELU or not site.call.inputs:
        return None
    before = lowering.producer_before(site.call.inputs[0], MOVE)
    if before is None or not isinstance(plain(before.operation), ActivationQuantizer):
        return None
    return (Requantize.barrier(site.args[0]), *site.args[1:]), site.kwargs


@lowering_rule(Stage.DEFERRED, 50)
def clip_by_range(lowering: Lowering, site: Site) -> Any:
    """Removes a clipping if the next quantizer has at most its range.

    An int16 range is symmetric, so a ReLU remains there.
    """
    kind = role(site.layer)
    if kind not in (RELU, CLIP) or not lowering.rounds:
        return None
    if not clipped_by_range(site.graph, site.call):
        return None
    operand: Any = site.args[0]
    int16 = has_int16_output(site.graph, site.call)
    if kind == CLIP and not (int16 and clip_range(site.layer)[0] == 0):
        return operand
    relu = lowering.once(site.layer, lambda: layers.ReLU(name=site.layer.name, dtype="float32"))
    return image_form(operand).then(relu) if site.is_deferred else relu(operand)


@lowering_rule(Stage.DEFERRED, 60)
def activate_image_form(lowering: Lowering, site: Site) -> Any:
    """Calls a ReLU on an `ImageForm`, so that the converter can fuse it."""
    if not (site.is_deferred and role(site.layer) == RELU):
        return None
    return image_form(site.args[0]).then(lowering.clone(site.layer))
