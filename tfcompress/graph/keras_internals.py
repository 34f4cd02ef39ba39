"""Private names of Keras, which it may change; no other module uses them.

After an update of Keras, check this module first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
from keras.src import backend as backend
from keras.src.backend.common.masking import get_keras_mask as get_keras_mask
from keras.src.backend.common.masking import set_keras_mask as set_keras_mask
from keras.src.utils.tracking import DotNotTrackScope as DotNotTrackScope

REFUSES_IDENTITY = tuple(map(int, keras.__version__.split(".")[:2])) < (3, 13)
"""Whether a Functional model may not return nothing but its inputs."""

CALLS = ("_inbound_nodes", "_outbound_nodes")
"""Attributes with the calls of an operation."""


class History(NamedTuple):
    """Where a symbolic tensor comes from.

    Attributes:
        operation: The operation that produced it.
        node_index: Which call of the operation produced it.
        tensor_index: Which output of that call it is.
    """

    operation: Any
    node_index: int
    tensor_index: int


def history(tensor: Any) -> History | None:
    """Returns where a symbolic tensor comes from; None for any other value."""
    entry = getattr(tensor, "_keras_history", None)
    return None if entry is None else History(*entry)


def producing_operation(tensor: Any) -> Any:
    """Returns the operation that produced a symbolic tensor."""
    return tensor._keras_history.operation


def producing_inputs(tensor: Any) -> list[Any]:
    """Returns the input tensors of the call that produced a symbolic tensor."""
    operation, node_index, _ = tensor._keras_history
    return operation._inbound_nodes[node_index].input_tensors


def producing_arguments(tensor: Any) -> list[Any]:
    """Returns all arguments of the call that produced a symbolic tensor, in order."""
    operation, node_index, _ = tensor._keras_history
    arguments = operation._inbound_nodes[node_index].arguments
    return [*arguments.args, *arguments.kwargs.values()]


def output_index(tensor: Any) -> int:
    """Returns which output of its producer a symbolic tensor is."""
    return tensor._keras_history.tensor_index


def inbound_nodes(operation: Any) -> list[Any]:
    """Returns the calls of an operation, including those in other models."""
    return operation._inbound_nodes


def outbound_nodes(operation: Any) -> list[Any]:
    """Returns the calls of other operations on the outputs of an operation."""
    return operation._outbound_nodes


def clear_calls(operation: Any) -> None:
    """Clears the calls of an operation, so that another model can use it."""
    operation._inbound_nodes.clear()
    operation._outbound_nodes.clear()


def nodes_in_order(function: Any) -> Iterator[Any]:
    """Yields the calls of a `keras.Function`, each after the calls that it depends on."""
    for depth in sorted(function._nodes_by_depth, reverse=True):
        yield from function._nodes_by_depth[depth]


def input_struct(model: Any) -> Any:
    """Returns the inputs of a Functional model in their structure; None for other models."""
    return getattr(model, "_inputs_struct", None)


def output_struct(model: Any) -> Any:
    """Returns the outputs of a Functional model in their structure; None for other models."""
    return getattr(model, "_outputs_struct", None)


def functional_class(model: Any) -> Any:
    """Returns Keras' class of Functional models if a model is an instance of it; else None."""
    return next((c for c in type(model).__mro__ if c.__name__ == "Functional"), None)


def functional_of(sequential: Any) -> Any:
    """Returns the Functional model inside a Sequential one; None for other models."""
    return getattr(sequential, "_functional", None)


def flatten_layers(layer: Any) -> list[Any]:
    """Returns a layer and all layers inside of it."""
    return layer._flatten_layers()


def sublayers(layer: Any) -> list[Any]:
    """Returns the direct sublayers of a layer."""
    return layer._layers


def trained_variables(layer: Any) -> list[Any]:
    """Returns a layer's own variables that were created trainable, frozen or not."""
    return layer._trainable_variables


def seeds_of(layer: Any) -> list[Any]:
    """Returns the seed generators that the code of a layer itself draws from."""
    return list(layer._seed_generators)


def own_variables(layer: Any) -> dict[str, Any]:
    """Returns the variables that a layer itself holds, by attribute."""
    own = {id(v) for v in layer._trainable_variables + layer._non_trainable_variables}
    return {name: value for name, value in vars(layer).items() if id(value) in own}


@contextlib.contextmanager
def with_class(layer: Any, call: Any) -> Iterator[None]:
    """Gives a layer another `__call__`, for a time."""
    whole = type(layer)
    changed = type(whole.__name__, (whole,), {"__call__": call})
    object.__setattr__(layer, "__class__", changed)
    try:
        yield
    finally:
        object.__setattr__(layer, "__class__", whole)


def tracked_ids(layer: Any) -> dict[str, set[int]]:
    """Returns the `id` of everything that a layer tracks, by kind."""
    return layer._tracker.stored_ids


def copy_call_signature(layer: Any, wrapper: Any) -> None:
    """Copies the call signature of a layer to its wrapper; Keras finds tensors and masks by it."""
    wrapper._call_signature = layer._call_signature
    wrapper._allow_non_tensor_positional_args = layer._allow_non_tensor_positional_args


def allow_non_tensor_arguments(layer: Any) -> None:
    """Lets a layer be called with positional arguments that are no tensors."""
    layer._allow_non_tensor_positional_args = True


def call_parameters(layer: Any) -> Any:
    """Returns the names of the parameters of a layer's `call`."""
    return layer._call_signature.parameters


def takes_mask(layer: Any) -> bool:
    """Returns whether a layer's `call` has a parameter for a mask."""
    return layer._call_has_mask_arg


def takes_training(layer: Any) -> bool:
    """Returns whether a layer's `call` has a parameter for training."""
    return layer._call_has_training_arg


def symbolic_call(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Returns the symbolic outputs of a function."""
    return backend.compute_output_spec(function, *args, **kwargs)


def lambda_output_shape(layer: keras.layers.Lambda) -> Any:
    """Returns the `output_shape` argument of a Lambda layer."""
    return layer._output_shape


def compiled_loss(model: Any) -> Any:
    """Returns the loss that a model was compiled with; None if there is none."""
    return model._compile_loss


def first_call_in_pass(layer: keras.layers.Layer) -> bool:
    """Returns whether this is the first call of `layer` in the current pass of its model.

    Keras opens one call context for the outermost layer called and closes it when that returns, so
    the context is the pass. It lives in the thread that runs the pass: the replicas of a
    distribution strategy each have their own.
    """
    context = layer._get_call_context()
    called = context.get_value("tfcompress_seen")
    if called is None:
        called = set()
        context.set_value("tfcompress_seen", called)
    first = id(layer) not in called
    called.add(id(layer))
    return first


def first_epoch(model: Any, epoch: int | None) -> None:
    """Makes `fit` begin at an epoch, as Keras' own callback does; None for the first."""
    model._initial_epoch = epoch


def loss_argument(model: Any) -> Any:
    """Returns the `loss` argument of `compile`; None for a model that was not compiled."""
    compiled = getattr(model, "_compile_loss", None)
    return compiled._user_loss if compiled is not None and model.compiled else None


def mask_of(tensor: Any) -> Any:
    """Returns the mask that a tensor carries, if it carries one."""
    return getattr(tensor, "_keras_mask", None)


def attention_parts(layer: Any) -> dict[str, Any]:
    """Returns the projections of a built attention layer, by role."""
    return {
        "query": layer._query_dense,
        "key": layer._key_dense,
        "value": layer._value_dense,
        "attention_output": layer._output_dense,
    }


ATTENTION_METHOD = "_compute_attention"
"""The method of attention layers that computes maps and outputs."""


def attention_mask(layer: Any, query: Any, value: Any, **kwargs: Any) -> Any:
    """Returns the mask that an attention layer computes from all of its masks."""
    return layer._compute_attention_mask(query, value, **kwargs)


@contextlib.contextmanager
def returning_attention_maps(layer: Any) -> Iterator[None]:
    """Makes a GroupQueryAttention return its attention maps."""
    before = layer._return_attention_scores
    layer._return_attention_scores = True
    try:
        yield
    finally:
        layer._return_attention_scores = before


def build_shapes(model: Any) -> dict[str, Any]:
    """Returns the shapes that a subclassed model was built for; empty if they are not known."""
    return getattr(model, "_build_shapes_dict", None) or {}


def is_keras_2_graph(model: Any) -> bool:
    """Returns whether a `tf_keras` model is Sequential or Functional."""
    return hasattr(model, "_nodes_by_depth")


def keras_2_structs(model: Any) -> tuple[Any, Any]:
    """Returns inputs and outputs of a `tf_keras` model in their structure."""
    return model._nested_inputs, model._nested_outputs


def give_up_kernel(layer: Any, value: Any) -> Any:
    """Replaces the kernel of a dense layer by another value, and returns the old value."""
    kernel = layer._kernel
    before = kernel.value
    kernel._value = value
    return before
