"""Layers that hide a graph, written out as a nested model of plain layers.

Where a layer branches inside, no chain of layers (see `canonicalize.py`) does the same. Attention
is written out as what it computes: projections, products and a softmax, each of which then gets
quantizers like any other. The nested model carries the layer's name and its config, and `strip`
puts the layer back. Its projections are Dense layers on flattened heads: the runtime adds their
bias and keeps a scale for each of their channels, which it does not for `EinsumDense`.
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
from tfcompress.graph.keras_internals import (
    attention_mask,
    attention_parts,
    get_keras_mask,
    set_keras_mask,
)
from tfcompress.graph.layers import plain
from tfcompress.graph.read import is_graph, read_graph, walk_layers


@keras.saving.register_keras_serializable("tfcompress")
class MaskScores(layers.Layer):
    """Puts a very low score where attention must not look.

    The integer runtime has no lower score than the lowest on the grid. Training, and measuring
    likewise, shows the quantizer behind this layer scores a margin below the lowest of the batch,
    so that all masked keys together weigh at most 1/3000 of one that is not; otherwise the score is
    far below any grid, and is clipped to its end. A query that may look nowhere looks everywhere
    alike.
    """

    margin = 8.0  # exp(-8) is 1/3000
    measured = False  # whether ranges are measured, which is as good as training

    def call(self, scores: Any, mask: Any, training: bool | None = None) -> Any:
        """Returns the scores where `mask` is true, and low ones elsewhere."""
        low = ops.convert_to_tensor(-3e4, scores.dtype)
        if training or self.measured:
            keys = scores.shape[-1]
            low = ops.stop_gradient(ops.min(scores)) - self.margin - math.log(keys)
        return ops.where(mask, scores, low)

    def compute_output_shape(self, scores_shape: Any, mask_shape: Any = None) -> Any:
        """Returns the shape of the scores."""
        return scores_shape

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments, under any dtype policy."""
        return super().get_config()


@dataclasses.dataclass
class Original:
    """A layer, in a class of its own so that Keras does not count it to another."""

    layer: Any


@keras.saving.register_keras_serializable("tfcompress")
class Expanded(keras.Model):
    """A layer as the graph of what it computes.

    Attributes:
        source: JSON of the layer and of the options it was called with.
        layer_class: The class of a custom layer, in the process that wrote it out.
        original: The layer itself, likewise, if its config does not make it again.
    """

    source = ""
    layer_class: type | None = None
    original: Original | None = None

    @functools.cached_property
    def _class_name(self) -> str:
        told = json.loads(self.source)["layer"]
        return told["class_name"] if told and told["module"] == "keras.layers" else ""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the graph; attention with masks of its own, not those that its inputs carry.

        These are among the inputs (see `explicit_masks`). MultiHeadAttention takes them off the
        tensors as well, so that what reads these later, a residual connection say, sees none.
        """
        if not (self.source and self._class_name in _KINDS):
            return super().__call__(*args, **kwargs)
        given = tree.flatten((args, kwargs))
        masks = [get_keras_mask(value) for value in given]
        _carry(given, [None] * len(given))
        outputs = super().__call__(*args, **kwargs)
        if self._class_name != "MultiHeadAttention":
            _carry(given, masks)
        _carry([outputs], masks[:1])
        return outputs

    def get_config(self) -> dict[str, Any]:
        """Returns the graph and what it was made of."""
        return {**super().get_config(), "source": self.source}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Expanded:
        """Makes the model from the result of `get_config`."""
        config = dict(config)
        source = config.pop("source")
        model = super().from_config(config, custom_objects)
        model.source = source
        return model

    def layer(self) -> Any:
        """Returns the layer this stands for, which its first call will build if need be."""
        if self.original is not None:
            return clone_layer(self.original.layer)
        told = json.loads(self.source)["layer"]
        if told is None:
            raise ValueError(
                f"Layer {self.name!r} cannot be put back: its class has no get_config() that makes "
                "it again. Strip such a model in the process that wrapped it."
            )
        told.pop("build_config", None)
        # In the process that wrote it out, its class need not be registered with Keras.
        names = (told["class_name"], told.get("registered_name"))
        known = dict.fromkeys(filter(None, names), self.layer_class) if self.layer_class else None
        return keras.saving.deserialize_keras_object(told, custom_objects=known)

    def arguments(self, inputs: Any) -> dict[str, Any]:
        """Returns the arguments to call that layer with where this is called with `inputs`."""
        told, given = json.loads(self.source), tree.flatten(inputs)
        places = tree.map_structure(
            lambda place: None if place is None else given[place], told["inputs"]
        )
        return {**places, **told["options"]}

    def pairs(self, layer: Any) -> list[tuple[Any, Any]]:
        """Pairs the weights of that layer with those of this graph, stripped of all wrappers.

        Those of attention have other shapes: heads are flattened.
        """
        parts = dict(walk_layers(self))
        told = json.loads(self.source).get("weights")
        if told is None:
            return matching_variables(layer, self.get_layer)
        return [
            (weight, parts[path].weights[index])
            for weight, (path, index) in zip(layer.weights, told, strict=True)
        ]


def expandable(model: keras.Model) -> set[int]:
    """Returns the `id` of each attention layer, wrapped or not, that can be written out.

    Every call of the layer must be one that `attention_call` understands, and all must be alike: on
    the same shapes, with the same masks. Of multi-head attention there must be one call alone where
    tensors carry masks along. Inside a nested model called on a tensor with a mask, none can.
    """
    found: dict[int, set[Any]] = {}
    _find(model, False, found)
    return {key for key, kinds in found.items() if len(kinds) == 1 and None not in kinds}


def _find(model: keras.Model, masked: bool, found: dict[int, set[Any]]) -> None:
    for call in read_graph(model).calls:
        if is_graph(call.operation):
            given_mask = any(mask is not None for mask in tree.flatten(call.kwargs.get("mask")))
            carried = any(get_keras_mask(tensor) is not None for tensor in call.inputs)
            _find(call.operation, masked or given_mask or carried, found)
        elif type(plain(call.operation)) in (*_ATTENTION, *DOT_ATTENTION):
            given = attention_call(plain(call.operation), call.args, call.kwargs)
            kinds = found.setdefault(id(call.operation), set())
            seen = bool(kinds)
            kinds.add(None if given is None or masked else _kind(call.operation, given, seen))


def _kind(operation: Any, given: dict[str, Any], seen: bool) -> tuple[Any, ...] | None:
    """Returns what all calls of a layer must have in common, or None if this one cannot be."""
    told: Any
    if type(plain(operation)) in DOT_ATTENTION:
        told, given = kind_of_call(given), with_masks(given)
    else:
        told = any(get_keras_mask(given[name]) is not None for name in inputs_of(given))
        if told and seen:
            return None
    names = inputs_of(given)
    shapes = (tuple(given[name].shape[1:]) for name in names)
    return (*names, *shapes, bool(given.get("use_causal_mask")), told)


def attention_call(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict | None:
    """Returns the arguments of an attention layer's call by name if it can be written out.

    Left as they are: what Keras adds to the attention of the paper (gates, sliding windows, some of
    several axes), constraints, sequences of unknown length, calls that ask for the scores, constant
    masks, and masks by any name but `attention_mask`. Of those without projections: see `dot_call`.
    """
    if type(layer) in DOT_ATTENTION:
        return dot_call(layer, args, kwargs)
    config = layer.get_config()
    if config.get("use_gate") or config.get("sliding_window") or config.get("output_shape"):
        return None
    if not layer.built or config["kernel_constraint"] or config["bias_constraint"]:
        return None
    given = arguments_of(layer, args, kwargs)
    tensors = [given[name] for name in inputs_of(given)]
    if not all(isinstance(t, keras.KerasTensor) for t in tensors):
        return None
    if any(None in t.shape[1:] for t in tensors[:3]) or not _is_in_one_row(config, given):
        return None
    others = ("query_mask", "value_mask", "key_mask", "return_attention_scores")
    return None if any(given.get(name, False) is not False for name in others) else given


def _is_in_one_row(config: dict[str, Any], given: dict[str, Any]) -> bool:
    """Returns whether each position may look at all others, as in a row of them."""
    rank = len(given["query"].shape)
    if rank == 3:
        return True
    masked = given.get("attention_mask") is not None or bool(given.get("use_causal_mask"))
    masked = masked or any(get_keras_mask(given[name]) is not None for name in inputs_of(given))
    return [*config.get("attention_axes", ())] == [*range(1, rank - 1)] and not masked


def explicit_masks(layer: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of an attention layer with the masks that they carry among them.

    Args:
        layer: The layer.
        given: What `arguments_of` returned, of the graph that is being built.
    """
    if type(layer) in DOT_ATTENTION:
        return with_masks(given)
    told = {name: get_keras_mask(given[name]) for name in ("query", "value", "key")}
    if given["key"] is given["value"]:
        told["key"] = None
    if all(mask is None for mask in told.values()):
        return given
    masks = {f"{name}_mask": mask for name, mask in told.items()}
    made = attention_mask(
        layer, given["query"], given["value"], **masks, attention_mask=given.get("attention_mask")
    )
    return {**given, "attention_mask": made}


def _carry(tensors: list[Any], masks: list[Any]) -> None:
    for tensor, mask in zip(tensors, masks, strict=True):
        if get_keras_mask(tensor) is not mask:
            set_keras_mask(tensor, mask)


def arguments_of(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of an attention layer's call by name, but those that are None."""
    if type(layer) in DOT_ATTENTION:
        return dot_arguments(layer, args, kwargs)
    bound = inspect.signature(layer.call).bind(*args, **kwargs).arguments
    given = {name: value for name, value in bound.items() if value is not None}
    given.setdefault("key", given["value"])
    return given


def inputs_of(given: dict[str, Any]) -> list[str]:
    """Returns the names of the tensors among the arguments, in the order of the model's inputs."""
    return [name for name in _TENSORS if name in given]


def expand_attention(
    layer: Any, given: dict[str, Any], told: list[str], wrap: Callable[[Any], Any]
) -> Expanded:
    """Writes out an attention layer.

    Args:
        layer: A built attention layer.
        given: What `explicit_masks` returned.
        told: The names of the tensors that the layer itself is called on.
        wrap: Is given each projection and returns what to call instead.

    Returns:
        A model of the inputs that `inputs_of` names. Its weights are new: see
        `matching_variables`.
    """
    names = inputs_of(given)
    inputs = {
        name: keras.Input(given[name].shape[1:], dtype=given[name].dtype, name=f"{name}_in")
        for name in names
    }

    def masked(scores: Any, mask: Any) -> Any:
        return MaskScores(name="masked", dtype=layer.dtype_policy)(scores, mask)

    if type(layer) in DOT_ATTENTION:
        outputs = dot_graph(layer, given, inputs, masked, wrap)
        model = Expanded([inputs[name] for name in names], outputs, name=layer.name)
        model.source = dot_source(layer, given, names, told)
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
        # Operations, not layers: a Reshape layer would complain of the masks it cannot hand on.
        x = ops.transpose(ops.reshape(x, (-1, x.shape[1], count, size)), order)
        if count == heads:
            return x
        x = ops.concatenate([ops.expand_dims(x, 2)] * (heads // count), axis=2)
        return ops.reshape(x, (-1, heads, *x.shape[3:]))

    query = projected("query", heads, key_size, (0, 2, 1, 3))
    key = projected("key", key_heads, key_size, (0, 2, 3, 1))
    value = projected("value", key_heads, value_size, (0, 2, 1, 3))
    scores = ops.matmul(ops.multiply(query, key_size**-0.5), key)
    causal = bool(given.get("use_causal_mask"))
    mask = attention_mask(
        layer,
        inputs["query"],
        inputs["value"],
        attention_mask=inputs.get("attention_mask"),
        use_causal_mask=causal,
    )
    if mask is not None:
        # What the layer makes of an attention_mask of 4 dimensions is one already.
        mask = ops.expand_dims(mask, 1) if len(mask.shape) == 3 else mask
        scores = masked(scores, mask)
    x = ops.transpose(ops.matmul(softmax(layer, scores), value), (0, 2, 1, 3))
    x = ops.reshape(x, (-1, x.shape[1], heads * value_size))
    x = wrap(_dense(layer, "attention_output", given["query"].shape[-1]))(x)
    if len(given["query"].shape) > 3:
        x = ops.reshape(x, (-1, *given["query"].shape[1:]))
    model = Expanded([inputs[name] for name in names], x, name=layer.name)
    model.source = json.dumps(
        {
            "layer": keras.saving.serialize_keras_object(layer),
            "inputs": {name: place for place, name in enumerate(names) if name in told},
            "options": {"use_causal_mask": True} if causal else {},
        }
    )
    return model


_ATTENTION = (layers.MultiHeadAttention, layers.GroupQueryAttention)
_KINDS = tuple(layer.__name__ for layer in (*_ATTENTION, *DOT_ATTENTION))
_TENSORS = ("query", "value", "key", "attention_mask", "query_mask", "value_mask")


def _dense(layer: Any, name: str, units: int) -> Any:
    """Returns the Dense layer that stands for a projection."""
    config = attention_parts(layer)[name].get_config()
    kept = (
        "kernel_initializer bias_initializer kernel_regularizer bias_regularizer "
        "activity_regularizer"
    ).split()
    return layers.Dense(
        units,
        use_bias=config["bias_axes"] is not None,
        name=name,
        dtype=layer.dtype_policy,
        trainable=layer.trainable,
        **{key: config[key] for key in kept},
    )


def matching_variables(layer: Any, part: Callable[[str], Any]) -> list[tuple[Any, Any]]:
    """Pairs variables of an attention layer with those of its projections, by shapes flattened.

    Args:
        layer: The built attention layer.
        part: Returns the Dense layer of a name.
    """
    if type(layer) in DOT_ATTENTION:
        return [(weight, part("scale").kernel) for weight in layer.weights]
    return [
        pair
        for name, dense in attention_parts(layer).items()
        for pair in zip(dense.weights, part(name).weights, strict=True)
    ]
