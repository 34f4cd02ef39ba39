"""Data movement and pooling."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from tfcompress.integer.role_queries import padding_value
from tfcompress.integer.trace import quantizer_of
from tfcompress.lowering.context import Lowering
from tfcompress.lowering.conv3d import pooling_3d
from tfcompress.lowering.lowering_rules import Site, Stage, lowering_rule
from tfcompress.quantization.activation_quantizer import ActivationQuantizer


@lowering_rule(Stage.OPERATION, 70)
def pad_with_minimum(lowering: Lowering, site: Site) -> Any:
    """Pads with the minimum of the range instead of minus infinity."""
    if type(site.layer).__name__ != "Pad" or padding_value(site.layer) != -np.inf:
        return None
    quantizer = quantizer_of(site.call.inputs[0])
    if not isinstance(quantizer, ActivationQuantizer):
        return None
    padding = {"constant_values": quantizer.min_max()[0]}
    return lowering.fake_quant(quantizer)(ops.pad(site.args[0], site.layer.pad_width, **padding))


@lowering_rule(Stage.OPERATION, 80)
def pool_over_two_axes(lowering: Lowering, site: Site) -> Any:
    """Lowers 3D pooling to 2D pooling and then 1D pooling."""
    return pooling_3d(site.layer, site.args[0]) if site.args else None
