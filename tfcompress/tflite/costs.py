"""What operations cost, as measured by `benchmarks/operations.py` (docs/operations.md).

The figures are of one processor and serve to compare kernels with each other: which operations of
a file take most of its time, and whether the float file would be faster. Times of a file are
measured, by `benchmark` and `profile_tflite`.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from typing import Any

from tfcompress.tensorflow_internals import flatbuffer_schema
from tfcompress.tflite.delegates import kernels_of
from tfcompress.tflite.parts import objects_of


@dataclasses.dataclass(frozen=True)
class Cost:
    """Nanoseconds of an operation on one thread, for each multiplication or output value.

    Attributes:
        float32: In float.
        int8: On int8 values, by XNNPACK if it takes the operation.
        built_in: On int8 values, by the runtime's own kernel.
        int16: On int16 values.
    """

    float32: float
    int8: float
    built_in: float
    int16: float


TARGET = "x86"  # what the figures are of: AMD EPYC with AVX-512 VNNI, ai-edge-litert 2.3.0

COSTS: dict[str, dict[str, Cost]] = {
    "x86": {
        # per multiplication
        "CONV_2D": Cost(0.0080, 0.0023, 0.05, 0.36),
        "DEPTHWISE_CONV_2D": Cost(0.028, 0.026, 0.25, 1.0),
        "FULLY_CONNECTED": Cost(0.0082, 0.0035, 0.05, 0.3),
        "BATCH_MATMUL": Cost(0.0025, 0.0032, 0.11, 0.06),
        "TRANSPOSE_CONV": Cost(0.0080, 0.0030, 0.1, 0.4),
        # per value of the output
        "ADD": Cost(0.09, 0.09, 1.0, 2.0),
        "SUB": Cost(0.09, 0.09, 1.0, 3.4),
        "MUL": Cost(0.09, 0.17, 2.0, 2.8),
        "MAXIMUM": Cost(0.09, 0.06, 0.06, 0.6),
        "MINIMUM": Cost(0.09, 0.06, 0.06, 0.6),
        "SQUARED_DIFFERENCE": Cost(0.09, 6.0, 6.0, 6.0),
        "RELU": Cost(0.06, 6.5, 6.5, 7.0),
        "RELU6": Cost(0.06, 6.5, 6.5, 7.0),
        "LEAKY_RELU": Cost(0.06, 0.04, 5.5, 5.8),
        "PRELU": Cost(0.09, 6.0, 6.0, 6.0),
        "ELU": Cost(0.13, 0.05, 0.22, 1.0),
        "LOGISTIC": Cost(0.10, 0.05, 0.22, 1.6),
        "TANH": Cost(0.11, 0.05, 0.22, 1.6),
        "HARD_SWISH": Cost(0.06, 3.1, 3.1, 3.1),
        "GELU": Cost(0.14, 0.21, 0.21, 0.93),
        "EXP": Cost(0.11, 0.21, 0.21, 0.93),
        "LOG": Cost(0.12, 0.21, 0.21, 0.93),
        "ABS": Cost(0.06, 2.4, 2.4, 2.4),
        "RSQRT": Cost(0.06, 54.0, 54.0, 54.0),
        "SOFTMAX": Cost(0.4, 1.95, 1.95, 4.0),
        "L2_NORMALIZATION": Cost(0.35, 3.7, 3.7, 3.7),
        "QUANTIZE": Cost(0.04, 0.04, 1.0, 2.5),
        "DEQUANTIZE": Cost(0.04, 0.04, 0.2, 0.1),
        "MAX_POOL_2D": Cost(0.41, 0.14, 1.5, 10.3),
        "AVERAGE_POOL_2D": Cost(0.2, 3.5, 3.5, 10.8),
        "GREATER": Cost(0.2, 1.8, 1.8, 1.8),
        "LESS": Cost(0.2, 1.8, 1.8, 1.8),
        "SELECT": Cost(0.2, 0.5, 0.5, 0.5),
        "SELECT_V2": Cost(0.2, 0.5, 0.5, 0.5),
        "PAD": Cost(0.2, 0.2, 0.3, 0.3),
        "RESIZE_BILINEAR": Cost(0.2, 0.24, 1.0, 1.9),
        "STRIDED_SLICE": Cost(0.8, 0.8, 0.8, 0.8),
        "GATHER": Cost(1.9, 1.7, 1.7, 1.7),
        "CONCATENATION": Cost(0.08, 0.04, 0.04, 0.06),
    }
}
_OTHER = Cost(0.08, 0.06, 0.2, 0.4)
_OUTSIDE_NS = 300.0  # for handing tensors over to and from a kernel outside of XNNPACK


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a file costs by the table.

    Attributes:
        ns: Nanoseconds of the file.
        float_ns: Nanoseconds of the same operations in float.
        outside: Nanoseconds outside of XNNPACK, by kind of operation, the most expensive first.
    """

    ns: float
    float_ns: float
    outside: dict[str, float]

    @property
    def share_outside(self) -> float:
        """The share of the time outside of XNNPACK."""
        return sum(self.outside.values()) / self.ns if self.ns else 0.0


def estimate(interpreter: Any, content: bytes) -> Estimate:
    """Returns what a file costs by the table of costs.

    Args:
        interpreter: An interpreter of the file, with the default delegate.
        content: The file.
    """
    shapes = {d["index"]: d["shape"] for d in interpreter.get_tensor_details()}
    graph, schema = objects_of(content).subgraphs[0], flatbuffer_schema()
    total = in_float = 0.0
    outside: dict[str, float] = collections.defaultdict(float)
    for operator, (operation, delegated) in zip(
        graph.operators, kernels_of(interpreter), strict=True
    ):
        name, kind = operation["op_name"], graph.tensors[int(operator.outputs[0])].type
        cost = COSTS[TARGET].get(name, _OTHER)
        count = _count(name, operator, shapes)
        if kind == schema.TensorType.FLOAT32:
            ns = cost.float32
        elif kind == schema.TensorType.INT16:
            ns = cost.int16
        else:
            ns = cost.int8 if delegated else cost.built_in
        total += ns * count
        in_float += 0.0 if name in ("QUANTIZE", "DEQUANTIZE") else cost.float32 * count
        if not delegated:
            outside[name] += ns * count + _OUTSIDE_NS
            total += _OUTSIDE_NS
    ordered = sorted(outside.items(), key=lambda item: -item[1])
    return Estimate(total, in_float, dict(ordered))


def _count(name: str, operator: Any, shapes: dict[int, Any]) -> int:
    """Returns the multiplications of an operation with weights, else the values of its output."""

    def shape(index: Any) -> list[int]:
        return [int(n) for n in shapes.get(int(index), ())]

    inputs = [shape(t) for t in operator.inputs if int(t) >= 0]
    values = math.prod(shape(operator.outputs[0]))
    if name == "CONV_2D":
        return values * math.prod(inputs[1][1:])
    if name == "DEPTHWISE_CONV_2D":
        return values * math.prod(inputs[1][1:3])
    if name in ("FULLY_CONNECTED", "BATCH_MATMUL"):
        return values * inputs[0][-1]
    if name == "TRANSPOSE_CONV":
        return math.prod(inputs[2]) * math.prod(inputs[1][:3])
    return max(values, math.prod(inputs[0])) if name in ("SUM", "MEAN") else values
