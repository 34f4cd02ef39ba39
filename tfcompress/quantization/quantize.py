"""quantize: a model that computes during training as its INT8 file will."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from tfcompress.graph.inline import as_graph
from tfcompress.graph.keras_internals import flatten_layers
from tfcompress.graph.layers import plain
from tfcompress.graph.preprocessing import check_no_tables
from tfcompress.graph.read import walk_layers
from tfcompress.graph.select import LayerSelection, select
from tfcompress.integer.roles import has_int4_kernels
from tfcompress.quantization.activation_quantizer import ActivationQuantizer
from tfcompress.quantization.canonical_wrapping import WrapCanonicalForms
from tfcompress.quantization.input_samples import MOST_SAMPLES
from tfcompress.quantization.placement import PlaceQuantizers
from tfcompress.scheme import QuantizationScheme, as_scheme
from tfcompress.transforms.fake_quant import FakeQuant
from tfcompress.wrap.sparsity import warn_of_zeros
from tfcompress.wrap.state import check_wrapped
from tfcompress.wrap.wrap_layers import wrap_layer
from tfcompress.wrap.wrapper import CompressionWrapper


def quantize(
    model_or_layer: Any,
    scheme: str | QuantizationScheme = "int8",
    *,
    layers: LayerSelection = None,
    keep_samples: int = MOST_SAMPLES,
    check: bool = True,
) -> Any:
    """Returns a copy that trains with the rounding of the INT8 file it will become (QAT).

    Weights are quantized per output channel, activations per tensor with ranges learned while
    training, where the runtime quantizes them and nowhere else. Fused activations become layers of
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
        wrapped = wrap_layer(model_or_layer, weight_quantizer_for(plain(model_or_layer), scheme))
        if wrapped.built:
            wrapped.start(FakeQuant)
        return wrapped
    model = as_graph(model_or_layer)
    check_no_tables(model)
    wrapped = quantized(model, scheme, layers, keep_samples=keep_samples)
    if check:
        check_wrapped(model, wrapped, "quantize")
    warn_of_zeros(walk_layers(model))
    return wrapped


def quantized(
    model: keras.Model,
    scheme: QuantizationScheme,
    layers: LayerSelection = None,
    *,
    keep_samples: int = MOST_SAMPLES,
    move: bool = False,
) -> keras.Model:
    """Returns a quantized model; `move` takes the layers of the old one, which is then unusable."""
    if any(isinstance(layer, ActivationQuantizer) for _, layer in walk_layers(model)):
        raise ValueError(
            f"model {model.name!r} is quantized already. To quantize it otherwise, strip() it "
            "first."
        )
    _check_adapters(model)
    if scheme.activation_range == "learned" and keras.backend.backend() == "jax":
        raise ValueError(
            "activation_range='learned' is not possible on JAX: there, a training step cannot "
            "initialize the range that it uses. Train on TensorFlow or PyTorch, or leave it out."
        )
    if scheme.weight_granularity == "tensor":
        _check_granularity(model, scheme)
    # Layers without weights take part too: rules rewrite them, and their outputs are quantized.
    every = [(path, plain(layer)) for path, layer in walk_layers(model)]
    chosen = select(every, layers)
    schemes, left_out = _schemes(every, chosen, scheme)
    chosen = chosen - left_out
    int16 = {path for path, own in schemes.items() if own.activation_bits == 16}
    # The fast forms have kernels with 8-bit activations only.
    prefer = "exactness" if int16 else scheme.prefer
    wrapper = WrapCanonicalForms(
        lambda path, layer: weight_quantizer_for(layer, schemes[path]),
        chosen,
        move=move,
        int16=int16,
        prefer=prefer,
    )
    model = wrapper.run(model)
    placing = PlaceQuantizers(
        None if layers is None else chosen | wrapper.added.keys(),
        left_out=left_out,
        int16=int16 | {part for part, path in wrapper.added.items() if path in int16},
        learned=scheme.activation_range == "learned",
    )
    placing.keep_samples, placing.prefer = keep_samples, prefer
    placed = placing.run(model)
    for _, layer in walk_layers(placed):
        if isinstance(layer, CompressionWrapper):
            layer.start(FakeQuant)
    return placed


def _check_adapters(model: keras.Model) -> None:
    parts = flatten_layers(model)
    if adapted := [part.name for part in parts if getattr(part, "lora_enabled", False)]:
        raise ValueError(
            f"Layer {adapted[0]!r} has LoRA weights, which would be quantized apart from its "
            f"kernel ({len(adapted)} such layers). Merge them first: build the model again without "
            "LoRA, and assign it the `kernel` or `embeddings` of these layers, to which Keras adds "
            "them."
        )


def _check_granularity(model: keras.Model, scheme: QuantizationScheme) -> None:
    normalized = [
        path for path, layer in walk_layers(model) if isinstance(plain(layer), _CHANNEL_SCALES)
    ]
    if normalized:
        raise ValueError(
            f"weight_granularity='tensor' is not possible with {normalized[0]!r}, which gives each "
            "channel a scale of its own. Quantize fold_batch_norm(model), in which those directly "
            "behind a convolution or dense layer are folded into it; export without training does "
            "that by itself."
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


def weight_quantizer_for(layer: Any, scheme: QuantizationScheme) -> FakeQuant:
    """Returns the transform that fake-quantizes the weights of a layer in a scheme."""
    int4 = scheme.weight_bits == 4 and has_int4_kernels(layer)
    int4 = int4 and (scheme.prefer != "latency" or _is_fast_in_four_bits(layer))
    return FakeQuant(4 if int4 else 8, scheme.weight_range, scheme.weight_granularity)


def _is_fast_in_four_bits(layer: Any) -> bool:
    """Returns whether XNNPACK has a kernel: for products with an even number of inputs."""
    spatial = any(size > 1 for size in getattr(layer, "kernel_size", ()))
    kernel = getattr(layer, "kernel", None)
    odd = kernel is not None and len(kernel.shape) > 1 and kernel.shape[-2] % 2 == 1
    return not (spatial or getattr(layer, "groups", 1) > 1 or odd)


def _schemes(
    every: list[tuple[str, Any]], chosen: set[str], scheme: QuantizationScheme
) -> tuple[dict[str, QuantizationScheme], set[str]]:
    """Returns the scheme of each layer to quantize, and layers that overrides leave in float."""
    overrides: dict[str, Any] = {}
    for glob, other in scheme.overrides.items():
        for path in select(every, glob, argument=f"overrides[{glob!r}]"):
            overrides.setdefault(path, other)
    left_out = {path for path in chosen if overrides.get(path) == "float32"}

    def of(path: str) -> QuantizationScheme:
        other = overrides.get(path, scheme)
        named = isinstance(other, str)
        return dataclasses.replace(as_scheme(other), prefer=scheme.prefer) if named else other

    return {path: of(path) for path in chosen - left_out}, left_out
