"""Matches the tensors of a file with the layers of its Keras model, by name.

TensorFlow names an operation by the nested name scopes that are open while it is traced. A layer
opens its scope twice in a call, the first time to build itself. A name in use gets a number. So the
scopes of each call follow from the order of the calls. The converter joins the names of fused
operations with ";".
"""

from __future__ import annotations

from collections.abc import Iterator

import keras

from tfcompress.graph.read import Call, input_names, is_graph, layer_name, read_graph, scope_name

# Suffixes of the names of the layers that `quantize` splits a layer into.
_PARTS = ("", "_depthwise", "_scaled", "_normalized", "_reshape", "_activation", "_quantizer")


class Owners:
    """Finds the call or input that the name of a tensor belongs to.

    Args:
        model: The Keras model that the file was made from, or a wrapped form of it.
    """

    def __init__(self, model: keras.Model) -> None:
        self._used: dict[str, int] = {}
        self._order: dict[str, int] = {}
        self._scopes: dict[str, str] = {}
        self._inputs: dict[str, str] = {}
        for tensor, name in zip(model.inputs, input_names(model), strict=True):
            opened = self._opened(f"{scope_name(layer_name(tensor))}_quantizer")
            self._inputs.update((scope, name) for scope in opened)
        self._read(model, "", "")

    def of(self, name: str) -> str | None:
        """Returns the key (see `keyed`) of the last call that computes a tensor, or None."""
        matches = [self._scopes[scope] for scope in _scopes_in(name) if scope in self._scopes]
        return max(matches, key=self._order.__getitem__, default=None)

    def input_of(self, name: str) -> str | None:
        """Returns the input of the model of which a tensor is the quantized form, or None."""
        matches = [self._inputs[scope] for scope in _scopes_in(name) if scope in self._inputs]
        return matches[0] if matches and self.of(name) is None else None

    def _read(self, model: keras.Model, scope: str, path: str) -> None:
        calls = read_graph(model).calls
        names = {call.operation.name for call in calls}
        for key, call in keyed(calls):
            self._order[path + key] = len(self._order)
            if not isinstance(call.operation, keras.layers.Layer):
                continue
            for part in _PARTS:
                name = call.operation.name + part
                if part and name in names:  # this model is split already
                    continue
                opened = self._opened(f"{scope}{name}")
                self._scopes.update(dict.fromkeys(opened, path + key))
                if not part and is_graph(call.operation):
                    self._read(call.operation, f"{opened[1]}/", f"{path}{key}/")

    def _opened(self, name: str) -> tuple[str, str]:
        return self._unique(name.lower()), self._unique(name.lower())

    def _unique(self, name: str) -> str:
        """Returns the scope that TensorFlow makes of a name: one in use gets a number."""
        count = self._used.get(name, 0)
        self._used[name] = count + 1
        free = name
        while count and free in self._used:
            free = f"{name}_{count}"
            count += 1
        self._used.setdefault(free, 1)
        return free


def keyed(calls: list[Call]) -> Iterator[tuple[str, Call]]:
    """Yields calls with a name that is unique among them: "dense", then "dense, call 2"."""
    counts: dict[str, int] = {}
    for call in calls:
        name = call.operation.name
        counts[name] = counts.get(name, 0) + 1
        yield name if counts[name] == 1 else f"{name}, call {counts[name]}", call


def _scopes_in(name: str) -> Iterator[str]:
    for part in name.lower().split(";"):
        inside = part.split("/")[1:]  # the first scope is that of the model
        yield from ("/".join(inside[:depth]) for depth in range(1, len(inside) + 1))
