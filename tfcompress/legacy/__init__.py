"""Converts Keras 2 models (tf_keras), wrapped by tensorflow-model-optimization or not, to Keras 3.

Needs the packages of `pip install tfcompress[legacy]`.
"""

from __future__ import annotations

import os
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from tfcompress.graph.keras_internals import is_keras_2_graph, keras_2_structs
from tfcompress.graph.read import walk_layers
from tfcompress.graph.weights import compressible_weights
from tfcompress.legacy.convert import Converter
from tfcompress.legacy.ranges import trained_ranges, with_ranges
from tfcompress.quantization.state import fake_quantizing_in_float, quantizers
from tfcompress.transforms.clusters import MOST_CLUSTERS, Clusters
from tfcompress.wrap.cluster import with_clusters

_TOLERANCE = 1e-5


def from_tf_keras(model: Any, *, verify: bool = True) -> keras.Model:
    """Converts a Keras 2 model (tf_keras) to an equivalent Keras 3 model.

    Models wrapped by tensorflow-model-optimization 0.8.1 are supported: pruned models become
    ordinary models with their zeros, clustered ones become clustered models of tfcompress with
    their centroids, which can be trained further. Quantization-aware models become
    quantization-aware models of tfcompress with the trained ranges at the same tensors, so that
    they can be trained further and exported without data. The result is compared with the original
    on random samples.

    The environment variable TF_USE_LEGACY_KERAS, which tensorflow-model-optimization sets for the
    whole process, is restored when this returns.

    Args:
        model: A built Sequential or Functional tf_keras model. It is not changed.
        verify: False skips the comparison, for a model that cannot be run here.

    Returns:
        A Keras 3 model of the same names, not compiled.

    Raises:
        ImportError: If tf_keras, or tensorflow-model-optimization for a wrapped model, is missing.
        TypeError: If `model` is no tf_keras model.
        ValueError: If it is subclassed or unbuilt, has a layer or operation that Keras 3 does not
            have, or if the outputs differ.

    Example:
        >>> import tf_keras
        >>> import tfcompress as tfc
        >>> old = tf_keras.Sequential([tf_keras.layers.Dense(3, input_shape=(4,), name="head")])
        >>> tfc.from_tf_keras(old).layers[0].name
        'head'
    """
    before = os.environ.get("TF_USE_LEGACY_KERAS")
    try:
        return _converted_model(model, verify)
    finally:
        if before is None:
            os.environ.pop("TF_USE_LEGACY_KERAS", None)
        else:
            os.environ["TF_USE_LEGACY_KERAS"] = before


def _converted_model(model: Any, verify: bool) -> keras.Model:
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
            "Functional models can be converted."
        )
    clustered = {
        wrapper.layer.name
        for wrapper in model.submodules
        if type(wrapper).__name__ == "ClusterWeights"
    }
    plain = _without_tfmot_wrappers(model)
    converted = Converter().run(plain)
    ranges = trained_ranges(plain)
    if ranges:
        converted = with_ranges(converted, ranges)
    if clustered:
        converted = with_clusters(converted, _clusters(converted, clustered))
    if verify:
        _compare(model, converted)
    return converted


def _clusters(model: keras.Model, names: set[str]) -> dict[str, Clusters]:
    """Returns the transform of each layer that has centroids, by path: as many as it has values."""
    chosen = {}
    for path, layer in walk_layers(model):
        weights = compressible_weights(layer) if layer.name in names else []
        counts = [np.unique(w) for w in map(ops.convert_to_numpy, weights)]
        # One of ours is zero.
        most = max((np.count_nonzero(values) + 1 for values in counts), default=0)
        if 1 < most <= MOST_CLUSTERS:
            chosen[path] = Clusters(int(most))
    return chosen


def _without_tfmot_wrappers(model: Any) -> Any:
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
    """Rejects a converted model whose outputs differ from those of the original."""
    generator = np.random.default_rng(0)
    inputs = []
    for tensor in old.inputs:
        shape = (4, *(magnitude or 8 for magnitude in tensor.shape[1:]))
        is_integer = np.dtype(tensor.dtype.as_numpy_dtype).kind in "iub"
        values = generator.integers(0, 2, shape) if is_integer else generator.random(shape)
        inputs.append(values.astype(tensor.dtype.as_numpy_dtype))
    features = inputs if len(inputs) > 1 else inputs[0]
    import tensorflow as tf

    structure, _ = keras_2_structs(old)
    if isinstance(structure, dict):
        features = tf.nest.pack_sequence_as(structure, inputs)
    old_outputs = tf.nest.flatten(old(features, training=False))
    quantized = bool(quantizers(new))
    with fake_quantizing_in_float(new):
        new_outputs = tree.flatten(new(features, training=False))
    for output, (expected, actual) in enumerate(zip(old_outputs, new_outputs, strict=True)):
        expected, actual = np.asarray(expected), ops.convert_to_numpy(actual)
        error = np.abs(expected - actual)
        magnitude = max(1.0, float(np.abs(expected).max()))
        # Sums that differ in the last bit may be rounded to different quantized values.
        worst = float(np.median(error) if quantized else error.max())
        if not worst <= _TOLERANCE * magnitude:
            raise ValueError(
                f"The converted model differs from {old.name!r} by {worst:.3g} at output "
                f"{output}, where {_TOLERANCE * magnitude:.3g} is allowed: a layer behaves "
                "differently in Keras 3."
            )
