"""What the rules of lowering work on: the model that is being made, and what is known of it."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers, ops, tree

from tfcompress.graph.clone import Rewriter
from tfcompress.graph.copies import clone_layer
from tfcompress.graph.keras_internals import maker
from tfcompress.graph.layers import TRANSPOSED, plain
from tfcompress.graph.read import Call, Graph
from tfcompress.graph.weights import variable_name
from tfcompress.integer.grid_ops import FixedFakeQuant
from tfcompress.integer.producers import Accumulation
from tfcompress.integer.roles import MOVE, TABLE, role
from tfcompress.lowering.affine_conv import HALF, as_tensor, in_float32
from tfcompress.lowering.biases import uneven, uneven_biases
from tfcompress.quantization.activation_quantizer import ActivationQuantizer
from tfcompress.quantization.layers.base import RuntimeLayer


class Lowering(Rewriter):
    """Makes the model that the converter gets.

    Args:
        rounds: Whether the model is quantization-aware.
        int16: Whether activations will be of 16 bits.
        sums: What `known_accumulations` returned for the model.

    Attributes:
        values: Values that weights have for the converter, by `id` of the variable.
        totals: The sum that each layer made stands for, by its `id`.
    """

    sequential_class = keras.Model  # a layer may become operations, which are no layers

    def __init__(self, rounds: bool, int16: bool, sums: dict[int, Accumulation]) -> None:
        super().__init__()
        self.outer: set[int] = set()
        self.rounds = rounds
        self.int16 = int16
        self.sums = sums
        self.values: dict[int, Any] = {}
        self.totals: dict[int, Accumulation] = {}
        self.negative: dict[int, Any] = {}
        self._producers: dict[int, Call] = {}
        self._names: dict[str, int] = {}

    def value_of(self, variable: Any) -> Any:
        """Returns the value that a weight has for the converter."""
        if isinstance(variable, np.ndarray):
            return variable
        values = self.negative if id(variable) in self.negative else self.values
        value = ops.convert_to_tensor(values.get(id(variable), variable))
        if self.rounds and variable_name(variable) in ("bias", "beta") and len(value.shape) == 1:
            return ops.convert_to_tensor(uneven(ops.convert_to_numpy(value)), value.dtype)
        return value

    def input_like(self, tensor: Any) -> Any:
        """Makes an input, of float32 inside of the model whatever its policy."""
        if id(tensor) in self.outer or tensor.dtype not in HALF:
            return super().input_like(tensor)
        return clone_layer(maker(tensor), dtype="float32").output

    def clone(self, operation: Any, /, **overrides: Any) -> Any:
        """Returns the one copy of `operation`, which computes in float32."""
        if isinstance(operation, layers.Layer):
            policy = in_float32(operation.dtype_policy)
            if policy != operation.dtype_policy:
                overrides.setdefault("dtype", policy)
        return super().clone(operation, **overrides)

    def leave(self, model: keras.Model, path: str, outputs: list[Any]) -> list[Any]:
        """Returns the outputs of a model in the shapes that it knows."""
        return [as_tensor(output) for output in outputs]

    def visit_model(self, graph: Graph, call: Call, args: Any, kwargs: Any) -> Any:
        """Calls a nested model on tensors of the shapes that it knows."""
        args, kwargs = tree.map_structure(as_tensor, (args, kwargs))
        return super().visit_model(graph, call, args, kwargs)

    def match(self, old: Any, new: Any) -> Any:
        """Pairs values or variables with the variables of what was made."""
        total = self.totals.get(id(new))
        if total is not None:
            kernel, offset, unit = total.constants()
            pairs = [(kernel, new.variables[0])]
            if new.use_bias:
                offset = np.broadcast_to(offset, new.bias.shape)
                if isinstance(new, TRANSPOSED) and not offset.any():
                    offset = offset + unit * 2**-10  # rounded to zero
                pairs.append((uneven(offset), new.bias))
            return pairs
        if isinstance(old, RuntimeLayer):
            return zip(uneven_biases(old), new.original_variables(), strict=True)
        return super().match(old, new)

    # What rules use.

    def note(self, call: Call) -> None:
        """Remembers which call made a tensor."""
        self._producers.update((id(output), call) for output in call.outputs)

    def producer(self, tensor: Any) -> Call | None:
        """Returns the call that made a tensor; None for an input."""
        return self._producers.get(id(tensor))

    def producer_before(self, tensor: Any, passed: str) -> Call | None:
        """Returns the call that made a tensor, before operations of the role `passed`."""
        producer = self.producer(tensor)
        while producer is not None and role(producer.operation) == passed:
            producer = self.producer(producer.inputs[0])
        return producer

    def reads_integers(self, call: Call) -> bool:
        """Returns whether what an operation is called on comes from a grid, moved about or not."""
        producer = self.producer_before(call.inputs[0], MOVE)
        # Without a producer, it is the input of a nested model, which may be on one.
        if producer is None:
            return True
        kinds = (ActivationQuantizer, RuntimeLayer)
        return isinstance(plain(producer.operation), kinds) or role(producer.operation) == TABLE

    def fixed(self, quantizer: ActivationQuantizer) -> FixedFakeQuant:
        """Returns the rounding onto the grid that a quantizer has learned."""
        bits, name = quantizer.bits, quantizer.name
        return self.once(quantizer, lambda: FixedFakeQuant(*quantizer.min_max(), bits, name=name))

    def name_again(self, name: str) -> str:
        """Returns a name for one more layer that stands for the layer of that name."""
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return f"{name}_{count}" if count else name
