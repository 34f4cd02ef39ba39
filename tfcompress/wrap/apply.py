"""prune and quantize: wrap a model or a layer for training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from tfcompress.graph.copies import clone_layer
from tfcompress.graph.cost import DEPTHWISE, plain
from tfcompress.graph.inline import as_graph
from tfcompress.graph.preprocessing import check_no_tables
from tfcompress.graph.read import walk_layers
from tfcompress.graph.select import LayerSelection, select
from tfcompress.scheme import QuantizationScheme, as_scheme
from tfcompress.transforms import FakeQuant, SparsitySchedule, WeightTransform
from tfcompress.transforms.patterns import NOfM, Pattern, as_pattern
from tfcompress.wrap.activations import ActivationQuantizer
from tfcompress.wrap.add_transform import AddTransform
from tfcompress.wrap.placement import PlaceQuantizers
from tfcompress.wrap.samples import MOST_SAMPLES
from tfcompress.wrap.sparsity import allocate, mask_of, masks, start_kept, warn_of_zeros
from tfcompress.wrap.strip import check_wrapped
from tfcompress.wrap.wrapper import CompressionWrapper, compressible_weights, input_axis, step_of


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
    stay as they were. Accelerators with kernels for 2:4 or for blocks save time with these.

    Args:
        model_or_layer: A built model, wrapped or not (a subclassed one becomes Functional), or one
            layer. It is not changed.
        sparsity: Share of zeros in [0, 1), from the first step on; a schedule over the training
            steps such as `PolynomialDecay`; "keep" for the zeros that the weights have already, as
            those of a model that was pruned and stripped; or a dict of these by glob on layer
            paths, of which the first that fits counts, and layers that none fits are not pruned.
            None is 0.8, or what `pattern` says.
        pattern: "unstructured"; "n:m", such as "2:4": of every m consecutive weights along the
            input channels at most n are not zero (only layers that sum over input channels); or
            (rows, columns): blocks of so many inputs by output channels are zero as a whole, those
            of the smallest mean magnitude.
        ranking: "layer": each kernel is pruned to the same sparsity. "global": the smallest weights
            of all layers together; each kernel's share is set by the weights it has when it is
            wrapped, so wrap a trained model.
        layers: Which layers: None, a glob or list of globs on layer paths ("encoder/conv*"), or a
            predicate on the layer.
        check: Whether to compare the result with the model first, without masks and rounding, on a
            few made-up samples. False is for models that cannot be run here.

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
        wrapped = _wrap_layer(model_or_layer, mask_of(sparsity, pattern, ranking))
        allocate({wrapped.name: wrapped})
        start_kept([wrapped])
        return wrapped
    model_or_layer = as_graph(model_or_layer)
    candidates = _prunable(model_or_layer, layers, as_pattern(pattern))
    chosen = masks(sparsity, pattern, ranking, candidates, layers)
    pruned = AddTransform(lambda path, layer: chosen[path], set(chosen)).run(model_or_layer)
    wrappers = {p: w for p, w in walk_layers(pruned) if isinstance(w, CompressionWrapper)}
    allocate(wrappers)
    start_kept(w for path, w in wrappers.items() if path in chosen)
    if check:
        check_wrapped(model_or_layer, pruned, "prune")
    return pruned


def quantize(
    model_or_layer: Any,
    scheme: str | QuantizationScheme = "int8",
    *,
    layers: LayerSelection = None,
    keep_samples: int = MOST_SAMPLES,
    check: bool = True,
) -> Any:
    """Returns a copy that trains with the rounding of the INT8 file it will become (QAT).

    Weights are rounded per output channel, activations per tensor with ranges learned while
    training, where the runtime rounds them and nowhere else. Fused activations become layers of
    their own, and a Sequential model becomes a chain in a Functional one; `strip` undoes both.
    Train with plain `compile` and `fit`, then `export_tflite`: no calibration data is needed.
    The model keeps a few training samples, which the export checks the file on; they are in its
    `.keras` and `.weights.h5` files as well.

    Pays in: a quarter of the bytes of float32, and milliseconds, on every TFLite runtime.

    Args:
        model_or_layer: A built Sequential or Functional model, wrapped by `prune` or not, or one
            layer (whose weights alone are then rounded). It is not changed.
        scheme: "int8", "w4a8" (4-bit weights, 8-bit activations), "int16x8" (16-bit activations) or
            a `QuantizationScheme`.
        layers: Which layers, as for `prune`; the others stay float in the model and in the file.
        keep_samples: Training samples to keep at most, fewer where they are large; 0 for none: the
            export then checks the file on noise, unless it is given samples. `forget_samples`
            removes them later.
        check: Whether to compare the result with the model first, as for `prune`.

    Returns:
        A new model with the same weights, not compiled; for a layer, the wrapped layer.

    Raises:
        TypeError: If `model_or_layer` is neither a model nor a layer.
        ValueError: If the model is unbuilt, it is quantized already, `scheme` is
            unknown, `layers` or an override matches nothing, or a part of the model cannot go into
            a file (see `split_preprocessing`).

    Warns:
        CompressionWarning: If the model was pruned, and nothing would keep its zeros.

    Example:
        >>> import keras
        >>> import tfcompress as tfc
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, activation="relu")])
        >>> student = tfc.quantize(tfc.prune(model, 0.5))  # pruned and quantization-aware
        >>> student(keras.ops.ones((1, 8))).shape
        TensorShape([1, 4])

    References:
        Jacob et al. 2018, arXiv:1712.05877.
    """
    scheme = as_scheme(scheme)
    if isinstance(keep_samples, bool) or not isinstance(keep_samples, int) or keep_samples < 0:
        raise ValueError(f"keep_samples must be an integer >= 0. Received: {keep_samples!r}")
    if not isinstance(model_or_layer, keras.Model):
        wrapped = _wrap_layer(model_or_layer, weight_rounding(plain(model_or_layer), scheme))
        if wrapped.built:
            wrapped.start()
        return wrapped
    model = as_graph(model_or_layer)
    check_no_tables(model)
    made = quantized(model, scheme, layers, keep_samples=keep_samples)
    if check:
        check_wrapped(model, made, "quantize")
    warn_of_zeros(walk_layers(model))
    return made


def quantized(
    model: keras.Model,
    scheme: QuantizationScheme,
    layers: LayerSelection = None,
    *,
    keep_samples: int = MOST_SAMPLES,
    move: bool = False,
) -> keras.Model:
    """Is `quantize` for a model; `move` takes its layers, and it must not be used any more."""
    if any(isinstance(layer, ActivationQuantizer) for _, layer in walk_layers(model)):
        raise ValueError(
            f"model {model.name!r} is quantized already. To quantize it otherwise, strip() it "
            "first."
        )
    _check_adapters(model)
    if scheme.activation_range == "learned" and keras.backend.backend() == "jax":
        raise ValueError(
            "activation_range='learned' is not possible on JAX: a step of training cannot set the "
            "range that it starts from there. Train on TensorFlow or PyTorch, or leave it out."
        )
    if scheme.weight_granularity == "tensor":
        _check_granularity(model, scheme)
    # Layers without weights take part too: rules rewrite them, and their outputs are quantized.
    every = [(path, plain(layer)) for path, layer in walk_layers(model)]
    chosen = select(every, layers)
    schemes, left_out = _schemes(every, chosen, scheme)
    chosen = chosen - left_out
    wide = {path for path, found in schemes.items() if found.activation_bits == 16}
    wrapper = AddTransform(
        lambda path, layer: weight_rounding(layer, schemes[path]),
        chosen,
        canonicalize=True,
        move=move,
        wide=wide,
    )
    model = wrapper.run(model)
    placing = PlaceQuantizers(
        None if layers is None else chosen | wrapper.added.keys(),
        left_out=left_out,
        wide=wide | {part for part, path in wrapper.added.items() if path in wide},
        learned=scheme.activation_range == "learned",
    )
    placing.keep_samples = keep_samples
    placed = placing.run(model)
    for _, layer in walk_layers(placed):
        if isinstance(layer, CompressionWrapper):
            layer.start()
    return placed


def _check_adapters(model: keras.Model) -> None:
    parts = model._flatten_layers()
    if adapted := [part.name for part in parts if getattr(part, "lora_enabled", False)]:
        raise ValueError(
            f"Layer {adapted[0]!r} has LoRA weights, which would be rounded apart from its kernel "
            f"({len(adapted)} such layers). Merge them first: make the model anew without LoRA, "
            "and assign it the `kernel` or `embeddings` of these layers, to which Keras adds them."
        )


def _check_granularity(model: keras.Model, scheme: QuantizationScheme) -> None:
    normalized = [
        path for path, layer in walk_layers(model) if isinstance(plain(layer), _CHANNEL_SCALES)
    ]
    if normalized:
        raise ValueError(
            f"weight_granularity='tensor' is not possible with {normalized[0]!r}, which gives each "
            "channel a scale of its own. A BatchNormalization directly behind a convolution or "
            "dense layer is folded into it if the float model is exported with this scheme and a "
            "representative_dataset."
        )
    others = [glob for glob, other in scheme.overrides.items() if not _is_tensor(other)]
    if others:
        raise ValueError(
            "weight_granularity='tensor' holds for a whole file. Received: overrides for "
            f"{others[0]!r} that say 'channel'."
        )


_CHANNEL_SCALES = (keras.layers.BatchNormalization, keras.layers.Normalization)


def _is_tensor(scheme: Any) -> bool:
    return scheme == "float32" or getattr(scheme, "weight_granularity", "") == "tensor"


def weight_rounding(layer: Any, scheme: QuantizationScheme) -> FakeQuant:
    """Returns the transform that rounds the weights of a layer in a scheme."""
    # The runtime has 4-bit kernels for these only.
    four = scheme.weight_bits == 4 and isinstance(layer, _FOUR_BITS)
    return FakeQuant(4 if four else 8, scheme.weight_range, scheme.weight_granularity)


_FOUR_BITS = (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D)


def _schemes(
    every: list[tuple[str, Any]], chosen: set[str], scheme: QuantizationScheme
) -> tuple[dict[str, QuantizationScheme], set[str]]:
    """Returns the scheme of each layer to quantize, and those to leave in float after all."""
    found: dict[str, Any] = {}
    for glob, other in scheme.overrides.items():
        for path in select(every, glob, argument=f"overrides[{glob!r}]"):
            found.setdefault(path, other)
    left_out = {path for path in chosen if found.get(path) == "float32"}
    return {p: as_scheme(found.get(p, scheme)) for p in chosen - left_out}, left_out


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
        raise _nothing_to_compress(model)
    return candidates


def _nothing_to_compress(model: keras.Model) -> ValueError:
    return ValueError(
        f"model {model.name!r} has nothing to compress: none of the layers has a kernel or "
        "embeddings (depthwise kernels are pruned only when `layers` names them)."
    )


def _wrap_layer(layer: Any, transform: WeightTransform) -> CompressionWrapper:
    if not isinstance(layer, keras.layers.Layer):
        raise TypeError(
            "model_or_layer must be a Keras 3 model or layer. Received an object of type "
            f"{type(layer).__module__}.{type(layer).__name__}: {layer!r}"
        )
    transforms = [transform]
    if isinstance(layer, CompressionWrapper):
        transforms = [*layer.transforms, transform]
    inner = plain(layer)
    if inner.built and not compressible_weights(inner):
        raise ValueError(
            f"layer {layer.name!r} has nothing to compress: it has no kernel and no embeddings."
        )
    copy = clone_layer(inner)
    if inner.built:
        copy.build_from_config(inner.get_build_config())
        for old, new in zip(inner.variables, copy.variables, strict=True):
            new.assign(old)
    return CompressionWrapper(copy, transforms)
