"""Quantizers become roundings onto fixed grids; what trains only disappears."""

from __future__ import annotations

from typing import Any

from keras import ops

from tfcompress.integer.grid_ops import Requantize
from tfcompress.integer.roles import augments
from tfcompress.lowering.affine_conv import as_flat
from tfcompress.lowering.context import Lowering
from tfcompress.lowering.lowering_rules import Site, Stage, lowering_rule
from tfcompress.quantization.activation_quantizer import ActivationQuantizer
from tfcompress.quantization.input_samples import InputSamples
from tfcompress.quantization.kept_in_float import AwayFromZero


@lowering_rule(Stage.WHOLE, 10)
def hand_on(lowering: Lowering, site: Site) -> Any:
    """Takes out what does nothing at inference but keep samples or gradients."""
    quantizer = isinstance(site.operation, ActivationQuantizer)
    follows = quantizer and site.operation.follows and not site.call.kwargs.get("averaged")
    return (
        site.args[0]
        if isinstance(site.operation, (InputSamples, AwayFromZero)) or follows
        else None
    )


@lowering_rule(Stage.WHOLE, 20)
def take_out_augmentation(lowering: Lowering, site: Site) -> Any:
    """Takes out layers that change their input in training alone."""
    if not augments(site.operation):
        return None
    dtype = site.call.outputs[0].dtype
    return site.args[0] if site.args[0].dtype == dtype else ops.cast(site.args[0], dtype)


@lowering_rule(Stage.DEFERRED, 80)
def round_an_image(lowering: Lowering, site: Site) -> Any:
    """Rounds what still has the form of an image in that form."""
    if not (site.is_deferred and isinstance(site.operation, ActivationQuantizer)):
        return None
    rounded = as_flat(site.args[0]).then(lowering.fixed(site.operation))
    return rounded.restore(rounded.image)


@lowering_rule(Stage.OPERATION, 10)
def keep_roundings_apart(lowering: Lowering, site: Site) -> Any:
    """Keeps two roundings that follow each other two."""
    return Requantize.barrier(site.args[0]) if isinstance(site.operation, Requantize) else None


@lowering_rule(Stage.OPERATION, 20)
def fake_quantize(lowering: Lowering, site: Site) -> Any:
    """Rounds onto the grid that was learned."""
    if not isinstance(site.operation, ActivationQuantizer):
        return None
    return lowering.fixed(site.operation)(*site.args, **site.kwargs)
