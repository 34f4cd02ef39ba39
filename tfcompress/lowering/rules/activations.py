"""Activations that are fused, and clipping that the grid does."""

from __future__ import annotations

from typing import Any

from keras import layers

from tfcompress.integer.roles import CLIP, RELU, role
from tfcompress.lowering.affine_conv import as_flat, clip_range
from tfcompress.lowering.clipping import clipped_by_range, has_int16_output
from tfcompress.lowering.context import Lowering
from tfcompress.lowering.lowering_rules import Site, Stage, lowering_rule


@lowering_rule(Stage.DEFERRED, 50)
def clip_by_the_range(lowering: Lowering, site: Site) -> Any:
    """Leaves clipping to the grid behind it, which ends where the clipping does, or before.

    One of 16 bits ends at both sides alike, so there a ReLU remains.
    """
    kind = role(site.layer)
    if kind not in (RELU, CLIP) or not lowering.rounds:
        return None
    if not clipped_by_range(site.graph, site.call):
        return None
    operand: Any = site.args[0]
    wide = has_int16_output(site.graph, site.call)
    if kind == CLIP and not (wide and clip_range(site.layer)[0] == 0):
        return operand
    relu = lowering.once(site.layer, lambda: layers.ReLU(name=site.layer.name, dtype="float32"))
    return as_flat(operand).then(relu) if site.is_deferred else relu(operand)


@lowering_rule(Stage.DEFERRED, 60)
def activate_an_image(lowering: Lowering, site: Site) -> Any:
    """Calls a ReLU on what still has the form of an image, to be fused."""
    if not (site.is_deferred and role(site.layer) == RELU):
        return None
    return as_flat(site.args[0]).then(lowering.clone(site.layer))
