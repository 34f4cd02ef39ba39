"""Which weights of a layer are compressed, and which of their axes are channels."""

from __future__ import annotations

from typing import Any

import keras

from tfcompress.graph.describe import description
from tfcompress.graph.keras_internals import flatten_layers, trained_variables
from tfcompress.graph.layers import DEPTHWISE, TRANSPOSED, einsum_letters

_NEVER_COMPRESSED = {"bias", "recurrent_bias", "gamma", "beta", "alpha", "scale"}


_LAST_AXIS = (
    keras.layers.Dense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)


def variable_name(variable: Any) -> str:
    """Returns the last part of a variable's path: "kernel", "embeddings", ..."""
    return variable.path.split("/")[-1]


def compressible_weights(layer: Any) -> list[Any]:
    """Returns the weights of a built layer that transforms apply to: its trainable matrices.

    Kernels and embeddings, also those of layers inside the layer (the cell of an LSTM, the
    projections of an attention layer); no biases, no normalization, no activation slopes.
    """
    # As they were created: freezing a layer clears `weight.trainable`.
    learned = {id(v) for part in flatten_layers(layer) for v in trained_variables(part)}
    layer_description = description(layer)
    never = _NEVER_COMPRESSED | (
        layer_description.uncompressed if layer_description else frozenset()
    )
    return [
        weight
        for weight in layer.weights
        if id(weight) in learned
        and len(weight.shape) >= 2
        and keras.backend.is_float_dtype(weight.dtype)
        and variable_name(weight) not in never
    ]


def step_of(layer: Any) -> Any:
    """Returns the layer that a TimeDistributed applies at each time step, or the layer itself."""
    return step_of(layer.layer) if isinstance(layer, keras.layers.TimeDistributed) else layer


def channel_axes(layer: Any, weight: Any) -> tuple[int, ...]:
    """Returns the axes of a kernel for which TFLite keeps a scale per index.

    Empty where the runtime keeps one scale for the whole tensor (embeddings, batched products).
    """
    name = variable_name(weight)
    layer = step_of(layer)
    layer_description = description(layer)
    if layer_description is not None:
        return (
            (layer_description.channel_axes[name],)
            if name in layer_description.channel_axes
            else ()
        )
    if isinstance(layer, DEPTHWISE) or name == "depthwise_kernel":
        return (-2, -1)
    if isinstance(layer, TRANSPOSED):
        return (-2,)
    if isinstance(layer, _LAST_AXIS) or getattr(layer, "rounds_each_column", False):
        return (-1,)
    if isinstance(layer, keras.layers.EinsumDense):
        input_letters, letters, result = einsum_letters(layer)
        batched = any(letter in input_letters and letter in result for letter in letters)
        axes = [axis - len(letters) for axis, letter in enumerate(letters) if letter in result]
        return () if batched else tuple(axes)  # batched products have one scale per tensor
    return ()


def input_axis(layer: Any, weight: Any) -> int | None:
    """Returns the axis of a kernel that the layer sums over, its input channels.

    None for tables of embeddings and depthwise kernels, which sum over no channels.
    """
    name = variable_name(weight)
    layer = step_of(layer)
    depthwise = isinstance(layer, DEPTHWISE) or name == "depthwise_kernel"
    if depthwise or isinstance(layer, keras.layers.Embedding) or name == "embeddings":
        return None
    if isinstance(layer, TRANSPOSED):
        return -1
    for part in flatten_layers(layer):
        if isinstance(part, keras.layers.EinsumDense) and weight is part.kernel:
            _, letters, result = einsum_letters(part)
            summed = [axis for axis, letter in enumerate(letters) if letter not in result]
            return summed[-1] - len(letters) if summed else None
    return -2
