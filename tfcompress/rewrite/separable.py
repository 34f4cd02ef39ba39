"""Depthwise separable convolutions in place of whole ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import layers

from tfcompress.graph.clone import Rewriter
from tfcompress.graph.copies import clone_layer, free_of_sizes
from tfcompress.graph.kernel_axes import array
from tfcompress.graph.read import Call, Graph


class Separate(Rewriter):
    """Replaces spatial convolutions by a depthwise convolution and a 1x1 convolution.

    The kernel of each input channel is replaced by the nearest product of one filter and one
    factor for each output channel (SVD), where that takes fewer weights.

    Args:
        names: Names of layers that exist, which new ones may not have.
    """

    def __init__(self, names: set[str]) -> None:
        super().__init__()
        self._names = names
        self._kernels: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def visit(self, graph: Graph, call: Call, args: Any, kwargs: Any) -> Any:
        """Emits one call."""
        layer = call.operation
        if not _is_separable(layer):
            return super().visit(graph, call, args, kwargs)

        def create() -> list[Any]:
            self._kernels[id(layer)] = _separated(array(layer.kernel))
            depthwise = layers.DepthwiseConv2D(
                layer.kernel_size,
                layer.strides,
                padding=layer.padding,
                dilation_rate=layer.dilation_rate,
                data_format=layer.data_format,
                use_bias=False,
                name=self._free(f"{layer.name}_depthwise"),
                dtype=layer.dtype_policy,
            )
            sizes: dict[str, Any] = {
                "kernel_size": 1,
                "strides": 1,
                "dilation_rate": 1,
                "padding": "valid",
            }
            pointwise = clone_layer(layer, **free_of_sizes(layer), **sizes)
            self.carry(layer, [depthwise, pointwise])
            return [depthwise, pointwise]

        depthwise, pointwise = self.once(layer, create)
        return pointwise(depthwise(*args, **kwargs))

    def match(self, old: Any, new: Any) -> Any:
        """Pairs the variables of a layer with those of its replacement."""
        if id(old) not in self._kernels:
            return super().match(old, new)
        depthwise, pointwise = new
        spatial, factors = self._kernels[id(old)]
        pairs = [(spatial, depthwise.kernel), (factors, pointwise.kernel)]
        return pairs + ([(array(old.bias), pointwise.bias)] if old.use_bias else [])

    def _free(self, name: str) -> str:
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name


def _is_separable(layer: Any) -> bool:
    if type(layer) is not layers.Conv2D or layer.groups > 1 or max(layer.kernel_size) == 1:
        return False
    if len(set(layer.strides)) > 1 or layer.kernel_constraint is not None:
        return False
    *size, inputs, outputs = layer.kernel.shape
    return inputs > 3 and np.prod(size) * inputs + inputs * outputs < np.prod(layer.kernel.shape)


def _separated(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the kernels of the depthwise and of the 1x1 convolution."""
    height, width, inputs, outputs = kernel.shape
    matrices = kernel.transpose(2, 0, 1, 3).reshape(inputs, height * width, outputs)
    left, values, right = np.linalg.svd(matrices, full_matrices=False)
    root = np.sqrt(values[:, :1])  # half to each, so that neither is hard to quantize
    spatial = (left[:, :, 0] * root).T.reshape(height, width, inputs, 1)
    return spatial.astype(np.float32), (right[:, 0] * root)[None, None].astype(np.float32)
