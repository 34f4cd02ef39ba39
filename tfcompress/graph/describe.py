"""Descriptions of custom layers: how they are quantized."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import keras

from tfcompress.scheme import check_choice

CUSTOM_ROLES = ("linear", "move", "average", "join", "relu", "output")


@dataclasses.dataclass(frozen=True)
class LayerDescription:
    """The arguments of `describe_layer`.

    Attributes:
        role: How the output relates to the inputs.
        channel_axes: The axis of the output channels, by name of the weight.
        uncompressed: Names of weights that are left alone.
    """

    role: str
    channel_axes: Mapping[str, int]
    uncompressed: frozenset[str]


_DESCRIBED: dict[type, LayerDescription] = {}


def describe_layer(
    layer_class: type[keras.layers.Layer],
    *,
    role: str = "output",
    channel_axes: Mapping[str, int] | None = None,
    uncompressed: Iterable[str] = (),
) -> None:
    """Declares how layers of a custom class are quantized.

    A layer that only calls other layers and `keras.ops` needs no description: its calls are traced.
    By default, a layer that computes with weights of its own is quantized at its output, and each
    of its matrices per tensor, with one scale. The description also applies to subclasses, unless
    these have their own.

    Args:
        layer_class: The class.
        role: "linear" for a weighted sum (a BatchNormalization or ReLU behind it is fused into it),
            "move" where values pass unchanged, "average" for means of values, "join" where values
            of several inputs are concatenated, "relu" for a ReLU, "output" for anything else.
        channel_axes: The axis of the output channels of each kernel, by name of the weight. The
            runtime has a scale for each channel of the kernels of matrix products and convolutions.
        uncompressed: Names of weights that are neither pruned nor quantized.

    Raises:
        TypeError: If `layer_class` is no class of layers.
        ValueError: If `role` is unknown.

    Example:
        >>> import keras
        >>> import tfcompress as tfc
        >>> class Project(keras.layers.Layer):
        ...     def build(self, shape):
        ...         self.matrix = self.add_weight(shape=(shape[-1], 4), name="matrix")
        ...
        ...     def call(self, x):
        ...         return keras.ops.matmul(x, self.matrix)
        >>> tfc.describe_layer(Project, role="linear", channel_axes={"matrix": -1})
    """
    if not (isinstance(layer_class, type) and issubclass(layer_class, keras.layers.Layer)):
        raise TypeError(f"layer_class must be a class of Keras layers. Received: {layer_class!r}")
    check_choice(role, "role", CUSTOM_ROLES)
    _DESCRIBED[layer_class] = LayerDescription(
        role, dict(channel_axes or {}), frozenset(uncompressed)
    )


def description(layer: Any) -> LayerDescription | None:
    """Returns the description of a layer's class, or of its nearest described base class."""
    return next((_DESCRIBED[c] for c in type(layer).__mro__ if c in _DESCRIBED), None)
