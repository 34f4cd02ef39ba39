"""Rebuilds a model call by call: the base of every change to a graph."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
from keras import ops, tree

from tfcompress.graph.copies import after_weights, clone_layer, copy_state
from tfcompress.graph.expand import Expanded
from tfcompress.graph.keras_internals import (
    REFUSES_IDENTITY,
    clear_calls,
    flatten_layers,
    input_struct,
    output_struct,
    producing_inputs,
    producing_operation,
)
from tfcompress.graph.layers import plain
from tfcompress.graph.read import Call, Graph, is_graph, read_graph, read_graphs


class Rewriter:
    """Builds a new model from an old one; subclasses define what each call is replaced by.

    The old model and its layers are never changed. Shared layers stay shared, nested models stay
    nested, names and structures of inputs and outputs are kept, and weights are copied at the end.
    A layer that cannot be copied is shared by both models.
    """

    sequential_class: type[keras.Model] = keras.Sequential

    def __init__(self) -> None:
        self._replacements: dict[int, Any] = {}
        self._originals: list[Any] = []  # kept alive, so that the ids in the memo stay unique
        self._carried: list[tuple[Any, Any]] = []
        self._initializers: list[tuple[Any, dict[str, Any]]] = []
        self._graphs: dict[int, Graph] = {}

    def run(self, model: keras.Model) -> keras.Model:
        """Returns the rewritten model, with the weights of the old one."""
        self._graphs = read_graphs(model)  # first of all: moving a layer clears its calls
        new = self._rebuild(model, "")
        for part, initializers in self._initializers:
            vars(part).update(initializers)
        for old_layer, new_layer in self._carried:
            if isinstance(old_layer, keras.layers.Layer):
                copy_state(old_layer, new_layer)
            for old_variable, new_variable in self.match(old_layer, new_layer):
                value = self.value_of(old_variable)
                if tuple(value.shape) != tuple(new_variable.shape):  # heads flattened, or back
                    value = ops.reshape(value, new_variable.shape)
                new_variable.assign(value)
            for whole in new_layer if isinstance(new_layer, list) else [new_layer]:
                after_weights(whole)
                if isinstance(old_layer, keras.layers.Layer) and not plain(old_layer).trainable:
                    # Keras does not freeze the sublayers of a layer that was created frozen.
                    for part in flatten_layers(plain(whole)):
                        part.trainable = False
        return new

    # What subclasses override.

    def visit(self, graph: Graph, call: Call, args: Any, kwargs: Any) -> Any:
        """Emits one call; `args` and `kwargs` hold the emitted tensors of the call's inputs."""
        return self.clone(call.operation)(*args, **kwargs)

    def visit_model(self, graph: Graph, call: Call, args: Any, kwargs: Any) -> Any:
        """Emits the call of a nested model, which is rewritten once."""
        nested = self.once(call.operation, lambda: self._rebuild(call.operation, call.path + "/"))
        return nested(*args, **kwargs)

    def input_like(self, tensor: Any) -> Any:
        """Creates an input of the new model, like that of the old one."""
        return clone_layer(producing_operation(tensor)).output

    def enter(self, model: keras.Model, path: str, inputs: list[Any]) -> list[Any]:
        """Emits what follows the inputs of a model; path is "" for the outermost."""
        return inputs

    def leave(self, model: keras.Model, path: str, outputs: list[Any]) -> list[Any]:
        """Emits what precedes the outputs of a model."""
        return outputs

    def class_for(self, model: keras.Model) -> type[keras.Model]:
        """Chooses the class of the new model."""
        return self.sequential_class if isinstance(model, keras.Sequential) else type(model)

    def match(self, old: Any, new: Any) -> Iterable[tuple[Any, Any]]:
        """Pairs the variables of a layer with those of its replacement."""
        return zip(old.variables, new.variables, strict=True)

    def value_of(self, variable: Any) -> Any:
        """Returns the value that the copy of an old variable starts with."""
        return variable

    # What subclasses use.

    def once(self, original: Any, create: Any) -> Any:
        """Returns the one replacement of `original`, created at its first use."""
        if id(original) not in self._replacements:
            replacement = create()
            self._originals.append(original)
            self._replacements[id(original)] = replacement
        return self._replacements[id(original)]

    def clone(self, operation: Any, /, **overrides: Any) -> Any:
        """Returns the one copy of `operation`; its weights are copied at the end."""

        def create() -> Any:
            new = self.copy(operation, **overrides)
            if isinstance(operation, keras.layers.Layer) and new is not operation:
                self.carry(operation, new)
            return new

        return self.once(operation, create)

    def copy(self, operation: Any, /, **overrides: Any) -> Any:
        """Returns a copy of `operation`, or itself if it cannot be copied."""
        try:
            return clone_layer(
                operation, known=self._replacements, graphs=_copied_graph, **overrides
            )
        except ValueError:
            if overrides:
                raise
            return operation

    def move(self, layer: Any) -> Any:
        """Returns the layer itself, for a new model that replaces one no longer needed."""

        def moved() -> Any:
            clear_calls(layer)
            return layer

        return self.once(layer, moved)

    def carry(self, old: Any, new: Any) -> None:
        """Registers that `new` takes the values of the variables of `old` once both are built."""
        self._carried.append((old, new))
        for layer in new if isinstance(new, list) else [new]:
            for part in flatten_layers(plain(layer)):
                # The values are overwritten; drawing random ones would take most of the build time.
                random = {
                    name: value
                    for name, value in vars(part).items()
                    if isinstance(value, keras.initializers.Initializer) and hasattr(value, "seed")
                }
                vars(part).update(dict.fromkeys(random, keras.initializers.Zeros()))
                self._initializers.append((part, random))

    def _rebuild(self, model: keras.Model, path: str) -> keras.Model:
        graph = self._graphs.get(id(model)) or read_graph(model, path)
        inputs = [self.input_like(tensor) for tensor in model.inputs]
        entered = self.enter(model, path, inputs)
        emitted = {id(old): new for old, new in zip(model.inputs, entered, strict=True)}

        def lookup(value: Any) -> Any:
            return emitted[id(value)] if isinstance(value, keras.KerasTensor) else value

        for call in graph.calls:
            args = tree.map_structure(lookup, call.args)
            kwargs = tree.map_structure(lookup, call.kwargs)
            visit = self.visit_model if is_graph(call.operation) else self.visit
            outputs = tree.flatten(visit(graph, call, args, kwargs))
            emitted.update((id(old), new) for old, new in zip(call.outputs, outputs, strict=True))
        outputs = self.leave(model, path, [emitted[id(t)] for t in model.outputs])
        return self._assemble(model, inputs, outputs)

    def _assemble(self, model: keras.Model, inputs: list[Any], outputs: list[Any]) -> keras.Model:
        new_class = self.class_for(model)
        if issubclass(new_class, keras.Sequential):
            # Operations in between compute masks, which a Sequential model does by itself.
            calls = read_graph(keras.Model(inputs, outputs)).calls
            layers = [call.operation for call in calls if not _makes_masks(call)]
            layers.insert(0, producing_operation(inputs[0]))
            new = keras.Sequential(layers, name=model.name)
        else:
            new = _functional(new_class, model, inputs, outputs)
        if not model.trainable:
            new.trainable = False
        if isinstance(model, Expanded) and isinstance(new, Expanded):
            new.source, new.layer_class = model.source, model.layer_class
            new.original = model.original
        return new


def _copied_graph(model: keras.Model) -> dict[int, Any]:
    """Returns the copies of a model and of all its layers, by `id` of the originals."""
    rewriter = Rewriter()
    copied = rewriter.run(model)
    inputs = zip(model.inputs, copied.inputs, strict=True)
    input_layers = {id(producing_operation(a)): producing_operation(b) for a, b in inputs}
    return {id(model): copied, **rewriter._replacements, **input_layers}


def _makes_masks(call: Call) -> bool:
    is_layer = isinstance(call.operation, keras.layers.Layer)
    return not is_layer and all(tensor.dtype == "bool" for tensor in call.outputs)


def _make_names_unique(inputs: list[Any], outputs: list[Any]) -> None:
    """Renames inserted operations whose names clash with those of the user's layers."""
    operations: dict[int, Any] = {}
    pending, visited = list(outputs), {id(tensor) for tensor in inputs}
    while pending:
        tensor = pending.pop()
        if id(tensor) in visited:
            continue
        visited.add(id(tensor))
        operation = producing_operation(tensor)
        operations[id(operation)] = operation
        pending += producing_inputs(tensor)
    used_names = {op.name for op in operations.values() if isinstance(op, keras.layers.Layer)}
    for operation in operations.values():
        if isinstance(operation, keras.layers.Layer):
            continue
        name, count = operation.name, 0
        while operation.name in used_names:
            count += 1
            operation.name = f"{name}_op{count}"
        used_names.add(operation.name)


def _functional(
    new_class: type[keras.Model], model: keras.Model, inputs: list[Any], outputs: list[Any]
) -> keras.Model:
    returned = {id(tensor) for tensor in inputs}
    if REFUSES_IDENTITY and all(id(tensor) in returned for tensor in outputs):
        # Augmentation alone, say, of which nothing is left.
        outputs = [keras.layers.Identity()(tensor) for tensor in outputs]
    if isinstance(model, keras.Sequential):
        _make_names_unique(inputs, outputs)
        return new_class(inputs[0], outputs[0], name=model.name)
    _make_names_unique(inputs, outputs)
    inputs = tree.pack_sequence_as(input_struct(model), inputs)
    outputs = tree.pack_sequence_as(output_struct(model), outputs)
    try:
        return new_class(inputs=inputs, outputs=outputs, name=model.name)
    except TypeError:
        # A subclass with a constructor of its own that builds a functional graph: as in
        # keras.models.clone_model, the result is a plain model of the same graph.
        return keras.Model(inputs=inputs, outputs=outputs, name=model.name)
