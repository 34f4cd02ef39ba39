"""The state of a wrapped model, and how to run it without its transforms."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import keras

from tfcompress.errors import CompressionWarning
from tfcompress.graph.inline import as_graph
from tfcompress.graph.keras_internals import flatten_layers
from tfcompress.graph.layers import is_ours
from tfcompress.graph.read import walk_layers
from tfcompress.graph.sameness import check_same
from tfcompress.transforms.base import WeightTransform
from tfcompress.transforms.fake_quant import FakeQuant
from tfcompress.wrap.wrapper import CompressionWrapper


def as_unwrapped(model: Any, function: str) -> keras.Model:
    """Returns a model as a graph, for a function that makes ordinary models smaller.

    Raises:
        TypeError: If `model` is no Keras model.
        ValueError: If it is wrapped, or cannot be read.
    """
    model = as_graph(model)
    if is_wrapped(model):
        raise ValueError(
            f"model {model.name!r} is wrapped by prune() or quantize(). Call "
            f"{function}(strip(model)) first, then wrap the result."
        )
    return model


def is_wrapped(model: keras.Model) -> bool:
    """Returns whether anything of tfcompress is in the model."""
    marks = ("is_compression_wrapper", "is_compression_helper")
    return any(getattr(layer, mark, False) for _, layer in walk_layers(model) for mark in marks)


@contextlib.contextmanager
def without_compression(
    model: keras.Model, skipped: tuple[type, ...] = (WeightTransform,)
) -> Iterator[None]:
    """Runs a wrapped model without quantization of activations and without weight transforms.

    Args:
        model: The model.
        skipped: The kinds of transforms that are left out.
    """
    parts = [part for _, layer in walk_layers(model) for part in flatten_layers(layer)]
    compressing = [part for part in parts if is_ours(part) and hasattr(part, "skip_compression")]
    try:
        for part in compressing:
            part.skip_compression(skipped)
        yield
    finally:
        for part in compressing:
            part.skip_compression(None)


def check_wrapped(original: keras.Model, wrapped: keras.Model, function: str) -> None:
    """Compares a wrapped model with the original; see `check_same`."""
    with without_compression(original), without_compression(wrapped):
        check_same(original, wrapped, function)


def transformed_values(wrapper: CompressionWrapper, rounds: bool = True) -> dict[int, Any]:
    """Returns the transformed value of each compressible weight, by `id` of the variable.

    Args:
        wrapper: The wrapped layer.
        rounds: Whether weights are quantized.
    """
    return {
        id(weight): wrapper.effective_value(
            weight, [t for t in transforms if rounds or not isinstance(t, FakeQuant)]
        )
        for weight, transforms in wrapper.pipelines()
    }


def warn_unfinished(model: keras.Model, action: str) -> None:
    """Warns once, with the first layer as the example, if a schedule has not ended."""
    unfinished = [
        (path, reason)
        for path, layer in walk_layers(model)
        if isinstance(layer, CompressionWrapper)
        for transform in layer.weight_transforms
        if (reason := transform.unfinished())
    ]
    if unfinished:
        path, reason = unfinished[0]
        warnings.warn(
            f"{action}: layer {path!r} is not finished: {reason} "
            f"({len(unfinished)} weights in all). Train on, or let the schedule end earlier.",
            CompressionWarning,
            stacklevel=3,
        )


def transforms_of(model: keras.Model) -> list[dict[str, Any]]:
    """Returns the transforms of a model's weights, each with the number of weights."""
    entries: dict[str, dict[str, Any]] = {}
    for _, layer in walk_layers(model):
        for transform in getattr(layer, "weight_transforms", ()):
            config = transform.get_config()
            settings = {
                key: str(getattr(transform, key)) if isinstance(value, dict) else value
                for key, value in config.items()
                if key not in ("name", "trainable", "dtype")
            }
            entry = {"transform": type(transform).__name__, **settings}
            entries.setdefault(repr(entry), {**entry, "weights": 0})["weights"] += 1
    return list(entries.values())


def original_variables(parts: list[Any]) -> list[Any]:
    """Returns the variables of built parts that the original layer has, in its order."""
    return [
        variable
        for part in parts
        for variable in (
            part.original_variables()
            if is_ours(part) and hasattr(part, "original_variables")
            else part.variables
        )
    ]
