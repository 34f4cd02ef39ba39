"""Builds `.tflite` files of a few operations, for the table of what each costs."""

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

KINDS = schema.BuiltinOperator
RELU, RELU6 = 1, 3  # fused activations
SIZES = {"8x8x64": (8, 64), "32x32x32": (32, 32), "64x64x64": (64, 64)}
DTYPES = ("float32", "int8", "int16", "int4")
TYPES = {"float32": 0, "int32": 2, "int64": 4, "bool": 6, "int16": 7, "int8": 9, "int4": 17}
SCALE = {"int8": 0.05, "int4": 0.05, "int16": 0.0002}


class File:
    """A `.tflite` file of a few operations.

    Args:
        dtype: The type of activations; "int4" for int8 activations and 4-bit weights.
    """

    def __init__(self, dtype):
        self.dtype, self.is_float = dtype, dtype == "float32"
        self.activations = "int8" if dtype == "int4" else dtype
        self.model = schema.ModelT()
        self.model.version, self.model.operatorCodes = 3, []
        self.model.buffers = [schema.BufferT()]
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.graph.inputs, self.graph.outputs = [], []
        self.model.subgraphs = [self.graph]
        self.random = np.random.default_rng(0)

    def tensor(self, shape, dtype, scale=None, zero=0, data=None, axis=0):
        """Adds a tensor and returns its index."""
        tensor = schema.TensorT()
        tensor.shape, tensor.type, tensor.buffer = list(shape), TYPES[dtype], 0
        tensor.name = f"t{len(self.graph.tensors)}"
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            tensor.buffer = len(self.model.buffers) - 1
        if scale is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = np.atleast_1d(np.float32(scale))
            tensor.quantization.zeroPoint = np.full(len(tensor.quantization.scale), zero, np.int64)
            tensor.quantization.quantizedDimension = axis
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def activation(self, shape, scale=None, zero=0):
        """Adds a tensor of activations; `scale` is of int8."""
        if self.is_float:
            return self.tensor(shape, "float32")
        scale = scale or SCALE["int8"]
        if self.activations == "int16":
            scale, zero = scale / 256, 0
        return self.tensor(shape, self.activations, scale, zero)

    def constant(self, values, scale=0.05):
        """Adds constant activations."""
        values = np.asarray(values, np.float32)
        if self.is_float:
            return self.tensor(values.shape, "float32", data=values)
        scale = scale if self.activations == "int8" else scale / 256
        quantized = np.round(values / scale).astype(self.activations)
        return self.tensor(values.shape, self.activations, scale, data=quantized)

    def integers(self, values):
        """Adds constant int32 numbers: axes, shapes, paddings."""
        values = np.asarray(values, np.int32)
        return self.tensor(values.shape, "int32", data=values)

    def weights(self, shape, axis=0):
        """Adds a kernel with a scale per channel, and its bias."""
        count = shape[axis]
        if self.is_float:
            kernel = self.random.normal(0, 0.1, shape).astype(np.float32)
            return [
                self.tensor(shape, "float32", data=kernel),
                self.tensor([count], "float32", data=np.zeros(count, np.float32)),
            ]
        scales = np.full(count, 0.01)
        if self.dtype == "int4":
            values = self.random.integers(-7, 8, int(np.prod(shape))).astype(np.uint8) & 15
            data = values[::2] | (values[1::2] << 4)
            kernel = self.tensor(shape, "int4", scales, 0, data, axis)
        else:
            data = self.random.integers(-127, 128, shape).astype(np.int8)
            kernel = self.tensor(shape, "int8", scales, 0, data, axis)
        wide = "int64" if self.activations == "int16" else "int32"
        scales = scales * self.graph.tensors[self.graph.inputs[0]].quantization.scale[0]
        return [kernel, self.tensor([count], wide, scales, 0, np.zeros(count, wide))]

    def input(self, shape, scale=None, zero=0):
        """Adds an input of the file."""
        self.graph.inputs.append(self.activation(shape, scale, zero))
        return self.graph.inputs[-1]

    def operation(self, name, inputs, outputs, options=None, **fields):
        """Adds an operation; returns its first output."""
        operator, code = schema.OperatorT(), schema.OperatorCodeT()
        kind = getattr(KINDS, name)
        code.builtinCode, code.deprecatedBuiltinCode = kind, min(kind, 127)
        code.version = 1
        self.model.operatorCodes.append(code)
        operator.opcodeIndex = len(self.model.operatorCodes) - 1
        operator.inputs, operator.outputs = list(inputs), list(np.atleast_1d(outputs))
        if options:
            made = getattr(schema, f"{options}OptionsT")()
            for field, value in fields.items():
                setattr(made, field, value)
            operator.builtinOptions = made
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, f"{options}Options")
        self.graph.operators.append(operator)
        return operator.outputs[0]

    def content(self, output):
        """Returns the file whose output is a tensor."""
        self.graph.outputs = list(np.atleast_1d(output))
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())
