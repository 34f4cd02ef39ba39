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

from tfcompress.graph.cost import einsum_letters
from tfcompress.wrap.parts import ChannelScale
from tfcompress.wrap.scalings import constant_operand, scale_and_offset


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


def settled(value: Any) -> Any:
    """Returns a tensor of the shape that the model knows."""
    made = as_flat(value) if isinstance(value, (Flat, Affine)) else None
    return value if made is None else made.restore(made.image)


def clip_ends(operation: Any) -> tuple[float, float]:
    """Returns where an operation clips; without ends of its own it is a hard tanh."""
    return getattr(operation, "x_min", -1), getattr(operation, "x_max", 1)


HALF = ("float16", "bfloat16")


def in_float32(policy: Any) -> Any:
    """Returns the policy of a layer that computes in float32 what another does in half of it."""
    half = policy.name.startswith("mixed_") or policy.name in HALF
    return keras.DTypePolicy("float32") if half else policy


def uneven(offsets: np.ndarray) -> np.ndarray:
    """Returns offsets of channels that are not all the same number, changed by a rounding at most.

    The converter stores one number for all, and takes it to be on the grid of the first channel.
    """
    if len(offsets) < 2 or not offsets[0] or np.any(offsets != offsets[0]):
        return offsets
    changed = offsets.copy()
    changed[0] = np.nextafter(changed[0], 2 * changed[0])
    return changed


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


def is_affine(layer: Any) -> bool:
    """Returns whether an operation only scales and moves each channel of its last axis."""
    if isinstance(layer, ChannelScale) or constant_operand(layer) is not None:
        return True
    if type(layer) is layers.Rescaling:
        return max(np.ndim(layer.scale), np.ndim(layer.offset)) <= 1
    if type(layer) is layers.Normalization:
        return not layer.invert and all(axis in (-1, _last_axis(layer)) for axis in layer.axis)
    return type(layer) is layers.BatchNormalization and layer.axis in (-1, _last_axis(layer))


def _last_axis(layer: Any) -> int:
    return len(layer.get_build_config()["input_shape"]) - 1


def affine_of(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns scale and offset, per channel or one for all, of a built layer that `is_affine`."""
    scale, offset = (ops.convert_to_numpy(value) for value in scale_and_offset(layer))
    return scale.astype(np.float64), offset.astype(np.float64)


def in_order(layer: Any) -> tuple[dict[str, Any], tuple[int, ...], np.ndarray] | None:
    """Returns how an EinsumDense layer is written whose bias is not one number for each channel.

    The converter can add a bias to nothing but the last axes, and to all that the kernel makes.

    Returns:
        Config entries of a layer without activation that puts out its axes in order, how to
        transpose what it puts out, and its bias; None if that is not needed.
    """
    if type(layer) is not layers.EinsumDense or layer.bias is None or "..." in layer.equation:
        return None
    given, letters, result = einsum_letters(layer)
    kept = [c for c in letters if c in result]
    biased = [c for c in result if c in layer.bias_axes]
    order = "".join(c for c in given if c in result and c not in kept) + "".join(kept)
    if set(kept) & set(given) or not set(biased) <= set(kept) or order[0] != result[0]:
        return None
    if (order, biased) == (result, kept):
        return None
    sizes = dict(zip(letters, layer.kernel.shape, strict=True))
    sizes |= dict(zip(result[1:], layer.partial_output_shape, strict=True))
    bias = ops.convert_to_numpy(layer.bias).reshape([sizes[c] for c in biased])
    bias = bias.transpose([biased.index(c) for c in kept if c in biased])
    bias = bias.reshape([sizes[c] if c in biased else 1 for c in kept])
    changed = {
        "equation": f"{given},{letters}->{order}",
        "output_shape": [sizes[c] for c in order[1:]],
        "bias_axes": "".join(kept),
        "activation": "linear",
    }
    whole = np.broadcast_to(bias, [layer.kernel.shape[letters.index(c)] for c in kept])
    return changed, tuple(order.index(c) for c in result), whole


def apart(x: Any, y: Any) -> Any:
    """Returns the sum of two matrices, which Keras takes for a bias where the batch is of one."""
    column = (-1, 1, x.shape[-1], 1)
    return ops.reshape(ops.reshape(x, column) + ops.reshape(y, column), (-1, x.shape[-1]))


def in_two_axes(layer: Any, tensor: Any, kernel: Any, bias: Any) -> Flat | None:
    """Returns the result of a convolution over three axes by one over two, or None.

    Args:
        layer: A linear Conv3D or Conv3DTranspose.
        tensor: What it is called on.
        kernel: Its kernel as it is used.
        bias: Its bias, or None.
    """
    if type(layer) not in (layers.Conv3D, layers.Conv3DTranspose):
        return None
    depth, *image = tensor.shape[1:]
    if layer.data_format != "channels_last" or None in tensor.shape[1:]:
        return None
    if getattr(layer, "groups", 1) != 1 or getattr(layer, "output_padding", None) is not None:
        return None
    size, stride, dilation = layer.kernel_size[0], layer.strides[0], layer.dilation_rate[0]
    transposed = isinstance(layer, layers.Conv3DTranspose)
    reach = (size - 1) * dilation + 1
    same = layer.padding == "same"
    if transposed:
        # Zeros between the slices turn the transposed convolution into an ordinary one.
        x = ops.reshape(tensor, (-1, depth, 1, math.prod(image)))
        x = ops.pad(x, ((0, 0), (0, 0), (0, stride - 1), (0, 0)))
        x = ops.reshape(x, (-1, depth * stride, *image))
        length = depth * stride + (0 if same else max(reach - stride, 0))
        before = reach - 1 - (max(reach - stride, 0) // 2 if same else 0)
        after = max(0, length + reach - 1 - before - depth * stride)
        starts = [(size - 1 - k) * dilation for k in range(size)]
        step = 1
    else:
        x, step = tensor, stride
        length = -(-depth // stride) if same else (depth - reach) // stride + 1
        missing = max(0, (length - 1) * stride + reach - depth) if same else 0
        before, after = missing // 2, missing - missing // 2
        starts = [k * dilation for k in range(size)]
    if before or after:
        x = ops.pad(x, ((0, 0), (before, after), (0, 0), (0, 0), (0, 0)))
    slices = [x[:, start : start + (length - 1) * step + 1 : step] for start in starts]
    x = ops.concatenate(slices, axis=-1) if size > 1 else slices[0]
    x = ops.reshape(x, (-1, *image[:-1], size * image[-1]))
    kind = layers.Conv2DTranspose if transposed else layers.Conv2D
    core = kind(
        layer.filters,
        layer.kernel_size[1:],
        strides=layer.strides[1:],
        padding=layer.padding,
        dilation_rate=layer.dilation_rate[1:],
        use_bias=bias is not None,
        name=layer.name,
        dtype="float32",
    )
    outputs = core(x)
    kernel = np.asarray(ops.convert_to_numpy(kernel))
    # (depth, height, width, in, out), transposed (depth, height, width, out, in)
    if transposed:
        kernel = kernel.transpose(1, 2, 3, 0, 4).reshape(*core.kernel.shape)
    else:
        kernel = kernel.transpose(1, 2, 0, 3, 4).reshape(*core.kernel.shape)
    core.set_weights([kernel] + ([] if bias is None else [ops.convert_to_numpy(bias)]))
    shape = (-1, length, *outputs.shape[1:])
    return Flat(outputs, lambda made: ops.reshape(made, shape))


def pooled_in_turns(layer: Any, tensor: Any) -> Any:
    """Returns the result of pooling over three axes by pooling over one and over two, or None."""
    if type(layer) not in (layers.MaxPooling3D, layers.AveragePooling3D):
        return None
    if layer.data_format != "channels_last" or None in tensor.shape[1:]:
        return None
    (size, *window), (stride, *steps) = layer.pool_size, layer.strides
    depth, height, width, channels = tensor.shape[1:]
    if isinstance(layer, layers.MaxPooling3D):
        image = ops.reshape(tensor, (-1, height, width, channels))
        image = ops.max_pool(image, window, steps, layer.padding)
        plane = image.shape[1:]
        lines = ops.reshape(image, (-1, depth, plane[0] * plane[1], channels))
        lines = ops.max_pool(lines, (size, 1), (stride, 1), layer.padding)
        return ops.reshape(lines, (-1, lines.shape[1], *plane))
    if layer.padding == "same":
        return None  # averages leave the padding out of the count
    # In one pooling, so that the average is rounded once: its window is over the slices of two
    # axes, stacked.
    tall = [(n - k) // s + 1 for n, k, s in ((depth, size, stride), (height, window[0], steps[0]))]
    slices = [
        tensor[
            :,
            d : d + (tall[0] - 1) * stride + 1 : stride,
            h : h + (tall[1] - 1) * steps[0] + 1 : steps[0],
        ]
        for d in range(size)
        for h in range(window[0])
    ]
    images = [ops.reshape(x, (-1, 1, width, channels)) for x in slices]
    image = ops.concatenate(images, axis=1)
    image = ops.average_pool(image, (len(images), window[1]), (1, steps[1]), "valid")
    return ops.reshape(image, (-1, *tall, image.shape[2], channels))


NORMALIZED = (keras.layers.LayerNormalization, keras.layers.RMSNormalization)


def normalized(layer: Any, x: Any) -> Any:
    """Writes a normalization of each sample with products, which have kernels for 16 bits."""
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    axes = [axis % len(x.shape) for axis in axes]
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    subtracts = isinstance(layer, keras.layers.LayerNormalization) and not getattr(
        layer, "rms_scaling", False
    )
    if subtracts:
        x = x - ops.mean(x, axes, keepdims=True)
    x = x * ops.rsqrt(ops.mean(x * x, axes, keepdims=True) + layer.epsilon)
    scale, offset = (getattr(layer, name, None) for name in ("gamma", "beta"))
    if isinstance(layer, keras.layers.RMSNormalization):
        scale, offset = layer.scale, None
    if scale is not None:
        x = x * ops.convert_to_numpy(scale).reshape(shape)
    return x if offset is None else x + ops.convert_to_numpy(offset).reshape(shape)


class SummingLayerNormalization(keras.layers.LayerNormalization):
    """Layer normalization whose mean is a sum over a count.

    A sum of integers stays in float as well, and the result is that of the Keras layer.
    """

    is_compression_helper = True

    def call(self, inputs: Any) -> Any:
        """Returns the normalized inputs."""
        axes = [self.axis] if isinstance(self.axis, int) else self.axis
        axes = [axis % len(inputs.shape) for axis in axes]
        shape = [size if i in axes else 1 for i, size in enumerate(inputs.shape)]
        share = 1.0 / math.prod(shape)
        centered = inputs - share * ops.sum(inputs, axes, keepdims=True)
        variance = share * ops.sum(ops.square(centered), axes, keepdims=True)
        outputs = centered * ops.rsqrt(variance + self.epsilon)
        if self.gamma is not None:
            outputs *= ops.reshape(self.gamma, shape)
        return outputs if self.beta is None else outputs + ops.reshape(self.beta, shape)
