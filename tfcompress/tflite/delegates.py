"""delegate_report: operations of a file that a delegate takes over, and those left on the CPU.

XNNPACK is part of the runtime, so its operations are measured. The other delegates are in phones
and on boards. For them, the operations are those listed in their documentation and source code
(TensorFlow 2.16 for GPU, NNAPI and Core ML, https://coral.ai/docs/edgetpu/models-intro for the Edge
TPU). Each has further conditions on shapes that no list contains.
"""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import numpy as np

from tfcompress.tables import as_text, table
from tfcompress.tensorflow_internals import operation_details
from tfcompress.tflite.run import TFLiteModel

_COMMON = frozenset(
    "ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D FULLY_CONNECTED LOGISTIC "
    "MAX_POOL_2D MUL RELU RELU6 RELU_N1_TO_1 RESHAPE RESIZE_BILINEAR SOFTMAX TANH "
    "TRANSPOSE_CONV".split()
)
_BOTH = frozenset(
    "CAST DEPTH_TO_SPACE DEQUANTIZE DIV ELU EQUAL EXP FLOOR GATHER GREATER GREATER_EQUAL "
    "HARD_SWISH LEAKY_RELU LESS LESS_EQUAL LOG LOGICAL_AND LSTM MAXIMUM MEAN MINIMUM MIRROR_PAD "
    "NEG NOT_EQUAL PACK PAD POW PRELU QUANTIZE REDUCE_MAX REDUCE_MIN REDUCE_PROD "
    "RESIZE_NEAREST_NEIGHBOR RSQRT SELECT SIN SLICE SPACE_TO_DEPTH SPLIT SPLIT_V SQRT "
    "SQUARED_DIFFERENCE STRIDED_SLICE SUB SUM TILE TRANSPOSE".split()
)
_GPU = (
    _COMMON
    | _BOTH
    | frozenset(
        "ABS ADD_N BATCH_MATMUL COS CUMSUM FLOOR_DIV FLOOR_MOD GELU ONE_HOT RELU_0_TO_1 SELECT_V2 "
        "SIGN SQUARE UNPACK".split()
    )
)
_NNAPI = (
    _COMMON
    | _BOTH
    | frozenset(
        "ARG_MAX ARG_MIN BATCH_TO_SPACE_ND EMBEDDING_LOOKUP EXPAND_DIMS FILL L2_NORMALIZATION "
        "L2_POOL_2D LOCAL_RESPONSE_NORMALIZATION LOGICAL_NOT LOGICAL_OR PADV2 REDUCE_ANY RNN "
        "SPACE_TO_BATCH_ND SQUEEZE SVDF TOPK_V2 UNIDIRECTIONAL_SEQUENCE_LSTM "
        "UNIDIRECTIONAL_SEQUENCE_RNN".split()
    )
)
_CORE_ML = _COMMON | frozenset("HARD_SWISH MEAN PAD MIRROR_PAD PRELU DEQUANTIZE".split())
_EDGE_TPU = _COMMON | frozenset(
    "EXPAND_DIMS L2_NORMALIZATION LSTM UNIDIRECTIONAL_SEQUENCE_LSTM MAXIMUM MEAN MINIMUM PACK PAD "
    "PRELU QUANTIZE REDUCE_MAX REDUCE_MIN RESIZE_NEAREST_NEIGHBOR RSQRT SLICE SPACE_TO_DEPTH SPLIT "
    "SQUEEZE STRIDED_SLICE SUB SUM SQUARED_DIFFERENCE TRANSPOSE".split()
)

_FLOATS, _BYTES = frozenset(("float32", "float16")), frozenset(("int8", "uint8"))
_KNOWN = {
    "GPU": (_GPU, _FLOATS | _BYTES, "computes in float16 or float32, int8 files as well"),
    "NNAPI": (_NNAPI, _FLOATS | _BYTES, "deprecated since Android 15"),
    "Core ML": (_CORE_ML, _FLOATS, "float files only"),
    "Edge TPU": (_EDGE_TPU, _BYTES, "all from the first operation it does not know on stays"),
}


@dataclasses.dataclass(frozen=True)
class DelegateRow:
    """One delegate.

    Attributes:
        delegate: Its name.
        delegated: Operations that it takes over.
        on_cpu: Number of operations of each kind that stay on the CPU.
        source: "measured" or "documented".
        note: A remark.
    """

    delegate: str
    delegated: int
    on_cpu: dict[str, int]
    source: str
    note: str


@dataclasses.dataclass(frozen=True)
class DelegateReport:
    """The operations of a file that each delegate takes over.

    Attributes:
        path: The file.
        operations: Number of its operations.
        rows: One for each delegate.
    """

    path: str
    operations: int
    rows: list[DelegateRow]

    def __rich__(self) -> Any:
        rows = [
            (
                row.delegate,
                f"{row.delegated} of {self.operations}",
                ", ".join(f"{name} {count}" for name, count in row.on_cpu.items()) or "-",
                row.source,
                row.note,
            )
            for row in self.rows
        ]
        columns = ("delegate", "takes", "on the CPU", "", "note")
        return table(f"{self.path}: delegates", columns, rows)

    def __str__(self) -> str:
        return as_text(self.__rich__())


def delegate_report(path_or_bytes: Any) -> DelegateReport:
    """Reports which operations of a file each delegate takes over, and which stay on the CPU.

    XNNPACK is measured on the installed runtime. GPU, NNAPI, Core ML and Edge TPU follow from lists
    of the operations and types that they support.

    Args:
        path_or_bytes: Path of the file, or its content.

    Returns:
        Plain data that prints as a table.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a TFLite model, or a damaged one.

    Example:
        >>> import tfcompress as tfc
        >>> path = "tflite_models/fashion_mnist_student_int8.tflite"
        >>> {row.delegate: row.on_cpu for row in tfc.delegate_report(path).rows}["Edge TPU"]
        {}
    """
    model = TFLiteModel(path_or_bytes)
    kernels = kernels_of(model.interpreter)
    operations = [op for op, _ in kernels]
    taken = {id(op) for op, delegated in kernels if delegated}
    types = {d["index"]: np.dtype(d["dtype"]).name for d in model.interpreter.get_tensor_details()}
    rows = [_row("XNNPACK", operations, taken, "measured", "the CPU's own fast kernels")]
    for name, (supported, supported_types, note) in _KNOWN.items():
        fits = [
            op["op_name"] in supported and _computes_on(op, types) <= supported_types
            for op in operations
        ]
        if name == "Edge TPU" and not all(fits):
            first = fits.index(False)
            fits = [fit and position < first for position, fit in enumerate(fits)]
        chosen = {id(op) for op, fit in zip(operations, fits, strict=True) if fit}
        rows.append(_row(name, operations, chosen, "documented", note))
    return DelegateReport(model.name, len(operations), rows)


def kernels_of(interpreter: Any) -> list[tuple[dict[str, Any], bool]]:
    """Returns the details of each operation of a file, and whether the delegate takes it."""
    details = operation_details(interpreter)
    operations = [op for op in details if op["op_name"] != "DELEGATE"]
    taken = _taken(operations, [op for op in details if op["op_name"] == "DELEGATE"])
    return [(op, id(op) in taken) for op in operations]


def _computes_on(op: dict[str, Any], types: dict[int, str]) -> set[str]:
    """Returns the types that an operation computes with, without those of indices and shapes."""
    used = {types[int(t)] for t in (*op["inputs"], *op["outputs"]) if int(t) in types}
    if op["op_name"] == "QUANTIZE":  # its output type decides
        used -= _FLOATS
    if op["op_name"] == "DEQUANTIZE":  # its output is float
        used -= _BYTES | {"int16"}
    return used & (_FLOATS | _BYTES | {"int16"})


def _taken(operations: list[dict[str, Any]], delegates: list[dict[str, Any]]) -> set[int]:
    """Returns the `id` of each operation between the inputs and outputs of a delegate's node."""
    producers = {int(t): op for op in operations for t in op["outputs"] if t >= 0}
    taken = set()
    for node in delegates:
        inputs = {int(t) for t in node["inputs"]}
        pending = [int(t) for t in node["outputs"]]
        while pending:
            tensor = pending.pop()
            producer = producers.get(tensor)
            if tensor in inputs or producer is None or id(producer) in taken:
                continue
            taken.add(id(producer))
            pending += [int(t) for t in producer["inputs"]]
    return taken


def _row(
    name: str, operations: list[dict[str, Any]], taken: set[int], source: str, note: str
) -> DelegateRow:
    left = collections.Counter(op["op_name"] for op in operations if id(op) not in taken)
    return DelegateRow(name, len(taken), dict(left.most_common()), source, note)
