"""Quantizers become fake quantization with constant ranges; training helpers are removed."""

from __future__ import annotations

from typing import Any

from keras import ops

from tfcompress.integer.grid_ops import Requantize
from tfcompress.integer.roles import augments
from tfcompress.lowering.affine_conv import image_form
from tfcompress.lowering.context import Lowering
from tfcompress.lowering.lowering_rules import Site, Stage, lowering_rule
from tfcompress.quantization.activation_quantizer import ActivationQuantizer
from tfcompress.quantization.input_samples import InputSamples
from tfcompress.quantization.kept_in_float import AwayFromZero


@lowering_rule(Stage.WHOLE, 10)
def remove_training_helpers(lowering: Lowering, site: Site) -> Any:
    """Removes layers that only keep samples or change gradients, and quantizers that follow."""
    quantizer = isinstance(site.operation, ActivationQuantizer)
    follows = quantizer and site.operation.follows and not site.call.kwargs.get("averaged")
    return (
        site.args[0]
        if isinstance(site.operation, (InputSamples, AwayFromZero)) or follows
        else None
    )


@lowering_rule(Stage.WHOLE, 20)
def remove_augmentation(lowering: Lowering, site: Site) -> Any:
    """Removes layers that change their input in training only."""
    if not augments(site.operation):
        return None
    if site.is_deferred:  # in float32, as all that is deferred
        return site.args[0]
    dtype = site.call.outputs[0].dtype
    return site.args[0] if site.args[0].dtype == dtype else ops.cast(site.args[0], dtype)


@lowering_rule(Stage.DEFERRED, 80)
def quantize_image_form(lowering: Lowering, site: Site) -> Any:
    """Quantizes an `ImageForm` as it is, so that the converter can fuse what precedes."""
    if not (site.is_deferred and isinstance(site.operation, ActivationQuantizer)):
        return None
    quantized = image_form(site.args[0]).then(lowering.fake_quant(site.operation))
    return quantized.restore(quantized.image)


@lowering_rule(Stage.OPERATION, 10)
def separate_requantizations(lowering: Lowering, site: Site) -> Any:
    """Keeps two consecutive requantizations from being merged by the converter."""
    return Requantize.barrier(site.args[0]) if isinstance(site.operation, Requantize) else None


@lowering_rule(Stage.OPERATION, 20)
def fake_quantize(lowering: Lowering, site: Site) -> Any:
    """Fake-quantizes with the range that was learned."""
    if not isinstance(site.operation, ActivationQuantizer):
        return None
    return lowering.fake_quant(site.operation)(*site.args, **site.kwargs)
