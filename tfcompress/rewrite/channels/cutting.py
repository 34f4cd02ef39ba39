"""Builds a model without some of its channels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.graph.clone import Rewriter
from tfcompress.graph.copies import clone_layer, free_of_sizes
from tfcompress.graph.expand import Expanded
from tfcompress.graph.keras_internals import producing_operation
from tfcompress.graph.read import Call, Graph
from tfcompress.rewrite.channels.coupling import Coupling, along


def cut(model: keras.Model, coupling: Coupling, removed: Iterable[int]) -> keras.Model:
    """Returns the model without the channels of some units.

    Args:
        model: The model that `coupling` was read from. It is not changed.
        coupling: Its channels and their coupling.
        removed: Numbers of the units to remove.
    """
    return _Cut(coupling, removed).run(model)


class _Cut(Rewriter):
    def __init__(self, coupling: Coupling, removed: Iterable[int]) -> None:
        super().__init__()
        self._coupling = coupling
        self._stays = np.ones(coupling.units, bool)
        self._stays[list(removed)] = False

    def stays(self, numbers: np.ndarray) -> np.ndarray:
        return self._stays[self._coupling.unit_of(numbers)]

    def class_for(self, model: keras.Model) -> type[keras.Model]:
        # A custom layer cannot be restored around layers of other sizes.
        return keras.Model if isinstance(model, Expanded) else super().class_for(model)

    def input_like(self, tensor: Any) -> Any:
        shape = list(tensor.shape)
        numbers = self._coupling.tensors[id(tensor)]
        for axis, size in enumerate(numbers.shape):
            if size > 1:
                shape[axis + 1] = int(self.stays(along(numbers, axis)).sum())
        return clone_layer(producing_operation(tensor), batch_shape=tuple(shape)).output

    def visit(self, graph: Graph, call: Call, args: Any, kwargs: Any) -> Any:
        settings = self._coupling.settings.get(id(call.operation))
        arguments = self._coupling.arguments.get(id(call.outputs[0]))
        if arguments is not None:
            args, kwargs = (args[0], arguments(self.stays)), {}
        if not settings:
            return super().visit(graph, call, args, kwargs)
        nested = any("/" in entry for entry, _, _ in settings)
        config = call.operation.get_config() if nested else {}
        overrides: dict[str, Any] = free_of_sizes(call.operation)
        for entry, numbers, value in settings:
            stays = self.stays(numbers)
            new_value = value(stays) if value else int(stays.sum())
            first, *rest = entry.split("/")
            if not rest:
                overrides[first] = new_value
                continue
            inner = overrides.setdefault(first, config.get(first))
            if inner is None:  # the backward layer, which is created like the forward one
                del overrides[first]
                continue
            inner.pop("build_config", None)  # it has the old sizes
            for name in rest[:-1]:
                inner = inner[name]
            inner[rest[-1]] = new_value
        return self.clone(call.operation, **overrides)(*args, **kwargs)

    def value_of(self, variable: Any) -> Any:
        use = self._coupling.uses.get(id(variable))
        if use is None:
            return variable
        value = ops.convert_to_numpy(variable)
        for axis, numbers in use.axes.items():
            value = np.compress(self.stays(numbers), value, axis)
        return value
