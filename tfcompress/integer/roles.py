"""The role of each operation in the integer runtime, which decides where quantizers are placed.

The runtime computes an operation on integers if its inputs and outputs have ranges. Exceptions:

- BatchNormalization and ReLU are fused into the convolution or dense layer before them, and ReLU
  into an addition, so no quantizer stands in between; a BatchNormalization that follows another
  operation is lowered to a depthwise convolution, into which ReLU is fused;
- the output of operations that only move values has the range of their input;
- the inputs of a concatenation have the range of its output, so they have no quantizers;
- the output of averaging has the range of its input, and is fake-quantized with it again;
- rows of a quantized table have the quantization parameters of the table;
- softmax, sigmoid and tanh have ranges that the runtime fixes.

How to support a layer in integers
----------------------------------
Register it with `integer_layer` in the file of its family in `quantization/layers/`; these files
are imported automatically, when Keras is imported after tfcompress or before; without them nothing
is registered here. A layer that is not registered is quantized at its output. In the same
file, a `canonical_form` splits a layer into simpler ones, and a `RuntimeLayer` quantizes
intermediate values where the runtime does. If the converter needs the layer in another form, add a
rule in `lowering/rules/`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from tfcompress.graph.augmentation import trains_only
from tfcompress.graph.describe import description
from tfcompress.graph.layers import is_ours, keras_name, plain
from tfcompress.integer.affine import constant_operand

LINEAR = "linear"  # an accumulation with weights: what follows may be fused into it
NORMALIZATION = "normalization"  # scale and offset per channel: fused into what is before it
RELU = "relu"  # fused into whatever computed its input
CLIP = "clip"  # likewise: values outside are outside of the range
SUM = "sum"  # an addition: a ReLU that follows is fused into it
PAIR = "pair"  # a difference or product of two tensors: likewise
MOVE = "move"  # values pass unchanged: the output has the qparams of the input
JOIN = "join"  # a concatenation or selection: inputs have the qparams of the output
TABLE = "table"  # rows of a weight: they have the qparams of the weight
AVERAGE = "average"  # the qparams of the input, but the result must be quantized again
PRECISE = "precise"  # its input must not get a quantizer: rounding to zero may do harm
COMPARE = "compare"  # comparisons of model inputs must read them unquantized
OUTPUT = "output"  # anything else: quantized at its output

FUSES = {
    LINEAR: {NORMALIZATION, RELU, CLIP},
    NORMALIZATION: {NORMALIZATION, RELU, CLIP},
    SUM: {RELU, CLIP},
    PAIR: {RELU, CLIP},
}
"""The roles that are fused into an operation of each role."""

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class IntegerSupport:
    """Properties of a layer or operation; several may be functions of the layer.

    Attributes:
        role: One of the roles above.
        int16: Whether converter and runtime have kernels with int16 activations.
        int4: Whether they have kernels with int4 weights.
        fixed_range: The range that the runtime fixes for the output, if it does.
        accumulates: Whether it multiplies its input by one kernel with int32 accumulators.
        keeps_channels: Whether each value stays in its channel (the last axis).
        producer: Returns the producer of the output (see `producers.py`). Its arguments are the
            layer, the symbolic inputs and the quantizer of the output.
    """

    role: str | Callable[[Any], str] = OUTPUT
    int16: bool | Callable[[Any], bool] = False
    int4: bool = False
    fixed_range: Range | Callable[[Any], Range | None] | None = None
    accumulates: bool | Callable[[Any], bool] = False
    keeps_channels: bool = False
    producer: Callable[[Any, Sequence[Any], Any], Any] | None = None


_REGISTERED: dict[str, IntegerSupport] = {}
_NOTHING = IntegerSupport()


def integer_layer(names: str, **fields: Any) -> None:
    """Registers layers or operations; earlier registrations of a name are extended.

    Args:
        names: Class names in Keras or tfcompress, separated by spaces.
        **fields: Fields of `IntegerSupport`.
    """
    for name in names.split():
        before = _REGISTERED.get(name, _NOTHING)
        for field, value in fields.items():
            default = getattr(_NOTHING, field, None)
            if getattr(before, field, default) not in (default, value):
                raise ValueError(f"{field} of {name} is registered already")
        _REGISTERED[name] = dataclasses.replace(before, **fields)


def support_of(layer: Any) -> IntegerSupport:
    """Returns the registered properties of a layer (not wrapped) or `keras.ops` node."""
    return _REGISTERED.get(_name(layer), _NOTHING)


def role(operation: Any) -> str:
    """Returns the role of a layer (wrapped or not) or `keras.ops` node."""
    layer = plain(operation)
    described = description(layer)
    if described is not None:
        return described.role
    if constant_operand(layer) is not None:
        return NORMALIZATION
    if augments(layer):
        return MOVE
    registered = support_of(layer).role
    return registered if isinstance(registered, str) else registered(layer)


def has_int16_kernels(operation: Any) -> bool:
    """Returns whether an operation has kernels with int16 activations."""
    layer = plain(operation)
    registered = support_of(layer).int16
    return (registered(layer) if callable(registered) else registered) or augments(layer)


def has_int4_kernels(layer: Any) -> bool:
    """Returns whether a layer, or a base class of it, has kernels with int4 weights."""
    classes = [c for c in type(layer).__mro__ if c.__module__.split(".")[0] == "keras"]
    return any(_REGISTERED.get(c.__name__, _NOTHING).int4 for c in classes)


def accumulates(layer: Any) -> bool:
    """Returns whether a layer multiplies its input by one kernel with int32 accumulators."""
    registered = support_of(layer).accumulates
    return registered(layer) if callable(registered) else registered


def fixed_range(operation: Any) -> Range | None:
    """Returns the range that the runtime fixes for an operation's output, if it does."""
    layer = plain(operation)
    registered = support_of(layer).fixed_range
    return registered(layer) if callable(registered) else registered


def augments(operation: Any) -> bool:
    """Returns whether an operation is the identity at inference and is not registered."""
    layer = plain(operation)
    unknown = support_of(layer).role == OUTPUT and description(layer) is None
    return unknown and not hasattr(layer, "qparams") and trains_only(layer)


def _name(layer: Any) -> str:
    return type(layer).__name__ if is_ours(layer) else keras_name(layer)
