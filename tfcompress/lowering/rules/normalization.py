"""Normalizations: folded, as a depthwise convolution, or as multiplications."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import layers

from tfcompress.graph.read import is_graph
from tfcompress.integer.affine import affine_of, constant_operand, is_affine, operand_of
from tfcompress.integer.roles import LINEAR, NORMALIZATION, role
from tfcompress.lowering.affine_conv import Affine, ImageForm, fits_affine
from tfcompress.lowering.biases import uneven
from tfcompress.lowering.context import Lowering
from tfcompress.lowering.lowering_rules import Site, Stage, lowering_rule
from tfcompress.lowering.normalization import NORMALIZED, SummingLayerNormalization, normalized


@lowering_rule(Stage.DEFERRED, 10)
def normalize_by_multiplications(lowering: Lowering, site: Site) -> Any:
    """Lowers a normalization to multiplications, which have int16 kernels."""
    if not (lowering.int16 and type(site.layer) in NORMALIZED):
        return None
    return normalized(site.layer, site.args[0])


@lowering_rule(Stage.DEFERRED, 30)
def remove_folded(lowering: Lowering, site: Site) -> Any:
    """Removes a normalization that is folded into the weights of the layer before it."""
    if role(site.layer) != NORMALIZATION:
        return None
    producer = lowering.producer_before(site.call.inputs[0], NORMALIZATION)
    accumulation = None if producer is None else lowering.accumulations.get(id(producer.operation))
    folded = accumulation is not None and site.operation in accumulation.scalings
    return operand_of(site.args, site.kwargs) if folded else None


@lowering_rule(Stage.DEFERRED, 40)
def scale_by_convolution(lowering: Lowering, site: Site) -> Any:
    """Lowers a per-channel scaling to a 1x1 depthwise convolution.

    Not behind a linear layer: there the converter folds it into the weights.
    """
    call, layer = site.call, site.layer
    if not lowering.rounds or role(layer) != NORMALIZATION or not is_affine(layer):
        return None
    value = operand_of(site.args, site.kwargs)
    if isinstance(value, Affine):
        return _exactly(lowering, call.operation, value.then(*affine_of(layer)))
    if isinstance(value, ImageForm):
        if isinstance(layer, layers.BatchNormalization):
            return value.then(lowering.clone(layer, axis=-1))
        return None
    producer = lowering.producer(call.inputs[0])
    if producer is not None:
        fused = role(producer.operation) in (LINEAR, NORMALIZATION)
        constant = isinstance(layer, layers.Rescaling) or constant_operand(layer)
        if fused and constant and fits_affine(value):
            scale, offset = affine_of(layer)
            channels = np.broadcast_to(offset, value.shape[-1]).astype(np.float32)
            return value * scale.astype(np.float32) + uneven(channels)
        if fused or is_graph(producer.operation):
            return None
    if not keras.backend.is_float_dtype(value.dtype) or not fits_affine(value):
        return None
    affine = Affine(value, *affine_of(layer), name=lowering.unique_name(layer.name))
    return _exactly(lowering, call.operation, affine)


def _exactly(lowering: Lowering, operation: Any, affine: Affine) -> Affine:
    """Returns consecutive scalings with the constants that the model quantizes."""
    accumulation = lowering.accumulations.get(id(operation))
    if accumulation is None:
        return affine
    scale, offset, _ = accumulation.constants()
    return dataclasses.replace(affine, scale=scale, offset=offset)


@lowering_rule(Stage.OPERATION, 90)
def sum_for_the_mean(lowering: Lowering, site: Site) -> Any:
    """Lowers the mean of a layer normalization to a sum over a count, which stays in float."""
    layer = site.layer
    if type(layer) is not layers.LayerNormalization or getattr(layer, "rms_scaling", False):
        return None
    if not lowering.rounds:
        return None

    def summing() -> Any:
        copy = SummingLayerNormalization.from_config({**layer.get_config(), "dtype": "float32"})
        lowering.carry(layer, copy)
        return copy

    return lowering.once(layer, summing)(*site.args, **site.kwargs)
