"""Splits off what a file cannot hold: strings, and the tables that they are looked up in."""

from __future__ import annotations

from typing import Any

import keras

from tfcompress.graph.clone import Rewriter
from tfcompress.graph.inline import as_graph
from tfcompress.graph.keras_internals import flatten_layers, input_struct, output_struct
from tfcompress.graph.read import (
    Call,
    Graph,
    input_names,
    is_graph,
    layer_name,
    output_names,
    read_graph,
)
from tfcompress.graph.run import outputs_of
from tfcompress.graph.sameness import are_close, synthetic_samples

_TABLES = (
    keras.layers.Hashing,
    keras.layers.HashedCrossing,
    keras.layers.IntegerLookup,
    keras.layers.StringLookup,
    keras.layers.TextVectorization,
    keras.utils.FeatureSpace,
)


def split_preprocessing(model: keras.Model, *, check: bool = True) -> tuple[Any, keras.Model]:
    """Returns the part of a model that stays in the app, and the part that can be compressed.

    A TFLite file holds no strings and no lookup tables. So the layers that need them
    (`StringLookup`, `IntegerLookup`, `TextVectorization`, `Hashing`, `HashedCrossing`,
    `FeatureSpace`), and all layers before them, go into a first model. It takes the inputs of the
    model, and returns a dict: the inputs of the second model. That one has all the rest, and can be
    trained on, pruned, quantized and exported.

    Args:
        model: A built model. It is not changed.
        check: Whether to compare the two, one after the other, with the model on a few synthetic
            samples. False is for models that cannot be run here.

    Returns:
        The preprocessing and the rest, each with copies of its layers.

    Raises:
        TypeError: If `model` is no Keras model.
        ValueError: If there is nothing to split off, or nothing else.

    Example:
        >>> import keras, tensorflow as tf
        >>> import tfcompress as tfc
        >>> words = keras.layers.StringLookup(vocabulary=["cat", "dog"])
        >>> inputs = keras.Input((1,), dtype="string", name="animal")
        >>> x = keras.layers.Flatten()(keras.layers.Embedding(3, 4)(words(inputs)))
        >>> model = keras.Model(inputs, keras.layers.Dense(2)(x))
        >>> preprocessing, rest = tfc.split_preprocessing(model)
        >>> prepared = preprocessing.predict(tf.constant([["dog"], ["cat"]]), verbose=0)
        >>> {name: array.ravel().tolist() for name, array in prepared.items()}
        {'string_lookup': [2, 1]}
    """
    graph_model = as_graph(model)
    if first_table(graph_model) is None:
        raise ValueError(
            f"model {model.name!r} has no preprocessing that must be split off: there are no "
            "strings in it, and no layer looks values up in a table. Export it as it is."
        )
    preprocessing, rest = _split(graph_model)
    if check:
        samples, expected = synthetic_samples(graph_model, "split_preprocessing")
        prepared_outputs = outputs_of(preprocessing, samples)
        prepared = dict(zip(output_names(preprocessing), prepared_outputs, strict=True))
        if not are_close(expected, outputs_of(rest, prepared), graph_model):
            raise RuntimeError(
                "split_preprocessing() made models that differ from the one they were split from. "
                "This is a fault of tfcompress: please report it. check=False hands them back all "
                "the same."
            )
    return preprocessing, rest


def check_no_tables(model: keras.Model) -> None:
    """Rejects a model of which a part cannot go into a file.

    Raises:
        ValueError: If there is one.
    """
    path = first_table(model)
    if path is None:
        return
    raise ValueError(
        f"{path!r} handles strings or looks values up in a table, which a TFLite file cannot "
        "hold. Split it off: preprocessing, model = tfc.split_preprocessing(model). The first "
        "stays in the app, the second is compressed."
    )


def first_table(model: keras.Model, path: str = "") -> str | None:
    """Returns the path of the first layer that cannot go into a file, or None."""
    for call in read_graph(model, path).calls:
        table = None
        if is_graph(call.operation):
            table = first_table(call.operation, call.path + "/")
        elif _is_table(call):
            table = call.path
        if table is not None:
            return table
    return None


def _is_table(call: Call) -> bool:
    layer = call.operation
    inside = flatten_layers(layer) if isinstance(layer, keras.layers.Layer) else ()
    strings = any(tensor.dtype == "string" for tensor in (*call.inputs, *call.outputs))
    return strings or any(isinstance(part, _TABLES) for part in inside)


class _SplitNested(Rewriter):
    """Copies a model; a nested model that holds tables becomes two, one after the other."""

    sequential_class = keras.Model

    def visit_model(self, graph: Graph, call: Call, args: Any, kwargs: Any) -> Any:
        nested = call.operation
        if first_table(nested) is None or not nested.weights:
            return super().visit_model(graph, call, args, kwargs)
        preprocessing, rest = self.once(nested, lambda: _split(nested))
        return rest(preprocessing(*args))


def _split(model: keras.Model) -> tuple[Any, keras.Model]:
    copied = _SplitNested().run(model)
    graph = read_graph(copied)
    makers = {id(tensor): call for call in graph.calls for tensor in call.outputs}
    before: set[int] = set()
    for call in reversed(graph.calls):
        has_table = first_table(call.operation) if is_graph(call.operation) else _is_table(call)
        precedes_table = any(
            id(r) in before for t in call.outputs for r in graph.consumers.get(id(t), [])
        )
        if has_table or precedes_table:
            before.add(id(call))
    rest = [call for call in graph.calls if id(call) not in before]
    if not rest:
        raise ValueError(
            f"model {model.name!r} is nothing but preprocessing: it has no part that could be "
            "compressed."
        )
    input_name_of = dict(zip(map(id, copied.inputs), input_names(copied), strict=True))
    entering: dict[str, Any] = {}
    for tensor in [*(t for call in rest for t in call.inputs), *copied.outputs]:
        maker = makers.get(id(tensor))
        if maker is not None and id(maker) not in before:
            continue
        name = input_name_of.get(id(tensor)) or layer_name(tensor)
        while entering.get(name, tensor) is not tensor:
            name += "_more"
        entering[name] = tensor
    preprocessing = keras.Model(
        keras.tree.pack_sequence_as(input_struct(copied), copied.inputs),
        entering,
        name=f"{model.name}_preprocessing",
    )
    inputs = {
        name: keras.Input(batch_shape=t.shape, dtype=t.dtype, name=name)
        for name, t in entering.items()
    }
    emitted = {id(entering[name]): tensor for name, tensor in inputs.items()}

    def lookup(value: Any) -> Any:
        return emitted[id(value)] if isinstance(value, keras.KerasTensor) else value

    for call in rest:
        args, kwargs = keras.tree.map_structure(lookup, (call.args, call.kwargs))
        results = keras.tree.flatten(call.operation(*args, **kwargs))
        emitted.update((id(old), new) for old, new in zip(call.outputs, results, strict=True))
    outputs = [emitted[id(tensor)] for tensor in copied.outputs]
    outputs = keras.tree.pack_sequence_as(output_struct(copied), outputs)
    return preprocessing, keras.Model(inputs, outputs, name=model.name)
