"""Expands layers and models that call others in Python code into graphs of these calls.

A custom layer whose code can be read (see `code.py`) becomes a nested model (`Expanded`), which
`strip` reverts; a subclassed model becomes a Functional one of the same layers.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from typing import Any

import keras
from keras import tree

from tfcompress.graph.any_batch import for_any_batch, settings_of, stand_in_for, without_batch
from tfcompress.graph.code import (
    Unreadable,
    described,
    read_code,
    runs_code,
    symbolic,
    unique_names,
    weights_of,
)
from tfcompress.graph.expand import Expanded, Original
from tfcompress.graph.expanded_source import is_restorable, kwargs_of, located, source_of
from tfcompress.graph.keras_internals import (
    build_shapes,
    flatten_layers,
    inbound_nodes,
    mask_of,
    outbound_nodes,
    own_variables,
    seeds_of,
)
from tfcompress.graph.operations import in_operations
from tfcompress.graph.read import (
    Call,
    Graph,
    check_built,
    is_graph,
    read_graph,
    read_graphs,
    walk_layers,
)
from tfcompress.graph.resize import Resize, input_shapes


def as_graph(model: Any, argument: str = "model", input_shape: Any = None) -> keras.Model:
    """Returns a model whose layers can be read: the model itself, or an equivalent one.

    Args:
        model: A built Keras model of any kind. It is not changed.
        argument: What to call it in errors.
        input_shape: The shape of one sample, or a dict of these by input name, for a model that
            takes any size. Code that computes with a size can then be read.

    Returns:
        The model if neither it nor anything in it calls layers in Python code; else a copy with
        the same weights, in which this code is expanded as far as it can be read.

    Raises:
        TypeError: If `model` is no Keras model.
        ValueError: If it is unbuilt, or subclassed and cannot be called on symbolic tensors; if
            `input_shape` does not fit.
    """
    check_built(model, argument)
    if is_graph(model):
        return _inlined(model, input_shape)
    inputs = _inputs_of(model, argument)
    with _forgetting_calls(model), contextlib.suppress(Unreadable):
        graph = read_code(model, [inputs], {}, keras.Model)
        if tokens := _tokens(graph):
            inputs = tree.map_structure(
                lambda t: keras.Input(batch_shape=t.shape, dtype="int32") if id(t) in tokens else t,
                inputs,
            )
            graph = read_code(model, [inputs], {}, keras.Model)
        known = {id(weight) for _, weight in weights_of(graph)}
        all_known = all(id(weight) in known for weight in model.weights)
        # Weights of the model's own would leave layers of ours behind `strip`.
        if (
            all_known
            and not own_variables(model)
            and _runs(expanded := _inlined(graph, input_shape))
        ):
            return expanded
    try:
        whole = keras.Model(inputs, model(inputs), name=f"{model.name}_graph")
    except Exception as error:
        raise ValueError(
            f"{argument} must be a Sequential or Functional model, or a subclassed one that can be "
            f"called on a keras.Input. Received: {model.name!r} ({type(model).__name__}), which "
            f"cannot: {str(error).strip().splitlines()[0]}. Use layers and keras.ops in its call()."
        ) from error
    return _inlined(whole, input_shape)


def _inlined(model: keras.Model, input_shape: Any) -> keras.Model:
    code = any(runs_code(layer) for _, layer in walk_layers(model))
    if not code and input_shape is None:
        return model
    return _Inline(model, input_shapes(model, input_shape)).run(model)


def code_of_open_sizes(model: keras.Model) -> list[str]:
    """Returns the paths of custom layers whose code could not be read, on inputs of any size."""
    return [
        call.path
        for graph in read_graphs(model).values()
        for call in graph.calls
        if runs_code(call.operation) and any(None in t.shape[1:] for t in call.inputs)
    ]


class _Inline(Resize):
    """Replaces each layer whose code can be read by a nested model."""

    def __init__(self, model: keras.Model, shapes: list[tuple[int | None, ...]]) -> None:
        super().__init__(shapes)
        self._expanded: dict[tuple[int, str], Any] = {}
        self._names = {layer.name for _, layer in walk_layers(model)}
        self._failed: dict[tuple[int, str], str] = {}
        self._kinds: dict[int, set[str]] = {}
        self._stand_in: int | None = None
        self._like: Any = None
        self._note_kinds(model)

    def _note_kinds(self, model: keras.Model) -> None:
        """Records the distinct ways in which each layer is called."""
        for call in read_graph(model).calls:
            if is_graph(call.operation):
                self._note_kinds(call.operation)
            self._kinds.setdefault(id(call.operation), set()).add(described(call, {}))

    def input_like(self, tensor: Any) -> Any:
        """Creates an input, for a batch of any size if the code was read with a stand-in."""
        if self._stand_in is not None and tensor.shape[0] == self._stand_in:
            return keras.Input(batch_shape=(None, *tensor.shape[1:]), dtype=tensor.dtype)
        return super().input_like(tensor)

    def enter(self, model: keras.Model, path: str, inputs: list[Any]) -> list[Any]:
        """Remembers a tensor that has the batch of the code that is read."""
        self._like = inputs[0] if isinstance(model, Expanded) else self._like
        return inputs

    def visit(self, graph: Graph, call: Call, args: Any, kwargs: Any) -> Any:
        """Emits a call: of code that can be read, as a nested model."""
        layer = call.operation
        if self._stand_in is not None:
            args, kwargs = without_batch((args, kwargs), self._stand_in, self._like)
            output = for_any_batch(call, args, kwargs, self._stand_in, self._like)
            if output is not None:
                return output
        if runs_code(layer):
            # A layer without weights may compute something else with each shape.
            key = (id(layer), "" if layer.weights else described(call, {}))
            if key not in self._expanded:
                try:
                    self._expanded[key] = self._expand(call, args, kwargs)
                except Unreadable:
                    self._expanded[key] = None
            if self._expanded[key] is not None:
                return self._expanded[key](symbolic((args, kwargs)))
        if self._like is not None:  # in code, which strip puts back whole
            simpler = in_operations(call, args, kwargs, self)
            if simpler is not None:
                return simpler
        shape = getattr(layer, "newshape", ())
        if type(layer).__name__ == "Reshape" and [*shape].count(None) == 1 and -1 not in shape:
            # The batch size is unknown here, but was known to code that saw values.
            return keras.ops.reshape(args[0], [-1 if size is None else size for size in shape])
        return super().visit(graph, call, args, kwargs)

    def _expand(self, call: Call, args: Any, kwargs: Any) -> Any:
        """Returns the nested model for a layer.

        Raises:
            Unreadable: If its code cannot be read.
        """
        layer = call.operation
        kinds = self._kinds.get(id(layer), set())
        source = source_of(layer, call)
        if any(mask_of(t) is not None for t in call.inputs):
            raise Unreadable("it is called on tensors with a mask")
        if layer.activity_regularizer:
            raise Unreadable("it has an activity regularizer")
        if len(kinds) != 1 and layer.weights:
            raise Unreadable("it is called in several ways")
        if source is None:
            raise Unreadable("its arguments cannot be saved")
        emitted = zip(
            tree.flatten((call.args, call.kwargs)), tree.flatten((args, kwargs)), strict=True
        )
        shapes = {id(old): new.shape for old, new in emitted if isinstance(new, keras.KerasTensor)}
        key = id(layer), str(shapes.values())
        if key in self._failed:  # with what is around it read otherwise
            raise Unreadable(self._failed[key])
        sizes: list[int | None] = [None]
        if any(shape[:1] == (None,) for shape in shapes.values()):
            sizes.append(self._stand_in or stand_in_for(layer, shapes.values()))
        try:
            expanded, locations = self._attempts(call, shapes, sizes)
        except Unreadable as error:
            self._failed[key] = str(error)
            raise
        expanded.source = json.dumps({**source, **located(layer, locations)})
        expanded.layer_class = type(layer)
        if not is_restorable(expanded, layer):
            expanded.original = Original(layer)
        if any(key[0] == id(layer) for key, other in self._expanded.items() if other is not None):
            # Another model stands for a call of it with other shapes.
            number = next(n for n in itertools.count(1) if f"{layer.name}_{n}" not in self._names)
            expanded.name = f"{layer.name}_{number}"
            self._names.add(expanded.name)
        return expanded

    def _attempts(self, call: Call, shapes: dict[int, Any], sizes: list[int | None]) -> Any:
        """Returns the first attempt that leaves no code unread, or else the first that succeeds."""
        first: tuple[bool, int | None] | None = None
        attempts = [*itertools.product((False, True), sizes)]
        for in_place, size in attempts:
            kept = dict(self._expanded), {key: set(kind) for key, kind in self._kinds.items()}
            counts = self._counts()
            try:
                expanded, locations = self._attempt(call, shapes, size, in_place)
                if not any(runs_code(p) and not seeds_of(p) for _, p in walk_layers(expanded)):
                    return expanded, locations
                first = first or (in_place, size)
                self._undo(counts)
            except Unreadable as error:
                failed = error
            self._expanded, self._kinds = kept
        if first is None:
            raise failed
        return self._attempt(call, shapes, first[1], first[0])

    def _attempt(
        self, call: Call, shapes: dict[int, Any], size: int | None, in_place: bool
    ) -> tuple[Any, dict[int, Any]]:
        """Returns the nested model of a layer's code, and where its weights are, by `id`.

        Args:
            call: The call of the layer.
            shapes: The shape of each of its tensors, by `id`.
            size: The stand-in for the size of the batch; None to leave it unknown.
            in_place: Whether to read custom sublayers in place.

        Raises:
            Unreadable: If that is not possible.
        """
        layer = call.operation
        new_inputs = {
            id(t): keras.Input(
                batch_shape=(shapes[id(t)][0] or size, *shapes[id(t)][1:]), dtype=t.dtype
            )
            for t in call.inputs
        }
        args, kwargs = tree.map_structure(
            lambda value: new_inputs.get(id(value), value), (call.args, kwargs_of(call))
        )
        counts = self._counts()
        outer = self._stand_in, self._like
        naming = unique_names(layer) if in_place else contextlib.nullcontext()
        try:
            with _forgetting_calls(layer), naming:
                graph = read_code(layer, args, kwargs, Expanded, in_place=in_place)
                self._note_kinds(graph)
                self._stand_in = size
                try:
                    expanded = self._rebuild(graph, call.path + "/")
                except Exception as error:  # the layer's code knows sizes that its graph does not
                    raise Unreadable(f"its code depends on sizes that vary ({error})") from error
                if not _runs(expanded):
                    raise Unreadable("what its code calls cannot be run for a batch of any size")
                return expanded, {id(w): location for location, w in weights_of(graph)}
        except Unreadable:
            self._undo(counts)
            raise
        finally:
            self._stand_in, self._like = outer

    def _counts(self) -> tuple[int, int, int]:
        return len(self._originals), len(self._carried), len(self._initializers)

    def _undo(self, counts: tuple[int, int, int]) -> None:
        """Forgets what was copied since there were so many originals, copies, initializers."""
        for original in self._originals[counts[0] :]:
            self._replacements.pop(id(original), None)
        del self._originals[counts[0] :]
        del self._carried[counts[1] :], self._initializers[counts[2] :]


def _runs(model: keras.Model) -> bool:
    """Returns whether a traced graph runs: the code may have depended on a size of None."""
    if any(None in t.shape[1:] for t in model.inputs):
        # The supported sizes are not known, only that a size of None was used as a number.
        return not any(
            None in value
            for graph in read_graphs(model).values()
            for call in graph.calls
            if not isinstance(call.operation, keras.layers.Layer)
            for value in settings_of(call.operation)[1].values()
            if isinstance(value, (tuple, list))
        )
    zeros = [keras.ops.zeros((t.shape[0] or 2, *t.shape[1:]), t.dtype) for t in model.inputs]
    with contextlib.suppress(Exception):
        model(tree.pack_sequence_as(model.input, zeros), training=False)
        return True
    return False


def _tokens(graph: keras.Model) -> set[int]:
    """Returns the `id` of the inputs that only embeddings consume: they are integers."""
    consumers = read_graph(graph).consumers
    return {
        id(tensor)
        for tensor in graph.inputs
        if "float" in tensor.dtype
        and consumers.get(id(tensor))
        and all(isinstance(c.operation, keras.layers.Embedding) for c in consumers[id(tensor)])
    }


def _inputs_of(model: Any, argument: str) -> Any:
    """Returns symbolic inputs for the shapes that a subclassed model was built for."""
    shapes = list(build_shapes(model).values())
    if len(shapes) != 1:
        raise ValueError(
            f"{argument} {model.name!r} is subclassed, and the shapes of its inputs are not known. "
            f"Pass keras.Model(inputs, {model.name}(inputs)) with inputs = keras.Input(...)."
        )

    def input_for(shape: Any) -> Any:
        if isinstance(shape, dict):
            return {name: input_for(value) for name, value in shape.items()}
        if all(size is None or isinstance(size, int) for size in shape):
            return keras.Input(shape[1:], dtype=model.variable_dtype)
        return [input_for(value) for value in shape]

    return input_for(shapes[0])


@contextlib.contextmanager
def _forgetting_calls(layer: Any) -> Iterator[None]:
    """Removes the records of calls made meanwhile from the layers inside."""
    counts = [
        (nodes, len(nodes))
        for part in flatten_layers(layer)
        for nodes in (inbound_nodes(part), outbound_nodes(part))
    ]
    try:
        yield
    finally:
        for nodes, count in counts:
            del nodes[count:]
