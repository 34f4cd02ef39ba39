"""What each operation is to the runtime: its role decides where activations are rounded.

The runtime computes one operation on integers if its inputs and outputs have ranges, except that

- it fuses BatchNormalization and ReLU into the convolution or dense layer before them, and ReLU
  into an addition, so that nothing stands in between to be rounded; a BatchNormalization that
  follows something else is lowered to a depthwise convolution, which fuses ReLU;
- operations that only move values about share the range of their input;
- what is concatenated shares the range of the result, so it is not rounded before;
- averaging shares it too, and rounds its result onto it;
- what is looked up in a table of weights is on the grid of the weights already;
- softmax, sigmoid and tanh have ranges that the runtime prescribes.

How to support a layer in integers
----------------------------------
Register it with `integer_layer` in the file of its family in `quantization/layers/`, which is found
by itself; whatever is not registered is quantized at its output. There, too, a `canonical_form`
splits it into simpler layers, and a `RuntimeLayer` computes as the runtime does where that rounds
inside. If the converter needs another form of it, a rule in `lowering/rules/` gives it that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from tfcompress.graph.augmentation import trains_only
from tfcompress.graph.describe import description
from tfcompress.graph.layers import keras_name, plain
from tfcompress.integer.affine import constant_operand

LINEAR = "linear"  # a weighted sum: what follows may be fused into it
NORMALIZATION = "normalization"  # each channel scaled and moved: fused into what is before it
RELU = "relu"  # fused into whatever computed its input
CLIP = "clip"  # likewise: what is outside is outside of the grid
SUM = "sum"  # an addition: a ReLU that follows is fused into it
PAIR = "pair"  # a difference or product of two tensors: likewise
MOVE = "move"  # values pass unchanged: the output has the grid of the input
JOIN = "join"  # a concatenation or selection: its inputs are on the grid of its output
TABLE = "table"  # rows of a weight: on the grid of the weight
AVERAGE = "average"  # the grid of the input, but values must be rounded onto it again
PRECISE = "precise"  # its input must not be rounded, to zero say, unless it was before
COMPARE = "compare"  # what compares inputs of the model alone must see them unrounded
OUTPUT = "output"  # anything else: quantized at its output

FUSES = {
    LINEAR: {NORMALIZATION, RELU, CLIP},
    NORMALIZATION: {NORMALIZATION, RELU, CLIP},
    SUM: {RELU, CLIP},
    PAIR: {RELU, CLIP},
}
"""What is fused into an operation of each role."""

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class IntegerSupport:
    """What is registered of a layer or operation; each may be a function of the layer.

    Attributes:
        role: One of the roles above.
        int16: Whether converter and runtime have kernels with activations of 16 bits.
        int4: Whether they have kernels with weights of 4 bits.
        fixed_range: The range that the runtime prescribes for the output, if it does.
        accumulates: Whether it adds up products of integers with one kernel, exactly.
        keeps_channels: Whether it moves values within their channels, the last axis, only.
        producer: Returns what computes the integers of its output (see `producers.py`), given the
            layer, the symbolic tensors that it is called on and the quantizer of the output.
    """

    role: str | Callable[[Any], str] = OUTPUT
    int16: bool | Callable[[Any], bool] = False
    int4: bool = False
    fixed_range: Range | Callable[[Any], Range | None] | None = None
    accumulates: bool = False
    keeps_channels: bool = False
    producer: Callable[[Any, Sequence[Any], Any], Any] | None = None


_REGISTERED: dict[str, IntegerSupport] = {}
_NOTHING = IntegerSupport()


def integer_layer(names: str, **fields: Any) -> None:
    """Registers layers or operations; what was registered of one before is added to.

    Args:
        names: Their classes, with spaces between; a class of Keras or of tfcompress.
        **fields: Those of `IntegerSupport`.
    """
    for name in names.split():
        before = _REGISTERED.get(name, _NOTHING)
        _REGISTERED[name] = dataclasses.replace(before, **fields)


def support_of(layer: Any) -> IntegerSupport:
    """Returns what is registered of a layer (not wrapped) or `keras.ops` node."""
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
    """Returns whether an operation can compute on activations of 16 bits."""
    layer = plain(operation)
    registered = support_of(layer).int16
    return (registered(layer) if callable(registered) else registered) or augments(layer)


def has_int4_kernels(layer: Any) -> bool:
    """Returns whether a layer, or one that it is derived from, can have weights of 4 bits."""
    return any(_REGISTERED.get(c.__name__, _NOTHING).int4 for c in type(layer).__mro__)


def fixed_range(operation: Any) -> Range | None:
    """Returns the range that the runtime prescribes for an operation's output, if it does."""
    layer = plain(operation)
    registered = support_of(layer).fixed_range
    return registered(layer) if callable(registered) else registered


def augments(operation: Any) -> bool:
    """Returns whether an operation does nothing at inference, and none says otherwise."""
    layer = plain(operation)
    return _name(layer) not in _REGISTERED and description(layer) is None and trains_only(layer)


def _name(layer: Any) -> str:
    ours = type(layer).__module__.split(".")[0] == "tfcompress"
    return type(layer).__name__ if ours else keras_name(layer)
