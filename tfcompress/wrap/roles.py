"""What each operation is to the runtime: the table that decides where activations are rounded.

The runtime computes one operation on integers if its inputs and outputs have ranges, except that

- it fuses BatchNormalization and ReLU into the convolution or dense layer before them, and ReLU
  into an addition, so that nothing stands in between to be rounded; a BatchNormalization that
  follows something else is written as a depthwise convolution (see `forms.py`), which fuses ReLU;
- operations that only move values about share the range of their input;
- what is concatenated shares the range of the result, so it is not rounded before;
- averaging shares it too, and rounds its result onto it;
- what is looked up in a table of weights is on the grid of the weights already;
- softmax, sigmoid and tanh have ranges that the runtime prescribes.

`ROLES` says which operation is which; whatever it does not name is quantized at its output.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tfcompress.graph.augmentation import trains_only
from tfcompress.graph.cost import plain
from tfcompress.graph.expand import MaskScores
from tfcompress.graph.read import Call, Graph
from tfcompress.transforms import FakeQuant
from tfcompress.wrap.canonicalize import activation_name
from tfcompress.wrap.custom import description
from tfcompress.wrap.forms import is_affine
from tfcompress.wrap.parts import ChannelScale, FoldSteps, UnfoldSteps
from tfcompress.wrap.runtime import RuntimeMerge
from tfcompress.wrap.scalings import constant_operand
from tfcompress.wrap.stepwise import SIGMOID_RANGE, TANH_RANGE
from tfcompress.wrap.wrapper import channel_axes

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

ROLES: dict[str, str] = {
    **dict.fromkeys(
        (
            "Dense EinsumDense Conv1D Conv2D Conv3D DepthwiseConv1D DepthwiseConv2D "
            "Conv1DTranspose Conv2DTranspose Conv3DTranspose"
        ).split(),
        LINEAR,
    ),
    **dict.fromkeys("BatchNormalization Rescaling Normalization".split(), NORMALIZATION),
    **dict.fromkeys("ReLU Relu Relu6".split(), RELU),
    "Add": SUM,
    **dict.fromkeys(("Subtract", "Multiply"), PAIR),
    **dict.fromkeys(
        (
            "MaxPooling1D MaxPooling2D MaxPooling3D GlobalMaxPooling1D GlobalMaxPooling2D "
            "GlobalMaxPooling3D MaxPool ZeroPadding1D ZeroPadding2D ZeroPadding3D Cropping1D "
            "Cropping2D Cropping3D Reshape Flatten Permute RepeatVector Identity Dropout "
            "SpatialDropout1D SpatialDropout2D SpatialDropout3D AlphaDropout GaussianDropout "
            "GaussianNoise ActivityRegularization Transpose Squeeze ExpandDims GetItem "
            "UpSampling1D UpSampling3D Split Max Amax Min Amin Repeat Tile Flip Roll BroadcastTo "
            "Swapaxes Moveaxis Ravel Take TakeAlongAxis Unstack ArraySplit Slice "
            "AdaptiveMaxPooling1D AdaptiveMaxPooling2D"
        ).split(),
        MOVE,
    ),
    "Clip": CLIP,
    **dict.fromkeys("Sqrt Rsqrt Reciprocal Log Log1p Log2 Log10".split(), PRECISE),
    **dict.fromkeys("Masking Equal NotEqual Greater GreaterEqual Less LessEqual".split(), COMPARE),
    **dict.fromkeys("Concatenate Stack Maximum Minimum Where".split(), JOIN),
    "Embedding": TABLE,
    **dict.fromkeys(
        # A global average that no rule could turn into one of these is a MEAN, with its own grid.
        (
            "AveragePooling1D AveragePooling2D AveragePooling3D AveragePool "
            "AdaptiveAveragePooling1D AdaptiveAveragePooling2D"
        ).split(),
        AVERAGE,
    ),
}

FIXED_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("log_softmax", "logsoftmax"), (-255 / 16, 0.0)),
    "softmax": SIGMOID_RANGE,
    "sigmoid": SIGMOID_RANGE,
    "tanh": TANH_RANGE,
}

UNIT_RANGE = (-1.0, 127 / 128)

FUSES = {
    LINEAR: {NORMALIZATION, RELU, CLIP},
    NORMALIZATION: {NORMALIZATION, RELU, CLIP},
    SUM: {RELU, CLIP},
    PAIR: {RELU, CLIP},
}


WIDE = frozenset(
    (
        "Dense EinsumDense Conv1D Conv2D DepthwiseConv1D DepthwiseConv2D Conv1DTranspose "
        "Conv2DTranspose BatchNormalization Rescaling Normalization ReLU Relu Relu6 Clip Add "
        "Multiply Subtract LeakyReLU MaxPooling1D MaxPooling2D GlobalMaxPooling1D "
        "GlobalMaxPooling2D AveragePooling1D AveragePooling2D MaxPool AveragePool ZeroPadding1D "
        "ZeroPadding2D Cropping1D Cropping2D Reshape Flatten Permute Identity Dropout "
        "SpatialDropout1D SpatialDropout2D AlphaDropout GaussianDropout GaussianNoise "
        "ActivityRegularization Transpose Squeeze ExpandDims GetItem Matmul Mean"
    ).split()
)
"""Operations for which converter and runtime have kernels with activations of 16 bits."""

BINARY = ("Add", "Multiply", "Subtract", "Matmul")


def is_wide(operation: Any) -> bool:
    """Returns whether an operation can compute on activations of 16 bits."""
    layer = plain(operation)
    if isinstance(layer, ChannelScale):
        return True
    if isinstance(layer, RuntimeMerge):
        return layer.count == 2  # of more, the steps between are of 8 bits
    if isinstance(layer, keras.layers.EinsumDense):
        return bool(channel_axes(layer, layer.kernel))
    if isinstance(layer, keras.layers.Activation):
        return activation_name(layer) in ("linear", "relu", "relu6", "leaky_relu")
    return keras_name(layer) in WIDE or augments(layer)


def role(operation: Any) -> str:
    """Returns the role of a layer (wrapped or not) or `keras.ops` node in the table."""
    layer = plain(operation)
    told = description(layer)
    if told is not None:
        return told.role
    if isinstance(layer, MaskScores):
        return JOIN
    if isinstance(layer, ChannelScale):
        return NORMALIZATION
    if isinstance(layer, (FoldSteps, UnfoldSteps)):
        return MOVE
    if isinstance(layer, RuntimeMerge) and layer.how == "add":
        return SUM
    if constant_operand(layer) is not None:
        return NORMALIZATION
    name = keras_name(layer)
    if name == "Activation":
        activation = activation_name(layer)
        return {"linear": MOVE, "relu": RELU, "relu6": RELU, "hard_tanh": CLIP}.get(
            activation or "", OUTPUT
        )
    if name == "ReLU" and (layer.negative_slope or layer.threshold):
        return OUTPUT  # the runtime has no such fused activation
    if name in ("UpSampling2D", "Resizing"):
        return {"nearest": MOVE, "bilinear": AVERAGE}.get(layer.interpolation, OUTPUT)
    if name in ("Power", "Divide", "TrueDivide"):
        return PRECISE if _is_steep(layer, name) else OUTPUT
    if name == "Pad":
        return MOVE if layer.mode != "constant" or padded_with(layer) in (0, -np.inf) else JOIN
    if name == "Clip" and not _clips_around_zero(layer):
        return OUTPUT
    found = ROLES.get(name, OUTPUT)
    if augments(layer):
        return MOVE
    if found == NORMALIZATION and not is_affine(layer):
        return OUTPUT
    if found == LINEAR and activation_name(layer) != "linear":
        return OUTPUT  # an activation that canonicalization does not know
    return found


def fixed_range(operation: Any) -> tuple[float, float] | None:
    """Returns the range that the runtime prescribes for an operation's output, if it does."""
    layer = plain(operation)
    name = keras_name(layer)
    if has_unit_length(layer):
        return UNIT_RANGE
    return FIXED_RANGES.get(
        (activation_name(layer) or "") if name == "Activation" else name.lower()
    )


def has_unit_length(operation: Any) -> bool:
    """Returns whether an operation scales vectors along one axis to a length of one."""
    known = keras_name(operation) == "UnitNormalization" or type(operation).__name__ == "Normalize"
    one = known and len(keras.tree.flatten(operation.axis)) == 1
    return one and getattr(operation, "order", 2) == 2


def augments(operation: Any) -> bool:
    """Returns whether an operation does nothing at inference, and is none that the table names."""
    layer = plain(operation)
    return keras_name(layer) not in ROLES and description(layer) is None and trains_only(layer)


def adds_tensors(call: Call) -> bool:
    """Returns whether a call is `keras.ops.add` of two tensors of floats."""
    layer = isinstance(call.operation, keras.layers.Layer)
    if layer or type(call.operation).__name__ != "Add" or len(call.inputs) != 2:
        return False
    ranks = [len(tensor.shape) for tensor in call.inputs]
    return all(map(is_float, call.inputs)) and max(ranks) > 1


def does_nothing(call: Call) -> bool:
    """Returns whether a call multiplies by one or adds zero, which the converter takes out."""
    neutral = {"Multiply": 1, "Add": 0}.get(type(call.operation).__name__)
    given = keras.tree.flatten((call.args, call.kwargs))
    others = [value for value in given if not isinstance(value, keras.KerasTensor)]
    return bool(others) and all(isinstance(v, (int, float)) and v == neutral for v in others)


def is_float(value: Any) -> bool:
    """Returns whether a value is a symbolic tensor of floats."""
    return isinstance(value, keras.KerasTensor) and keras.backend.is_float_dtype(value.dtype)


def is_joined(graph: Graph, tensor: Any) -> bool:
    """Returns whether a tensor goes into a concatenation and nowhere else, moved about or not."""
    readers = graph.consumers.get(id(tensor), [])
    if len(readers) != 1 or id(tensor) in graph.outputs:
        return False
    kind = role(readers[0].operation)
    return kind == JOIN or (
        kind == MOVE and all(is_joined(graph, output) for output in readers[0].outputs)
    )


def is_one_relu(graph: Graph, readers: list[Call]) -> bool:
    """Returns whether several readers of a tensor are the same ReLU, which the file does once."""
    kinds = {activation_name(plain(r.operation)) or _kind(r.operation) for r in readers}
    joined = any(is_joined(graph, output) for r in readers for output in r.outputs)
    alike = len(kinds) == 1 and all(role(reader.operation) == RELU for reader in readers)
    return len(readers) > 1 and alike and not joined


def _kind(relu: Any) -> Any:
    return type(relu).__name__, str(getattr(relu, "max_value", None))


def comes_in(graph: Graph, tensor: Any) -> bool:
    """Returns whether a tensor is an input, and not selected from as well: that is one grid."""
    joined = [reader for reader in graph.consumers[id(tensor)] if role(reader.operation) == JOIN]
    return isinstance(tensor._keras_history.operation, keras.layers.InputLayer) and not joined


def rounds_weights(layer: Any) -> bool:
    """Returns whether a layer is wrapped to train with rounded weights."""
    return any(isinstance(t, FakeQuant) for t in getattr(layer, "transforms", ()))


def padded_with(pad: Any) -> float:
    """Returns the constant that `keras.ops.pad` pads with."""
    given = pad._inbound_nodes[0].arguments
    value = (*given.args, *given.kwargs.values(), None)[1]
    return 0.0 if value is None else float(value)


def _is_steep(operation: Any, name: str) -> bool:
    """Returns whether a power, or a division, has no bound on its slope near zero."""
    given = operation._inbound_nodes[0].arguments
    second = (*given.args, *given.kwargs.values())[1]
    if name == "Power":
        return not (isinstance(second, (int, float)) and second >= 1)
    return isinstance(second, keras.KerasTensor)


def _clips_around_zero(clip: Any) -> bool:
    ends = (clip.x_min, clip.x_max)
    return all(isinstance(end, (int, float)) for end in ends) and ends[0] <= 0 <= ends[1]


def keras_name(layer: Any) -> str:
    """Returns the Keras class that `layer` behaves as; "" if its class has a call of its own."""
    for cls in type(layer).__mro__:
        if cls.__module__.split(".")[0] == "keras":
            return cls.__name__
        if "call" in vars(cls):
            break
    return ""
