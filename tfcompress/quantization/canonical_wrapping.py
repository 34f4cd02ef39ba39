"""Wraps the layers of a model in their canonical forms, to be quantized."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras

from tfcompress.errors import CompressionWarning
from tfcompress.graph.dot_attention import fits_int16
from tfcompress.graph.expand import (
    Expanded,
    arguments_of,
    expand_attention,
    expandable,
    explicit_masks,
    inputs_of,
    matching_variables,
)
from tfcompress.graph.layers import KERNELS, activation_name, plain
from tfcompress.graph.read import Call, Graph, read_graph
from tfcompress.graph.weights import compressible_weights
from tfcompress.quantization.canonicalize import parts_of
from tfcompress.scheme import PREFERENCES
from tfcompress.transforms.base import WeightTransform
from tfcompress.wrap.wrap_layers import WrapLayers
from tfcompress.wrap.wrapper import CompressionWrapper


class WrapCanonicalForms(WrapLayers):
    """Wraps the chosen layers, each split into simpler ones that match operations of the runtime.

    Args:
        transform: Returns the transform for a layer, from its path and the layer.
        chosen: The paths of the layers.
        move: Whether layers are taken from the old model, which must not be used any more.
        int16: The paths of the layers that are to have int16 activations.
        prefer: The `prefer` of the scheme.
    """

    def __init__(
        self,
        transform: Callable[[str, Any], WeightTransform],
        chosen: set[str],
        *,
        move: bool = False,
        int16: set[str] | None = None,
        prefer: str = PREFERENCES[0],
    ) -> None:
        super().__init__(transform, chosen, move=move)
        self._prefer = prefer
        self._int16 = int16 or set()
        self._expandable: set[int] = set()

    def run(self, model: keras.Model) -> keras.Model:
        """Returns the wrapped model."""
        self._expandable = expandable(model)
        return super().run(model)

    def visit(self, graph: Graph, call: Call, args: Any, kwargs: Any) -> Any:
        """Calls the wrapped parts of a chosen layer, which may be a model of its own."""
        expands = id(call.operation) in self._expandable and self._fits(call)
        if call.path not in self._chosen or not expands:
            return super().visit(graph, call, args, kwargs)
        arguments = arguments_of(plain(call.operation), args, kwargs)
        masked = explicit_masks(plain(call.operation), arguments)
        expanded = self.once(
            call.operation, lambda: self._expand(call, masked, inputs_of(arguments))
        )
        return expanded([masked[name] for name in inputs_of(masked)])

    def parts_of(self, path: str, layer: Any) -> list[Any] | None:
        """Returns what a layer becomes by the rules, or None."""
        parts = parts_of(layer, self._prefer)
        takes_part = parts is not None or compressible_weights(layer)
        if takes_part and hasattr(layer, "activation") and activation_name(layer) is None:
            warnings.warn(
                f"layer {path!r} has an activation that is no Keras activation "
                f"({layer.activation!r}); it is quantized after this activation, not before.",
                CompressionWarning,
                stacklevel=2,
            )
        return parts

    def takes_transforms(self, part: Any) -> bool:
        """Returns whether one of several parts is the one with the weights."""
        return isinstance(part, KERNELS)

    def match(self, old: Any, new: Any) -> Any:
        """Pairs variables of the layer itself, and state of the transforms it had before."""
        if not isinstance(new, Expanded):
            return super().match(old, new)
        pairs = matching_variables(plain(old), lambda name: plain(new.get_layer(name)))
        wrappers = [part for part in new.layers if isinstance(part, CompressionWrapper)]
        return pairs + self.match_transforms(old, pairs, wrappers)

    def _fits(self, call: Call) -> bool:
        """Returns whether a layer can be expanded with the bits that it is to have."""
        return call.path not in self._int16 or fits_int16(plain(call.operation))

    def _expand(self, call: Call, arguments: dict[str, Any], inputs: list[str]) -> Expanded:
        wrapper = isinstance(call.operation, CompressionWrapper)
        before = call.operation.transforms if wrapper else []

        def wrapped(part: Any) -> CompressionWrapper:
            return CompressionWrapper(part, [*before, self._transform(call.path, part)])

        expanded = expand_attention(plain(call.operation), arguments, inputs, wrapped)
        inside = read_graph(expanded, call.path + "/").calls
        self.added.update((inner.path, call.path) for inner in inside)
        self.carry(call.operation, expanded)
        return expanded
