"""Gives the inputs of a model other sizes, or sizes that were open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from tfcompress.graph.clone import Rewriter
from tfcompress.graph.copies import clone_layer
from tfcompress.graph.keras_internals import producing_operation
from tfcompress.graph.read import Call, Graph, called_once, input_specs, is_graph, read_graphs


def input_shapes(model: keras.Model, input_shape: Any) -> list[tuple[int | None, ...]]:
    """Returns the shape of one sample of each input.

    Args:
        model: A Sequential or Functional model.
        input_shape: The shape of one sample, or a dict of these by input name. None leaves every
            input as it is.

    Raises:
        ValueError: If an input is unknown, or the shape does not fit it.
    """
    specs = {spec.name: spec.shape for spec in input_specs(model)}
    if input_shape is None:
        input_shape = {}
    if not isinstance(input_shape, Mapping):
        if len(specs) > 1:
            raise ValueError(
                "input_shape must be a dict by input name where there are several: "
                f"{', '.join(map(repr, specs))}. Received: {input_shape!r}"
            )
        input_shape = dict.fromkeys(specs, input_shape)
    for name, shape in input_shape.items():
        if name not in specs:
            raise ValueError(
                f"input_shape names the input {name!r}, which the model does not have. It has: "
                f"{', '.join(map(repr, specs))}"
            )
        sizes = isinstance(shape, (tuple, list)) and all(
            isinstance(n, int) and n > 0 and not isinstance(n, bool) for n in shape
        )
        fits = sizes and len(shape) == len(specs[name])
        if not fits or any(
            b is not None and a != b for a, b in zip(shape, specs[name], strict=True)
        ):
            raise ValueError(
                f"input_shape of {name!r} must have whole numbers in place of each None of "
                f"{specs[name]}, without the batch. Received: {shape!r}"
            )
    return [tuple(input_shape.get(name, shape)) for name, shape in specs.items()]


def sized_layer(model: keras.Model) -> tuple[str, int] | None:
    """Returns the path of a layer that needs a minimum image size, and this size.

    Only images of unknown size matter: the runtime first prepares a file for images of one pixel.
    """
    for graph in read_graphs(model).values():
        for call in graph.calls:
            layer = getattr(call.operation, "layer", call.operation)
            sizes = getattr(layer, "kernel_size", getattr(layer, "pool_size", None))
            if is_graph(layer) or not isinstance(sizes, (tuple, list)) or not call.inputs:
                continue
            if None in call.inputs[0].shape[1:] and layer.padding == "valid" and max(sizes) > 1:
                return call.path, max(sizes)
    return None


class Resize(Rewriter):
    """Gives the inputs of a model, and of the models in it, the sizes that are known."""

    def __init__(self, shapes: list[tuple[int | None, ...]]) -> None:
        super().__init__()
        self._outer = shapes
        self._shapes: dict[int, tuple[int | None, ...]] = {}
        self._once: set[int] = set()

    def run(self, model: keras.Model) -> keras.Model:
        """Returns the model for inputs of these sizes."""
        self._once = called_once(model)
        self._shapes.update((id(t), s) for t, s in zip(model.inputs, self._outer, strict=True))
        return super().run(model)

    def input_like(self, tensor: Any) -> Any:
        """Creates an input of the size that is known."""
        shape = self._shapes.get(id(tensor), tensor.shape[1:])
        input_layer = producing_operation(tensor)
        return clone_layer(input_layer, batch_shape=(tensor.shape[0], *shape)).output

    def visit_model(self, graph: Graph, call: Call, args: Any, kwargs: Any) -> Any:
        """Emits a nested model for the sizes that it is called on."""
        tensors = [
            t for t in keras.tree.flatten((args, kwargs)) if isinstance(t, keras.KerasTensor)
        ]
        once = id(call.operation) in self._once  # else it may be called on several sizes
        for inner, outer in zip(call.operation.inputs, tensors, strict=False):
            pairs = zip(inner.shape[1:], outer.shape[1:], strict=True)
            shape = tuple(new if once or new == old else None for old, new in pairs)
            self._shapes[id(inner)] = shape
        return super().visit_model(graph, call, args, kwargs)
