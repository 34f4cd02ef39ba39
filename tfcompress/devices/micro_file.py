"""A file as microcontrollers read it, which may hold operations that LiteRT lacks."""

from __future__ import annotations

import collections
import functools
from typing import Any

import numpy as np

from tfcompress.data import InputSpec
from tfcompress.tensorflow_internals import flatbuffer_schema
from tfcompress.tflite.io_tensors import TensorInfo
from tfcompress.tflite.parts import objects_of
from tfcompress.tflite.run import DECODE, read_content
from tfcompress.tflite.structure import check_structure


class MicroFile:
    """The content of a file, read without a runtime.

    Args:
        path_or_bytes: Path of the file, or its content.

    Attributes:
        name: Its path, or words for content without one.
        content: Its bytes.
        objects: Its tables as objects.
        graphs: Its graphs; those behind the first are the parts of loops and branches.
        operations: Number of operations of each kind, in all graphs.
        inputs: `TensorInfo` of each input, in the order of the runtime.
        outputs: Likewise of each output.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If `path_or_bytes` is neither a path nor bytes.
        ValueError: If it is not a TFLite model, or a damaged one.
    """

    def __init__(self, path_or_bytes: Any) -> None:
        self.name, self.content = read_content(path_or_bytes)
        try:
            if DECODE.encode() not in self.content:  # encoded weights keep the scales of their own
                check_structure(self.content)
            self.objects = objects_of(self.content)
        except (ValueError, IndexError, TypeError) as error:
            raise ValueError(f"{self.name} is not a usable TFLite model: {error}.") from None
        self.graphs = self.objects.subgraphs
        graph = self.graphs[0]
        self.inputs = [self._info("inputs", index) for index in graph.inputs]
        self.outputs = [self._info("outputs", index) for index in graph.outputs]
        self.operations = operations_of(self.objects)

    @property
    def operators(self) -> list[tuple[Any, Any]]:
        """The graph of each operator of the file, and the operator."""
        return [(graph, op) for graph in self.graphs for op in graph.operators]

    def kind_of(self, operator: Any) -> str:
        """Returns the name of the kind of an operator."""
        return kind_of(self.objects, operator)

    def has_int4(self) -> bool:
        """Returns whether any weight has 4 bits."""
        int4 = flatbuffer_schema().TensorType.INT4
        return any(t.type == int4 for graph in self.objects.subgraphs for t in graph.tensors)

    def specs(self) -> list[InputSpec]:
        """Returns the specification of each input."""
        return [info.spec() for info in self.inputs]

    def _info(self, side: str, index: int) -> TensorInfo:
        tensor = self.objects.subgraphs[0].tensors[index]
        name = tensor.name.decode()
        for signature in self.objects.signatureDefs or ():
            for entry in getattr(signature, side):
                if entry.tensorIndex == index:
                    name = entry.name.decode()
        signature_shape = tensor.shapeSignature
        shape = tensor.shape if signature_shape is None else signature_shape
        if not has_numpy_type(tensor):
            raise ValueError(f"{self.name} has an input or output of type {dtype_of(tensor)}.")
        dtype = np.dtype(dtype_of(tensor))
        scale, zero = 0.0, 0
        quantization = tensor.quantization
        if dtype.kind in "iu" and quantization is not None and quantization.scale is not None:
            scale, zero = float(quantization.scale[0]), int(quantization.zeroPoint[0])
        sizes = tuple(None if size == -1 else int(size) for size in shape)
        return TensorInfo(name, int(index), sizes, dtype.name, scale, zero)


_DTYPES = frozenset(
    "bool float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64".split()
)
"""Types of tensors that numpy has."""


def has_numpy_type(tensor: Any) -> bool:
    """Returns whether numpy has the type of a tensor."""
    return dtype_of(tensor) in _DTYPES


def operations_of(objects: Any) -> dict[str, int]:
    """Returns the number of operations of each kind in all graphs of a file."""
    names = (kind_of(objects, op) for graph in objects.subgraphs for op in graph.operators)
    return dict(collections.Counter(names))


def kind_of(objects: Any, operator: Any) -> str:
    """Returns the name of the kind of an operator."""
    code = objects.operatorCodes[operator.opcodeIndex]
    name = names_of(flatbuffer_schema().BuiltinOperator)[code.builtinCode]
    return code.customCode.decode() if name == "CUSTOM" else name


def dtype_of(tensor: Any) -> str:
    """Returns the name of the type of a tensor, as numpy has it where numpy has the type."""
    return names_of(flatbuffer_schema().TensorType)[tensor.type].lower()


@functools.cache
def names_of(numbers: Any) -> dict[int, str]:
    """Returns the names of an enumeration of the schema by number."""
    return {value: name for name, value in vars(numbers).items() if isinstance(value, int)}
