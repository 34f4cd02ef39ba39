"""Properties of a layer: unwrapped, its class, its activation, the letters of an einsum."""

from __future__ import annotations

from typing import Any

import keras

TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)


DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)

KERNELS = (
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)
"""The layers that are a weighted sum with an activation behind it."""


def plain(operation: Any) -> Any:
    """Returns the layer inside a compression wrapper, or the operation itself."""
    return operation.layer if getattr(operation, "is_compression_wrapper", False) else operation


def has_bias(layer: Any) -> bool:
    """Returns whether a linear layer has a bias, built or not."""
    if isinstance(layer, keras.layers.EinsumDense):
        return layer.bias_axes is not None
    return bool(layer.use_bias)


def einsum_letters(layer: keras.layers.EinsumDense) -> tuple[str, str, str]:
    """Returns the letters of the axes of input, kernel and output of an EinsumDense layer."""
    input_letters, rest = layer.equation.replace(" ", "").replace("...", "").split(",")
    kernel_letters, output_letters = rest.split("->")
    return input_letters, kernel_letters, output_letters


def activation_name(layer: Any) -> str | None:
    """Returns the name of a layer's Keras activation, or None if it has none or one of its own."""
    activation = getattr(layer, "activation", None)
    name = getattr(activation, "__name__", None)
    try:
        known = name is not None and keras.activations.get(name) is activation
    except ValueError:
        return None
    return name if known else None


def is_float(value: Any) -> bool:
    """Returns whether a value is a symbolic tensor of floats."""
    return isinstance(value, keras.KerasTensor) and keras.backend.is_float_dtype(value.dtype)


def is_ours(layer: Any) -> bool:
    """Returns whether a layer is of this package: attributes of others may mean anything."""
    return type(layer).__module__.split(".")[0] == "tfcompress"


def is_custom(layer: Any) -> bool:
    """Returns whether a layer is neither of Keras nor of this package."""
    return type(layer).__module__.split(".")[0] not in ("keras", "tfcompress")


def keras_name(layer: Any) -> str:
    """Returns the Keras class that `layer` behaves as; "" if its class has a call of its own."""
    for cls in type(layer).__mro__:
        if cls.__module__.split(".")[0] == "keras":
            return cls.__name__
        if "call" in vars(cls):
            break
    return ""
