"""Matrix products and sums in forms that the converter recognizes."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import layers, ops

from tfcompress.graph.layers import einsum_letters


def lowered_einsum(layer: Any) -> tuple[dict[str, Any], tuple[int, ...], np.ndarray] | None:
    """Returns the lowered form of an EinsumDense layer whose bias does not fit the converter.

    The converter can fuse a bias only if it covers the last axes, and all axes of the kernel.

    Returns:
        Config entries of a layer without activation whose output has those axes last, the
        transposition of its output, and its bias; None if that is not needed.
    """
    if type(layer) is not layers.EinsumDense or layer.bias is None or "..." in layer.equation:
        return None
    inputs, letters, outputs = einsum_letters(layer)
    kept = [c for c in letters if c in outputs]
    biased = [c for c in outputs if c in layer.bias_axes]
    order = "".join(c for c in inputs if c in outputs and c not in kept) + "".join(kept)
    if set(kept) & set(inputs) or not set(biased) <= set(kept) or order[0] != outputs[0]:
        return None
    if (order, biased) == (outputs, kept):
        return None
    sizes = dict(zip(letters, layer.kernel.shape, strict=True))
    sizes |= dict(zip(outputs[1:], layer.partial_output_shape, strict=True))
    bias = ops.convert_to_numpy(layer.bias).reshape([sizes[c] for c in biased])
    bias = bias.transpose([biased.index(c) for c in kept if c in biased])
    bias = bias.reshape([sizes[c] if c in biased else 1 for c in kept])
    changed = {
        "equation": f"{inputs},{letters}->{order}",
        "output_shape": [sizes[c] for c in order[1:]],
        "bias_axes": "".join(kept),
        "activation": "linear",
    }
    full_bias = np.broadcast_to(bias, [layer.kernel.shape[letters.index(c)] for c in kept])
    return changed, tuple(order.index(c) for c in outputs), full_bias


def add_as_images(x: Any, y: Any) -> Any:
    """Returns the sum of two matrices, one of which would pass for a bias if the batch is 1."""
    column = (-1, 1, x.shape[-1], 1)
    return ops.reshape(ops.reshape(x, column) + ops.reshape(y, column), (-1, x.shape[-1]))
