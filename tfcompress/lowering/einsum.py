"""Products of matrices in forms that the converter knows."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import layers, ops

from tfcompress.graph.layers import einsum_letters


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
