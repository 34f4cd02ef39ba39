"""Keras 2 models (tf_keras), wrapped by tensorflow-model-optimization or not, brought to Keras 3.

Needs the packages of `pip install tfcompress[legacy]`.
"""

from __future__ import annotations

import os
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from tfcompress.graph.keras_internals import is_keras_2_graph, keras_2_structs
from tfcompress.legacy.convert import Converter
from tfcompress.legacy.ranges import trained_ranges, with_ranges
from tfcompress.quantization.state import quantizers, rounding_in_floats

_TOLERANCE = 1e-5


def from_tf_keras(model: Any, *, verify: bool = True) -> keras.Model:
    """Returns a Keras 2 model (tf_keras) as an equal Keras 3 model.

    Models wrapped by tensorflow-model-optimization 0.8.1 come over as well: pruned and clustered
    ones as ordinary models with their zeros and centroids, quantization-aware ones as
    quantization-aware models of tfcompress with the trained ranges where they were, so that they
    train on and export without data. What is returned was run beside the original on random
    samples.

    The environment variable TF_USE_LEGACY_KERAS, which tensorflow-model-optimization sets for the
    whole process, is as it was when this returns.

    Args:
        model: A built Sequential or Functional tf_keras model. It is not changed.
        verify: False skips the comparison, for a model that cannot be run here.

    Returns:
        A Keras 3 model of the same names, not compiled.

    Raises:
        ImportError: If tf_keras, or tensorflow-model-optimization for a wrapped model, is missing.
        TypeError: If `model` is no tf_keras model.
        ValueError: If it is subclassed or unbuilt, has a layer or operation without a twin in Keras
            3, or if the outputs differ.

    Example:
        >>> import tf_keras
        >>> import tfcompress as tfc
        >>> old = tf_keras.Sequential([tf_keras.layers.Dense(3, input_shape=(4,), name="head")])
        >>> tfc.from_tf_keras(old).layers[0].name
        'head'
    """
    before = os.environ.get("TF_USE_LEGACY_KERAS")
    try:
        return _brought_over(model, verify)
    finally:
        if before is None:
            os.environ.pop("TF_USE_LEGACY_KERAS", None)
        else:
            os.environ["TF_USE_LEGACY_KERAS"] = before


def _brought_over(model: Any, verify: bool) -> keras.Model:
    try:
        import tf_keras
    except ImportError as error:
        raise ImportError(
            "Keras 2 models need tf_keras: pip install 'tfcompress[legacy]'."
        ) from error
    if not isinstance(model, tf_keras.Model):
        kind = f"{type(model).__module__}.{type(model).__name__}"
        hint = " It is a Keras 3 model already." if isinstance(model, keras.Model) else ""
        raise TypeError(f"model must be a tf_keras model. Received an object of type {kind}.{hint}")
    if not model.built:
        raise ValueError(f"model {model.name!r} must be built: call it on data once.")
    if not is_keras_2_graph(model):
        raise ValueError(
            f"model {model.name!r} is subclassed: its code is for Keras 2. Only Sequential and "
            "Functional models can be brought over."
        )
    plain = _stripped(model)
    converted = Converter().run(plain)
    told = trained_ranges(plain)
    if told:
        converted = with_ranges(converted, told)
    if verify:
        _compare(model, converted)
    return converted


def _stripped(model: Any) -> Any:
    """Returns the model without the wrappers of pruning and clustering."""
    kinds = {type(layer).__name__ for layer in model.submodules}
    if not kinds & {"PruneLowMagnitude", "ClusterWeights"}:
        return model
    import tensorflow_model_optimization as tfmot  # an optional dependency

    if "ClusterWeights" in kinds:
        model = tfmot.clustering.keras.strip_clustering(model)
    if "PruneLowMagnitude" in kinds:
        model = tfmot.sparsity.keras.strip_pruning(model)
    return model


def _compare(old: Any, new: keras.Model) -> None:
    """Refuses a model that does not compute what it was made from."""
    generator = np.random.default_rng(0)
    inputs = []
    for tensor in old.inputs:
        shape = (4, *(size or 8 for size in tensor.shape[1:]))
        whole = np.dtype(tensor.dtype.as_numpy_dtype).kind in "iub"
        made = generator.integers(0, 2, shape) if whole else generator.random(shape)
        inputs.append(made.astype(tensor.dtype.as_numpy_dtype))
    given = inputs if len(inputs) > 1 else inputs[0]
    import tensorflow as tf

    structure, _ = keras_2_structs(old)
    if isinstance(structure, dict):
        given = tf.nest.pack_sequence_as(structure, inputs)
    wanted = tf.nest.flatten(old(given, training=False))
    quantized = bool(quantizers(new))
    with rounding_in_floats(new):
        found = tree.flatten(new(given, training=False))
    for output, (expected, got) in enumerate(zip(wanted, found, strict=True)):
        expected, got = np.asarray(expected), ops.convert_to_numpy(got)
        error = np.abs(expected - got)
        size = max(1.0, float(np.abs(expected).max()))
        # Of sums that differ in the last bit, a rounding may go the other way.
        worst = float(np.median(error) if quantized else error.max())
        if not worst <= _TOLERANCE * size:
            raise ValueError(
                f"The model that was made differs from {old.name!r} by {worst:.3g} at output "
                f"{output}, where {_TOLERANCE * size:.3g} is allowed: a layer does something else "
                "in Keras 3."
            )
