"""Layers that do nothing at inference: augmentation, noise, stochastic depth."""

from __future__ import annotations

import weakref
from typing import Any

import keras
import numpy as np

from tfcompress.graph.keras_internals import call_parameters, inbound_nodes, mask_of
from tfcompress.graph.run import at_inference

_known: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


def trains_only(layer: Any) -> bool:
    """Returns whether a layer changes its input in training, and returns it at inference.

    The layer is called to find out, because no list of such layers is complete.
    """
    if not isinstance(layer, keras.layers.Layer) or not inbound_nodes(layer):
        return False
    if layer not in _known:
        _known[layer] = _is_identity_at_inference(layer)
    return _known[layer]


def _is_identity_at_inference(layer: Any) -> bool:
    node = inbound_nodes(layer)[0]
    passed = {k for k, v in node.arguments.kwargs.items() if v is not None} - {"training"}
    if layer.weights or "training" not in call_parameters(layer) or passed:
        return False
    inputs, outputs = node.input_tensors, node.output_tensors
    if len(inputs) != 1 or len(outputs) != 1 or inputs[0].shape != outputs[0].shape:
        return False
    if mask_of(inputs[0]) is not None or len(inputs[0].shape) < 2:
        return False
    shape = [size or 8 for size in inputs[0].shape]
    values = np.random.default_rng(0).uniform(0, 255, shape).astype(inputs[0].dtype)
    try:
        with keras.StatelessScope():  # random states of the layer stay unchanged
            result = at_inference(layer, (keras.ops.convert_to_tensor(values),), {})
    except Exception:  # the layer needs other values
        return False
    return np.array_equal(keras.ops.convert_to_numpy(result), values)
