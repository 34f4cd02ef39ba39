"""Folds BatchNormalization into the linear layer before it, as the converter does."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

from tfcompress.graph.clone import Rewriter
from tfcompress.graph.kernel_axes import WEIGHTED, array, scale_outputs
from tfcompress.graph.read import Call, Graph, called_once, walk_layers
from tfcompress.integer.affine import affine_of, is_affine


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """Returns the model with its BatchNormalizations folded into the layers before them.

    The model computes the same at inference. Train it further where all weights of a kernel must
    share one scale (`QuantizationScheme(weight_granularity="tensor")`) or few values (`cluster`):
    a BatchNormalization gives each channel a scale of its own. A normalization stays where it does
    not follow a convolution or dense layer, where the layer before it has other consumers or an
    activation, and where one of the two is shared.

    Args:
        model: A built Sequential or Functional model, not wrapped. It is not changed.

    Returns:
        A new model, not compiled.

    Example:
        >>> import keras
        >>> import tfcompress as tfc
        >>> layers = [keras.layers.Dense(4), keras.layers.BatchNormalization()]
        >>> model = keras.Sequential([keras.Input((8,)), *layers])
        >>> [layer.name[:5] for layer in tfc.fold_batch_norm(model).layers]
        ['dense']

    References:
        Jacob et al. 2018, arXiv:1712.05877, section 3.2.
    """
    kinds = {type(layer) for _, layer in walk_layers(model)}
    return _Fold(called_once(model)).run(model) if layers.BatchNormalization in kinds else model


class _Fold(Rewriter):
    def __init__(self, once: set[int]) -> None:
        super().__init__()
        self._once = once
        self._folded: dict[int, Any] = {}  # the layer before -> its normalization

    def visit(self, graph: Graph, call: Call, args: Any, kwargs: Any) -> Any:
        layer = call.operation
        following = self._normalization(graph, call)
        if following is not None:
            self._folded[id(layer)] = following
            return self.clone(layer, use_bias=True)(*args, **kwargs)
        if id(layer) in {id(norm) for norm in self._folded.values()}:
            return args[0]
        return super().visit(graph, call, args, kwargs)

    def _normalization(self, graph: Graph, call: Call) -> Any:
        layer = call.operation
        if type(layer) not in WEIGHTED or id(layer) not in self._once:
            return None
        if layer.activation is not keras.activations.linear:
            return None
        readers = graph.consumers.get(id(call.outputs[0]), [])
        if len(readers) != 1 or id(call.outputs[0]) in graph.outputs:
            return None
        following = readers[0].operation
        foldable = type(following) is layers.BatchNormalization and is_affine(following)
        return following if foldable and id(following) in self._once else None

    def match(self, old: Any, new: Any) -> Any:
        if id(old) not in self._folded:
            return super().match(old, new)
        scale, offset = affine_of(self._folded[id(old)])
        bias = array(old.bias) if old.use_bias else np.zeros_like(offset)
        kernel = scale_outputs(old, array(old.kernel), scale)
        return [
            (kernel.astype(np.float32), new.kernel),
            ((bias * scale + offset).astype(np.float32), new.bias),
        ]
