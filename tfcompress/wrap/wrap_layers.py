"""Wraps the layers of a model, or one layer, with a transform of their weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras

from tfcompress.errors import CompressionWarning
from tfcompress.graph.clone import Rewriter
from tfcompress.graph.copies import clone_layer
from tfcompress.graph.keras_internals import takes_mask
from tfcompress.graph.layers import plain
from tfcompress.graph.read import Call, Graph
from tfcompress.graph.weights import compressible_weights
from tfcompress.transforms.base import WeightTransform
from tfcompress.wrap.state import original_variables
from tfcompress.wrap.wrapper import CompressionWrapper


class WrapLayers(Rewriter):
    """Adds one transform to the chosen layers.

    Args:
        transform: Returns the transform of a layer; its arguments are path and layer.
        chosen: The paths of the layers.
        move: Whether layers are moved from the old model, which cannot be used after this.

    Attributes:
        added: The path of the layer that each wrapper replaces, by the path of the wrapper.
    """

    def __init__(
        self,
        transform: Callable[[str, Any], WeightTransform],
        chosen: set[str],
        *,
        move: bool = False,
    ) -> None:
        super().__init__()
        self._moves = move
        self._transform = transform
        self._chosen = chosen
        self.added: dict[str, str] = {}

    def visit(self, graph: Graph, call: Call, args: Any, kwargs: Any) -> Any:
        """Calls the wrapped parts of a chosen layer one after the other."""
        if call.path not in self._chosen:
            return super().visit(graph, call, args, kwargs)
        first, *rest = self.once(call.operation, lambda: self._wrap(call))
        # Keras masks are attached to the tensors.
        left_out = () if takes_mask(plain(first)) else ("mask",)
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

    # Subclasses override the following methods.

    def parts_of(self, path: str, layer: Any) -> list[Any] | None:
        """Returns the layers that replace a layer; None to wrap a copy of it."""
        return None

    def takes_transforms(self, part: Any) -> bool:
        """Returns whether one of several parts is the one with the weights."""
        return False

    def _wrap(self, call: Call) -> list[CompressionWrapper]:
        layer = plain(call.operation)
        parts = self.parts_of(call.path, layer)
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
        wrappers = []
        for index, part in enumerate(parts):
            origin = getattr(call.operation, "origin", None)
            if rewritten:
                origin = {"name": layer.name, "part": index, "parts": len(parts)}
                if index == 0:
                    origin["layer"] = keras.saving.serialize_keras_object(layer)
            # The part with the weights gets the transforms. Other parts only store their origin.
            wrapper = CompressionWrapper(
                part,
                transforms if len(parts) == 1 or self.takes_transforms(part) else [],
                origin=origin,
            )
            wrappers.append(wrapper)
            self.added[call.path.removesuffix(call.operation.name) + wrapper.name] = call.path
        if not moved:
            self.carry(call.operation, wrappers)
        return wrappers

    def match(self, old: Any, new: Any) -> Any:
        """Pairs variables of the layer, and state of its earlier transforms, with the copies."""
        if not isinstance(new, list):
            return super().match(old, new)
        parts = [wrapper.layer for wrapper in new]
        pairs = list(zip(plain(old).variables, original_variables(parts), strict=True))
        return pairs + self.match_transforms(old, pairs, new)

    def match_transforms(self, old: Any, pairs: Any, wrappers: Any) -> list[tuple[Any, Any]]:
        """Pairs the state of a layer's earlier transforms with that of their copies.

        Args:
            old: The layer, wrapped or not.
            pairs: Its variables and those of its replacements.
            wrappers: The replacements.
        """
        if not isinstance(old, CompressionWrapper):
            return []
        twins = {id(before): id(after) for before, after in pairs}
        chains = {id(w): chain for part in wrappers for w, chain in part.pipelines()}
        matched: list[tuple[Any, Any]] = []
        for weight, before in old.pipelines():
            kinds = {type(transform): transform for transform in chains[twins[id(weight)]]}
            for transform in before:
                matched += zip(transform.variables, kinds[type(transform)].variables, strict=True)
        return matched


def wrap_layer(layer: Any, transform: WeightTransform) -> CompressionWrapper:
    """Returns a copy of one layer with one more transform."""
    if not isinstance(layer, keras.layers.Layer):
        raise TypeError(
            "model_or_layer must be a Keras 3 model or layer. Received an object of type "
            f"{type(layer).__module__}.{type(layer).__name__}: {layer!r}"
        )
    transforms = [transform]
    if isinstance(layer, CompressionWrapper):
        transforms = [*layer.transforms, transform]
    inner = plain(layer)
    if inner.built and not compressible_weights(inner):
        raise ValueError(
            f"layer {layer.name!r} has nothing to compress: it has no kernel and no embeddings."
        )
    copy = clone_layer(inner)
    if inner.built:
        copy.build_from_config(inner.get_build_config())
        for old, new in zip(inner.variables, copy.variables, strict=True):
            new.assign(old)
    return CompressionWrapper(copy, transforms)


def nothing_to_compress(model: keras.Model) -> ValueError:
    """Returns the error for a model without weights to transform."""
    return ValueError(
        f"model {model.name!r} has nothing to compress: none of the layers has a kernel or "
        "embeddings (depthwise kernels are pruned only when `layers` names them)."
    )
