"""What an `Expanded` keeps of the layer that it stands for, as JSON: enough to put it back."""

from __future__ import annotations

import contextlib
import inspect
import json
import math
from typing import Any

import keras
from keras import tree

from tfcompress.graph.code import Unreadable, symbolic
from tfcompress.graph.read import Call

_UNUSED = 1 << 16
"""Values of weights that code does not use, as the token that masks a patch, to keep at most."""


def located(layer: Any, locations: dict[int, Any]) -> dict[str, Any]:
    """Returns where the weights of a layer are in its graph, and values of those that are not."""
    unused = [weight for weight in layer.weights if id(weight) not in locations]
    if sum(math.prod(weight.shape) for weight in unused) > _UNUSED:
        raise Unreadable("it has many weights that it does not use")
    return {
        "weights": [
            locations.get(id(weight), keras.ops.convert_to_numpy(weight).tolist())
            for weight in layer.weights
        ],
        "unused": [index for index, w in enumerate(layer.weights) if id(w) not in locations],
    }


def source_of(layer: Any, call: Call) -> dict[str, Any] | None:
    """Returns the layer's config and call arguments; None if JSON cannot represent them."""
    try:
        signature = inspect.signature(layer.call)
        arguments = signature.bind(*call.args, **kwargs_of(call)).arguments
        kinds = {signature.parameters[name].kind for name in arguments}
        if kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
            return None
        inputs = symbolic((call.args, call.kwargs))  # the inputs of the graph
        indices = {id(tensor): index for index, tensor in enumerate(inputs)}
        source: dict[str, Any] = {"inputs": {}, "options": {}}
        for name, value in arguments.items():
            tensors = [isinstance(v, keras.KerasTensor) for v in tree.flatten(value)]
            if any(tensors) and not all(tensors):
                return None
            if any(tensors):
                source["inputs"][name] = tree.map_structure(lambda t: indices[id(t)], value)
            elif hasattr(value, "shape") and math.prod(value.shape) <= _UNUSED:
                array = keras.ops.convert_to_numpy(value)
                source["options"][name] = {"array": array.tolist(), "dtype": str(array.dtype)}
            elif value is not None:
                source["options"][name] = value
        json.dumps(source)
    except TypeError:
        return None
    try:
        source["layer"] = keras.saving.serialize_keras_object(layer)
        json.dumps(source)
    except Exception:  # get_config() of a custom layer may raise anything
        source["layer"] = None
    return source


def kwargs_of(call: Call) -> dict[str, Any]:
    """Returns the arguments by name, without `training`, which Keras takes for any layer."""
    known = inspect.signature(call.operation.call).parameters
    return {k: v for k, v in call.kwargs.items() if k != "training" or k in known}


def is_restorable(expanded: Any, layer: Any) -> bool:
    """Returns whether a layer rebuilt from its config has weights of the same shapes."""
    inputs = [keras.KerasTensor(t.shape, t.dtype) for t in expanded.inputs]
    with contextlib.suppress(Exception):
        restored = expanded.layer()
        restored(**expanded.arguments(inputs))
        return [w.shape for w in restored.weights] == [w.shape for w in layer.weights]
    return False


def array_or_value(option: Any) -> Any:
    """Returns an argument of a layer as it was, where arrays are kept as lists."""
    if isinstance(option, dict) and option.keys() == {"array", "dtype"}:
        return keras.ops.convert_to_tensor(option["array"], option["dtype"])
    return option


def located_weights(
    layer: Any, source: dict[str, Any], parts: dict[str, Any]
) -> list[tuple[Any, Any]]:
    """Pairs the weights of a layer with those of its graph, or with the values that were kept.

    Args:
        layer: The layer.
        source: The result of `located`, among others.
        parts: The layers of the graph by path.
    """
    unused = set(source.get("unused", ()))  # their values stand in place of a location
    pairs = []
    for number, (weight, location) in enumerate(zip(layer.weights, source["weights"], strict=True)):
        if number in unused:
            pairs.append((weight, keras.ops.convert_to_tensor(location, weight.dtype)))
        else:
            path, index = location
            pairs.append((weight, parts[path].weights[index]))
    return pairs
