"""quantized: a model whose layers are wrapped, with quantizers where the runtime has them."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from tfcompress.graph.code_layers import OwnWeight
from tfcompress.graph.keras_internals import flatten_layers
from tfcompress.graph.layers import plain
from tfcompress.graph.read import walk_layers
from tfcompress.graph.select import LayerSelection, select
from tfcompress.integer.roles import has_int4_kernels
from tfcompress.quantization.activation_quantizer import ActivationQuantizer
from tfcompress.quantization.canonical_wrapping import WrapCanonicalForms
from tfcompress.quantization.input_samples import MOST_SAMPLES
from tfcompress.quantization.layers.base import RuntimeLayer
from tfcompress.quantization.placement import PlaceQuantizers
from tfcompress.scheme import QuantizationScheme, as_scheme
from tfcompress.transforms.fake_quant import FakeQuant
from tfcompress.wrap.wrapper import CompressionWrapper


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
    if scheme.kernels == "reference" and keras.backend.backend() == "jax":
        raise ValueError(
            "kernels='reference' is not possible on JAX, which has no 64-bit integers by default. "
            "Train on TensorFlow or PyTorch, or leave it out."
        )
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
    # What custom code adds or multiplies by is rounded once, as the tensor that it is.
    rounded_once = {path for path, layer in every if isinstance(layer, OwnWeight)}
    wrapper = WrapCanonicalForms(
        lambda path, layer: weight_quantizer_for(layer, schemes[path]),
        chosen - rounded_once,
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
        for part in flatten_layers(layer):
            if isinstance(part, (ActivationQuantizer, RuntimeLayer)):
                part.kernels = scheme.kernels
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
