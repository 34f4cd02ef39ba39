"""student: a smaller model of the same kind, made from the graph of a big one."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np

from tfcompress.errors import CompressionWarning
from tfcompress.graph.read import input_specs, walk_layers
from tfcompress.graph.resize import Resize
from tfcompress.rewrite.depth import drop_layers, residual_blocks
from tfcompress.rewrite.separable import Separate
from tfcompress.tune.channels import prune_channels
from tfcompress.wrap.state import as_unwrapped


def student(
    model: keras.Model,
    width: float = 0.5,
    depth: float = 1.0,
    *,
    resolution: int | tuple[int, int] | None = None,
    separable: bool = False,
    round_to: int = 1,
) -> keras.Model:
    """Returns a smaller model of the same kind, with weights of the big one where they fit.

    Residual blocks are left out evenly over the depth; then the same share of channels is removed
    everywhere, the smallest by norm, coupled as in `prune_channels`; then spatial convolutions are
    replaced by depthwise separable ones. Its outputs are those of the big model, so that a
    `Distiller` can train it: it has to be trained.

    Pays in: bytes, milliseconds and RAM, on every runtime.

    Args:
        model: A built model, not wrapped. It is not changed.
        width: Share of the channels that stay, in (0, 1].
        depth: Share of the residual blocks that stay, in [0, 1], of those that can be removed.
        resolution: Height and width of the images, or one number for both; None for those of the
            model. The model must not depend on them, as it does with Flatten.
        separable: Whether convolutions larger than 1x1 become a depthwise and a 1x1 one.
        round_to: The number of channels that stay is a multiple of this where possible.

    Returns:
        A new model of the same class, not compiled.

    Raises:
        TypeError: If `model` is no Keras model.
        ValueError: If it is wrapped, an argument is out of range, there are no blocks to leave out,
            or the model takes no other resolution.

    Warns:
        CompressionWarning: If the channels around some layers had to be kept.

    Example:
        >>> import keras
        >>> import tfcompress as tfc
        >>> model = keras.Sequential([keras.Input((8,)), *map(keras.layers.Dense, (16, 4))])
        >>> tfc.student(model, width=0.25).layers[0].units
        4

    References:
        Width and resolution: Howard et al. 2017, arXiv:1704.04861. Separable kernels by SVD: Guo et
        al. 2018, arXiv:1808.05517.
    """
    model = as_unwrapped(model, "student")
    _check_share("width", width, width > 0)
    _check_share("depth", depth, depth >= 0)
    if resolution is not None:
        model = _resized(model, resolution)
    if depth < 1:
        model = _shallower(model, depth)
    if width < 1:
        model = prune_channels(model, 1 - width, ranking="layer", round_to=round_to)
    if separable:
        model = Separate({layer.name for _, layer in walk_layers(model)}).run(model)
    return model


def _check_share(name: str, value: Any, enough: bool) -> None:
    if isinstance(value, bool) or not enough or value > 1:
        raise ValueError(f"{name} is the share that stays, up to 1. Received: {name}={value!r}")


def _shallower(model: keras.Model, depth: float) -> keras.Model:
    names = [block.name for block in residual_blocks(model)]
    if not names:
        raise ValueError(
            f"depth={depth} leaves out residual blocks, and model {model.name!r} has none that can "
            "be removed: blocks that change the size or the number of channels have to stay."
        )
    count = round((1 - depth) * len(names))
    if count == 0:
        warnings.warn(
            f"depth={depth} leaves out none of the {len(names)} residual blocks of {model.name!r}.",
            CompressionWarning,
            stacklevel=3,
        )
        return model
    # Evenly over the depth; the last of the blocks goes first.
    chosen = np.unique(np.linspace(len(names) - 1, 0, count, endpoint=count > 1).round())
    return drop_layers(model, [names[int(index)] for index in chosen])


def _resized(model: keras.Model, resolution: Any) -> keras.Model:
    size = (resolution, resolution) if isinstance(resolution, int) else tuple(resolution)
    if len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
        raise ValueError(
            f"resolution is a height and a width, or one number. Received: {resolution!r}"
        )
    before = [tuple(t.shape) for t in model.outputs]
    try:
        resized = Resize([_with_size(spec.shape, size) for spec in input_specs(model)]).run(model)
    except Exception as error:  # layers that do not take the size may raise anything
        raise ValueError(
            f"resolution={resolution!r}: model {model.name!r} takes images of its own size only. "
            f"({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error
    if [tuple(t.shape) for t in resized.outputs] != before:
        raise ValueError(
            f"resolution={resolution!r} changes the shapes of the outputs of {model.name!r}."
        )
    return resized


def _with_size(shape: tuple[int | None, ...], size: tuple[int, int]) -> tuple[int | None, ...]:
    """Returns the shape of an image with another height and width; other shapes as they are."""
    if len(shape) != 3:
        return shape
    first = keras.config.image_data_format() == "channels_first"
    return (shape[0], *size) if first else (*size, shape[-1])
