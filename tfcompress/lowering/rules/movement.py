"""What moves values about, or takes an extreme or a mean of neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from tfcompress.integer.role_queries import padded_with
from tfcompress.integer.trace import quantizer_of
from tfcompress.lowering.context import Lowering
from tfcompress.lowering.conv3d import pooled_in_turns
from tfcompress.lowering.lowering_rules import Site, Stage, lowering_rule
from tfcompress.quantization.activation_quantizer import ActivationQuantizer


@lowering_rule(Stage.OPERATION, 70)
def pad_with_the_minimum(lowering: Lowering, site: Site) -> Any:
    """Pads with the minimum of the grid instead of minus infinity."""
    if type(site.layer).__name__ != "Pad" or padded_with(site.layer) != -np.inf:
        return None
    grid = quantizer_of(site.call.inputs[0])
    if not isinstance(grid, ActivationQuantizer):
        return None
    padding = {"constant_values": grid.min_max()[0]}
    return lowering.fixed(grid)(ops.pad(site.args[0], site.layer.pad_width, **padding))


@lowering_rule(Stage.OPERATION, 80)
def pool_over_two_axes(lowering: Lowering, site: Site) -> Any:
    """Pools over three axes by pooling over two and then one."""
    return pooled_in_turns(site.layer, site.args[0]) if site.args else None
