"""Quantization schemes: the numbers of bits, and how the range of each tensor is chosen."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SCHEMES = ("float32", "float16", "dynamic_int8", "int8", "int16x8", "w4a8")
"""The schemes of `export_tflite`: float, quantized weights only, or integers throughout."""

INTEGER_SCHEMES = ("int8", "w4a8", "int16x8")
"""The schemes that support quantization-aware training, and that need activation ranges."""

ACTIVATION_RANGES = ("moving_average", "min_max", "percentile", "mse", "kl", "auto", "learned")
WEIGHT_RANGES = ("min_max", "mse", "learned")
WEIGHT_GRANULARITIES = ("channel", "tensor")
PREFERENCES = ("latency", "bytes", "exactness")
KERNELS = ("xnnpack", "reference")


def nearest(name: object, known: Iterable[str]) -> str:
    """Returns a question that names the most similar of some names; "" if none is."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def check_choice(value: object, argument: str, allowed: Sequence[str]) -> str:
    """Returns `value` if it is one of `allowed`.

    Raises:
        ValueError: If not; the message names the nearest allowed value.
    """
    if isinstance(value, str) and value in allowed:
        return value
    raise ValueError(
        f"{argument} must be one of {', '.join(map(repr, allowed))}. Received: "
        f"{argument}={value!r}.{nearest(value, allowed)}"
    )


@dataclasses.dataclass(frozen=True)
class QuantizationScheme:
    """How a model is quantized: the same object for `quantize` and for `export_tflite`.

    The names "int8", "w4a8" and "int16x8" stand for `QuantizationScheme()`,
    `QuantizationScheme(4, rounding="adaround")` and
    `QuantizationScheme(activation_bits=16)`. What applies to only one of training (QAT) and export
    without training (PTQ) is ignored by the other, as noted below.

    Args:
        weight_bits: 8, or 4 for convolutions and dense layers (depthwise convolutions, embeddings
            and all other layers keep 8: the runtime has no 4-bit kernels for them).
        weight_range: The range of a weight: "min_max" up to its largest absolute value, "mse" with
            the least squared quantization error, "learned" by gradient (QAT; PTQ uses "mse").
        activation_range: The range of an activation. QAT: "moving_average" of the minimum and
            maximum of the batches, or "learned"; every other value means the average. PTQ:
            "min_max" over all samples, "moving_average", "percentile" (99.99% of the values),
            "mse", "kl" (least Kullback-Leibler divergence), or "auto", which is robust against
            outliers: it ignores single samples with values beyond 20 deviations of their feature,
            and uses whichever of the first four methods has the least error on 64 samples.
            "learned" means "mse". None is "moving_average" for QAT and "min_max" for PTQ; for PTQ
            of models with recurrent layers, whose average includes the time steps, it is whichever
            of the two has the smaller error on 64 of the samples.
        equalize: PTQ: first equalizes the ranges of the channels across layers, where there is at
            most a ReLU between them (cross-layer equalization), and between a normalization and the
            projections that alone read it, by the channels' largest values (SmoothQuant).
        rounding: PTQ: "nearest", or "adaround", which decides for each weight whether to round up
            or down, by gradient, on the samples.
        correct_bias: PTQ: corrects the mean error of each channel by the bias (not for models of a
            fixed batch).
        weight_granularity: "channel", a scale for each output channel, or "tensor", one scale for
            the whole kernel, for accelerators that support nothing else. BatchNormalization scales
            channels, so that models with it support the latter by PTQ only.
        activation_bits: 8, or 16 for inputs and outputs of convolutions, dense layers, additions,
            multiplications, pooling and data movement (all other layers keep 8). A tensor has 16
            bits if its producer has: select the layers on both sides, and the additions between.
            Needs 8-bit weights.
        prefer: Which form is taken where the runtime can compute a layer by several. "latency":
            the form that XNNPACK computes fastest (docs/operations.md); with 4-bit weights, spatial
            convolutions keep 8 bits, because there is no fast kernel for them. "bytes": the same
            where no kernel grows; 4 bits wherever there is a kernel for them. "exactness": the
            operation that the runtime has for the layer, which rounds least and computes in
            integers throughout, also where its kernel is slow, and for chips without floats. Files
            equal their models in each of them, but for convolutions with 4 bits outside of XNNPACK.
        kernels: Whose arithmetic a quantization-aware model has at inference: "xnnpack", which
            runs on phones and x86, or "reference", the kernels of tflite-micro, which runs on
            microcontrollers. Files of the latter have the forms of `prefer="exactness"` and 8-bit
            activations. It needs 64-bit integers, which JAX lacks.
        overrides: Other schemes for some layers, `{glob on the layer's path: scheme}`; the first
            glob that matches applies. A scheme is "float32", "int8", "w4a8", "int16x8" or a
            `QuantizationScheme`, of which the bits and the fields on weights apply (of `prefer`,
            whether spatial convolutions have 4 bits).

    Raises:
        TypeError: If `overrides` is no mapping.
        ValueError: If a field has an unknown value.

    Example:
        >>> import tfcompress as tfc
        >>> scheme = tfc.QuantizationScheme(weight_bits=4, overrides={"head": "int8"})
        >>> scheme.weight_bits
        4

    References:
        LSQ (learned ranges): Esser et al. 2020, arXiv:1902.08153. Equalization and correction:
        Nagel et al. 2019, arXiv:1906.04721; Xiao et al. 2022, arXiv:2211.10438 (SmoothQuant).
        AdaRound: Nagel et al. 2020, arXiv:2004.10568.
    """

    weight_bits: int = 8
    weight_range: str = "min_max"
    activation_range: str | None = None
    equalize: bool = False
    rounding: str = "nearest"
    correct_bias: bool = True
    weight_granularity: str = "channel"
    activation_bits: int = 8
    prefer: str = "latency"
    kernels: str = "xnnpack"
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.weight_bits not in (4, 8):
            raise ValueError(f"weight_bits must be 8 or 4. Received: {self.weight_bits!r}")
        if self.activation_bits not in (8, 16):
            raise ValueError(f"activation_bits must be 8 or 16. Received: {self.activation_bits!r}")
        if self.activation_bits == 16 and self.weight_bits == 4:
            raise ValueError(
                "activation_bits=16 needs weight_bits=8: the runtime has no kernels that take both "
                "4-bit weights and 16-bit activations."
            )
        check_choice(self.weight_range, "weight_range", WEIGHT_RANGES)
        check_choice(self.weight_granularity, "weight_granularity", WEIGHT_GRANULARITIES)
        if self.activation_range is not None:
            check_choice(self.activation_range, "activation_range", ACTIVATION_RANGES)
        check_choice(self.rounding, "rounding", ("nearest", "adaround"))
        check_choice(self.prefer, "prefer", PREFERENCES)
        if check_choice(self.kernels, "kernels", KERNELS) == "reference":
            object.__setattr__(self, "prefer", "exactness")
            if self.uses_sixteen_bits:
                raise ValueError("kernels='reference' needs 8-bit activations. Received: 16 bits.")
        if not isinstance(self.overrides, Mapping):
            raise TypeError(
                "overrides must be a dict of globs on layer paths and schemes. Received: "
                f"{self.overrides!r}"
            )
        for glob, scheme in self.overrides.items():
            if not isinstance(scheme, QuantizationScheme):
                check_choice(scheme, f"overrides[{glob!r}]", ("float32", *INTEGER_SCHEMES))

    @property
    def uses_sixteen_bits(self) -> bool:
        """Whether any activations have 16 bits."""
        others = (as_scheme(o) for o in self.overrides.values() if o != "float32")
        return 16 in (self.activation_bits, *(other.activation_bits for other in others))

    @property
    def name(self) -> str:
        """The name of the nearest named scheme."""
        if self.activation_bits == 16:
            return "int16x8"
        return "w4a8" if self.weight_bits == 4 else "int8"


def as_scheme(scheme: Any, argument: str = "scheme") -> QuantizationScheme:
    """Returns the scheme that a name of an integer scheme stands for, or the scheme itself."""
    if isinstance(scheme, QuantizationScheme):
        return scheme
    if scheme in SCHEMES and scheme not in INTEGER_SCHEMES:
        raise ValueError(
            f"{argument}={scheme!r} takes no training: export the ordinary model with "
            f"export_tflite(scheme={scheme!r}). Schemes to train for are "
            f"{', '.join(map(repr, INTEGER_SCHEMES))}."
        )
    name = check_choice(scheme, argument, INTEGER_SCHEMES)
    if name == "w4a8":
        return QuantizationScheme(4, rounding="adaround")
    return QuantizationScheme(activation_bits=16 if name == "int16x8" else 8)
