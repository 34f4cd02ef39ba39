"""prune: a model whose weights are masked while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from tfcompress.graph.inline import as_graph
from tfcompress.graph.layers import DEPTHWISE, plain
from tfcompress.graph.read import walk_layers
from tfcompress.graph.select import LayerSelection
from tfcompress.graph.weights import compressible_weights, input_axis, step_of
from tfcompress.transforms.patterns import NOfM, Pattern, as_pattern
from tfcompress.transforms.schedules import SparsitySchedule
from tfcompress.wrap.sparsity import allocate, mask_of, masks, start_kept
from tfcompress.wrap.state import check_wrapped
from tfcompress.wrap.wrap_layers import WrapLayers, nothing_to_compress, wrap_layer
from tfcompress.wrap.wrapper import CompressionWrapper


def prune(
    model_or_layer: Any,
    sparsity: float | str | SparsitySchedule | Mapping[str, Any] | None = None,
    *,
    pattern: Any = "unstructured",
    ranking: str = "layer",
    layers: LayerSelection = None,
    check: bool = True,
) -> Any:
    """Returns a copy that sets its smallest weights to zero while it trains.

    Without `layers`, everything with a kernel or embeddings is pruned but depthwise convolutions,
    which hold few weights and need them all; name them in `layers` to prune them too. Train the
    result with plain `compile` and `fit`; `strip` gives back the ordinary model with the zeros in
    it.

    Pays in: bytes after gzip, or with `export_tflite(sparse=True)`. The file itself and its latency
    stay as they were. Accelerators with kernels for 2:4 or blocks are faster with these patterns.

    Args:
        model_or_layer: A built model, wrapped or not (a subclassed one becomes Functional), or one
            layer. It is not changed.
        sparsity: Share of zeros in [0, 1), from the first training step on; a schedule over the
            training steps such as `PolynomialDecay`; "keep" for the zeros that the weights have
            already, for example in a model that was pruned and stripped; or a dict of these by
            glob on layer paths. The first glob that matches counts; layers without a match are not
            pruned. None is 0.8, or the sparsity of `pattern`.
        pattern: "unstructured"; "n:m", such as "2:4": of every m consecutive weights along the
            input channels at most n are not zero (only layers that sum over input channels); or
            (rows, columns): blocks of so many inputs by output channels are zero as a whole, those
            of the smallest mean magnitude.
        ranking: "layer": each kernel is pruned to the same sparsity. "global": the smallest weights
            of all layers together; the share of each kernel is computed from its weights at the
            time of wrapping, so wrap a trained model.
        layers: Which layers: None, a glob or list of globs on layer paths ("encoder/conv*"), or a
            predicate on the layer.
        check: Whether to compare the result with the model first, without masks and quantization,
            on a few made-up samples. False is for models that cannot be run here.

    Returns:
        A new model of the same class with the same weights, not compiled; for a layer, the
        wrapped layer.

    Raises:
        TypeError: If `model_or_layer` is neither a model nor a layer.
        ValueError: If the model is unbuilt, nothing in it can be pruned, a layer is pruned already,
            `sparsity` is out of range or does not fit `pattern`, or `layers` or a glob matches
            nothing.

    Example:
        >>> import keras
        >>> import tfcompress as tfc
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="head")])
        >>> pruned = tfc.prune(model, 0.5)
        >>> pruned.compile("sgd", "mse")
        >>> history = pruned.fit(keras.ops.ones((4, 8)), keras.ops.ones((4, 4)), verbose=0)
        >>> int((keras.ops.convert_to_numpy(tfc.strip(pruned).layers[0].kernel) == 0).sum())
        16
        >>> tfc.summary(tfc.prune(model, pattern="1:4")).layers[0].target
        0.75

    References:
        Zhu & Gupta 2017, arXiv:1710.01878; Han et al. 2015, arXiv:1506.02626.
    """
    if not isinstance(model_or_layer, keras.Model):
        if isinstance(sparsity, Mapping):
            raise TypeError(
                "sparsity must be one number or schedule where a single layer is pruned."
            )
        wrapped = wrap_layer(model_or_layer, mask_of(sparsity, pattern, ranking))
        allocate({wrapped.name: wrapped})
        start_kept([wrapped])
        return wrapped
    model_or_layer = as_graph(model_or_layer)
    candidates = _prunable(model_or_layer, layers, as_pattern(pattern))
    chosen = masks(sparsity, pattern, ranking, candidates, layers)
    pruned = WrapLayers(lambda path, layer: chosen[path], set(chosen)).run(model_or_layer)
    wrappers = {p: w for p, w in walk_layers(pruned) if isinstance(w, CompressionWrapper)}
    allocate(wrappers)
    start_kept(w for path, w in wrappers.items() if path in chosen)
    if check:
        check_wrapped(model_or_layer, pruned, "prune")
    return pruned


def _prunable(
    model: keras.Model, layers: LayerSelection, pattern: Pattern
) -> list[tuple[str, Any]]:
    """Returns the layers that could be pruned: by default all but depthwise convolutions."""
    candidates = [
        (path, plain(layer))
        for path, layer in walk_layers(model)
        if (weights := compressible_weights(plain(layer)))
        and not (layers is None and isinstance(step_of(plain(layer)), DEPTHWISE))
        and not (
            isinstance(pattern, NOfM)
            and all(input_axis(plain(layer), weight) is None for weight in weights)
        )
    ]
    if not candidates:
        raise nothing_to_compress(model)
    return candidates
