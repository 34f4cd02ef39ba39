"""What layers inside a model put out, while the model runs as always.

A forward pass records the outputs (or attention maps) of the layers asked for, whatever kind of
model they are in: nested, subclassed, wrapped, shared. Nothing is run twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras

from tfcompress.graph.expand import Expanded
from tfcompress.graph.keras_internals import (
    ATTENTION_METHOD,
    build_shapes,
    input_struct,
    returning_attention_maps,
    sublayers,
)
from tfcompress.graph.layers import plain

OUTPUT, ATTENTION = "output", "attention"


@dataclasses.dataclass(frozen=True)
class Feature:
    """Something to record.

    Attributes:
        path: Path of the layer: names of the nested models and of the layer, joined by "/".
        quantity: "output", or "attention" for the maps of a MultiHeadAttention layer, shaped
            (batch, heads, queries, keys).
    """

    path: str
    quantity: str = OUTPUT


def find_layer(model: keras.Model, path: str, argument: str) -> keras.layers.Layer:
    """Returns the layer at a path.

    Raises:
        ValueError: If there is none; the message lists the nearest paths.
    """
    layers = dict(_walk(model))
    if path not in layers:
        nearest = difflib.get_close_matches(path, layers, n=3, cutoff=0.3)
        raise ValueError(
            f"{argument}={path!r} names no layer of model {model.name!r}. "
            + (f"Nearest: {', '.join(nearest)}. " if nearest else "")
            + f"All: {', '.join(list(layers)[:30])}"
        )
    return layers[path]


def _walk(layer: Any, prefix: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    """Yields (path, layer) for all layers inside, also in subclassed models and custom layers."""
    for inner in sublayers(layer):
        if isinstance(inner, keras.layers.Layer) and not isinstance(inner, keras.layers.InputLayer):
            yield prefix + inner.name, inner
            yield from _walk(plain(inner), f"{prefix}{inner.name}/")


class Recorder:
    """Records features of one model.

    Args:
        model: Any built Keras model.
        features: What to record.
        argument: The argument that named the layers, for messages.

    Raises:
        ValueError: If a path names no layer, or attention is asked of a layer that has none.
    """

    def __init__(self, model: keras.Model, features: list[Feature], argument: str) -> None:
        self.model = model
        self._targets = {}
        for feature in dict.fromkeys(features):
            layer = find_layer(model, feature.path, argument)
            if feature.quantity == ATTENTION:
                layer = plain(layer)
                if isinstance(layer, Expanded):
                    layer = layer.get_layer("softmax")
                elif not hasattr(layer, ATTENTION_METHOD):
                    raise ValueError(
                        f"{argument}={feature.path!r} must name a MultiHeadAttention layer. "
                        f"Received a {type(layer).__name__}."
                    )
            self._targets[feature] = layer

    def __call__(self, inputs: Any, training: bool) -> tuple[Any, dict[Feature, Any]]:
        """Runs the model once and returns its outputs and the features.

        Raises:
            ValueError: If a layer was not called in this pass.
        """
        if not self._targets:
            return self.model(inputs, training=training), {}
        found: dict[Feature, Any] = {}
        with contextlib.ExitStack() as stack:
            for feature, layer in self._targets.items():
                stack.enter_context(_listening(feature, layer, found))
            outputs = self.model(inputs, training=training)
        for feature in self._targets:
            if feature not in found:
                raise ValueError(
                    f"Layer {feature.path!r} of model {self.model.name!r} was not called."
                )
            if not hasattr(found[feature], "shape"):
                raise ValueError(
                    f"Layer {feature.path!r} of model {self.model.name!r} puts out several "
                    "tensors. Name a layer that puts out one."
                )
        return outputs, found

    def shapes(self) -> dict[Feature, tuple[int | None, ...]]:
        """Returns the shape of each feature, without computing anything."""
        if not self._targets:
            return {}
        features = list(self._targets)

        def run(inputs: Any) -> list[Any]:
            found = self(inputs, training=False)[1]
            return [found[feature] for feature in features]

        specs = _Probe(run).compute_output_spec(input_spec(self.model))
        # Of the batch nothing is known, whatever the model was built with.
        return {f: (None, *s.shape[1:]) for f, s in zip(features, specs, strict=True)}


class _Probe(keras.layers.Layer):
    """Calls a function on symbols."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self._function = function

    def call(self, inputs: Any) -> Any:
        """Returns what the function makes of the inputs."""
        return self._function(inputs)


def input_spec(model: keras.Model) -> Any:
    """Returns symbolic inputs of a model."""
    struct = input_struct(model)
    if struct is None and getattr(model, "inputs", None):
        struct = model.inputs[0] if len(model.inputs) == 1 else list(model.inputs)
    if struct is not None:
        return keras.tree.map_structure(lambda t: keras.KerasTensor(t.shape, dtype=t.dtype), struct)
    shapes = build_shapes(model)
    if not shapes:
        raise ValueError(
            f"The input shape of the subclassed model {model.name!r} is not known: build it with "
            "model.build(input_shape) or call it once, before it is distilled."
        )
    first = next(iter(shapes.values()))
    named = first if isinstance(first, dict) else {"": first}
    made = {
        name: keras.KerasTensor((None, *shape[1:]), dtype=model.input_dtype)
        for name, shape in named.items()
    }
    return made if isinstance(first, dict) else made[""]


_guard = threading.Lock()
_active = threading.local()
_taps: dict[tuple[int, str], int] = {}
_before: dict[tuple[int, str], Any] = {}


@contextlib.contextmanager
def _listening(feature: Feature, layer: Any, found: dict[Feature, Any]) -> Iterator[None]:
    """While inside, calls of `layer` on this thread leave what they made in `found`.

    Replicas of a distribution strategy run in threads of their own that take turns in the middle of
    a pass: the tap is put on once for all of them, and what it hears goes to the thread's own ear.
    """
    method = ATTENTION_METHOD
    if not hasattr(layer, method) or feature.quantity == OUTPUT:
        method = "quantized_call" if getattr(layer, "quantization_mode", None) else "call"
    key = (id(layer), method)
    with _guard:
        _taps[key] = _taps.get(key, 0) + 1
        if _taps[key] == 1:
            _before[key] = vars(layer).get(method)
            vars(layer)[method] = _tapped(getattr(layer, method), key)
    ears = vars(_active).setdefault("ears", {})
    ears.setdefault(key, []).append((feature, found))
    try:
        yield
    finally:
        ears[key].pop()
        with _guard:
            _taps[key] -= 1
            if not _taps[key]:
                del _taps[key]
                del vars(layer)[method]
                if (own := _before.pop(key)) is not None:
                    vars(layer)[method] = own


def _tapped(original: Any, key: tuple[int, str]) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        if key[1] == ATTENTION_METHOD:
            made, heard = _with_scores(original, args, kwargs)
        else:
            made = heard = original(*args, **kwargs)
        for feature, found in vars(_active).get("ears", {}).get(key, []):
            found[feature] = heard  # of a layer called several times, the last call
        return made

    # Keras looks at the signature to know what to pass.
    call.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    return call


def _with_scores(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Calls `_compute_attention` so that it makes the maps, which fused kernels do not."""
    layer = original.__self__
    if "return_attention_scores" in inspect.signature(original).parameters:
        bound = inspect.signature(original).bind(*args, **kwargs)
        bound.arguments["return_attention_scores"] = True
        made = original(*bound.args, **bound.kwargs)
    else:  # GroupQueryAttention keeps the wish on itself
        with returning_attention_maps(layer):
            made = original(*args, **kwargs)
    return made, made[1]
