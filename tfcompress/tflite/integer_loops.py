"""Keeps integers in what a pass of a loop hands to the next; the converter dequantizes it."""

from __future__ import annotations

import copy
from typing import Any

from tfcompress.tensorflow_internals import flatbuffer_schema
from tfcompress.tflite.flatbuffer_edits import (
    drop_unread,
    drop_unused_codes,
    drop_unused_tensors,
    kinds_in,
    same_qparams,
)


def carry_integers(content: bytes) -> bytes:
    """Returns the file with loops that carry integers wherever these were dequantized for it.

    Args:
        content: An integer `.tflite` file.
    """
    schema = flatbuffer_schema()
    from tensorflow.lite.tools import flatbuffer_utils

    if schema.BuiltinOperator.WHILE not in kinds_in(content):
        return content
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    for graph in model.subgraphs:
        for operator in list(graph.operators):
            if (
                model.operatorCodes[operator.opcodeIndex].builtinCode
                == schema.BuiltinOperator.WHILE
            ):
                loop = _Loop(model, graph, operator)
                for position in range(len(operator.inputs)):
                    loop.carry_integers(position)
    for graph in model.subgraphs:
        drop_unread(graph)
    for graph in model.subgraphs[1:]:
        for tensor in graph.tensors:
            tensor.name = b""  # nobody sees them, and they are a fifth of the file
    drop_unused_codes(model)
    drop_unused_tensors(model)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


class _Graph:
    """A graph with the operators that compute and that read each tensor."""

    def __init__(self, model: Any, graph: Any) -> None:
        self.tensors, self.graph = graph.tensors, graph
        self._codes, self._kinds = model.operatorCodes, flatbuffer_schema().BuiltinOperator
        self.producers: dict[int, Any] = {int(t): op for op in graph.operators for t in op.outputs}
        self.consumers: dict[int, list[Any]] = {}
        for operator in graph.operators:
            for tensor in {int(t) for t in operator.inputs}:
                self.consumers.setdefault(tensor, []).append(operator)

    def is_kind(self, operator: Any, kind: str) -> bool:
        """Returns whether an operator exists and is of a kind."""
        if operator is None:
            return False
        return self._codes[operator.opcodeIndex].builtinCode == getattr(self._kinds, kind)

    def dequantized(self, tensor: int) -> int | None:
        """Returns the integers from which a tensor is dequantized, or None."""
        producer: Any = self.producers.get(tensor)
        return int(producer.inputs[0]) if self.is_kind(producer, "DEQUANTIZE") else None

    def quantizes(self, operator: Any, like: Any) -> bool:
        """Returns whether an operator quantizes to the scale of a tensor."""
        return self.is_kind(operator, "QUANTIZE") and same_qparams(
            self.tensors[int(operator.outputs[0])], like
        )

    def bypass(self, operator: Any, tensor: int) -> None:
        """Makes all that reads the output of an operator read a tensor instead."""
        output = int(operator.outputs[0])
        for consumer in self.consumers.get(output, ()):
            consumer.inputs = [tensor if int(t) == output else int(t) for t in consumer.inputs]


class _Loop:
    """A WHILE, with the graphs of its condition and its body."""

    def __init__(self, model: Any, graph: Any, operator: Any) -> None:
        options = operator.builtinOptions
        self.operator = operator
        self.condition = model.subgraphs[options.condSubgraphIndex]
        self.around = _Graph(model, graph)
        self.body = _Graph(model, model.subgraphs[options.bodySubgraphIndex])

    def carry_integers(self, position: int) -> None:
        """Makes a tensor that the loop carries an integer, if it holds dequantized integers."""
        around, body = self.around, self.body
        started = around.dequantized(int(self.operator.inputs[position]))
        before, after = (int(t[position]) for t in (body.graph.inputs, body.graph.outputs))
        if started is None or before == after:  # a tensor that the loop only reads
            return
        integers = around.tensors[started]
        result = int(self.operator.outputs[position])
        results = around.consumers.get(result, [])
        readers = body.consumers.get(before, [])
        update: Any = body.producers.get(after)
        if body.is_kind(update, "DYNAMIC_UPDATE_SLICE") and int(update.inputs[0]) == before:
            readers = [reader for reader in readers if reader is not update]
            computed = body.dequantized(int(update.inputs[1]))
        else:
            update, computed = None, body.dequantized(after)
        fits = (
            computed is not None
            and same_qparams(body.tensors[computed], integers)
            and all(body.quantizes(reader, integers) for reader in readers)
            and all(around.quantizes(reader, integers) for reader in results)
            and result not in map(int, around.graph.outputs)
        )
        if not fits:
            return
        self.operator.inputs[position] = started
        carried = [(around, result), (body, before)]
        if results:  # the tensor of the first keeps its name, and may be an output of the file
            self.operator.outputs[position] = int(results[0].outputs[0])
            around.graph.operators.remove(results[0])
        if update is not None:
            update.inputs = [before, computed, *update.inputs[2:]]
            carried.append((body, after))
        else:
            body.graph.outputs[position] = computed
        for reader in readers:
            body.bypass(reader, before)
        for reader in results[1:]:
            reader.inputs = results[0].outputs
            around.bypass(reader, int(results[0].outputs[0]))
        tensors = [graph.tensors[index] for graph, index in carried]
        tensors.append(self.condition.tensors[int(self.condition.inputs[position])])
        for tensor in tensors:
            tensor.type, tensor.quantization = integers.type, copy.copy(integers.quantization)
