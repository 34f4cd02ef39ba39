"""cluster: a model whose weights share a few values while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from tfcompress.graph.inline import as_graph
from tfcompress.graph.layers import DEPTHWISE, plain
from tfcompress.graph.read import walk_layers
from tfcompress.graph.select import LayerSelection, select
from tfcompress.graph.weights import compressible_weights, step_of
from tfcompress.transforms.clusters import Clusters
from tfcompress.wrap.state import check_wrapped
from tfcompress.wrap.wrap_layers import WrapLayers, nothing_to_compress, wrap_layer
from tfcompress.wrap.wrapper import CompressionWrapper


def cluster(
    model_or_layer: Any,
    number_of_clusters: int = 16,
    *,
    per_channel: bool = False,
    init: str = "kmeans++",
    assignment: str = "hard",
    layers: LayerSelection = None,
    check: bool = True,
) -> Any:
    """Returns a copy whose weights share a few values (weight clustering), learned while it trains.

    Each kernel gets centroids of its own, of which one is zero: zeros of pruning stay. Wrap a
    trained model, and train the result with plain `compile` and `fit`; `strip` gives back the
    ordinary model with the shared values in it. It composes: `quantize(cluster(prune(model)))`
    prunes, clusters and quantizes in one training. With one set of centroids for a kernel quantize
    with `QuantizationScheme(weight_granularity="tensor")`, or the rounding of each channel gives
    the centroids other quantized values there.

    Pays in: bytes after gzip; flash after Vela's compression; bytes of the file itself by
    `compress_lut`. The file itself and its latency stay as they were.

    Args:
        model_or_layer: A built model, wrapped or not (a subclassed one becomes Functional), or one
            layer. It is not changed.
        number_of_clusters: Number of values of each kernel, zero included, from 2 to 128.
        per_channel: Whether each output channel has centroids of its own.
        init: How centroids start: "kmeans++", "linear" or "density"; see
            `tfcompress.transforms.Clusters`.
        assignment: "hard", or "soft" for the gradient of a soft assignment.
        layers: Which layers: None for all with a kernel or embeddings but depthwise convolutions, a
            glob or list of globs on layer paths ("encoder/conv*"), or a predicate on the layer.
        check: Whether to compare the result with the model first, without clustering, on a few
            made-up samples. False is for models that cannot be run here.

    Returns:
        A new model of the same class with the same weights, not compiled; for a layer, the
        wrapped layer.

    Raises:
        TypeError: If `model_or_layer` is neither a model nor a layer.
        ValueError: If the model is unbuilt, nothing in it can be clustered, a layer is clustered
            already, an argument is out of range, or `layers` matches nothing.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> import tfcompress as tfc
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="head")])
        >>> clustered = tfc.cluster(model, 4)
        >>> len(np.unique(tfc.strip(clustered).layers[0].kernel)) <= 4
        True

    References:
        Han et al. 2016, arXiv:1510.00149. DKM: Cho et al. 2022, arXiv:2108.12659.
    """
    transform = Clusters(number_of_clusters, per_channel, init, assignment)
    if not isinstance(model_or_layer, keras.Model):
        wrapped = wrap_layer(model_or_layer, transform)
        if wrapped.built:
            wrapped.start(Clusters)
        return wrapped
    model_or_layer = as_graph(model_or_layer)
    candidates = [
        (path, plain(layer))
        for path, layer in walk_layers(model_or_layer)
        if compressible_weights(plain(layer))
        and not (layers is None and isinstance(step_of(plain(layer)), DEPTHWISE))
    ]
    if not candidates:
        raise nothing_to_compress(model_or_layer)
    chosen = select(candidates, layers)
    clustered = with_clusters(model_or_layer, dict.fromkeys(chosen, transform))
    if check:
        check_wrapped(model_or_layer, clustered, "cluster")
    return clustered


def with_clusters(model: keras.Model, chosen: Mapping[str, Clusters]) -> keras.Model:
    """Returns a copy of a model whose layers are clustered.

    Args:
        model: A Sequential or Functional model.
        chosen: The transform of each layer to cluster, by path.
    """
    clustered = WrapLayers(lambda path, layer: chosen[path], set(chosen)).run(model)
    for path, layer in walk_layers(clustered):
        if path in chosen and isinstance(layer, CompressionWrapper):
            layer.start(Clusters)
    return clustered
