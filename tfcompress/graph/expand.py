"""Expands layers that hide a graph into a nested model of plain layers.

A layer that branches inside cannot be replaced by a chain of layers (see `canonicalize.py`).
Attention is expanded into what it computes: projections, products and a softmax, each of which then
gets quantizers like any other layer. The nested model carries the layer's name and its config, and
`strip` restores the layer. The projections are Dense layers on flattened heads: for these the
runtime fuses the bias and supports per-channel scales, which it does not for `EinsumDense`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import math
from collections.abc import Callable
from typing import Any

import keras
from keras import layers, ops, tree

from tfcompress.graph.copies import clone_layer
from tfcompress.graph.dot_attention import (
    DOT_ATTENTION,
    dot_arguments,
    dot_call,
    dot_graph,
    dot_source,
    kind_of_call,
    softmax,
    with_masks,
)
from tfcompress.graph.expanded_source import array_or_value, located_weights
from tfcompress.graph.keras_internals import (
    attention_mask,
    attention_parts,
    get_keras_mask,
    set_keras_mask,
)
from tfcompress.graph.layers import plain
from tfcompress.graph.plain_layers import MaskScores
from tfcompress.graph.read import is_graph, read_graph, walk_layers


@dataclasses.dataclass
class Original:
    """Holds a layer, so that Keras does not track it as a sublayer."""

    layer: Any


@keras.saving.register_keras_serializable("tfcompress")
class Expanded(keras.Model):
    """A layer as the graph of what it computes.

    Attributes:
        source: JSON of the layer and of the options it was called with.
        layer_class: The class of a custom layer, in the process that expanded it.
        original: The layer itself, in the same process, if it cannot be rebuilt from its config.
    """

    source = ""
    layer_class: type | None = None
    original: Original | None = None

    @functools.cached_property
    def _class_name(self) -> str:
        config = json.loads(self.source)["layer"]
        return config["class_name"] if config and config["module"] == "keras.layers" else ""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the graph; for attention, without the masks that the input tensors carry.

        Attention receives its masks as inputs (see `explicit_masks`). Like Keras' own layer,
        MultiHeadAttention also removes the masks from the tensors, so that later consumers, such as
        a residual connection, see none.
        """
        if not (self.source and self._class_name in _KINDS):
            return super().__call__(*args, **kwargs)
        tensors = tree.flatten((args, kwargs))
        masks = [get_keras_mask(value) for value in tensors]
        _set_masks(tensors, [None] * len(tensors))
        outputs = super().__call__(*args, **kwargs)
        if self._class_name != "MultiHeadAttention":
            _set_masks(tensors, masks)
        _set_masks([outputs], masks[:1])
        return outputs

    def get_config(self) -> dict[str, Any]:
        """Returns the config of the graph, with `source`."""
        return {**super().get_config(), "source": self.source}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Expanded:
        """Creates the model from the result of `get_config`."""
        config = dict(config)
        source = config.pop("source")
        model = super().from_config(config, custom_objects)
        model.source = source
        return model

    def layer(self) -> Any:
        """Returns the original layer; if it is not built yet, its first call builds it."""
        if self.original is not None:
            return clone_layer(self.original.layer, name=self.name)
        config = json.loads(self.source)["layer"]
        if config is None:
            raise ValueError(
                f"Layer {self.name!r} cannot be put back: its class has no get_config() that "
                "makes it again. Strip such a model in the process that wrapped it."
            )
        config.pop("build_config", None)
        config["config"]["name"] = self.name
        # In the process that expanded it, its class need not be registered with Keras.
        names = (config["class_name"], config.get("registered_name"))
        known = dict.fromkeys(filter(None, names), self.layer_class) if self.layer_class else None
        return keras.saving.deserialize_keras_object(config, custom_objects=known)

    def arguments(self, inputs: Any) -> dict[str, Any]:
        """Returns the arguments for the original layer, if this model is called with `inputs`."""
        source, tensors = json.loads(self.source), tree.flatten(inputs)
        tensors_by_name = tree.map_structure(
            lambda index: None if index is None else tensors[index], source["inputs"]
        )
        options = {name: array_or_value(value) for name, value in source["options"].items()}
        return {**tensors_by_name, **options}

    def pairs(self, layer: Any) -> list[tuple[Any, Any]]:
        """Pairs the weights of the original layer with those of this graph, without wrappers.

        The weights of attention differ in shape: heads are flattened.
        """
        source = json.loads(self.source)
        if "weights" not in source:
            return matching_variables(layer, self.get_layer)
        return located_weights(layer, source, dict(walk_layers(self)))


def expandable(model: keras.Model) -> set[int]:
    """Returns the `id` of each attention layer, wrapped or not, that can be expanded.

    `attention_call` must support every call of the layer, and all calls must have the same shapes
    and the same masks. If tensors carry masks, multi-head attention must be called only once. No
    layer can be expanded inside a nested model that is called on a tensor with a mask.
    """
    kinds_by_layer: dict[int, set[Any]] = {}
    _collect_kinds(model, False, kinds_by_layer)
    return {key for key, kinds in kinds_by_layer.items() if len(kinds) == 1 and None not in kinds}


def _collect_kinds(model: keras.Model, masked: bool, kinds_by_layer: dict[int, set[Any]]) -> None:
    for call in read_graph(model).calls:
        if is_graph(call.operation):
            explicit_mask = any(mask is not None for mask in tree.flatten(call.kwargs.get("mask")))
            carried = any(get_keras_mask(tensor) is not None for tensor in call.inputs)
            _collect_kinds(call.operation, masked or explicit_mask or carried, kinds_by_layer)
        elif type(plain(call.operation)) in (*_ATTENTION, *DOT_ATTENTION):
            arguments = attention_call(plain(call.operation), call.args, call.kwargs)
            kinds = kinds_by_layer.setdefault(id(call.operation), set())
            called_before = bool(kinds)
            kinds.add(
                None
                if arguments is None or masked
                else _kind(call.operation, arguments, called_before)
            )


def _kind(operation: Any, arguments: dict[str, Any], called_before: bool) -> tuple[Any, ...] | None:
    """Returns what all calls of a layer must have in common; None if the call is unsupported."""
    masking: Any
    if type(plain(operation)) in DOT_ATTENTION:
        masking, arguments = kind_of_call(arguments), with_masks(arguments)
    else:
        masking = any(get_keras_mask(arguments[name]) is not None for name in inputs_of(arguments))
        if masking and called_before:
            return None
    names = inputs_of(arguments)
    shapes = (tuple(arguments[name].shape[1:]) for name in names)
    return (*names, *shapes, bool(arguments.get("use_causal_mask")), masking)


def attention_call(
    layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any] | None:
    """Returns the arguments of an attention layer's call by name; None if it cannot be expanded.

    Not expanded are: Keras' extensions of attention (gates, sliding windows, attention over some of
    several axes), constraints, sequences of unknown length, calls that return the scores, constant
    masks, and masks by any name but `attention_mask`. For layers without projections see
    `dot_call`.
    """
    if type(layer) in DOT_ATTENTION:
        return dot_call(layer, args, kwargs)
    config = layer.get_config()
    if config.get("use_gate") or config.get("sliding_window") or config.get("output_shape"):
        return None
    if not layer.built or config["kernel_constraint"] or config["bias_constraint"]:
        return None
    arguments = arguments_of(layer, args, kwargs)
    tensors = [arguments[name] for name in inputs_of(arguments)]
    if not all(isinstance(t, keras.KerasTensor) for t in tensors):
        return None
    if any(None in t.shape[1:] for t in tensors[:3]) or not _attends_along_one_axis(
        config, arguments
    ):
        return None
    others = ("query_mask", "value_mask", "key_mask", "return_attention_scores")
    return None if any(arguments.get(name, False) is not False for name in others) else arguments


def _attends_along_one_axis(config: dict[str, Any], arguments: dict[str, Any]) -> bool:
    """Returns whether attention is over one sequence axis, or over all axes without a mask."""
    rank = len(arguments["query"].shape)
    if rank == 3:
        return True
    masked = arguments.get("attention_mask") is not None or bool(arguments.get("use_causal_mask"))
    masked = masked or any(
        get_keras_mask(arguments[name]) is not None for name in inputs_of(arguments)
    )
    return [*config.get("attention_axes", ())] == [*range(1, rank - 1)] and not masked


def explicit_masks(layer: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of an attention layer, with the masks that its tensors carry.

    Args:
        layer: The layer.
        arguments: The result of `arguments_of`, with tensors of the graph that is being built.
    """
    if type(layer) in DOT_ATTENTION:
        return with_masks(arguments)
    carried = {name: get_keras_mask(arguments[name]) for name in ("query", "value", "key")}
    if arguments["key"] is arguments["value"]:
        carried["key"] = None
    if all(mask is None for mask in carried.values()):
        return arguments
    masks = {f"{name}_mask": mask for name, mask in carried.items()}
    combined = attention_mask(
        layer,
        arguments["query"],
        arguments["value"],
        **masks,
        attention_mask=arguments.get("attention_mask"),
    )
    return {**arguments, "attention_mask": combined}


def _set_masks(tensors: list[Any], masks: list[Any]) -> None:
    for tensor, mask in zip(tensors, masks, strict=True):
        if get_keras_mask(tensor) is not mask:
            set_keras_mask(tensor, mask)


def arguments_of(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of an attention layer's call by name, without those that are None."""
    if type(layer) in DOT_ATTENTION:
        return dot_arguments(layer, args, kwargs)
    bound = inspect.signature(layer.call).bind(*args, **kwargs).arguments
    arguments = {name: value for name, value in bound.items() if value is not None}
    arguments.setdefault("key", arguments["value"])
    return arguments


def inputs_of(arguments: dict[str, Any]) -> list[str]:
    """Returns the names of the tensors among the arguments, in the order of the model's inputs."""
    return [name for name in _TENSORS if name in arguments]


def expand_attention(
    layer: Any, arguments: dict[str, Any], called_on: list[str], wrap: Callable[[Any], Any]
) -> Expanded:
    """Expands an attention layer.

    Args:
        layer: A built attention layer.
        arguments: The result of `explicit_masks`.
        called_on: The names of the tensors that the layer itself is called on.
        wrap: Takes each projection and returns what to call instead.

    Returns:
        A model of the inputs that `inputs_of` names. Its weights are new: see
        `matching_variables`.
    """
    names = inputs_of(arguments)
    inputs = {
        name: keras.Input(arguments[name].shape[1:], dtype=arguments[name].dtype, name=f"{name}_in")
        for name in names
    }

    def masked(scores: Any, mask: Any) -> Any:
        return MaskScores(name="masked", dtype=layer.dtype_policy)(scores, mask)

    if type(layer) in DOT_ATTENTION:
        outputs = dot_graph(layer, arguments, inputs, masked, wrap)
        model = Expanded([inputs[name] for name in names], outputs, name=layer.name)
        model.source = dot_source(layer, arguments, names, called_on)
        return model
    grouped = isinstance(layer, layers.GroupQueryAttention)
    heads = layer.num_query_heads if grouped else layer.num_heads
    key_heads = layer.num_key_value_heads if grouped else heads
    key_size, value_size = (
        (layer.head_dim, layer.head_dim) if grouped else (layer.key_dim, layer.value_dim)
    )

    def projected(name: str, count: int, size: int, order: tuple[int, ...]) -> Any:
        x = inputs[name]
        if len(x.shape) > 3:
            x = ops.reshape(x, (-1, math.prod(x.shape[1:-1]), x.shape[-1]))
        x = wrap(_dense(layer, name, count * size))(x)
        # Operations, not layers: a Reshape layer would warn about masks that it cannot pass on.
        x = ops.transpose(ops.reshape(x, (-1, x.shape[1], count, size)), order)
        if count == heads:
            return x
        x = ops.concatenate([ops.expand_dims(x, 2)] * (heads // count), axis=2)
        return ops.reshape(x, (-1, heads, *x.shape[3:]))

    query = projected("query", heads, key_size, (0, 2, 1, 3))
    key = projected("key", key_heads, key_size, (0, 2, 3, 1))
    value = projected("value", key_heads, value_size, (0, 2, 1, 3))
    scores = ops.matmul(ops.multiply(query, key_size**-0.5), key)
    causal = bool(arguments.get("use_causal_mask"))
    mask = attention_mask(
        layer,
        inputs["query"],
        inputs["value"],
        attention_mask=inputs.get("attention_mask"),
        use_causal_mask=causal,
    )
    if mask is not None:
        # The layer returns an attention_mask of 4 dimensions with 4 dimensions.
        mask = ops.expand_dims(mask, 1) if len(mask.shape) == 3 else mask
        scores = masked(scores, mask)
    x = ops.transpose(ops.matmul(softmax(layer, scores), value), (0, 2, 1, 3))
    x = ops.reshape(x, (-1, x.shape[1], heads * value_size))
    x = wrap(_dense(layer, "attention_output", arguments["query"].shape[-1]))(x)
    if len(arguments["query"].shape) > 3:
        x = ops.reshape(x, (-1, *arguments["query"].shape[1:]))
    model = Expanded([inputs[name] for name in names], x, name=layer.name)
    model.source = json.dumps(
        {
            "layer": keras.saving.serialize_keras_object(layer),
            "inputs": {name: index for index, name in enumerate(names) if name in called_on},
            "options": {"use_causal_mask": True} if causal else {},
        }
    )
    return model


_ATTENTION = (layers.MultiHeadAttention, layers.GroupQueryAttention)


_KINDS = tuple(layer.__name__ for layer in (*_ATTENTION, *DOT_ATTENTION))


_TENSORS = ("query", "value", "key", "attention_mask", "query_mask", "value_mask")


def _dense(layer: Any, name: str, units: int) -> Any:
    """Returns the Dense layer that replaces a projection."""
    config = attention_parts(layer)[name].get_config()
    copied = (
        "kernel_initializer bias_initializer kernel_regularizer bias_regularizer "
        "activity_regularizer"
    ).split()
    return layers.Dense(
        units,
        use_bias=config["bias_axes"] is not None,
        name=name,
        dtype=layer.dtype_policy,
        trainable=layer.trainable,
        **{key: config[key] for key in copied},
    )


def matching_variables(layer: Any, part: Callable[[str], Any]) -> list[tuple[Any, Any]]:
    """Pairs variables of an attention layer with those of its projections on flattened heads.

    Args:
        layer: The built attention layer.
        part: Returns the Dense layer for a name.
    """
    if type(layer) in DOT_ATTENTION:
        return [(weight, part("scale").kernel) for weight in layer.weights]
    return [
        pair
        for name, dense in attention_parts(layer).items()
        for pair in zip(dense.weights, part(name).weights, strict=True)
    ]
