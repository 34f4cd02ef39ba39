"""Questions about calls and tensors of a graph, answered by the roles of their neighbours."""

from __future__ import annotations

from typing import Any

import keras

from tfcompress.graph.keras_internals import inbound_nodes, producing_operation
from tfcompress.graph.layers import activation_name, is_float, plain
from tfcompress.graph.read import Call, Graph, is_graph, read_graph
from tfcompress.integer.roles import JOIN, MOVE, RELU, role
from tfcompress.transforms.fake_quant import FakeQuant

PRODUCTS = ("Matmul", "Dot")  # of matrices
BINARY = ("Add", "Multiply", "Subtract", "Matmul")


def adds_tensors(call: Call) -> bool:
    """Returns whether a call is `keras.ops.add` of two tensors of floats."""
    layer = isinstance(call.operation, keras.layers.Layer)
    if layer or type(call.operation).__name__ != "Add" or len(call.inputs) != 2:
        return False
    ranks = [len(tensor.shape) for tensor in call.inputs]
    return all(map(is_float, call.inputs)) and max(ranks) > 1


def is_identity(call: Call) -> bool:
    """Returns whether a call multiplies by one or adds zero, which the converter removes."""
    neutral = {"Multiply": 1, "Add": 0}.get(type(call.operation).__name__)
    arguments = keras.tree.flatten((call.args, call.kwargs))
    others = [value for value in arguments if not isinstance(value, keras.KerasTensor)]
    return bool(others) and all(isinstance(v, (int, float)) and v == neutral for v in others)


def is_joined(graph: Graph, tensor: Any) -> bool:
    """Returns whether a tensor is used only by a JOIN operation, directly or through MOVEs."""
    readers = graph.consumers.get(id(tensor), [])
    if len(readers) != 1 or id(tensor) in graph.outputs:
        return False
    kind = role(readers[0].operation)
    return kind == JOIN or (
        kind == MOVE and all(is_joined(graph, output) for output in readers[0].outputs)
    )


def is_one_relu(graph: Graph, readers: list[Call]) -> bool:
    """Returns whether several readers of a tensor are the same ReLU, which the file merges."""
    kinds = {activation_name(plain(r.operation)) or _kind(r.operation) for r in readers}
    joined = any(is_joined(graph, output) for r in readers for output in r.outputs)
    alike = len(kinds) == 1 and all(role(reader.operation) == RELU for reader in readers)
    return len(readers) > 1 and alike and not joined


def _kind(relu: Any) -> Any:
    return type(relu).__name__, str(getattr(relu, "max_value", None))


def is_unjoined_input(graph: Graph, tensor: Any) -> bool:
    """Returns whether a tensor is an input of the model that no JOIN operation reads.

    A JOIN would force the quantization parameters of its output on it.
    """
    joined = [reader for reader in graph.consumers[id(tensor)] if role(reader.operation) == JOIN]
    return isinstance(producing_operation(tensor), keras.layers.InputLayer) and not joined


def is_second_factor(graph: Graph, tensor: Any) -> bool:
    """Returns whether a tensor is the second factor of a product of matrices, moved or not."""
    for reader in graph.consumers.get(id(tensor), []):
        operation = plain(reader.operation)
        if type(operation).__name__ in PRODUCTS:
            if len(reader.inputs) == 2 and reader.inputs[1] is tensor:
                return True
        elif is_graph(operation):
            inner = read_graph(operation)
            pairs = zip(reader.inputs, operation.inputs, strict=False)  # masks may follow
            if any(outer is tensor and is_second_factor(inner, t) for outer, t in pairs):
                return True
        elif role(operation) == MOVE and any(is_second_factor(graph, t) for t in reader.outputs):
            return True
    return False


def quantizes_weights(layer: Any) -> bool:
    """Returns whether a layer is wrapped to train with quantized weights."""
    return any(isinstance(t, FakeQuant) for t in getattr(layer, "transforms", ()))


def padding_value(pad: Any) -> float:
    """Returns the constant that `keras.ops.pad` pads with."""
    arguments = inbound_nodes(pad)[0].arguments
    value = (*arguments.args, *arguments.kwargs.values(), None)[1]
    return 0.0 if value is None else float(value)
