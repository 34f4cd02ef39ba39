"""Wraps the layers of a model with a transform of their weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras

from tfcompress.errors import CompressionWarning
from tfcompress.graph.clone import Rewriter
from tfcompress.graph.cost import plain
from tfcompress.graph.dot_attention import fits_sixteen_bits
from tfcompress.graph.expand import (
    Expanded,
    arguments_of,
    expand_attention,
    expandable,
    explicit_masks,
    inputs_of,
    matching_variables,
)
from tfcompress.graph.read import Call, Graph, read_graph
from tfcompress.transforms import WeightTransform
from tfcompress.wrap.canonicalize import KERNELS, activation_name, original_variables, parts_of
from tfcompress.wrap.wrapper import CompressionWrapper, compressible_weights


class AddTransform(Rewriter):
    """Wraps the chosen layers with one transform more, and optionally splits layers by rules."""

    def __init__(
        self,
        transform: Callable[[str, Any], WeightTransform],
        chosen: set[str],
        *,
        canonicalize: bool = False,
        move: bool = False,
        wide: set[str] | None = None,
    ) -> None:
        super().__init__()
        self._wide = wide or set()
        self._moves = move
        self._transform = transform
        self._chosen = chosen
        self._canonicalize = canonicalize
        self._expandable: set[int] = set()
        self.added: dict[str, str] = {}

    def run(self, model: keras.Model) -> keras.Model:
        """Returns the wrapped model."""
        if self._canonicalize:
            self._expandable = expandable(model)
        return super().run(model)

    def visit(self, graph: Graph, call: Call, args: Any, kwargs: Any) -> Any:
        """Calls the wrapped parts of a chosen layer one after the other."""
        if call.path not in self._chosen:
            return super().visit(graph, call, args, kwargs)
        if id(call.operation) in self._expandable and self._fits(call):
            told = arguments_of(plain(call.operation), args, kwargs)
            given = explicit_masks(plain(call.operation), told)
            expanded = self.once(call.operation, lambda: self._expand(call, given, inputs_of(told)))
            return expanded([given[name] for name in inputs_of(given)])
        first, *rest = self.once(call.operation, lambda: self._wrap(call))
        # Tensors carry masks along themselves.
        left_out = () if plain(first)._call_has_mask_arg else ("mask",)
        kwargs = {
            k: value for k, value in kwargs.items() if value is not None and k not in left_out
        }
        outputs = first(*args, **kwargs)
        for part in rest:
            outputs = part(outputs)
        return outputs

    def clone(self, operation: Any, /, **overrides: Any) -> Any:
        """Returns the copy of an operation, or the operation itself where layers move."""
        if self._moves and isinstance(operation, keras.layers.Layer):
            return self.move(operation)
        return super().clone(operation, **overrides)

    def _wrap(self, call: Call) -> list[CompressionWrapper]:
        layer = plain(call.operation)
        parts = parts_of(layer) if self._canonicalize else None
        rewritten = parts is not None
        transforms = [self._transform(call.path, layer)] if compressible_weights(layer) else []
        if not (rewritten or transforms):
            return [self.clone(call.operation)]
        if isinstance(call.operation, CompressionWrapper):
            transforms = [*call.operation.transforms, *transforms]
        moved = self._moves and not rewritten and layer is call.operation
        parts = parts or [self.move(layer) if moved else self.copy(layer)]
        if parts[0] is layer and not moved:
            warnings.warn(
                f"layer {call.path!r} ({type(layer).__name__}) is left as it is, and is in both "
                "models: it can be copied neither as it is nor from its config.",
                CompressionWarning,
                stacklevel=2,
            )
            return [self.clone(call.operation)]
        own_activation = hasattr(layer, "activation") and activation_name(layer) is None
        if self._canonicalize and own_activation:
            warnings.warn(
                f"layer {call.path!r} has an activation that is no Keras activation "
                f"({layer.activation!r}); it is quantized behind it, not before it.",
                CompressionWarning,
                stacklevel=2,
            )
        wrappers = []
        for index, part in enumerate(parts):
            origin = getattr(call.operation, "origin", None)
            if rewritten:
                origin = {"name": layer.name, "part": index, "parts": len(parts)}
                if index == 0:
                    origin["layer"] = keras.saving.serialize_keras_object(layer)
            # Transforms go where the weights are; other parts are wrapped for their origin alone.
            wrapper = CompressionWrapper(
                part,
                transforms if len(parts) == 1 or isinstance(part, KERNELS) else [],
                origin=origin,
            )
            wrappers.append(wrapper)
            self.added[call.path.removesuffix(call.operation.name) + wrapper.name] = call.path
        if not moved:
            self.carry(call.operation, wrappers)
        return wrappers

    def _fits(self, call: Call) -> bool:
        """Returns whether a layer can be written out with the bits that it is to have."""
        return call.path not in self._wide or fits_sixteen_bits(plain(call.operation))

    def _expand(self, call: Call, given: dict[str, Any], told: list[str]) -> Expanded:
        wrapper = isinstance(call.operation, CompressionWrapper)
        before = call.operation.transforms if wrapper else []

        def wrapped(part: Any) -> CompressionWrapper:
            return CompressionWrapper(part, [*before, self._transform(call.path, part)])

        expanded = expand_attention(plain(call.operation), given, told, wrapped)
        inside = read_graph(expanded, call.path + "/").calls
        self.added.update((inner.path, call.path) for inner in inside)
        self.carry(call.operation, expanded)
        return expanded

    def match(self, old: Any, new: Any) -> Any:
        """Pairs variables of the layer itself, and state of the transforms it had before."""
        layer = plain(old)
        if isinstance(new, Expanded):
            pairs = matching_variables(layer, lambda name: plain(new.get_layer(name)))
            wrappers = [part for part in new.layers if isinstance(part, CompressionWrapper)]
        elif isinstance(new, list):
            wrappers = new
            parts = [wrapper.layer for wrapper in new]
            pairs = list(zip(layer.variables, original_variables(parts), strict=True))
        else:
            return super().match(old, new)
        if isinstance(old, CompressionWrapper):
            twins = {id(before): id(after) for before, after in pairs}
            chains = {id(w): chain for part in wrappers for w, chain in part.pipelines()}
            for weight, before in old.pipelines():
                kinds = {type(transform): transform for transform in chains[twins[id(weight)]]}
                for transform in before:
                    pairs += zip(transform.variables, kinds[type(transform)].variables, strict=True)
        return pairs
