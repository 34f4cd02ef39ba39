"""Lowered forms of layers whose Keras form would cost accuracy in the file.

Each form computes the same as its layer, with the trained values. `lower` (see `lower.py`) inserts
them for the converter; the trained model does not contain them.

- A per-channel scale and offset (a BatchNormalization that is not fused, Rescaling, Normalization)
  becomes a 1x1 depthwise convolution. This needs one rounding, where a multiplication and an
  addition would need two. Its weights are exact, because each channel has only one.
- A 3D convolution, which has float kernels only, becomes a 2D one: the slices under the kernel
  along the first axis are stacked as channels. 3D pooling, which has no kernel, becomes 2D pooling
  and then 1D pooling.
- The mean of a layer normalization over several axes becomes a sum over a count: the converter
  would quantize the mean with the scale of its input.
- An EinsumDense layer adds its bias before its axes are transposed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from tfcompress.lowering.biases import uneven


@dataclasses.dataclass
class ImageForm:
    """A tensor in the shape of an image, and a function that restores its shape in the model.

    Elementwise activations are called on the image, so that the converter can fuse them.
    """

    image: Any
    restore: Callable[[Any], Any]

    def then(self, layer: Any) -> ImageForm:
        """Returns the result of a layer on the image."""
        return ImageForm(layer(self.image), self.restore)


@dataclasses.dataclass
class Affine:
    """A tensor whose scale and offset, per channel of its last axis, are not yet applied."""

    tensor: Any
    scale: np.ndarray
    offset: np.ndarray
    name: str
    lowered: ImageForm | None = None

    def then(self, scale: np.ndarray, offset: np.ndarray) -> Affine:
        """Returns this with another scale and offset after its own."""
        return Affine(self.tensor, self.scale * scale, self.offset * scale + offset, self.name)

    def lower(self) -> ImageForm:
        """Returns the result of the 1x1 depthwise convolution, which all consumers share."""
        if self.lowered is not None:
            return self.lowered
        channels = self.tensor.shape[-1]
        zeros = {"depthwise_initializer": "zeros"}  # until the weights are set
        layer = layers.DepthwiseConv2D(1, name=self.name, dtype="float32", **zeros)
        image, restore = as_image(self.tensor)
        outputs = layer(image)
        layer.set_weights(
            [
                np.broadcast_to(self.scale, channels).reshape(1, 1, channels, 1),
                uneven(np.broadcast_to(self.offset, channels).astype(np.float32)),
            ]
        )
        self.lowered = ImageForm(outputs, restore)
        return self.lowered


def image_form(value: ImageForm | Affine) -> ImageForm:
    """Returns a tensor in the shape of an image; an `Affine` is lowered."""
    return value.lower() if isinstance(value, Affine) else value


def as_tensor(value: Any) -> Any:
    """Returns a tensor in its shape in the model."""
    form = image_form(value) if isinstance(value, (ImageForm, Affine)) else None
    return value if form is None else form.restore(form.image)


def clip_range(operation: Any) -> tuple[float, float]:
    """Returns the minimum and maximum of a clipping operation; without any it is a hard tanh."""
    return getattr(operation, "x_min", -1), getattr(operation, "x_max", 1)


HALF = ("float16", "bfloat16")


def in_float32(policy: Any) -> Any:
    """Returns the float32 policy in place of a half-precision or mixed one."""
    half = policy.name.startswith("mixed_") or policy.name in HALF
    return keras.DTypePolicy("float32") if half else policy


def as_image(tensor: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Returns a channels-last tensor as a batch of images, and a function that restores it."""
    rank = len(tensor.shape)
    if rank == 4:
        return tensor, lambda image: image
    if rank == 3:
        return ops.expand_dims(tensor, 2), lambda image: ops.squeeze(image, 2)
    shape = tuple(tensor.shape[1:])
    lines = (1, 1) if rank == 2 else shape[1:-1]
    image = ops.reshape(tensor, (-1, lines[0], math.prod(lines[1:]), shape[-1]))
    return image, lambda image: ops.reshape(image, (-1, *shape))


def fits_affine(tensor: Any) -> bool:
    """Returns whether a tensor can be reshaped to an image: known channels, and sizes if needed."""
    known = len(tensor.shape) in (3, 4) or None not in tensor.shape[1:]
    return len(tensor.shape) >= 2 and tensor.shape[-1] is not None and known
