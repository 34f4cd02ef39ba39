"""Weighted sums: dense layers and convolutions."""

from __future__ import annotations

from typing import Any

from keras import ops, tree

from tfcompress.graph.copies import clone_layer
from tfcompress.graph.layers import KERNELS, TRANSPOSED
from tfcompress.integer.producers import Accumulation
from tfcompress.integer.role_queries import rounds_weights
from tfcompress.integer.roles import LINEAR, role
from tfcompress.lowering.affine_conv import as_tensor
from tfcompress.lowering.context import Lowering
from tfcompress.lowering.conv3d import in_two_axes
from tfcompress.lowering.einsum import in_order
from tfcompress.lowering.lowering_rules import Site, Stage, lowering_rule
from tfcompress.lowering.one_channel import as_image_layer, in_an_image, puts_out_one_channel


@lowering_rule(Stage.WHOLE, 30)
def fold_scalings(lowering: Lowering, site: Site) -> Any:
    """Puts what scales the channels of a sum into its weights, as the model rounds them."""
    total = lowering.sums.get(id(site.operation))
    if total is None or total.wrapper is None:
        return None
    layer = lowering.once(site.operation, lambda: _folded(lowering, total))
    return layer(*map(as_tensor, site.args), **site.kwargs)


def _folded(lowering: Lowering, total: Accumulation) -> Any:
    layer = total.wrapper.layer
    # Without a bias, the converter leaves a transposed convolution and a ReLU in float.
    biased = layer.use_bias or bool(total.scalings) or isinstance(layer, TRANSPOSED)
    single = puts_out_one_channel(layer)
    folded = as_image_layer(layer, biased) if single else clone_layer(layer, use_bias=biased)
    lowering.carry(total.wrapper, folded)
    lowering.totals[id(folded)] = total
    return in_an_image(layer, folded) if single else folded


@lowering_rule(Stage.DEFERRED, 20)
def keep_in_float(lowering: Lowering, site: Site) -> Any:
    """Turns the signs of a sum that was left out of quantization, and turns them back behind it.

    The converter rounds weights between integers, but cannot turn a sign in integers.
    """
    layer = site.layer
    left_out = type(layer) in KERNELS and not rounds_weights(site.operation)
    if not (lowering.rounds and left_out and lowering.reads_integers(site.call)):
        return None
    args, kwargs = tree.map_structure(as_tensor, (site.args, site.kwargs))
    for variable in layer.variables:
        value = ops.convert_to_tensor(lowering.values.get(id(variable), variable))
        lowering.negative[id(variable)] = -1.0 * value
    negative = lowering.clone(layer, activation="linear")(*args, **kwargs)
    return layer.activation(ops.negative(negative))


@lowering_rule(Stage.OPERATION, 30)
def convolve_over_two_axes(lowering: Lowering, site: Site) -> Any:
    """Makes a convolution over three axes one over two, which the runtime has for integers."""
    layer = site.layer
    if not lowering.rounds or role(layer) != LINEAR:
        return None
    kernel, bias = getattr(layer, "kernel", None), getattr(layer, "bias", None)
    return in_two_axes(layer, site.args[0], lowering.values.get(id(kernel), kernel), bias)


@lowering_rule(Stage.OPERATION, 40)
def one_channel_as_image(lowering: Lowering, site: Site) -> Any:
    """Makes a convolution over one axis to one channel one of an image."""
    layer = site.layer
    if not puts_out_one_channel(layer):
        return None

    def over_two_axes() -> Any:
        image_layer = as_image_layer(layer, layer.use_bias)
        lowering.carry(layer, image_layer)
        return in_an_image(layer, image_layer)

    return lowering.once(layer, over_two_axes)(*site.args, **site.kwargs)


@lowering_rule(Stage.OPERATION, 50)
def bias_before_transposition(lowering: Lowering, site: Site) -> Any:
    """Adds the bias of an EinsumDense before its axes are put in their order."""
    layer = site.layer
    ordered = in_order(layer)
    if ordered is None:
        return None
    changed, axes, lowering.values[id(layer.bias)] = ordered
    made = ops.transpose(lowering.clone(layer, **changed)(*site.args, **site.kwargs), axes)
    return layer.activation(made) if layer.activation else made
