"""Copies of a layer or operation: its config, its weights and its other state."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from tfcompress.files import temporary_folder
from tfcompress.graph.keras_internals import (
    CALLS,
    DotNotTrackScope,
    flatten_layers,
    lambda_output_shape,
    sublayers,
    tracked_ids,
)
from tfcompress.graph.layers import is_custom
from tfcompress.graph.read import is_graph

_PLAIN = {"name", "trainable", "dtype"}  # what can be changed on an existing layer


def clone_layer(
    layer: Any, /, *, known: Mapping[int, Any] | None = None, graphs: Any = None, **overrides: Any
) -> Any:
    """Returns a copy of a layer or operation, which no model has called yet.

    Layers of Keras are created from their config, unbuilt; `copy_state` copies the rest. Custom
    layers, whose configs may be incomplete, are copied attribute by attribute.

    Args:
        layer: What to copy.
        known: Copies of layers that exist already, by `id`: a layer that holds one of the originals
            (a head that shares the weights of an embedding) will hold its copy.
        graphs: Copies a model inside the layer, and returns the copies of its layers by `id`.
        **overrides: Config entries that replace the original ones.

    Raises:
        ValueError: If neither the config nor the attributes of the layer allow a copy.
    """
    if not isinstance(layer, keras.layers.Layer):
        return _clone_operation(layer, overrides)
    custom = is_custom(layer)
    if custom and (duplicate := _duplicated(layer, known, graphs, overrides)) is not None:
        return duplicate
    try:
        return _from_config(layer, overrides)
    except Exception as error:  # custom code may raise anything
        if not custom and (duplicate := _duplicated(layer, known, graphs, overrides)) is not None:
            return duplicate
        raise ValueError(
            f"Layer {layer.name!r} ({type(layer).__name__}) cannot be copied: it must implement "
            f"get_config() so that {type(layer).__name__}.from_config(config) makes an equal layer."
        ) from error


def copy_state(old: Any, new: Any) -> None:
    """Copies the state of a layer that is not in its weights, such as tables, to a built copy.

    Must be called before the weights of the copy are assigned; see `after_weights`.

    Args:
        old: The original.
        new: The copy; a list if several layers replace the original.
    """
    targets = [
        part for whole in (new if isinstance(new, list) else [new]) for part in _holders(whole)
    ]
    for original, target in zip(_holders(old), targets, strict=True):
        store: dict[str, Any] = {}
        original.save_own_variables(store)
        target.load_own_variables(store)
        with temporary_folder() as folder:
            original.save_assets(folder)
            target.load_assets(folder)


def after_weights(layer: Any) -> None:
    """Recomputes what a layer derives once from its weights."""
    for part in flatten_layers(layer):
        if isinstance(part, keras.layers.Normalization):
            part.finalize_state()


def free_of_sizes(layer: Any) -> dict[str, Any]:
    """Returns config entries for a copy of other sizes; they replace initial values in arrays."""
    arrays = (
        name
        for name, value in vars(layer).items()
        if isinstance(value, keras.initializers.Constant) and np.size(value.value) > 1
    )
    return {name.lstrip("_"): "glorot_uniform" for name in arrays}


def _clone_operation(operation: Any, overrides: dict[str, Any]) -> Any:
    """Copies an operation. It has no state: its attributes are its settings."""
    duplicate = object.__new__(type(operation))
    vars(duplicate).update({**vars(operation), **overrides, **{name: [] for name in CALLS}})
    return duplicate


def _from_config(layer: Any, overrides: dict[str, Any]) -> Any:
    if type(layer) is keras.layers.Lambda:
        # Keras refuses to create one from its config, which could run code if it were from a file.
        own = {
            "function": layer.function,
            "output_shape": lambda_output_shape(layer),
            "mask": layer.mask,
        }
        return keras.layers.Lambda(**{**layer.get_config(), **own, **overrides})
    # Classes that are not registered with Keras are known here.
    known = {type(part).__name__: type(part) for part in flatten_layers(layer)}
    config = layer.get_config()
    with keras.saving.custom_object_scope(known):
        try:
            return type(layer).from_config({**config, **overrides})
        except TypeError:
            # Functions that Keras does not find by name, such as lambdas.
            own = {
                name: getattr(layer, name)
                for name, entry in config.items()
                if isinstance(entry, dict) and inspect.isfunction(getattr(layer, name, None))
            }
            if not own:
                raise
            return type(layer).from_config({**config, **own, **overrides})


def _duplicated(
    layer: Any,
    known: Mapping[int, Any] | None,
    graphs: Callable[[Any], Mapping[int, Any]] | None,
    overrides: dict[str, Any],
) -> Any:
    """Returns a copy of a built layer, attribute by attribute; None if that is not possible."""
    if not layer.built or set(overrides) - _PLAIN:
        return None
    try:
        with DotNotTrackScope():
            duplicate = _duplicate(layer, known or {}, graphs)
    except Exception:  # attributes may be anything: locks, files, generators
        return None
    policy = overrides.pop("dtype", None)
    if policy is not None:
        for part in flatten_layers(duplicate):
            if part.dtype_policy == layer.dtype_policy:
                part.dtype_policy = policy
    for name, value in overrides.items():
        setattr(duplicate, name, value)
    return duplicate


def _duplicate(layer: Any, known: Mapping[int, Any], graphs: Any) -> Any:
    parts: list[Any] = []
    pending, memo = [layer], {}
    while pending:
        part = pending.pop()
        if id(part) in memo:
            continue
        if type(known.get(id(part))) is type(part):
            memo[id(part)] = known[id(part)]
        elif is_graph(part) and part is not layer:
            memo.update(graphs(part))
        elif _holds_more(part):
            memo[id(part)] = _from_config(part, {})
            memo[id(part)].build_from_config(part.get_build_config())
            copy_state(part, memo[id(part)])
        else:
            if getattr(part, "compiled", False):
                raise ValueError("an optimizer belongs to its model")
            parts.append(part)
            part_class: Any = type(part)
            memo[id(part)] = part_class.__new__(part_class)
            pending += sublayers(part)
    memo |= {id(module): module for module in [*sys.modules.values()]}
    for part in parts:
        duplicate = memo[id(part)]
        for name, value in vars(part).items():
            if name in CALLS:
                vars(duplicate)[name] = []
            elif name not in ("build", "quantize"):  # these belong to the new layer already
                _check_unbound(value, memo)
                vars(duplicate)[name] = copy.deepcopy(value, memo)
        stored = tracked_ids(duplicate)
        for part_class, ids in stored.items():
            stored[part_class] = {id(memo[key]) for key in ids if key in memo}
    return memo[id(layer)]


def _check_unbound(value: Any, memo: dict[int, Any]) -> None:
    """Rejects a function that is bound to the original layer and would not use its copy."""
    for cell in getattr(value, "__closure__", None) or ():
        if id(cell.cell_contents) in memo or isinstance(cell.cell_contents, keras.Variable):
            raise ValueError("a function is bound to the original layer")


def _holders(layer: Any) -> list[Any]:
    return [part for part in flatten_layers(layer) if _holds_more(part)]


def _holds_more(layer: Any) -> bool:
    """Returns whether a layer has state that is no weight, such as a vocabulary."""
    return hasattr(layer, "save_assets")
