"""Records the outputs of inner layers of a model during a forward pass.

Outputs (or attention maps) are recorded in any kind of model: nested, subclassed, wrapped, shared.
No layer runs twice.
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
    """The output or attention maps of a layer, to record.

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
        ValueError: If there is no such layer; the message lists the nearest paths.
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
    """Yields (path, layer) for all inner layers, also in subclassed models and custom layers."""
    for inner in sublayers(layer):
        if isinstance(inner, keras.layers.Layer) and not isinstance(inner, keras.layers.InputLayer):
            yield prefix + inner.name, inner
            yield from _walk(plain(inner), f"{prefix}{inner.name}/")


class Recorder:
    """Records features of one model.

    Args:
        model: Any built Keras model.
        features: The features to record.
        argument: Name of the argument with the layers, for messages.

    Raises:
        ValueError: If a path names no layer, or a layer has no attention maps.
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
        recorded: dict[Feature, Any] = {}
        with contextlib.ExitStack() as stack:
            for feature, layer in self._targets.items():
                stack.enter_context(_recording(feature, layer, recorded))
            outputs = self.model(inputs, training=training)
        for feature in self._targets:
            if feature not in recorded:
                raise ValueError(
                    f"Layer {feature.path!r} of model {self.model.name!r} was not called."
                )
            if not hasattr(recorded[feature], "shape"):
                raise ValueError(
                    f"Layer {feature.path!r} of model {self.model.name!r} puts out several "
                    "tensors. Name a layer that puts out one."
                )
        return outputs, recorded

    def shapes(self) -> dict[Feature, tuple[int | None, ...]]:
        """Returns the shape of each feature, without computing anything."""
        if not self._targets:
            return {}
        features = list(self._targets)

        def run(inputs: Any) -> list[Any]:
            recorded = self(inputs, training=False)[1]
            return [recorded[feature] for feature in features]

        specs = _Probe(run).compute_output_spec(input_spec(self.model))
        # The batch size is unknown, also if the model was built with one.
        return {f: (None, *s.shape[1:]) for f, s in zip(features, specs, strict=True)}


class _Probe(keras.layers.Layer):
    """Calls a function on symbolic tensors."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self._function = function

    def call(self, inputs: Any) -> Any:
        """Returns the result of the function."""
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
    inputs = {
        name: keras.KerasTensor((None, *shape[1:]), dtype=model.input_dtype)
        for name, shape in named.items()
    }
    return inputs if isinstance(first, dict) else inputs[""]


_guard = threading.Lock()
_this_thread = threading.local()
_users: dict[tuple[int, str], int] = {}
_originals: dict[tuple[int, str], Any] = {}


@contextlib.contextmanager
def _recording(feature: Feature, layer: Any, recorded: dict[Feature, Any]) -> Iterator[None]:
    """Inside the context, calls of `layer` on this thread store the feature in `recorded`.

    Replicas of a distribution strategy run in threads that alternate in the middle of a pass. So
    the method of the layer is replaced once for all threads, and each thread records into its own
    dicts.
    """
    method = ATTENTION_METHOD
    if not hasattr(layer, method) or feature.quantity == OUTPUT:
        method = "quantized_call" if getattr(layer, "quantization_mode", None) else "call"
    key = (id(layer), method)
    with _guard:
        _users[key] = _users.get(key, 0) + 1
        if _users[key] == 1:
            _originals[key] = vars(layer).get(method)
            vars(layer)[method] = _recording_method(getattr(layer, method), key)
    targets = vars(_this_thread).setdefault("targets", {})
    targets.setdefault(key, []).append((feature, recorded))
    try:
        yield
    finally:
        targets[key].pop()
        with _guard:
            _users[key] -= 1
            if not _users[key]:
                del _users[key]
                del vars(layer)[method]
                if (own_method := _originals.pop(key)) is not None:
                    vars(layer)[method] = own_method


def _recording_method(original: Any, key: tuple[int, str]) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        if key[1] == ATTENTION_METHOD:
            result, value = _with_scores(original, args, kwargs)
        else:
            result = value = original(*args, **kwargs)
        for feature, recorded in vars(_this_thread).get("targets", {}).get(key, []):
            recorded[feature] = value  # a layer called several times keeps its last call
        return result

    # Keras inspects the signature to choose the arguments.
    call.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    return call


def _with_scores(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Calls `_compute_attention` so that it returns the maps, which fused kernels lack."""
    layer = original.__self__
    if "return_attention_scores" in inspect.signature(original).parameters:
        bound = inspect.signature(original).bind(*args, **kwargs)
        bound.arguments["return_attention_scores"] = True
        result = original(*bound.args, **bound.kwargs)
    else:  # GroupQueryAttention has an attribute for this
        with returning_attention_maps(layer):
            result = original(*args, **kwargs)
    return result, result[1]
