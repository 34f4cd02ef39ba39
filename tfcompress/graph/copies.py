"""One layer or operation again: its config, its weights and whatever else it holds."""

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
from tfcompress.graph.read import is_graph

_PLAIN = {"name", "trainable", "dtype"}  # what can be changed on a layer that was made already


def clone_layer(
    layer: Any, /, *, known: Mapping[int, Any] | None = None, graphs: Any = None, **overrides: Any
) -> Any:
    """Makes a copy of a layer or operation, which no model has called yet.

    Layers of Keras are made from their config, unbuilt; `copy_state` gives them the rest. Those of
    others, whose configs may not tell all, are copied attribute by attribute, as they are.

    Args:
        layer: What to copy.
        known: Copies of layers made already, by `id`: a layer that holds one of these (a head that
            shares the weights of an embedding) will hold its copy.
        graphs: Copies a model inside the layer, and returns the copies of its layers by `id`.
        **overrides: Config entries that replace the original ones.

    Raises:
        ValueError: If the layer can be made from its config as little as by copying it.
    """
    if not isinstance(layer, keras.layers.Layer):
        return _clone_operation(layer, overrides)
    theirs = type(layer).__module__.split(".")[0] not in ("keras", "tfcompress")
    if theirs and (made := _duplicated(layer, known, graphs, overrides)) is not None:
        return made
    try:
        return _from_config(layer, overrides)
    except Exception as error:  # whatever the code of others raises
        if not theirs and (made := _duplicated(layer, known, graphs, overrides)) is not None:
            return made
        raise ValueError(
            f"Layer {layer.name!r} ({type(layer).__name__}) cannot be copied: it must implement "
            f"get_config() so that {type(layer).__name__}.from_config(config) makes an equal layer."
        ) from error


def copy_state(old: Any, new: Any) -> None:
    """Gives a built copy of a layer what the original holds beside its weights: tables, say.

    To be called before its weights are assigned; see `after_weights`.

    Args:
        old: The original.
        new: The copy; a list where several layers stand for it.
    """
    targets = [
        part for whole in (new if isinstance(new, list) else [new]) for part in _holders(whole)
    ]
    for source, target in zip(_holders(old), targets, strict=True):
        store: dict[str, Any] = {}
        source.save_own_variables(store)
        target.load_own_variables(store)
        with temporary_folder() as folder:
            source.save_assets(folder)
            target.load_assets(folder)


def after_weights(layer: Any) -> None:
    """Has a layer compute again what it computes once from its weights."""
    for part in flatten_layers(layer):
        if isinstance(part, keras.layers.Normalization):
            part.finalize_state()


def free_of_sizes(layer: Any) -> dict[str, Any]:
    """Returns config entries for a copy of other sizes: in place of initial values as arrays."""
    arrays = (
        name
        for name, value in vars(layer).items()
        if isinstance(value, keras.initializers.Constant) and np.size(value.value) > 1
    )
    return {name.lstrip("_"): "glorot_uniform" for name in arrays}


def _clone_operation(operation: Any, overrides: dict[str, Any]) -> Any:
    """Copies an operation, which has no state: its settings are its attributes."""
    made = object.__new__(type(operation))
    vars(made).update({**vars(operation), **overrides, **{name: [] for name in CALLS}})
    return made


def _from_config(layer: Any, overrides: dict[str, Any]) -> Any:
    if type(layer) is keras.layers.Lambda:
        # From its config Keras would refuse to make one: that could run code, were it from a file.
        own = {
            "function": layer.function,
            "output_shape": lambda_output_shape(layer),
            "mask": layer.mask,
        }
        return keras.layers.Lambda(**{**layer.get_config(), **own, **overrides})
    # Classes that are not registered with Keras are known all the same: here they are.
    known = {type(part).__name__: type(part) for part in flatten_layers(layer)}
    config = layer.get_config()
    with keras.saving.custom_object_scope(known):
        try:
            return type(layer).from_config({**config, **overrides})
        except TypeError:
            # Functions that Keras does not find by their names, lambdas among them.
            own = {
                name: getattr(layer, name)
                for name, told in config.items()
                if isinstance(told, dict) and inspect.isfunction(getattr(layer, name, None))
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
            made = _duplicate(layer, known or {}, graphs)
    except Exception:  # attributes may be anything: locks, files, generators
        return None
    policy = overrides.pop("dtype", None)
    if policy is not None:
        for part in flatten_layers(made):
            if part.dtype_policy == layer.dtype_policy:
                part.dtype_policy = policy
    for name, value in overrides.items():
        setattr(made, name, value)
    return made


def _duplicate(layer: Any, known: Mapping[int, Any], graphs: Any) -> Any:
    parts: list[Any] = []
    waiting, memo = [layer], {}
    while waiting:
        part = waiting.pop()
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
            kind: Any = type(part)
            memo[id(part)] = kind.__new__(kind)
            waiting += sublayers(part)
    memo |= {id(module): module for module in [*sys.modules.values()]}
    for part in parts:
        made = memo[id(part)]
        for name, value in vars(part).items():
            if name in CALLS:
                vars(made)[name] = []
            elif name not in ("build", "quantize"):  # which are of the new layer already
                _check_unbound(value, memo)
                vars(made)[name] = copy.deepcopy(value, memo)
        stored = tracked_ids(made)
        for kind, ids in stored.items():
            stored[kind] = {id(memo[key]) for key in ids if key in memo}
    return memo[id(layer)]


def _check_unbound(value: Any, memo: dict[int, Any]) -> None:
    """Refuses a function that would go on reading the layer it was made in, not its copy."""
    for cell in getattr(value, "__closure__", None) or ():
        if id(cell.cell_contents) in memo or isinstance(cell.cell_contents, keras.Variable):
            raise ValueError("a function is bound to the original layer")


def _holders(layer: Any) -> list[Any]:
    return [part for part in flatten_layers(layer) if _holds_more(part)]


def _holds_more(layer: Any) -> bool:
    """Returns whether a layer of Keras keeps what is no weight: a vocabulary."""
    return hasattr(layer, "save_assets")
