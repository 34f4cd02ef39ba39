"""Queries about a quantized model: its quantizers, its scheme."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras

from tfcompress.graph.keras_internals import flatten_layers
from tfcompress.graph.read import walk_layers
from tfcompress.quantization.activation_quantizer import ActivationQuantizer
from tfcompress.quantization.input_samples import sample_keepers
from tfcompress.transforms.fake_quant import FakeQuant


def quantizers(model: keras.Model) -> list[ActivationQuantizer]:
    """Returns the activation quantizers of a model; empty if it is not quantization-aware."""
    return [
        part
        for _, layer in walk_layers(model)
        for part in flatten_layers(layer)
        if isinstance(part, ActivationQuantizer) and not part.follows
    ]


@contextlib.contextmanager
def fake_quantizing_in_float(model: keras.Model) -> Iterator[None]:
    """Makes a quantization-aware model round floats at inference, as in training and as tfmot."""
    every = quantizers(model)
    try:
        for quantizer in every:
            quantizer.in_floats = True
        yield
    finally:
        for quantizer in every:
            quantizer.in_floats = False


def trained_scheme(model: keras.Model) -> str:
    """Returns the name of the scheme that a quantized model is trained for."""
    if any(rounding.bits == 4 for rounding in weight_quantizers(model)):
        return "w4a8"
    bits = [q.bits for q in quantizers(model) if q.fixed_range is None]
    return "int16x8" if 2 * bits.count(16) > len(bits) else "int8"


def preference(model: keras.Model) -> str:
    """Returns the `prefer` of the scheme of a quantized model."""
    # A part of a quantized model has no keepers: its forms may be any.
    return next((keeper.prefer for keeper in sample_keepers(model)), "exactness")


def follows_reference_kernels(model: keras.Model) -> bool:
    """Returns whether a quantized model computes like the reference kernels."""
    return any(quantizer.kernels == "reference" for quantizer in quantizers(model))


def uses_int16_activations(model: keras.Model) -> bool:
    """Returns whether any activations of a quantized model have 16 bits."""
    return any(quantizer.bits == 16 for quantizer in quantizers(model))


def rounds_per_channel(model: keras.Model) -> bool:
    """Returns whether the kernels of a quantized model have a scale for each channel."""
    return not any(rounding.granularity == "tensor" for rounding in weight_quantizers(model))


def weight_quantizers(model: keras.Model) -> Iterator[FakeQuant]:
    """Yields the fake-quantization of each weight of a model."""
    for _, layer in walk_layers(model):
        for transform in getattr(layer, "transforms", ()):
            if isinstance(transform, FakeQuant):
                yield transform
