"""The networks of the demo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers


def resnet(
    widths: Sequence[int] = (16, 32, 64), stem_strides: int = 1, name: str = "resnet"
) -> keras.Model:
    """Returns a ResNet for 28x28 grey images: a stem, then one residual block per width.

    The widths 16, 32, 64 give the network of 78,426 parameters that the figures in the docs refer
    to. The outputs are logits.

    Args:
        widths: Channels of each stage; the stem has as many as the first.
        stem_strides: 2 halves the resolution of all later layers, and quarters their cost.
        name: Name of the model.

    References:
        He et al. 2016, arXiv:1512.03385.
    """
    inputs = keras.Input((28, 28, 1), name="image")
    x = _convolution(inputs, widths[0], 3, stem_strides, "stem")
    x = layers.ReLU(name="stem_relu")(x)
    for stage, width in enumerate(widths):
        x = _block(x, width, 1 if stage == 0 else 2, f"stage{stage + 1}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(10, name="logits")(x), name=name)


def _convolution(x: Any, filters: int, size: int, strides: int, name: str) -> Any:
    x = layers.Conv2D(
        filters,
        size,
        strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    return layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)


def _block(x: Any, width: int, strides: int, name: str) -> Any:
    y = _convolution(x, width, 3, strides, f"{name}_a")
    y = layers.ReLU(name=f"{name}_a_relu")(y)
    y = _convolution(y, width, 3, 1, f"{name}_b")
    if strides > 1:
        x = _convolution(x, width, 1, strides, f"{name}_shortcut")
    x = layers.Add(name=f"{name}_add")([x, y])
    return layers.ReLU(name=f"{name}_relu")(x)
