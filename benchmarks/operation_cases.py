"""Every operation that the lowering can emit, each as a file of its own."""

import numpy as np

from benchmarks.operation_files import DTYPES, RELU

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
convolution("DEPTHWISE_CONV_2D", 7, 1, dtypes=DTYPES[:3])


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


def matrix_product(title, zero, dtypes):
    """Registers a product of matrices whose second factor has some zero point."""

    @case(title, dtypes)
    def build(file, side, channels):
        x = file.input((1, 4, channels, side))
        y = file.input((1, 4, side, channels), zero=zero)
        z = file.activation((1, 4, channels, channels), 1.0)
        return file.operation("BATCH_MATMUL", [x, y], z, "BatchMatMul", adjX=False, adjY=False)


matrix_product("BATCH_MATMUL", 0, DTYPES[:3])
matrix_product("BATCH_MATMUL, zero point of the second factor not 0", 3, DTYPES[1:2])


@case("TRANSPOSE_CONV 3x3", DTYPES[:3])
def _(file, side, channels):
    x = image(file, side, channels)
    weights = file.weights((channels, 3, 3, channels))
    shape = file.integers([1, 2 * side, 2 * side, channels])
    y = file.activation((1, 2 * side, 2 * side, channels))
    fields = {"padding": 0, "strideH": 2, "strideW": 2, "fusedActivationFunction": 0}
    inputs = [shape, weights[0], x, weights[1]]
    return file.operation("TRANSPOSE_CONV", inputs, y, "TransposeConv", **fields)


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
