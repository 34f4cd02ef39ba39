"""Attention and AdditiveAttention, which have no projections, as the graph of what they compute."""

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
    """Returns the arguments of a call of one of these layers by name, tensors and masks apart."""
    bound = inspect.signature(layer.call).bind(*args, **kwargs).arguments
    query, value, *rest = bound.pop("inputs")
    told = bound.pop("mask", None)
    masks = [*(told or ()), None, None]
    given = {"query": query, "value": value, "key": rest[0] if rest else value}
    given |= {"query_mask": masks[0], "value_mask": masks[1], "mask": told and True, **bound}
    return {name: value for name, value in given.items() if value is not None}


def with_masks(given: dict[str, Any]) -> dict[str, Any]:
    """Returns these arguments with the masks that query and value carry, if none are given."""
    if "mask" in given:
        return given
    carried = {f"{name}_mask": get_keras_mask(given[name]) for name in ("query", "value")}
    return {**given, **{name: mask for name, mask in carried.items() if mask is not None}}


def kind_of_call(given: dict[str, Any]) -> tuple[Any, ...]:
    """Returns in what a call may differ from others of one layer, but for names and shapes."""
    return given["key"] is given["value"], "mask" in given


def fits_sixteen_bits(layer: Any) -> bool:
    """Returns whether the converter knows the layer written out with activations of 16 bits."""
    additive = isinstance(layer, layers.AdditiveAttention)
    return not additive and not getattr(layer, "use_scale", False)


def dot_call(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict | None:
    """Returns these arguments if the layer can be written out.

    Left as they are: scores by concatenation (one weight for all of a sum), calls that ask for the
    scores, and those on tensors that the layer would cast.
    """
    given = dot_arguments(layer, args, kwargs)
    tensors = [value for name, value in given.items() if name in TENSORS]
    shaped = all(isinstance(t, keras.KerasTensor) and None not in t.shape[1:] for t in tensors)
    if not (layer.built and shaped) or getattr(layer, "score_mode", "dot") != "dot":
        return None
    kinds = {(len(given[n].shape), given[n].dtype) for n in ("query", "value", "key")}
    alike = kinds == {(3, layer.compute_dtype)}
    return given if alike and not given.get("return_attention_scores") else None


def dot_graph(
    layer: Any,
    given: dict[str, Any],
    inputs: dict[str, Any],
    mask_scores: Callable[..., Any],
    wrap: Callable[[Any], Any],
) -> Any:
    """Returns what one of these layers computes.

    Args:
        layer: A built layer.
        given: What `dot_call` returned.
        inputs: A tensor for each of its tensors.
        mask_scores: Is given scores and where they count.
        wrap: Is given the layer that weighs scores and returns what to call instead.
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
    if given.get("use_causal_mask"):
        past = np.tril(np.ones((1, *scores.shape[1:]), bool))
        mask = past if mask is None else ops.logical_and(mask, past)
    if mask is not None:
        scores = mask_scores(scores, mask)
    x = ops.matmul(softmax(layer, scores), value)
    if "query_mask" in inputs:
        x = ops.where(ops.expand_dims(inputs["query_mask"], 2), x, 0.0)
    return x


def softmax(layer: Any, scores: Any) -> Any:
    """Returns what an attention layer weighs values by."""
    weights = layers.Softmax(name="softmax", dtype=layer.dtype_policy)(scores)
    if not layer.dropout:
        return weights
    return layers.Dropout(layer.dropout, seed=layer.seed, name="dropout", dtype=layer.dtype_policy)(
        weights
    )


def dot_source(layer: Any, given: dict[str, Any], names: list[str], told: list[str]) -> str:
    """Returns the layer and how it was called, as `Expanded.source` wants it.

    Args:
        layer: The layer.
        given: What its graph was made of.
        names: The inputs of the graph.
        told: The names of the tensors that the layer itself is called on.
    """
    places = {name: place for place, name in enumerate(names) if name in told}
    tensors = ["query", "value"] if given["key"] is given["value"] else ["query", "value", "key"]
    called: dict[str, Any] = {"inputs": [places[name] for name in tensors]}
    masks = [places.get(name) for name in ("query_mask", "value_mask")]
    if any(place is not None for place in masks):
        called["mask"] = masks
    return json.dumps(
        {
            "layer": keras.saving.serialize_keras_object(layer),
            "inputs": called,
            "options": {"use_causal_mask": True} if given.get("use_causal_mask") else {},
        }
    )
