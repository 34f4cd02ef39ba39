"""What is used of Keras that it does not promise to keep: these names stand nowhere else.

With a new version of Keras that is not known yet, this is what to look at first.
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

CALLS = ("_inbound_nodes", "_outbound_nodes")
"""Attributes with the calls of an operation."""


class History(NamedTuple):
    """Where a symbolic tensor comes from.

    Attributes:
        operation: What made it.
        node_index: In which of its calls.
        tensor_index: Which of the outputs of that call.
    """

    operation: Any
    node_index: int
    tensor_index: int


def history(tensor: Any) -> History | None:
    """Returns where a symbolic tensor comes from; None for any other value."""
    found = getattr(tensor, "_keras_history", None)
    return None if found is None else History(*found)


def maker(tensor: Any) -> Any:
    """Returns the operation that made a symbolic tensor."""
    return tensor._keras_history.operation


def maker_inputs(tensor: Any) -> list[Any]:
    """Returns the tensors of the call that made a symbolic tensor."""
    operation, node_index, _ = tensor._keras_history
    return operation._inbound_nodes[node_index].input_tensors


def output_index(tensor: Any) -> int:
    """Returns which of the outputs of the operation that made it a symbolic tensor is."""
    return tensor._keras_history.tensor_index


def inbound_nodes(operation: Any) -> list[Any]:
    """Returns the calls of an operation, those in other models among them."""
    return operation._inbound_nodes


def outbound_nodes(operation: Any) -> list[Any]:
    """Returns the calls of others on what an operation returned."""
    return operation._outbound_nodes


def clear_calls(operation: Any) -> None:
    """Has an operation forget its calls, so that another model can take it."""
    operation._inbound_nodes.clear()
    operation._outbound_nodes.clear()


def nodes_in_order(function: Any) -> Iterator[Any]:
    """Yields the calls of a `keras.Function`, each behind those that it reads."""
    for depth in sorted(function._nodes_by_depth, reverse=True):
        yield from function._nodes_by_depth[depth]


def input_struct(model: Any) -> Any:
    """Returns the inputs of a Functional model as they were given; None of other models."""
    return getattr(model, "_inputs_struct", None)


def output_struct(model: Any) -> Any:
    """Returns the outputs of a Functional model as they were given; None of other models."""
    return getattr(model, "_outputs_struct", None)


def functional_class(model: Any) -> Any:
    """Returns the class of Keras' Functional models if a model is of one; else None."""
    return next((c for c in type(model).__mro__ if c.__name__ == "Functional"), None)


def functional_of(sequential: Any) -> Any:
    """Returns the Functional model inside a Sequential one; None of other models."""
    return getattr(sequential, "_functional", None)


def flatten_layers(layer: Any) -> list[Any]:
    """Returns a layer and all layers inside of it."""
    return layer._flatten_layers()


def sublayers(layer: Any) -> list[Any]:
    """Returns the layers that a layer holds itself."""
    return layer._layers


def trained_variables(layer: Any) -> list[Any]:
    """Returns a layer's own variables that were made trainable, frozen or not."""
    return layer._trainable_variables


def has_own_state(layer: Any) -> bool:
    """Returns whether a layer holds variables or seeds itself, not in layers inside."""
    own = (layer._trainable_variables, layer._non_trainable_variables, layer._seed_generators)
    return any(own)


def tracked_ids(layer: Any) -> dict[str, set[int]]:
    """Returns the `id` of everything that a layer keeps a record of, by kind."""
    return layer._tracker.stored_ids


def copy_call_signature(layer: Any, wrapper: Any) -> None:
    """Has a wrapper be called as the layer inside is: Keras looks there for tensors and masks."""
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
    """Returns what a function would return, symbolically."""
    return backend.compute_output_spec(function, *args, **kwargs)


def lambda_output_shape(layer: keras.layers.Lambda) -> Any:
    """Returns the output shape that a Lambda layer was given."""
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
    seen = context.get_value("tfcompress_seen")
    if seen is None:
        seen = set()
        context.set_value("tfcompress_seen", seen)
    first = id(layer) not in seen
    seen.add(id(layer))
    return first


def first_epoch(model: Any, epoch: int | None) -> None:
    """Has `fit` begin at an epoch, as Keras' own callback does; None for the first."""
    model._initial_epoch = epoch


def loss_given(model: Any) -> Any:
    """Returns the loss that was given to `compile`; None for a model that was not compiled."""
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
    """Returns the one mask that an attention layer makes of all that it is given."""
    return layer._compute_attention_mask(query, value, **kwargs)


@contextlib.contextmanager
def returning_attention_maps(layer: Any) -> Iterator[None]:
    """Has a GroupQueryAttention compute its maps."""
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
    """Returns inputs and outputs of a `tf_keras` model as they were given."""
    return model._nested_inputs, model._nested_outputs


def give_up_kernel(layer: Any, value: Any) -> Any:
    """Returns the kernel of a dense layer, and puts another value in the place of its own."""
    kernel = layer._kernel
    before = kernel.value
    kernel._value = value
    return before
