"""The state that lowering rules share: values for the weights, producers, accumulations."""

from __future__ import annotations

import collections
import hashlib
from typing import Any

import keras
import numpy as np
from keras import layers, ops, tree

from tfcompress.graph.clone import Rewriter
from tfcompress.graph.copies import clone_layer
from tfcompress.graph.keras_internals import producing_operation
from tfcompress.graph.layers import TRANSPOSED, has_bias, plain
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
    """Builds the lowered model, which the converter reads.

    Args:
        rounds: Whether the model is quantization-aware.
        int16: Whether activations will be int16.
        accumulations: The result of `known_accumulations` for the model.

    Attributes:
        outer: The `id` of each input of the outermost model, which keep their dtype.
        values: Values of weights in the lowered model, by `id` of the original variable.
        negative: Likewise, with the sign changed, of layers that `keep_in_float` handles.
        folded: The accumulation that a lowered layer computes, by `id` of the layer.
    """

    sequential_class = keras.Model  # a layer may become operations, which are not layers

    def __init__(self, rounds: bool, int16: bool, accumulations: dict[int, Accumulation]) -> None:
        super().__init__()
        self.outer: set[int] = set()
        self.rounds = rounds
        self.int16 = int16
        self.accumulations = accumulations
        self.values: dict[int, Any] = {}
        self.folded: dict[int, Accumulation] = {}
        self.negative: dict[int, Any] = {}
        self._producers: dict[int, Call] = {}
        self._names: dict[str, int] = {}
        self._kernels: collections.Counter[bytes] = collections.Counter()

    def value_of(self, variable: Any) -> Any:
        """Returns the value of a weight in the lowered model."""
        if isinstance(variable, np.ndarray):
            return variable
        values = self.negative if id(variable) in self.negative else self.values
        value = ops.convert_to_tensor(values.get(id(variable), variable))
        if self.rounds and variable_name(variable) in ("bias", "beta") and len(value.shape) == 1:
            return ops.convert_to_tensor(uneven(ops.convert_to_numpy(value)), value.dtype)
        return value

    def input_like(self, tensor: Any) -> Any:
        """Makes an input; those of nested models are float32 whatever the policy."""
        if id(tensor) in self.outer or tensor.dtype not in HALF:
            return super().input_like(tensor)
        return clone_layer(producing_operation(tensor), dtype="float32").output

    def clone(self, operation: Any, /, **overrides: Any) -> Any:
        """Returns the one copy of `operation`, which computes in float32."""
        if isinstance(operation, layers.Layer):
            policy = in_float32(operation.dtype_policy)
            if policy != operation.dtype_policy:
                overrides.setdefault("dtype", policy)
        return super().clone(operation, **overrides)

    def leave(self, model: keras.Model, path: str, outputs: list[Any]) -> list[Any]:
        """Returns the outputs of a model in their original shapes."""
        return [as_tensor(output) for output in outputs]

    def visit_model(self, graph: Graph, call: Call, args: Any, kwargs: Any) -> Any:
        """Calls a nested model on tensors of their original shapes."""
        args, kwargs = tree.map_structure(as_tensor, (args, kwargs))
        return super().visit_model(graph, call, args, kwargs)

    def match(self, old: Any, new: Any) -> Any:
        """Pairs values or variables with the variables of the lowered layer."""
        accumulation = self.folded.get(id(new))
        if accumulation is not None:
            kernel, offset, scale = accumulation.constants()
            pairs = [(self._unlike_others(kernel), new.variables[0])]
            if has_bias(new):
                offset = np.broadcast_to(offset, new.bias.shape)
                if isinstance(new, TRANSPOSED) and not offset.any():
                    offset = offset + scale * 2**-10  # not zero, but quantized to zero
                pairs.append((uneven(offset), new.bias))
            return pairs
        if isinstance(old, RuntimeLayer):
            return zip(uneven_biases(old), new.original_variables(), strict=True)
        return super().match(old, new)

    def _unlike_others(self, kernel: np.ndarray) -> np.ndarray:
        """Returns a kernel that equals no other, with the same quantized values.

        The converter merges layers that read one tensor with equal kernels, as initializers make
        them for query, key and value, and then finds one range too few.
        """
        digest = hashlib.sha256(np.ascontiguousarray(kernel).data).digest()
        self._kernels[digest] += 1
        return kernel * np.float32(1 + 2.0**-21 * (self._kernels[digest] - 1))

    # For use by rules.

    def record(self, call: Call) -> None:
        """Records a call as the producer of its outputs."""
        self._producers.update((id(output), call) for output in call.outputs)

    def producer(self, tensor: Any) -> Call | None:
        """Returns the call that produced a tensor; None for an input."""
        return self._producers.get(id(tensor))

    def producer_before(self, tensor: Any, passed: str) -> Call | None:
        """Returns the producer of a tensor, looking through operations of the role `passed`."""
        producer = self.producer(tensor)
        while producer is not None and role(producer.operation) == passed:
            producer = self.producer(producer.inputs[0])
        return producer

    def reads_integers(self, call: Call) -> bool:
        """Returns whether the input of a call is quantized, looking through data movement."""
        producer = self.producer_before(call.inputs[0], MOVE)
        # Without a producer it is the input of a nested model, which may be quantized.
        if producer is None:
            return True
        kinds = (ActivationQuantizer, RuntimeLayer)
        return isinstance(plain(producer.operation), kinds) or role(producer.operation) == TABLE

    def fake_quant(self, quantizer: ActivationQuantizer) -> FixedFakeQuant:
        """Returns the fake quantization with the constant range that a quantizer has learned."""
        bits, name = quantizer.bits, quantizer.name
        return self.once(quantizer, lambda: FixedFakeQuant(*quantizer.min_max(), bits, name=name))

    def unique_name(self, name: str) -> str:
        """Returns a unique name for one more layer that replaces the layer `name`."""
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return f"{name}_{count}" if count else name
