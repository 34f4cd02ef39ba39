"""Functions that several operations can compute, in the forms that the lowering chooses from."""

import numpy as np

from benchmarks.operation_cases import POSITIVE, PROBABILITY, case, image, like
from benchmarks.operation_files import DTYPES, RELU


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


def in_float(name, options=None, **fields):
    """Registers an operation in float, between two conversions."""

    @case(f"{name} in float, between DEQUANTIZE and QUANTIZE", DTYPES[1:2])
    def build(file, side, channels):
        x = image(file, side, channels, **(POSITIVE if name == "RSQRT" else {}))
        shape = (1, side, side, channels)
        y, z = file.tensor(shape, "float32"), file.tensor(shape, "float32")
        file.operation("DEQUANTIZE", [x], y, "Dequantize")
        inputs = [y]
        if name == "PRELU":
            slopes = np.full((1, 1, channels), 0.25, np.float32)
            inputs.append(file.tensor(slopes.shape, "float32", data=slopes))
        file.operation(name, inputs, z, options, **fields)
        output = PROBABILITY if name == "SOFTMAX" else {}
        return file.operation("QUANTIZE", [z], like(file, side, channels, **output), "Quantize")


in_float("GELU", "Gelu", approximate=False)
in_float("RSQRT")
in_float("ABS", "Abs")
in_float("PRELU")
in_float("SOFTMAX", "Softmax", beta=1.0)
in_float("L2_NORMALIZATION", "L2Norm")


@case("depthwise 7x7: CONV_2D in groups of 16", DTYPES[1:2])
def _(file, side, channels):
    x = image(file, side, channels)
    weights = file.weights((channels, 7, 7, 16))
    fields = {"padding": 0, "strideH": 1, "strideW": 1, "fusedActivationFunction": 0}
    fields |= {"dilationHFactor": 1, "dilationWFactor": 1}
    y = like(file, side, channels)
    return file.operation("CONV_2D", [x, *weights], y, "Conv2D", **fields)


@case("scaling of 3 channels: DEPTHWISE_CONV_2D 1x1", DTYPES[1:2])
def _(file, side, channels):
    return depthwise(file, image(file, 4 * side, 3), 4 * side, 3)


@case("scaling of 3 channels: RESHAPE, 32 pixels as one", DTYPES[1:2])
def _(file, side, channels):
    x = image(file, 4 * side, 3)
    side *= 4
    shapes = (1, side, side // 32, 96), (1, side, side, 3)
    y = file.activation(shapes[0])
    file.operation("RESHAPE", [x, file.integers(shapes[0])], y, "Reshape")
    fields = {"padding": 0, "strideH": 1, "strideW": 1, "depthMultiplier": 1}
    fields |= {"dilationHFactor": 1, "dilationWFactor": 1, "fusedActivationFunction": 0}
    z = file.activation(shapes[0])
    weights = file.weights((1, 1, 1, 96), 3)
    file.operation("DEPTHWISE_CONV_2D", [y, *weights], z, "DepthwiseConv2D", **fields)
    inputs = [z, file.integers(shapes[1])]
    return file.operation("RESHAPE", inputs, file.activation(shapes[1]), "Reshape")


def time_step(title, dropped):
    """Registers a slice of one row: the axis dropped at once, or by a reshape."""

    @case(title, DTYPES[1:2])
    def build(file, side, channels):
        x = image(file, side, channels)
        bounds = [[0, 1, 0, 0], [1, 2, side, channels], [1, 1, 1, 1]]
        shapes = (1, side, channels), (1, 1, side, channels)
        y = file.activation(shapes[0] if dropped else shapes[1])
        masks = dict.fromkeys(("beginMask", "endMask"), 13)
        masks["shrinkAxisMask"] = 2 if dropped else 0
        inputs = [x, *map(file.integers, bounds)]
        file.operation("STRIDED_SLICE", inputs, y, "StridedSlice", **masks)
        if dropped:
            return y
        inputs = [y, file.integers(shapes[0])]
        return file.operation("RESHAPE", inputs, file.activation(shapes[0]), "Reshape")


time_step("time step: STRIDED_SLICE that drops the axis", True)
time_step("time step: STRIDED_SLICE, RESHAPE", False)


def recurrent(kind):
    """Registers the runtime's own LSTM over as many steps as the side."""

    @case(f"UNIDIRECTIONAL_SEQUENCE_LSTM, {kind}", ("int8",) if kind == "int8" else ("float32",))
    def build(file, side, channels):
        x = file.input((1, side, channels), 0.03)

        def matrix():
            if kind == "float":
                return file.weights((channels, channels))[0]
            values = file.random.integers(-127, 128, (channels, channels)).astype(np.int8)
            return file.tensor(values.shape, "int8", 0.003, 0, values)

        def state(dtype, scale):
            index = file.tensor((1, channels), dtype, scale)
            file.graph.tensors[index].isVariable = True
            return index

        weights = [matrix() for _ in range(8)]
        whole = kind == "int8"
        zeros = np.zeros(channels, np.int32 if whole else np.float32)
        types = ("int8", "int16") if whole else ("float32", "float32")
        scales = (1 / 128, 2.0**-11) if whole else (None, None)
        biases = [
            file.tensor(zeros.shape, str(zeros.dtype), 0.00009 if whole else None, 0, zeros)
            for _ in range(4)
        ]
        states = [state(*pair) for pair in zip(types, scales, strict=True)]
        y = file.tensor((1, side, channels), types[0], scales[0])
        none = [-1] * 3
        inputs = [x, *weights, *none, *biases, -1, -1, *states, *none, -1]
        options = {"fusedActivationFunction": 4, "cellClip": 0.0, "projClip": 0.0}
        options |= {"asymmetricQuantizeInputs": True}
        name = "UNIDIRECTIONAL_SEQUENCE_LSTM"
        file.operation(name, inputs, y, "UnidirectionalSequenceLSTM", **options)
        if whole:
            between = [file.tensor((1,), "int16", 2.0**-12) for _ in range(4)]
            between.append(file.tensor((1,), "int8", 1 / 128))
            file.graph.operators[-1].intermediates = between
        return y


for _kind in ("float", "hybrid", "int8"):
    recurrent(_kind)
