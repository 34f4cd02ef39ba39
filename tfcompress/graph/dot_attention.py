"""Expands Attention and AdditiveAttention, which have no projections, into graphs."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from tfcompress.graph.keras_internals import get_keras_mask

DOT_ATTENTION = (layers.Attention, layers.AdditiveAttention)
TENSORS = ("query", "value", "key", "query_mask", "value_mask")


def dot_arguments(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a call of one of these layers by name, with one entry per tensor."""
    bound = inspect.signature(layer.call).bind(*args, **kwargs).arguments
    query, value, *rest = bound.pop("inputs")
    mask = bound.pop("mask", None)
    masks = [*(mask or ()), None, None]
    arguments = {"query": query, "value": value, "key": rest[0] if rest else value}
    arguments |= {"query_mask": masks[0], "value_mask": masks[1], "mask": mask and True, **bound}
    return {name: value for name, value in arguments.items() if value is not None}


def with_masks(arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns these arguments with the masks that query and value carry, unless it has masks."""
    if "mask" in arguments:
        return arguments
    carried = {f"{name}_mask": get_keras_mask(arguments[name]) for name in ("query", "value")}
    return {**arguments, **{name: mask for name, mask in carried.items() if mask is not None}}


def kind_of_call(arguments: dict[str, Any]) -> tuple[Any, ...]:
    """Returns what may differ between calls of one layer, apart from names and shapes."""
    return arguments["key"] is arguments["value"], "mask" in arguments


def fits_int16(layer: Any) -> bool:
    """Returns whether the converter supports the expanded layer with int16 activations."""
    additive = isinstance(layer, layers.AdditiveAttention)
    return not additive and not getattr(layer, "use_scale", False)


def dot_call(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """Returns these arguments; None if the layer cannot be expanded.

    Not expanded are: scores by concatenation (one weight for the whole sum), calls that return the
    scores, and calls on tensors that the layer would cast.
    """
    arguments = dot_arguments(layer, args, kwargs)
    tensors = [value for name, value in arguments.items() if name in TENSORS]
    shaped = all(isinstance(t, keras.KerasTensor) and None not in t.shape[1:] for t in tensors)
    if not (layer.built and shaped) or getattr(layer, "score_mode", "dot") != "dot":
        return None
    kinds = {(len(arguments[n].shape), arguments[n].dtype) for n in ("query", "value", "key")}
    alike = kinds == {(3, layer.compute_dtype)}
    return arguments if alike and not arguments.get("return_attention_scores") else None


def dot_graph(
    layer: Any,
    arguments: dict[str, Any],
    inputs: dict[str, Any],
    mask_scores: Callable[..., Any],
    wrap: Callable[[Any], Any],
) -> Any:
    """Returns the output of the graph of one of these layers.

    Args:
        layer: A built layer.
        arguments: The result of `dot_call`.
        inputs: A tensor for each of its tensors.
        mask_scores: Takes the scores and a mask, and returns the masked scores.
        wrap: Takes the layer that scales the scores and returns what to call instead.
    """
    query, key, value = inputs["query"], inputs["key"], inputs["value"]
    scale = layers.Dense(
        1, use_bias=False, name="scale", dtype=layer.dtype_policy, trainable=layer.trainable
    )
    if isinstance(layer, layers.AdditiveAttention):
        x = ops.add(ops.expand_dims(query, 2), ops.expand_dims(key, 1))
        x = layers.Activation("tanh", name="tanh", dtype=layer.dtype_policy)(x)
        scores = ops.squeeze(wrap(scale)(x), 3) if layer.use_scale else ops.sum(x, axis=3)
    else:
        scores = ops.matmul(query, ops.transpose(key, (0, 2, 1)))
        if layer.use_scale:
            scores = ops.squeeze(wrap(scale)(ops.expand_dims(scores, 3)), 3)
    mask = inputs.get("value_mask")
    if mask is not None:
        mask = ops.expand_dims(mask, 1)
    if arguments.get("use_causal_mask"):
        past = np.tril(np.ones((1, *scores.shape[1:]), bool))
        mask = past if mask is None else ops.logical_and(mask, past)
    if mask is not None:
        scores = mask_scores(scores, mask)
    x = ops.matmul(softmax(layer, scores), value)
    if "query_mask" in inputs:
        x = ops.where(ops.expand_dims(inputs["query_mask"], 2), x, 0.0)
    return x


def softmax(layer: Any, scores: Any) -> Any:
    """Returns the attention weights of a layer: the softmax of the scores, with its dropout."""
    weights = layers.Softmax(name="softmax", dtype=layer.dtype_policy)(scores)
    if not layer.dropout:
        return weights
    seed = getattr(layer, "seed", None)  # Keras 3.12 does not keep it
    dropout = layers.Dropout(layer.dropout, seed=seed, name="dropout", dtype=layer.dtype_policy)
    return dropout(weights)


def dot_source(
    layer: Any, arguments: dict[str, Any], names: list[str], called_on: list[str]
) -> str:
    """Returns the layer and the arguments of its call, in the form of `Expanded.source`.

    Args:
        layer: The layer.
        arguments: The arguments that its graph was built from.
        names: The inputs of the graph.
        called_on: The names of the tensors that the layer itself is called on.
    """
    indices = {name: index for index, name in enumerate(names) if name in called_on}
    tensors = (
        ["query", "value"] if arguments["key"] is arguments["value"] else ["query", "value", "key"]
    )
    call_inputs: dict[str, Any] = {"inputs": [indices[name] for name in tensors]}
    masks = [indices.get(name) for name in ("query_mask", "value_mask")]
    if any(index is not None for index in masks):
        call_inputs["mask"] = masks
    return json.dumps(
        {
            "layer": keras.saving.serialize_keras_object(layer),
            "inputs": call_inputs,
            "options": {"use_causal_mask": True} if arguments.get("use_causal_mask") else {},
        }
    )
