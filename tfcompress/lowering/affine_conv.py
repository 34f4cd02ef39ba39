"""How layers are written for the converter, where the form they have in Keras would cost accuracy.

Each form computes what its layer does, from final values; `bake` (see `strip.py`) puts them in.
Training never sees them.

- A per-channel scale and offset (BatchNormalization that nothing was fused with, Rescaling,
  Normalization) becomes a 1x1 depthwise convolution: one rounding, where a product and a sum would
  need two, and its weights lose nothing, for each channel holds only one.
- A convolution over three axes, which the runtime knows in float only, becomes one over two: the
  slices under the kernel along the first axis are stacked as channels. Pooling over three axes,
  which it does not know at all, is pooling over two and then one.
- The mean of a layer normalization over several axes becomes a sum over a count: the converter
  would compute the mean of integers in integers, rounded onto their grid.
- An EinsumDense layer adds its bias before its axes are put in their order.
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
class Flat:
    """A tensor in the form of an image, and how to give it the shape that the model knows.

    What acts on each channel alike is called on the image, so that the converter can fuse it.
    """

    image: Any
    restore: Callable[[Any], Any]

    def then(self, layer: Any) -> Flat:
        """Returns the result of a layer on the image."""
        return Flat(layer(self.image), self.restore)


@dataclasses.dataclass
class Affine:
    """A tensor that still has to be scaled and moved, per channel of its last axis."""

    tensor: Any
    scale: np.ndarray
    offset: np.ndarray
    name: str
    made: Flat | None = None

    def then(self, scale: np.ndarray, offset: np.ndarray) -> Affine:
        """Returns this, scaled and moved once more."""
        return Affine(self.tensor, self.scale * scale, self.offset * scale + offset, self.name)

    def written(self) -> Flat:
        """Returns the result of the 1x1 depthwise convolution that does it, one for all readers."""
        if self.made is not None:
            return self.made
        channels = self.tensor.shape[-1]
        zeros = {"depthwise_initializer": "zeros"}  # for now
        layer = layers.DepthwiseConv2D(1, name=self.name, dtype="float32", **zeros)
        image, restore = as_image(self.tensor)
        outputs = layer(image)
        layer.set_weights(
            [
                np.broadcast_to(self.scale, channels).reshape(1, 1, channels, 1),
                uneven(np.broadcast_to(self.offset, channels).astype(np.float32)),
            ]
        )
        self.made = Flat(outputs, restore)
        return self.made


def as_flat(value: Flat | Affine) -> Flat:
    """Returns what is written of a tensor that may still have to be scaled."""
    return value.written() if isinstance(value, Affine) else value


def as_tensor(value: Any) -> Any:
    """Returns a tensor of the shape that the model knows."""
    made = as_flat(value) if isinstance(value, (Flat, Affine)) else None
    return value if made is None else made.restore(made.image)


def clip_range(operation: Any) -> tuple[float, float]:
    """Returns where an operation clips; without ends of its own it is a hard tanh."""
    return getattr(operation, "x_min", -1), getattr(operation, "x_max", 1)


HALF = ("float16", "bfloat16")


def in_float32(policy: Any) -> Any:
    """Returns the policy of a layer that computes in float32 what another does in half of it."""
    half = policy.name.startswith("mixed_") or policy.name in HALF
    return keras.DTypePolicy("float32") if half else policy


def as_image(tensor: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Returns a tensor with channels last as a batch of images, and the way back."""
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
    """Returns whether a tensor can be an image: float, and of known size where it is reshaped."""
    known = len(tensor.shape) in (3, 4) or None not in tensor.shape[1:]
    return len(tensor.shape) >= 2 and tensor.shape[-1] is not None and known
