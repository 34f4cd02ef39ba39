"""Converts a tf_keras model to Keras 3, layer by layer and call by call."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from tfcompress.errors import CompressionWarning
from tfcompress.graph.keras_internals import (
    is_keras_2_graph,
    keras_2_structs,
    nodes_in_order,
    producing_operation,
)
from tfcompress.graph.weights import variable_name


def _pair(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, y: function(x, y)


def _reduction(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda input_tensor, axis=None, keepdims=False: function(input_tensor, axis, keepdims)


def _product(a: Any, b: Any, transpose_a: bool = False, transpose_b: bool = False) -> Any:
    a, b = (
        ops.swapaxes(x, -1, -2) if transpose else x
        for x, transpose in ((a, transpose_a), (b, transpose_b))
    )
    return ops.matmul(a, b)


_OPERATIONS: dict[str, Callable[..., Any]] = {
    **{
        f"{home}.{name}": _pair(function)
        for home, name, function in (
            ("__operators__", "add", ops.add),
            ("math", "add", ops.add),
            ("math", "subtract", ops.subtract),
            ("math", "multiply", ops.multiply),
            ("math", "truediv", ops.true_divide),
            ("math", "divide", ops.divide),
            ("math", "maximum", ops.maximum),
            ("math", "minimum", ops.minimum),
            ("math", "pow", ops.power),
        )
    },
    **{
        f"math.{name}": (lambda x, function=function: function(x))
        for name, function in (
            ("negative", ops.negative),
            ("square", ops.square),
            ("sqrt", ops.sqrt),
            ("rsqrt", ops.rsqrt),
            ("exp", ops.exp),
            ("log", ops.log),
            ("abs", ops.abs),
            ("sigmoid", ops.sigmoid),
            ("tanh", ops.tanh),
        )
    },
    "math.reduce_mean": _reduction(ops.mean),
    "math.reduce_sum": _reduction(ops.sum),
    "math.reduce_max": _reduction(ops.max),
    "linalg.matmul": _product,
    "nn.relu": lambda features: ops.relu(features),
    "nn.relu6": lambda features: ops.relu6(features),
    "nn.silu": lambda features, beta=1.0: features * ops.sigmoid(beta * features),
    "nn.gelu": lambda features, approximate=False: ops.gelu(features, approximate),
    "nn.softmax": lambda logits, axis=-1: ops.softmax(logits, -1 if axis is None else axis),
    "nn.leaky_relu": lambda features, alpha=0.2: ops.leaky_relu(features, alpha),
    "reshape": lambda tensor, shape: ops.reshape(tensor, shape),
    "concat": lambda values, axis: ops.concatenate(values, axis),
    "compat.v1.transpose": lambda a, perm=None: ops.transpose(a, perm),
    "compat.v1.squeeze": lambda input, axis=None: ops.squeeze(input, axis),
    "expand_dims": lambda input, axis: ops.expand_dims(input, axis),
    "cast": lambda x, dtype: ops.cast(x, keras.backend.standardize_dtype(dtype)),
    "clip_by_value": lambda t, clip_value_min, clip_value_max: ops.clip(
        t, clip_value_min, clip_value_max
    ),
}
"""TensorFlow functions called in Keras 2 models, by symbol, with the names of their arguments."""


class Converter:
    """Creates the layers of Keras 3 and calls them as those of Keras 2 were called."""

    def __init__(self) -> None:
        self._converted_layers: dict[int, Any] = {}
        self._pairs: list[tuple[Any, Any]] = []
        self._frozen: list[Any] = []

    def run(self, old: Any) -> keras.Model:
        """Returns a model with the weights of the old one."""
        new = self._model(old)
        for before, after in self._pairs:
            _copy_weights(before, after)
            if isinstance(after, keras.layers.Normalization):
                after.finalize_state()
            if any(before is part for part in self._frozen):
                after.trainable = False
        return new

    def _model(self, old: Any) -> keras.Model:
        import tensorflow as tf

        values: dict[int, Any] = {}
        for tensor in old.inputs:
            dtype = keras.backend.standardize_dtype(tensor.dtype)
            name = tensor.node.layer.name
            values[id(tensor)] = keras.Input(tuple(tensor.shape[1:]), dtype=dtype, name=name)
        inputs = [values[id(tensor)] for tensor in old.inputs]

        def lookup(value: Any) -> Any:
            return values.get(id(value), value)

        for node in nodes_in_order(old):
            if node.is_input:
                continue
            args, kwargs = tf.nest.map_structure(lookup, (node.call_args, node.call_kwargs))
            kwargs = {k: v for k, v in kwargs.items() if v is not None}
            self._check_training(node.layer, kwargs.pop("training", None))
            outputs = tree.flatten(self._layer(node.layer)(*args, **kwargs))
            before = tf.nest.flatten(node.outputs)
            values.update((id(t), new) for t, new in zip(before, outputs, strict=True))
        if type(old).__name__ == "Sequential":
            chain = [self._layer(layer) for layer in old.layers]
            return keras.Sequential([producing_operation(inputs[0]), *chain], name=old.name)
        outputs = [values[id(tensor)] for tensor in old.outputs]
        structures = keras_2_structs(old)
        packed_inputs = tf.nest.pack_sequence_as(structures[0], inputs)
        packed_outputs = tf.nest.pack_sequence_as(structures[1], outputs)
        return keras.Model(packed_inputs, packed_outputs, name=old.name)

    def _check_training(self, old: Any, training: Any) -> None:
        """Handles a call that was recorded with `training`, which Keras 3 ignores."""
        if training is True:
            raise ValueError(
                f"Layer {old.name!r} is called with training=True, which a Keras 3 model overrules "
                "when it is called. Rebuild this part with a layer of its own that always trains."
            )
        parts = [old, *getattr(old, "submodules", ())]
        kinds = {type(part).__name__ for part in parts}
        if training is False and kinds & {"BatchNormalization", "Dropout"}:
            warnings.warn(
                f"layer {old.name!r} is called with training=False, which a Keras 3 model "
                "overrules when it trains. Its BatchNormalizations become untrainable, which "
                "keeps their statistics; dropout inside of it will be active in training.",
                CompressionWarning,
                stacklevel=6,
            )
            self._frozen += [p for p in parts if type(p).__name__ == "BatchNormalization"]

    def _layer(self, old: Any) -> Any:
        if id(old) not in self._converted_layers:
            self._converted_layers[id(old)] = self._converted(old)
        return self._converted_layers[id(old)]

    def _converted(self, old: Any) -> Any:
        kind = type(old).__name__
        if is_keras_2_graph(old):
            return self._model(old)
        if kind == "QuantizeLayer":
            return keras.layers.Identity(name=old.name)
        if kind == "TFOpLambda":
            if old.symbol not in _OPERATIONS:
                raise ValueError(
                    f"Layer {old.name!r} calls tf.{old.symbol}, which is not among the functions "
                    "that can be converted. Use layers instead, or rebuild this part with "
                    f"keras.ops. Known: {', '.join(sorted(_OPERATIONS))}"
                )
            return _call_function(old, _OPERATIONS[old.symbol])
        if kind == "SlicingOpLambda":
            return lambda x, slice_spec: x[tuple(_slice(part) for part in slice_spec)]
        layer = old.layer if kind.startswith("QuantizeWrapper") else old
        new = keras.layers.deserialize(_keras_3_config(_config_of(layer)))
        self._pairs.append((old, new))
        return new


def _slice(part: Any) -> Any:
    return slice(part["start"], part["stop"], part["step"]) if isinstance(part, dict) else part


def _call_function(old: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    known = set(inspect.signature(function).parameters) - {"function"}

    def call(*args: Any, **kwargs: Any) -> Any:
        kwargs = {k: v for k, v in kwargs.items() if k not in ("name", "training")}
        unknown = {k: v for k, v in kwargs.items() if k not in known}
        if any(
            value is not False for value in unknown.values()
        ):  # an option that is off has no effect
            raise ValueError(
                f"Layer {old.name!r} calls tf.{old.symbol} with {sorted(unknown)}, which is not "
                "among the options that can be converted."
            )
        return function(*args, **{k: v for k, v in kwargs.items() if k in known})

    return call


def _config_of(layer: Any) -> dict[str, Any]:
    """Returns the config of a layer, with its own activation if tfmot has replaced it."""
    original: Any = getattr(layer, "activation", None)
    activation = original
    if type(activation).__name__ == "QuantizeAwareActivation":
        activation = activation.activation
    if type(activation).__name__ == "NoOpActivation":
        activation = _linear()
    if activation is original:
        return {"class_name": type(layer).__name__, "config": layer.get_config()}
    layer.activation = activation
    try:
        return {"class_name": type(layer).__name__, "config": layer.get_config()}
    finally:
        layer.activation = original


def _linear() -> Any:
    import tf_keras

    return tf_keras.activations.linear


def _keras_3_config(entry: dict[str, Any]) -> dict[str, Any]:
    """Returns the config of a layer and its inner layers, without entries unknown to Keras 3."""
    kind, config = entry["class_name"], dict(entry["config"])
    new_class = getattr(keras.layers, kind, None)
    if new_class is None:
        raise ValueError(
            f"Layer {config.get('name')!r} is a {kind}, which Keras 3 does not have. Convert "
            "the models before and behind it, and write the layer anew for Keras 3."
        )
    known = {"name", "trainable", "dtype", "activity_regularizer"}
    for part in new_class.__mro__:
        if issubclass(part, keras.layers.Layer) and part is not keras.layers.Layer:
            known |= set(inspect.signature(part.__init__).parameters)
    config = {key: value for key, value in config.items() if key in known}
    for key, value in config.items():
        if isinstance(value, dict) and hasattr(keras.layers, str(value.get("class_name"))):
            config[key] = _keras_3_config(value)
    if kind == "BatchNormalization":  # Keras 2 stores the axis as a list
        config["axis"] = int(np.ravel(config["axis"])[0])
    dtype = config.get("dtype")
    if isinstance(dtype, dict):  # a policy
        config["dtype"] = dtype["config"].get("name", "float32")
    return {"module": "keras.layers", "class_name": kind, "config": config, "registered_name": None}


def _copy_weights(old: Any, new: Any) -> None:
    """Copies the weights of a Keras 2 layer to its Keras 3 layer, by name."""
    before = {last_name(weight): weight for weight in old.weights}
    targets = new.weights
    if len(before) < len(old.weights) or not {variable_name(w) for w in targets} <= set(before):
        pairs = list(
            zip(old.weights, targets, strict=False)
        )  # names of inner layers repeat: in order
    else:
        pairs = [(before[variable_name(weight)], weight) for weight in targets]
    if len(pairs) < len(targets) or any(tuple(a.shape) != tuple(b.shape) for a, b in pairs):
        raise ValueError(
            f"The weights of layer {old.name!r} ({type(old).__name__}) do not fit the layer of "
            f"Keras 3: {[tuple(w.shape) for w in old.weights]} and {[w.shape for w in targets]}."
        )
    for value, variable in pairs:
        variable.assign(value.numpy())


def last_name(weight: Any) -> str:
    """Returns the last part of a Keras 2 weight's name."""
    return weight.name.split("/")[-1].split(":")[0]
