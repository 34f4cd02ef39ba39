"""A `.tflite` file as objects, and the registry of what replaces its slow operations."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from tfcompress.tensorflow_internals import flatbuffer_schema
from tfcompress.tflite.flatbuffer_edits import add_buffer


class FastFile:
    """A file as objects, with what replacements need.

    Args:
        content: An integer `.tflite` file.
        prefer: The `prefer` of its scheme.
    """

    def __init__(self, content: bytes, prefer: str) -> None:
        from tensorflow.lite.tools import flatbuffer_utils

        self.prefer = prefer
        self.schema = flatbuffer_schema()
        self.kinds = self.schema.BuiltinOperator
        self.model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
        self.graph: Any = self.model.subgraphs[0]
        self._shapes: dict[Any, int] = {}

    def kind(self, operator: Any) -> int:
        """Returns the kind of an operator."""
        return self.model.operatorCodes[operator.opcodeIndex].builtinCode

    def tensor(self, index: int) -> Any:
        """Returns a tensor of the graph."""
        return self.graph.tensors[int(index)]

    def data(self, index: int) -> bytes:
        """Returns the bytes of a constant, empty if a tensor is none."""
        data = self.model.buffers[self.tensor(index).buffer].data
        return b"" if data is None else bytes(data)

    def is_int8(self, *indices: int) -> bool:
        """Returns whether tensors are int8."""
        return all(self.tensor(i).type == self.schema.TensorType.INT8 for i in indices)

    def is_sized(self, *indices: int) -> bool:
        """Returns whether all axes of tensors but the batch have fixed sizes."""
        signatures = (self.tensor(i).shapeSignature for i in indices)
        return all(s is None or min([*s[1:], 1]) > 0 for s in signatures)

    def new_tensor(self, like: int, data: np.ndarray | None = None, **fields: Any) -> int:
        """Adds a copy of a tensor with other fields and, if it is a constant, with its data."""
        tensor = copy.copy(self.tensor(like))
        tensor.quantization = copy.copy(tensor.quantization)
        tensor.shapeSignature = None
        for field, value in fields.items():
            setattr(tensor, field, value)
        tensor.buffer = 0 if data is None else add_buffer(self.model, data.view(np.uint8).ravel())
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def reshaped(self, index: int, shape: list[int]) -> int:
        """Adds a constant in another shape, with the data of the old one."""
        new = self.new_tensor(index, shape=shape)
        self.tensor(new).buffer = self.tensor(index).buffer
        return new

    def operator(
        self, kind: str, inputs: list[int], outputs: list[int], version: int, **fields: Any
    ) -> Any:
        """Returns an operator with options of the same name, such as `AddOptions`."""
        code = next(
            (c for c in self.model.operatorCodes if c.builtinCode == getattr(self.kinds, kind)),
            None,
        )
        if code is None:
            code = self.schema.OperatorCodeT()
            code.builtinCode = getattr(self.kinds, kind)
            code.deprecatedBuiltinCode, code.version = code.builtinCode, version
            self.model.operatorCodes.append(code)
        code.version = max(code.version, version)
        operator = self.schema.OperatorT()
        operator.opcodeIndex = self.model.operatorCodes.index(code)
        operator.inputs, operator.outputs = inputs, outputs
        name = _OPTIONS[kind]
        operator.builtinOptions = getattr(self.schema, f"{name}T")()
        operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, name)
        for field, value in fields.items():
            setattr(operator.builtinOptions, field, value)
        return operator

    def reshape(self, source: int, output: int) -> Any:
        """Returns the operator that gives a tensor the shape of another, batch left open."""
        shape = (-1, *map(int, self.tensor(output).shape[1:]))
        key = id(self.graph), shape
        if key not in self._shapes:
            self._shapes[key] = self.new_tensor(
                source,
                np.array(shape, np.int32),
                name=b"shape",
                shape=[len(shape)],
                type=self.schema.TensorType.INT32,
                quantization=None,
            )
        inputs = [source, self._shapes[key]]
        return self.operator("RESHAPE", inputs, [output], 1, newShape=[*shape])


_OPTIONS = {
    "ADD": "AddOptions",
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "DEQUANTIZE": "DequantizeOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "QUANTIZE": "QuantizeOptions",
    "RESHAPE": "ReshapeOptions",
}

Replacement = Callable[[FastFile, Any], list[Any] | None]
REPLACEMENTS: dict[str, tuple[Replacement, tuple[str, ...]]] = {}


def replaces(
    *kinds: str, preferences: tuple[str, ...] = ("latency", "bytes")
) -> Callable[[Replacement], Replacement]:
    """Registers what replaces some operations; it returns None where they stay.

    Args:
        *kinds: Kinds of operations.
        preferences: The values of `QuantizationScheme.prefer` with which they are replaced.
    """

    def register(replacement: Replacement) -> Replacement:
        REPLACEMENTS.update(dict.fromkeys(kinds, (replacement, preferences)))
        return replacement

    return register
