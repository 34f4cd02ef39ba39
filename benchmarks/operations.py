"""What every operation of the runtime costs: the table of docs/operations.md.

Every operation that the lowering can emit is a file of its own, in int8, int16, with 4-bit weights
and in float, at three sizes. Each is run alone, in turns with all others, on one thread; and where
one function can be computed by several operations, so are these forms. "XNNPACK" says whether the
delegate takes the whole file. It needs no TensorFlow, so that it also runs in an environment with
the oldest ai-edge-litert that is supported. By hand, some minutes:

    python -m benchmarks.operations [--only GLOB] [--json FILE]
"""

import argparse
import fnmatch
import json
import os
import platform
import time

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

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


CASES = {}


def case(name, dtypes=DTYPES[:3]):
    """Registers a case: a function of the `File`, the side and the channels; its output."""

    def register(build):
        CASES[name] = build, dtypes
        return build

    return register


def image(file, side, channels, **qparams):
    """Returns an input image."""
    return file.input((1, side, side, channels), **qparams)


def like(file, side, channels, **qparams):
    """Returns a working tensor of the shape of the image."""
    return file.activation((1, side, side, channels), **qparams)


def unary(name, options=None, kind=None, output=None, dtypes=DTYPES[:3], x=None, **fields):
    """Registers an elementwise operation of one input; `x` are the parameters of the input."""

    @case(name, dtypes)
    def build(file, side, channels):
        read = image(file, side, channels, **(x or {}))
        y = like(file, side, channels, **(output or {}))
        return file.operation(kind or name, [read], y, options, **fields)


PROBABILITY = {"scale": 1 / 256, "zero": -128}
POSITIVE = {"scale": 0.025, "zero": -128}

unary("RELU", output=POSITIVE)
unary("RELU6", output=POSITIVE)
unary("LEAKY_RELU", "LeakyRelu", alpha=0.1)
unary("ELU")
unary("LOGISTIC", output=PROBABILITY)
unary("TANH", output={"scale": 1 / 128})
unary("HARD_SWISH")
unary("GELU", "Gelu", approximate=False)
unary("EXP", "Exp")
unary("ABS", "Abs")
unary("NEG", "Neg")
unary("RSQRT", output=POSITIVE, x=POSITIVE, dtypes=DTYPES[:2])
unary("SQRT", x=POSITIVE, dtypes=DTYPES[:1])
unary("LOG", x=POSITIVE, dtypes=DTYPES[:2])
unary("SOFTMAX over channels", "Softmax", "SOFTMAX", PROBABILITY, beta=1.0)
unary("LOG_SOFTMAX over channels", kind="LOG_SOFTMAX", output={"scale": 1 / 16, "zero": 127},
      dtypes=DTYPES[:2])  # fmt: skip
unary("L2_NORMALIZATION", "L2Norm", output={"scale": 1 / 128}, dtypes=DTYPES[:2])
unary("QUANTIZE", "Quantize", output=POSITIVE, dtypes=DTYPES[1:3])
unary("DEPTH_TO_SPACE", "DepthToSpace", blockSize=1, dtypes=DTYPES[:2])


@case("QUANTIZE from float", ("int8", "int16"))
def _(file, side, channels):
    x = file.tensor((1, side, side, channels), "float32")
    file.graph.inputs.append(x)
    return file.operation("QUANTIZE", [x], like(file, side, channels), "Quantize")


@case("DEQUANTIZE", ("int8", "int16"))
def _(file, side, channels):
    x = image(file, side, channels)
    y = file.tensor((1, side, side, channels), "float32")
    return file.operation("DEQUANTIZE", [x], y, "Dequantize")


def binary(name, options, operand="tensor", dtypes=DTYPES[:3], same=False, title=None, **fields):
    """Registers an elementwise operation of two tensors, or of a tensor and a constant."""

    @case(title or f"{name} of {operand}", dtypes)
    def build(file, side, channels):
        x = image(file, side, channels)
        if operand == "tensor":
            y = image(file, side, channels, scale=None if same else 0.03)
        else:
            y = file.constant(np.full(channels if operand == "channels" else (), 0.5), 0.05)
        z = like(file, side, channels, scale=None if same else 0.07)
        return file.operation(name, [x, y], z, options, **fields)


for _name in ("Add", "Sub", "Mul"):
    for _operand in ("tensor", "number", "channels"):
        binary(_name.upper(), _name, _operand, fusedActivationFunction=0)
binary("ADD", "Add", "number", title="ADD of number, RELU", fusedActivationFunction=RELU)
for _name in ("MAXIMUM", "MINIMUM"):
    for _operand in ("tensor", "channels"):
        binary(_name, "MaximumMinimum", _operand, same=True)
binary("SQUARED_DIFFERENCE", "SquaredDifference", dtypes=DTYPES[:2])
binary("DIV", "Div", dtypes=DTYPES[:1], fusedActivationFunction=0)


@case("PRELU", DTYPES[:2])
def _(file, side, channels):
    x = image(file, side, channels)
    slopes = file.constant(np.full((1, 1, channels), 0.25), 0.25 / 127)
    return file.operation("PRELU", [x, slopes], like(file, side, channels))


@case("GREATER + SELECT_V2", DTYPES[:2])
def _(file, side, channels):
    x, y = image(file, side, channels), image(file, side, channels)
    zero = file.constant(0.0)
    flags = file.tensor((1, side, side, channels), "bool")
    file.operation("GREATER", [x, zero], flags, "Greater")
    z = like(file, side, channels)
    return file.operation("SELECT_V2", [flags, x, y], z, "SelectV2")


def convolution(name, kernel, multiplier=0, stride=1, dtypes=DTYPES, title=None):
    """Registers a convolution; `multiplier` is that of a depthwise one."""

    @case(title or f"{name} {kernel}x{kernel}", dtypes)
    def build(file, side, channels):
        x = image(file, side, channels)
        axis, shape = (3, (1, kernel, kernel, channels)) if multiplier else (0, None)
        weights = file.weights(shape or (channels, kernel, kernel, channels), axis)
        fields = {"padding": 0, "strideH": stride, "strideW": stride}
        fields |= {"dilationHFactor": 1, "dilationWFactor": 1, "fusedActivationFunction": 0}
        if multiplier:
            fields["depthMultiplier"] = multiplier
        options = "DepthwiseConv2D" if multiplier else "Conv2D"
        y = like(file, -(-side // stride), channels)
        return file.operation(name, [x, *weights], y, options, **fields)


convolution("CONV_2D", 1)
convolution("CONV_2D", 3)
convolution("DEPTHWISE_CONV_2D", 1, 1, dtypes=DTYPES[:3])
convolution("DEPTHWISE_CONV_2D", 3, 1, dtypes=DTYPES[:3])
convolution("DEPTHWISE_CONV_2D", 5, 1, dtypes=DTYPES[:3])


def fully_connected(title, reshaped):
    """Registers a dense layer: of all pixels as rows, or of one row."""

    @case(title, DTYPES)
    def build(file, side, channels):
        if reshaped:
            x, shape = image(file, side, channels), (1, side, side, channels)
            weights = file.weights((channels, channels))
            keep = True
        else:
            width = 4 * channels
            x, shape, keep = file.input((1, width)), (1, width), False
            weights = file.weights((width, width))
        fields = {"fusedActivationFunction": 0, "weightsFormat": 0, "keepNumDims": keep}
        y = file.activation(shape)
        return file.operation("FULLY_CONNECTED", [x, *weights], y, "FullyConnected", **fields)


fully_connected("FULLY_CONNECTED on every pixel", True)
fully_connected("FULLY_CONNECTED at batch 1", False)


@case("BATCH_MATMUL", DTYPES[:3])
def _(file, side, channels):
    x = file.input((1, 4, channels, side))
    y = file.input((1, 4, side, channels))
    z = file.activation((1, 4, channels, channels), 1.0)
    return file.operation("BATCH_MATMUL", [x, y], z, "BatchMatMul", adjX=False, adjY=False)


def pooling(name, size, dtypes=DTYPES[:3]):
    """Registers a pooling over windows; size 0 is all of the image."""

    @case(f"{name} {f'{size}x{size}' if size else 'global'}", dtypes)
    def build(file, side, channels):
        x = image(file, side, channels)
        window = size or side
        fields = {"padding": 0 if size else 1, "fusedActivationFunction": 0}
        fields |= dict.fromkeys(("filterHeight", "filterWidth"), window)
        fields |= dict.fromkeys(("strideH", "strideW"), 1)
        y = file.activation((1, side, side, channels) if size else (1, 1, 1, channels))
        return file.operation(name, [x], y, "Pool2D", **fields)


pooling("AVERAGE_POOL_2D", 3)
pooling("AVERAGE_POOL_2D", 0)
pooling("MAX_POOL_2D", 3)


def reduction(name, axes, title):
    """Registers a reduction over some axes."""

    @case(f"{name} {title}", DTYPES[:3] if name != "SUM" else DTYPES[:2])
    def build(file, side, channels):
        x = image(file, side, channels)
        shape = [1 if axis in axes else n for axis, n in enumerate((1, side, side, channels))]
        y = file.activation(shape, 1.0 if name == "SUM" else None)
        return file.operation(name, [x, file.integers(axes)], y, "Reducer", keepDims=True)


reduction("MEAN", [1, 2], "global")
reduction("MEAN", [3], "of channels")
reduction("SUM", [3], "of channels")
reduction("REDUCE_MAX", [1, 2], "global")


@case("ARG_MAX", DTYPES[:2])
def _(file, side, channels):
    x = image(file, side, channels)
    y = file.tensor((1, side, side), "int32")
    return file.operation("ARG_MAX", [x, file.integers(3)], y, "ArgMax", outputType=2)


@case("CONCATENATION", DTYPES[:3])
def _(file, side, channels):
    x, y = image(file, side, channels), image(file, side, channels)
    z = like(file, side, 2 * channels)
    return file.operation("CONCATENATION", [x, y], z, "Concatenation", axis=3,
                          fusedActivationFunction=0)  # fmt: skip


@case("QUANTIZE + CONCATENATION", DTYPES[1:3])
def _(file, side, channels):
    x, y = image(file, side, channels), image(file, side, channels, scale=0.03)
    w = file.operation("QUANTIZE", [y], like(file, side, channels), "Quantize")
    z = like(file, side, 2 * channels)
    return file.operation("CONCATENATION", [x, w], z, "Concatenation", axis=3,
                          fusedActivationFunction=0)  # fmt: skip


def movement(name, options, arguments, shape, dtypes=DTYPES[:3], **fields):
    """Registers an operation that moves values: its arguments, and the shape of its output."""

    @case(name, dtypes)
    def build(file, side, channels):
        x = image(file, side, channels)
        extra = [file.integers(values(side, channels)) for values in arguments]
        y = file.activation(shape(side, channels))
        return file.operation(name, [x, *extra], y, options, **fields)


movement("RESHAPE", "Reshape", [lambda s, c: [1, s * s, c]], lambda s, c: (1, s * s, c))
movement("TRANSPOSE", "Transpose", [lambda s, c: [0, 3, 1, 2]], lambda s, c: (1, c, s, s))
movement("PAD", "Pad", [lambda s, c: [[0, 0], [1, 1], [1, 1], [0, 0]]],
         lambda s, c: (1, s + 2, s + 2, c))  # fmt: skip
movement("SLICE", "Slice", [lambda s, c: [0, 1, 1, 0], lambda s, c: [1, s - 2, s - 2, c]],
         lambda s, c: (1, s - 2, s - 2, c))  # fmt: skip
movement("STRIDED_SLICE", "StridedSlice",
         [lambda s, c: [0] * 4, lambda s, c: [1, s, s, c], lambda s, c: [1, 2, 2, 1]],
         lambda s, c: (1, s // 2, s // 2, c), beginMask=0, endMask=0)  # fmt: skip
movement("RESIZE_BILINEAR", "ResizeBilinear", [lambda s, c: [2 * s, 2 * s]],
         lambda s, c: (1, 2 * s, 2 * s, c), halfPixelCenters=True)  # fmt: skip
movement("RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighbor", [lambda s, c: [2 * s, 2 * s]],
         lambda s, c: (1, 2 * s, 2 * s, c), halfPixelCenters=True)  # fmt: skip
movement("TILE", "Tile", [lambda s, c: [1, 2, 1, 1]], lambda s, c: (1, 2 * s, s, c), DTYPES[:2])
movement("GATHER", "Gather", [lambda s, c: list(range(c))[::-1]], lambda s, c: (1, s, s, c),
         DTYPES[:2], axis=3)  # fmt: skip


# One function, in the forms that the lowering may choose from.


def depthwise(file, x, side, channels, **qparams):
    """Returns a scale and an offset for each channel, as a 1x1 depthwise convolution."""
    fields = {"padding": 0, "strideH": 1, "strideW": 1, "depthMultiplier": 1}
    fields |= {"dilationHFactor": 1, "dilationWFactor": 1, "fusedActivationFunction": 0}
    weights = file.weights((1, 1, 1, channels), 3)
    y = like(file, side, channels, **qparams)
    return file.operation("DEPTHWISE_CONV_2D", [x, *weights], y, "DepthwiseConv2D", **fields)


def scaled(file, x, side, channels, name="MUL", number=0.5, fused=0, **qparams):
    """Returns a product or sum with one number."""
    y = like(file, side, channels, **qparams)
    constant = file.constant(number, abs(number or 1) / 127)
    options = name.capitalize()
    return file.operation(name, [x, constant], y, options, fusedActivationFunction=fused)


def product(file, x, y, side, channels):
    """Returns a product of two tensors."""
    z = like(file, side, channels)
    return file.operation("MUL", [x, y], z, "Mul", fusedActivationFunction=0)


@case("hard swish: x * (DEPTHWISE_CONV_2D of x)", DTYPES[:2])
def _(file, side, channels):
    x = image(file, side, channels)
    gate = depthwise(file, x, side, channels, scale=1 / 255, zero=-128)
    return product(file, x, gate, side, channels)


@case("hard swish: x * (MUL, ADD of x)", DTYPES[:2])
def _(file, side, channels):
    x = image(file, side, channels)
    small = scaled(file, x, side, channels, number=1 / 6, scale=0.008)
    gate = scaled(file, small, side, channels, "ADD", 0.5, scale=1 / 255, zero=-128)
    return product(file, x, gate, side, channels)


@case("hard swish: x * (ADD, MUL of x)", DTYPES[:2])
def _(file, side, channels):
    x = image(file, side, channels)
    gate = scaled(file, x, side, channels, "ADD", 3.0, scale=6 / 255, zero=-128)
    y = product(file, x, gate, side, channels)
    return scaled(file, y, side, channels, number=1 / 6)


@case("hard swish: HARD_SWISH", DTYPES[:2])
def _(file, side, channels):
    x = image(file, side, channels)
    return file.operation("HARD_SWISH", [x], like(file, side, channels), "HardSwish")


def rectified(file, x, side, channels):
    """Returns a requantization whose least value is zero: a ReLU."""
    return file.operation("QUANTIZE", [x], like(file, side, channels, **POSITIVE), "Quantize")


@case("PReLU: MAXIMUM(x, DEPTHWISE_CONV_2D of x)", DTYPES[1:2])
def _(file, side, channels):
    x = image(file, side, channels)
    y = depthwise(file, x, side, channels)
    z = like(file, side, channels)
    return file.operation("MAXIMUM", [x, y], z, "MaximumMinimum")


@case("PReLU: MAXIMUM(x, MUL of x and slopes)", DTYPES[1:2])
def _(file, side, channels):
    x = image(file, side, channels)
    y = file.operation("MUL", [x, file.constant(np.full(channels, 0.25), 0.25 / 127)],
                       like(file, side, channels), "Mul", fusedActivationFunction=0)  # fmt: skip
    z = like(file, side, channels)
    return file.operation("MAXIMUM", [x, y], z, "MaximumMinimum")


@case("PReLU: slopes * x + (1 - slopes) * relu(x)", DTYPES[1:2])
def _(file, side, channels):
    x = image(file, side, channels)
    slopes = file.constant(np.full(channels, 0.25), 0.25 / 127)
    positive = rectified(file, x, side, channels)
    fields = {"fusedActivationFunction": 0}
    y = file.operation("MUL", [x, slopes], like(file, side, channels), "Mul", **fields)
    rest = file.constant(np.full(channels, 0.75), 0.75 / 127)
    w = file.operation("MUL", [positive, rest], like(file, side, channels), "Mul", **fields)
    return file.operation("ADD", [y, w], like(file, side, channels), "Add", **fields)


@case("PReLU: x - (DEPTHWISE_CONV_2D of x)", DTYPES[1:2])
def _(file, side, channels):
    x = image(file, side, channels)
    y = depthwise(file, x, side, channels, zero=127)
    fields = {"fusedActivationFunction": 0}
    return file.operation("ADD", [x, y], like(file, side, channels), "Add", **fields)


@case("PReLU: x - (MUL of x and slopes)", DTYPES[1:2])
def _(file, side, channels):
    x = image(file, side, channels)
    fields = {"fusedActivationFunction": 0}
    slopes = file.constant(np.full(channels, 0.25), 0.25 / 127)
    y = file.operation("MUL", [x, slopes], like(file, side, channels, zero=127), "Mul", **fields)
    return file.operation("ADD", [x, y], like(file, side, channels), "Add", **fields)


@case("ReLU: QUANTIZE", DTYPES[1:2])
def _(file, side, channels):
    return rectified(file, image(file, side, channels), side, channels)


@case("ReLU: ADD of 0, RELU", DTYPES[1:2])
def _(file, side, channels):
    x = image(file, side, channels)
    return scaled(file, x, side, channels, "ADD", 0.0, RELU, **POSITIVE)


@case("average 3x3: DEPTHWISE_CONV_2D", DTYPES[1:2])
def _(file, side, channels):
    x = image(file, side, channels)
    fields = {"padding": 0, "strideH": 1, "strideW": 1, "depthMultiplier": 1}
    fields |= {"dilationHFactor": 1, "dilationWFactor": 1, "fusedActivationFunction": 0}
    weights = file.weights((1, 3, 3, channels), 3)
    y = like(file, side, channels)
    return file.operation("DEPTHWISE_CONV_2D", [x, *weights], y, "DepthwiseConv2D", **fields)


def measure(cases, seconds):
    """Returns the least milliseconds of each case, in turns, and what is delegated."""
    models, rows = {}, {}
    for key, content in cases.items():
        try:
            interpreter = Interpreter(model_content=content, num_threads=1)
            interpreter.allocate_tensors()
            interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            rows[key] = {"error": str(error).strip().splitlines()[-1][:80]}
            continue
        names = [op["op_name"] for op in interpreter._get_ops_details()]
        left = _left(interpreter._get_ops_details())
        rows[key] = {"ms": float("inf"), "xnnpack": "DELEGATE" in names and not left}
        models[key] = interpreter
    for key, interpreter in models.items():
        for detail in interpreter.get_input_details():
            random = np.random.default_rng(0)
            if detail["dtype"] == np.float32:
                values = random.uniform(0.1, 2, detail["shape"]).astype(np.float32)
            else:
                values = random.integers(-100, 100, detail["shape"]).astype(detail["dtype"])
            interpreter.set_tensor(detail["index"], values)
        start = time.perf_counter()
        interpreter.invoke()
        rows[key]["count"] = max(1, min(50, int(2e-3 / (time.perf_counter() - start + 1e-9))))
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < 5 or time.perf_counter() < end:
        rounds += 1
        for key, interpreter in models.items():
            count = rows[key]["count"]
            start = time.perf_counter()
            for _ in range(count):
                interpreter.invoke()
            took = (time.perf_counter() - start) / count * 1000
            rows[key]["ms"] = min(rows[key]["ms"], took)
    return rows


def _left(operations):
    """Returns the operations that no delegate's node covers."""
    covered = set()
    producers = {int(t): op for op in operations if op["op_name"] != "DELEGATE"
                 for t in op["outputs"]}  # fmt: skip
    for node in operations:
        if node["op_name"] != "DELEGATE":
            continue
        pending, inputs = [int(t) for t in node["outputs"]], {int(t) for t in node["inputs"]}
        while pending:
            tensor = pending.pop()
            producer = producers.get(tensor)
            if producer is None or tensor in inputs or id(producer) in covered:
                continue
            covered.add(id(producer))
            pending += [int(t) for t in producer["inputs"]]
    return [op for op in operations if op["op_name"] != "DELEGATE" and id(op) not in covered]


def processor():
    """Returns the name of the processor and its integer instructions."""
    try:
        with open("/proc/cpuinfo") as file:
            text = file.read()
    except OSError:
        return platform.processor() or platform.machine()
    name = next((line.split(":")[1].strip() for line in text.splitlines() if "model name" in line),
                platform.machine())  # fmt: skip
    return name + (" with AVX-512 VNNI" if "avx512_vnni" in text else "")


def main():
    """Measures, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", help="a glob of cases")
    parser.add_argument("--json", help="a file for the figures")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each size")
    arguments = parser.parse_args()
    from importlib import metadata

    version = metadata.version("ai-edge-litert")
    print(f"{processor()}, ai-edge-litert {version}, one thread, least of turns, milliseconds\n")
    figures = {}
    for size, (side, channels) in SIZES.items():
        files = {}
        for name, (build, dtypes) in CASES.items():
            for dtype in dtypes if fnmatch.fnmatch(name, arguments.only) else ():
                file = File(dtype)
                files[name, dtype] = file.content(build(file, side, channels))
        for (name, dtype), row in measure(files, arguments.seconds).items():
            figures.setdefault(name, {}).setdefault(dtype, {})[size] = row
    print("| operation | " + " | ".join(f"{d} {s}" for d in DTYPES for s in SIZES) + " | XNNPACK |")
    print("|---" * (len(DTYPES) * len(SIZES) + 2) + "|")
    for name, by_dtype in figures.items():
        cells = []
        for dtype in DTYPES:
            for size in SIZES:
                row = by_dtype.get(dtype, {}).get(size, {})
                cells.append(f"{row['ms']:.4f}" if "ms" in row else "-" if row else "")
        taken = [d for d in by_dtype if all(r.get("xnnpack") for r in by_dtype[d].values())]
        print(f"| {name} | " + " | ".join(cells) + f" | {', '.join(taken) or 'no'} |")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"processor": processor(), "version": version, "figures": figures}, file)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main()
