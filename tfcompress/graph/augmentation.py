"""Layers that do nothing at inference: augmentation, noise, paths that are dropped at random."""

from __future__ import annotations

import weakref
from typing import Any

import keras
import numpy as np

from tfcompress.graph.keras_internals import call_parameters, inbound_nodes, mask_of
from tfcompress.graph.run import at_inference

_known: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


def trains_only(layer: Any) -> bool:
    """Returns whether a layer changes its input in training, and hands it on at inference.

    Found out by calling it, for there are many, and people write their own.
    """
    if not isinstance(layer, keras.layers.Layer) or not inbound_nodes(layer):
        return False
    if layer not in _known:
        _known[layer] = _hands_on(layer)
    return _known[layer]


def _hands_on(layer: Any) -> bool:
    node = inbound_nodes(layer)[0]
    told = {k for k, v in node.arguments.kwargs.items() if v is not None} - {"training"}
    if layer.weights or "training" not in call_parameters(layer) or told:
        return False
    inputs, outputs = node.input_tensors, node.output_tensors
    if len(inputs) != 1 or len(outputs) != 1 or inputs[0].shape != outputs[0].shape:
        return False
    if mask_of(inputs[0]) is not None or len(inputs[0].shape) < 2:
        return False
    shape = [size or 8 for size in inputs[0].shape]
    values = np.random.default_rng(0).uniform(0, 255, shape).astype(inputs[0].dtype)
    try:
        with keras.StatelessScope():  # no random state of the layer moves on
            made = at_inference(layer, (keras.ops.convert_to_tensor(values),), {})
    except Exception:  # it wants other values
        return False
    return np.array_equal(keras.ops.convert_to_numpy(made), values)
