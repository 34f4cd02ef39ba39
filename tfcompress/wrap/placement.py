"""Where activations are quantized: one table of rules, and the rewriting that follows it.

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

import dataclasses
from collections.abc import Collection
from typing import Any

import keras

from tfcompress.graph.clone import Rewriter
from tfcompress.graph.cost import plain
from tfcompress.graph.expand import MaskScores
from tfcompress.graph.read import Call, Graph, walk_layers
from tfcompress.transforms import FakeQuant
from tfcompress.wrap.activations import ActivationQuantizer, InputSamples, samples_to_keep
from tfcompress.wrap.canonicalize import activation_name
from tfcompress.wrap.custom import description
from tfcompress.wrap.forms import is_affine
from tfcompress.wrap.recurrent import RuntimeRecurrent
from tfcompress.wrap.runtime import SIGMOID_RANGE, ChannelScale, FoldSteps, UnfoldSteps

LINEAR = "linear"  # a weighted sum: what follows may be fused into it
NORMALIZATION = "normalization"  # each channel scaled and moved: fused into what is before it
RELU = "relu"  # fused into whatever computed its input
CLIP = "clip"  # likewise: what is outside is outside of the grid
SUM = "sum"  # an addition: a ReLU that follows is fused into it
MOVE = "move"  # values pass unchanged: the output has the grid of the input
JOIN = "join"  # a concatenation or selection: its inputs are on the grid of its output
TABLE = "table"  # rows of a weight: on the grid of the weight
AVERAGE = "average"  # the grid of the input, but values must be rounded onto it again
PRECISE = "precise"  # its input must not be rounded to zero, unless it was before
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
    **dict.fromkeys(
        (
            "MaxPooling1D MaxPooling2D MaxPooling3D GlobalMaxPooling1D GlobalMaxPooling2D "
            "GlobalMaxPooling3D MaxPool ZeroPadding1D ZeroPadding2D ZeroPadding3D Cropping1D "
            "Cropping2D Cropping3D Reshape Flatten Permute RepeatVector Identity Dropout "
            "SpatialDropout1D SpatialDropout2D SpatialDropout3D AlphaDropout GaussianDropout "
            "GaussianNoise ActivityRegularization Transpose Squeeze ExpandDims GetItem "
            "UpSampling1D UpSampling3D Split Max Amax Min Amin Repeat Tile Flip Roll BroadcastTo"
        ).split(),
        MOVE,
    ),
    "Clip": CLIP,
    **dict.fromkeys("Rsqrt Reciprocal Log Log1p Log2 Log10".split(), PRECISE),
    **dict.fromkeys("Concatenate Stack Maximum Minimum Where".split(), JOIN),
    "Embedding": TABLE,
    **dict.fromkeys(
        # A global average that no rule could turn into one of these is a MEAN, with its own grid.
        "AveragePooling1D AveragePooling2D AveragePooling3D AveragePool".split(),
        AVERAGE,
    ),
}

FIXED_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("log_softmax", "logsoftmax"), (-255 / 16, 0.0)),
    "softmax": SIGMOID_RANGE,
    "sigmoid": SIGMOID_RANGE,
    "tanh": (-1.0, 127 / 128),
}

_FUSES = {
    LINEAR: {NORMALIZATION, RELU, CLIP},
    NORMALIZATION: {NORMALIZATION, RELU, CLIP},
    SUM: {RELU, CLIP},
}


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
    name = _keras_name(layer)
    if name == "Activation":
        activation = activation_name(layer)
        return {"linear": MOVE, "relu": RELU, "relu6": RELU, "hard_tanh": CLIP}.get(
            activation or "", OUTPUT
        )
    if name == "ReLU" and (layer.negative_slope or layer.threshold):
        return OUTPUT  # the runtime has no such fused activation
    if name in ("UpSampling2D", "Resizing"):
        return {"nearest": MOVE, "bilinear": AVERAGE}.get(layer.interpolation, OUTPUT)
    if name == "Clip" and not _clips_around_zero(layer):
        return OUTPUT
    found = ROLES.get(name, OUTPUT)
    if found == NORMALIZATION and not is_affine(layer):
        return OUTPUT
    if found == LINEAR and activation_name(layer) != "linear":
        return OUTPUT  # an activation that canonicalization does not know
    return found


def fixed_range(operation: Any) -> tuple[float, float] | None:
    """Returns the range that the runtime prescribes for an operation's output, if it does."""
    layer = plain(operation)
    name = _keras_name(layer)
    return FIXED_RANGES.get(
        (activation_name(layer) or "") if name == "Activation" else name.lower()
    )


def is_joined(graph: Graph, tensor: Any) -> bool:
    """Returns whether a tensor goes into a concatenation and nowhere else, moved about or not."""
    readers = graph.consumers.get(id(tensor), [])
    if len(readers) != 1 or id(tensor) in graph.outputs:
        return False
    kind = role(readers[0].operation)
    return kind == JOIN or (
        kind == MOVE and all(is_joined(graph, output) for output in readers[0].outputs)
    )


def rounds_weights(layer: Any) -> bool:
    """Returns whether a layer is wrapped to train with rounded weights."""
    return any(isinstance(t, FakeQuant) for t in getattr(layer, "transforms", ()))


def _does_nothing(call: Call) -> bool:
    """Returns whether a call multiplies by one or adds zero, which the converter takes out."""
    neutral = {"Multiply": 1, "Add": 0}.get(type(call.operation).__name__)
    given = keras.tree.flatten((call.args, call.kwargs))
    others = [value for value in given if not isinstance(value, keras.KerasTensor)]
    return bool(others) and all(isinstance(v, (int, float)) and v == neutral for v in others)


def _clips_around_zero(clip: Any) -> bool:
    ends = (clip.x_min, clip.x_max)
    return all(isinstance(end, (int, float)) for end in ends) and ends[0] <= 0 <= ends[1]


def _keras_name(layer: Any) -> str:
    """Returns the Keras class that `layer` behaves as; "" if its class has a call of its own."""
    for cls in type(layer).__mro__:
        if cls.__module__.split(".")[0] == "keras":
            return cls.__name__
        if "call" in vars(cls):
            break
    return ""


@dataclasses.dataclass(frozen=True)
class _State:
    """What is known of a tensor: the role still open for fusing, or the quantizer it is on.

    Attributes:
        pending: While the tensor waits for the operation that decides its grid: a key of `_FUSES`
            or JOIN; else None.
        quantized: Whether its values are on a grid.
        quantizer: The layer that put it there; None if that stands in an outer model.
        non_negative: Whether its values cannot be negative.
        floating: The role of the operation that made it, if that was left out of quantization.
    """

    pending: str | None = None
    quantized: bool = False
    quantizer: ActivationQuantizer | None = None
    non_negative: bool = False
    floating: str | None = None


class ChainedModel(keras.Model):
    """What a Sequential model becomes under `quantize`; `strip` makes it Sequential again.

    A Sequential model cannot hold a layer twice, and a quantizer around an averaging layer is one
    layer called twice.
    """


keras.saving.register_keras_serializable("tfcompress")(ChainedModel)


class PlaceQuantizers(Rewriter):
    """Inserts activation quantizers into a model whose weights are wrapped already.

    Args:
        selected: Paths of the operations to quantize, or None for all. What the runtime fuses into
            a selected operation is quantized with it.
        left_out: Paths of layers that stay float in any case, with what would be fused into them.
        learned: Whether ranges follow their gradient instead of what they see.
    """

    sequential_class = ChainedModel

    def __init__(
        self,
        selected: set[str] | None,
        *,
        left_out: Collection[str] = (),
        learned: bool = False,
    ) -> None:
        super().__init__()
        self._selected = selected
        self._left_out = left_out
        self._learned = learned
        self._states: dict[int, _State] = {}
        self._on_grid: dict[int, Any] = {}
        self._model_states: dict[int, list[_State]] = {}
        self._names: dict[str, int] = {}
        self._alive: list[Any] = []

    def run(self, model: keras.Model) -> keras.Model:
        """Returns the model with quantizers placed."""
        self._names.update((path.split("/")[-1], 1) for path, _ in walk_layers(model))
        return super().run(model)

    def enter(self, model: keras.Model, path: str, inputs: list[Any]) -> list[Any]:
        """Keeps samples of the outermost inputs; inputs of nested models come quantized."""
        if path:
            for tensor in inputs:
                self._note(tensor, _State(quantized=True))
            return inputs
        capacity = samples_to_keep([tensor.shape for tensor in inputs])
        return [InputSamples(capacity, name=self._name(f"{t.name}_samples"))(t) for t in inputs]

    def leave(self, model: keras.Model, path: str, outputs: list[Any]) -> list[Any]:
        """Remembers the states of a nested model's outputs for those who call it."""
        self._model_states[id(model)] = [self._state(tensor) for tensor in outputs]
        return outputs

    def visit_model(self, graph: Graph, call: Call, args: Any, kwargs: Any) -> Any:
        """Calls a nested model on quantized inputs; its open outputs are closed here."""
        if self._selected is None or any(p.startswith(call.path + "/") for p in self._selected):
            args, kwargs = keras.tree.map_structure(self._quantize, (args, kwargs))
        outputs = super().visit_model(graph, call, args, kwargs)
        emitted = []
        states = self._model_states[id(call.operation)]
        for old, new, state in zip(call.outputs, keras.tree.flatten(outputs), states, strict=True):
            state = dataclasses.replace(state, quantizer=None)
            emitted.append(self._close(graph, call, old, self._note(new, state)))
        return emitted

    def visit(self, graph: Graph, call: Call, args: Any, kwargs: Any) -> Any:
        """Calls an operation and quantizes what the rules say."""
        operation = self.clone(call.operation)
        given = [t for t in keras.tree.flatten((args, kwargs)) if _is_float(t)]
        fused = any(self._state(t).pending for t in given)
        kind = MOVE if _does_nothing(call) else role(call.operation)
        if call.path in self._left_out or self._in_float(kind, given):
            outputs = operation(*args, **kwargs)
            for new in keras.tree.flatten(outputs):
                self._note(new, _State(floating=kind))
            return outputs
        if not fused and self._selected is not None and call.path not in self._selected:
            # The runtime moves and averages integers as integers, whoever asked for it.
            stays = kind in (MOVE, AVERAGE) and all(self._state(t).quantized for t in given)
            if not stays or not given:
                return operation(*args, **kwargs)
        args, kwargs = keras.tree.map_structure(
            lambda t: t if self._state(t).pending or kind == PRECISE else self._quantize(t),
            (args, kwargs),
        )
        given = [t for t in keras.tree.flatten((args, kwargs)) if _is_float(t)]
        if kind == AVERAGE and self._state(given[0]).quantizer is None:
            # Its grid belongs to an outer model, whose layers cannot be called in this one.
            args, kwargs = keras.tree.map_structure(
                lambda t: self._new_quantizer(t) if _is_float(t) else t, (args, kwargs)
            )
            given = [t for t in keras.tree.flatten((args, kwargs)) if _is_float(t)]
        states = [self._state(t) for t in given]
        emitted = []
        for old, new in zip(
            call.outputs, keras.tree.flatten(operation(*args, **kwargs)), strict=True
        ):
            if _is_float(new):
                new = self._emit(graph, call, kind, states, old, new)
            emitted.append(new)
        return emitted

    def _in_float(self, kind: str, given: list[Any]) -> bool:
        """Returns whether an operation is fused into one that was left out."""
        before = [self._state(t).floating for t in given]
        return bool(before) and all(kind in _FUSES.get(role or "", ()) for role in before)

    def _emit(
        self, graph: Graph, call: Call, kind: str, states: list[_State], old: Any, new: Any
    ) -> Any:
        if kind == MOVE and states:
            # Dropout scales what it keeps while training; at inference it only passes values on.
            return self._note(new, states[0])
        if kind == AVERAGE and states and states[0].quantizer is not None:
            self._note(new, states[0])
            return self._apply(states[0].quantizer, new, states[0], averaged=True)
        layer = plain(call.operation)
        prescribed = fixed_range(layer)
        if prescribed is not None:
            name = self._name(f"{layer.name}_quantizer")
            quantizer = ActivationQuantizer(prescribed, name=name)
            return self._apply(quantizer, new, _State(non_negative=prescribed[0] == 0))
        if isinstance(layer, RuntimeRecurrent) and len(layer.directions) == 1:
            return self._note(new, _State(quantized=True))  # rounded step by step
        if kind == TABLE and rounds_weights(call.operation):
            joined = is_joined(graph, old)
            return self._note(new, _State(JOIN if joined else None, quantized=not joined))
        positive = kind == RELU or (kind == JOIN and all(s.non_negative for s in states))
        state = _State(kind if kind in _FUSES else None, non_negative=positive)
        return self._close(graph, call, old, self._note(new, state))

    def _close(self, graph: Graph, call: Call, old: Any, new: Any) -> Any:
        """Quantizes a new tensor unless the one operation that reads it will be fused with it."""
        state = self._state(new)
        if state.quantized or not _is_float(new):
            return new
        readers = graph.consumers.get(id(old), [])
        leaves = id(old) in graph.outputs
        if state.pending:
            if leaves and not readers and graph.path:
                return new  # decided where the nested model is called
            if not leaves and len(readers) == 1 and self._fuses(state.pending, readers[0]):
                return new
        if readers and not leaves and all(role(r.operation) == PRECISE for r in readers):
            return new
        if role(call.operation) != JOIN and is_joined(graph, old):
            return self._note(new, dataclasses.replace(state, pending=JOIN))
        return self._quantize(new, name=plain(call.operation).name)

    def _fuses(self, pending: str, reader: Call) -> bool:
        return role(reader.operation) in _FUSES.get(pending, ())

    def _quantize(self, tensor: Any, name: str | None = None) -> Any:
        """Returns the tensor on a grid of its own, quantizing it if that was not done before."""
        if not _is_float(tensor) or self._state(tensor).quantized:
            return tensor
        if id(tensor) not in self._on_grid:
            self._on_grid[id(tensor)] = self._new_quantizer(tensor, name)
        return self._on_grid[id(tensor)]

    def _new_quantizer(self, tensor: Any, name: str | None = None) -> Any:
        name = name or tensor._keras_history.operation.name.removesuffix("_samples")
        state = self._state(tensor)
        self._alive.append(tensor)
        return self._apply(
            ActivationQuantizer(
                non_negative=state.non_negative,
                learned=self._learned,
                name=self._name(f"{name}_quantizer"),
            ),
            tensor,
            state,
        )

    def _apply(
        self, quantizer: ActivationQuantizer, tensor: Any, state: _State, **kwargs: Any
    ) -> Any:
        return self._note(
            quantizer(tensor, **kwargs),
            _State(None, True, quantizer, non_negative=state.non_negative),
        )

    def _state(self, tensor: Any) -> _State:
        return self._states.get(id(tensor), _State())

    def _note(self, tensor: Any, state: _State) -> Any:
        self._alive.append(tensor)
        self._states[id(tensor)] = state
        return tensor

    def _name(self, wanted: str) -> str:
        """Returns a layer name not given before."""
        count = self._names.get(wanted, 0)
        self._names[wanted] = count + 1
        return f"{wanted}_{count}" if count else wanted


def _is_float(value: Any) -> bool:
    return isinstance(value, keras.KerasTensor) and keras.backend.is_float_dtype(value.dtype)
