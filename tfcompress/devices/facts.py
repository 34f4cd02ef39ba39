"""What the limits of a target are about: types, shapes, kernels and strides of an operation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfcompress.devices.micro_file import MicroFile, dtype_of, has_numpy_type, names_of
from tfcompress.tensorflow_internals import flatbuffer_schema

_PARAMETERS = {
    **dict.fromkeys(
        "ARG_MAX ARG_MIN BROADCAST_TO CUMSUM EXPAND_DIMS GATHER GATHER_ND MEAN MIRROR_PAD PAD "
        "REDUCE_ALL REDUCE_ANY REDUCE_MAX REDUCE_MIN REDUCE_PROD RESHAPE RESIZE_BILINEAR "
        "RESIZE_NEAREST_NEIGHBOR REVERSE_V2 SUM TILE TRANSPOSE PADV2 TOPK_V2".split(),
        (1,),
    ),
    **dict.fromkeys("SLICE SPACE_TO_BATCH_ND BATCH_TO_SPACE_ND SPLIT_V".split(), (1, 2)),
    "DYNAMIC_UPDATE_SLICE": (2,),
    "FILL": (0,),
    "SELECT": (0,),
    "SELECT_V2": (0,),
    "SPLIT": (0,),
    "STRIDED_SLICE": (1, 2, 3),
}
"""Inputs that are sizes, axes, indices or conditions, by operation."""

_WEIGHTED = {
    "CONV_2D": (0, 1, 2),
    "CONV_3D": (0, 1, 2),
    "DEPTHWISE_CONV_2D": (0, 1, 2),
    "FULLY_CONNECTED": (0, 1, 2),
    "TRANSPOSE_CONV": (2, 1, 3),
}
"""Places of data, weights and bias among the inputs, by operation."""


def facts_of(file: MicroFile, graph: Any, operator: Any) -> dict[str, Any]:
    """Returns what is known of an operation, by names that limits use.

    A fact that makes no sense for the operation is left out. Sizes that are open are 1.

    Args:
        file: The file.
        graph: One of its graphs.
        operator: An operator of this graph.

    Returns:
        types: Of its data, "int8", or "float32 > int8" where results have another type.
        weights, bias: Types of these; bias is "none" if there is none.
        inputs, rank: Number of inputs that are data, the largest rank of these and of results.
        batch, height, width, depth, area, smallest_axis: Sizes of the first of these; the area is
            height by width, the smallest axis is that of height, width and depth.
        open_sizes: Whether a size but that of the batch is open.
        constant_weights, constant_bias, constant_parameters: Whether these are in the file.
        per_axis: Whether data, not weights, has a scale for each channel.
        weight_scales: "tensor" or "channel".
        same_scales: Whether data and results have one scale and zero point.
        kernel_height, kernel_width, kernel_area, stride, strides, dilation, padding, pads: Of
            convolutions and pooling; the last whether they read beyond the input.
        weight_sum: The largest sum of absolute weights of a channel.
        activation: The fused activation, "NONE" if there is none.
        axes, keeps_batch, is_depth, reduces_depth: Axes of a reduction; whether the batch is not
            among them, the last is the only one, and the last is among them.
        reduced, reduced_axis: The number of values behind each result of a reduction, and the
            largest of its axes.
        scaling, resizes, largest_scaling, scales_by_powers, align_corners, half_pixel_centers: Of
            resizing: by how much height and width grow (0 if they are 1), whether the size
            changes, and whether by powers of two.
        strides_over_image: Whether a slice leaves values out over height and width only.
        axis_is_batch: Whether values are gathered along the axis behind the batch axes.
        order: Of a transposition.
    """
    kind = file.kind_of(operator)

    def tensor(index: int) -> Any:
        return graph.tensors[index] if index >= 0 else None

    inputs = [tensor(int(index)) for index in operator.inputs]
    outputs = [tensor(int(index)) for index in operator.outputs]
    data_place, weight_place, bias_place = _WEIGHTED.get(kind, (0, -1, -1))
    places = {data_place} if kind in _WEIGHTED else {*range(len(inputs))}
    places -= {*_PARAMETERS.get(kind, ())}
    data = [inputs[i] for i in sorted(places) if inputs[i] is not None]
    facts: dict[str, Any] = {"kind": kind, "inputs": len(data), **_options(operator)}
    facts["types"] = _types(data, outputs)
    everything = [*data, *outputs]
    facts["rank"] = max((len(_shape(t)) for t in everything), default=0)
    facts["open_sizes"] = any(_open_sizes(t) for t in everything)
    facts["per_axis"] = any(len(_scales(t)) > 1 for t in everything)
    facts["same_scales"] = len({(*_scales(t), *_zero_points(t)) for t in everything}) == 1
    if data and outputs:
        facts |= _sizes(_shape(data[0]), _shape(outputs[0]))
    parameters = [inputs[i] for i in _PARAMETERS.get(kind, ()) if i < len(inputs)]
    values = [_values(file, t) for t in parameters]
    facts["constant_parameters"] = all(v is not None for v in values)
    facts |= _weights(file, inputs, weight_place, bias_place)
    if "kernel_area" in facts and "strides" in facts and kind != "TRANSPOSE_CONV":
        facts["pads"] = _pads(facts)
    if "axes" not in facts and values and values[0] is not None and data and outputs:
        facts |= _axes(kind, values[0], _shape(data[0]))
    if kind.startswith("RESIZE"):
        facts |= _scaling(
            _shape(data[0])[1:3], _shape(outputs[0])[1:3], bool(facts.get("align_corners"))
        )
    if kind == "STRIDED_SLICE" and values[2] is not None:
        strides = values[2].tolist()
        image = range(len(strides) - 3, len(strides) - 1)
        over = [axis for axis, stride in enumerate(strides) if stride != 1]
        facts["strides_over_image"] = min(strides) > 0 and all(axis in image for axis in over)
    if kind == "GATHER":
        options = operator.builtinOptions
        facts["axis_is_batch"] = options.axis == options.batchDims
    return facts


def _scaling(small: Sequence[int], large: Sequence[int], corners: bool) -> dict[str, Any]:
    """Returns by how much heights and widths grow; 0 for an axis that is 1 before and after."""
    edge = 1 if corners and min(small) > 1 else 0
    ratios = [(b - edge) / max(a - edge, 1) for a, b in zip(small, large, strict=True)]
    return {
        "scaling": [0 if b == 1 and r == 1 else r for b, r in zip(large, ratios, strict=True)],
        "resizes": [*small] not in ([1, 1], [*large]),
        "largest_scaling": max(ratios),
        "scales_by_powers": all(r >= 1 and math.log2(r).is_integer() for r in ratios),
    }


def _options(operator: Any) -> dict[str, Any]:
    """Returns strides, kernel and other settings of an operation."""
    options = operator.builtinOptions
    given = {} if options is None else vars(options)
    facts: dict[str, Any] = {
        name: given[key]
        for name, key in (
            ("align_corners", "alignCorners"),
            ("half_pixel_centers", "halfPixelCenters"),
        )
        if key in given
    }
    if "strideH" in given:
        facts["strides"] = [int(given["strideH"]), int(given["strideW"])]
        facts["stride"] = max(facts["strides"])
        facts["padding"] = "SAME" if given["padding"] == 0 else "VALID"
        facts["dilation"] = max(
            int(given.get("dilationHFactor", 1)), int(given.get("dilationWFactor", 1))
        )
    if "filterHeight" in given:
        facts |= _kernel(int(given["filterHeight"]), int(given["filterWidth"]))
    if "fusedActivationFunction" in given:
        names = names_of(flatbuffer_schema().ActivationFunctionType)
        facts["activation"] = names[given["fusedActivationFunction"]]
    return facts


def _pads(facts: Mapping[str, Any]) -> bool:
    """Returns whether a convolution or pooling reads beyond its input: "SAME" may not need to."""
    kernel = (facts["kernel_height"], facts["kernel_width"])
    sizes = zip(facts["result"][1:3], facts["strides"], kernel, facts["shape"][1:3], strict=True)
    return any(
        (out - 1) * stride + (size - 1) * facts["dilation"] + 1 > given
        for out, stride, size, given in sizes
    )


def _kernel(height: int, width: int) -> dict[str, int]:
    return {"kernel_height": height, "kernel_width": width, "kernel_area": height * width}


def _sizes(shape: Sequence[int], result: Sequence[int]) -> dict[str, Any]:
    """Returns sizes of the first data, as an image of which missing axes are 1."""
    padded = [1] * (4 - len(shape)) + [*shape]
    return {
        "batch": shape[0] if shape else 1,
        "height": padded[-3],
        "width": padded[-2],
        "depth": padded[-1],
        "area": padded[-3] * padded[-2],
        "smallest_axis": min(padded[-3:]),
        "result": [*result],
        "shape": [*shape],
    }


def _weights(
    file: MicroFile, inputs: Sequence[Any], weight_place: int, bias_place: int
) -> dict[str, Any]:
    """Returns what is known of the weights of an operation."""
    if weight_place < 0:
        return {}
    weights = inputs[weight_place]
    bias = inputs[bias_place] if bias_place < len(inputs) else None
    values = _values(file, weights)
    facts = {
        "weights": dtype_of(weights),
        "bias": "none" if bias is None else dtype_of(bias),
        "constant_weights": values is not None,
        "constant_bias": bias is None or _values(file, bias) is not None,
        "weight_scales": "channel" if len(_scales(weights)) > 1 else "tensor",
    }
    shape = _shape(weights)
    if len(shape) == 4:
        facts |= _kernel(shape[1], shape[2])
    if values is not None and facts["weights"] == "int8":
        depthwise = shape[0] == 1 and len(shape) == 4
        rows = values.reshape(-1, shape[-1]).T if depthwise else values.reshape(shape[0], -1)
        facts["weight_sum"] = int(np.abs(rows.astype(np.int64)).sum(1).max(initial=0))
    return facts


def _axes(kind: str, values: np.ndarray, shape: Sequence[int]) -> dict[str, Any]:
    """Returns the axes that the constant parameter of an operation names, or its order."""
    if kind == "TRANSPOSE":
        return {"order": [int(v) for v in values.ravel()]}
    if kind not in _REDUCTIONS:
        return {}
    axes = sorted({int(v) % max(len(shape), 1) for v in values.ravel()})
    sizes = [shape[axis] for axis in axes]
    return {
        "axes": axes,
        "keeps_batch": 0 not in axes or shape[0] == 1,
        "is_depth": axes == [len(shape) - 1],
        "reduces_depth": len(shape) - 1 in axes,
        "reduced": int(np.prod(sizes)),
        "reduced_axis": max(sizes, default=1),
    }


_REDUCTIONS = frozenset(
    "ARG_MAX ARG_MIN MEAN REDUCE_ALL REDUCE_ANY REDUCE_MAX REDUCE_MIN REDUCE_PROD REVERSE_V2 "
    "SUM".split()
)


def _types(data: Sequence[Any], outputs: Sequence[Any]) -> str:
    """Returns the types of data, and those of results where they differ."""
    reads, writes = ([*dict.fromkeys(map(dtype_of, side))] for side in (data, outputs))
    text = ", ".join(reads)
    return text if reads == writes or not reads else f"{text} > {', '.join(writes)}"


def _shape(tensor: Any) -> list[int]:
    return [] if tensor.shape is None else [max(int(size), 1) for size in tensor.shape]


def _open_sizes(tensor: Any) -> bool:
    signature = tensor.shapeSignature
    return signature is not None and any(int(size) < 0 for size in signature[1:])


def _scales(tensor: Any) -> list[float]:
    quantization = tensor.quantization
    return [] if quantization is None or quantization.scale is None else [*quantization.scale]


def _zero_points(tensor: Any) -> list[int]:
    quantization = tensor.quantization
    missing = quantization is None or quantization.zeroPoint is None
    return [] if missing else [int(point) for point in quantization.zeroPoint]


def _values(file: MicroFile, tensor: Any) -> np.ndarray | None:
    """Returns the values of a constant, bytes where numpy lacks its type; None if computed."""
    data = file.objects.buffers[tensor.buffer].data
    if data is None or not len(data):
        return None
    return np.frombuffer(bytes(data), dtype_of(tensor) if has_numpy_type(tensor) else np.uint8)
