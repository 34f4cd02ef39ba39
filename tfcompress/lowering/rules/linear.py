"""Linear layers: dense layers and convolutions."""

from __future__ import annotations

from typing import Any

from keras import ops, tree
from keras.layers import EinsumDense

from tfcompress.graph.copies import clone_layer
from tfcompress.graph.layers import KERNELS, TRANSPOSED, einsum_letters, has_bias
from tfcompress.integer.producers import Accumulation
from tfcompress.integer.role_queries import quantizes_weights
from tfcompress.integer.roles import LINEAR, role
from tfcompress.lowering.affine_conv import as_tensor
from tfcompress.lowering.context import Lowering
from tfcompress.lowering.conv3d import convolution_3d
from tfcompress.lowering.einsum import lowered_einsum
from tfcompress.lowering.lowering_rules import Site, Stage, lowering_rule
from tfcompress.lowering.one_channel import as_image_layer, call_as_image, has_one_output_channel


@lowering_rule(Stage.WHOLE, 30)
def fold_scalings(lowering: Lowering, site: Site) -> Any:
    """Folds scalings of output channels into the weights, which are quantized as in the model."""
    accumulation = lowering.accumulations.get(id(site.operation))
    if accumulation is None or accumulation.wrapper is None:
        return None
    layer = lowering.once(site.operation, lambda: _folded(lowering, accumulation))
    return layer(*map(as_tensor, site.args), **site.kwargs)


def _folded(lowering: Lowering, accumulation: Accumulation) -> Any:
    layer = accumulation.wrapper.layer
    # Without a bias, the converter leaves a transposed convolution and a ReLU in float.
    biased = has_bias(layer) or bool(accumulation.scalings) or isinstance(layer, TRANSPOSED)
    single = has_one_output_channel(layer)
    config: dict[str, Any] = {"use_bias": biased}
    if isinstance(layer, EinsumDense):
        config = {"bias_axes": einsum_letters(layer)[-1][-1] if biased else None}
    folded = as_image_layer(layer, biased) if single else clone_layer(layer, **config)
    lowering.carry(accumulation.wrapper, folded)
    lowering.folded[id(folded)] = accumulation
    return call_as_image(layer, folded) if single else folded


@lowering_rule(Stage.DEFERRED, 20)
def keep_in_float(lowering: Lowering, site: Site) -> Any:
    """Negates the weights of a linear layer that is not quantized, and negates its output.

    The converter quantizes float layers between quantized ones, but not a negation.
    """
    layer = site.layer
    left_out = type(layer) in KERNELS and not quantizes_weights(site.operation)
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
    """Lowers a 3D convolution to a 2D one, which has integer kernels."""
    layer = site.layer
    if not lowering.rounds or role(layer) != LINEAR:
        return None
    kernel, bias = getattr(layer, "kernel", None), getattr(layer, "bias", None)
    return convolution_3d(layer, site.args[0], lowering.values.get(id(kernel), kernel), bias)


@lowering_rule(Stage.OPERATION, 40)
def one_channel_as_image(lowering: Lowering, site: Site) -> Any:
    """Lowers a 1D convolution with one output channel to one of an image."""
    layer = site.layer
    if not has_one_output_channel(layer):
        return None

    def image_convolution() -> Any:
        image_layer = as_image_layer(layer, layer.use_bias)
        lowering.carry(layer, image_layer)
        return call_as_image(layer, image_layer)

    return lowering.once(layer, image_convolution)(*site.args, **site.kwargs)


@lowering_rule(Stage.OPERATION, 50)
def bias_before_transposition(lowering: Lowering, site: Site) -> Any:
    """Adds the bias of an EinsumDense before its axes are transposed."""
    layer = site.layer
    lowered = lowered_einsum(layer)
    if lowered is None:
        return None
    changed, axes, lowering.values[id(layer.bias)] = lowered
    outputs = ops.transpose(lowering.clone(layer, **changed)(*site.args, **site.kwargs), axes)
    return layer.activation(outputs) if layer.activation else outputs
