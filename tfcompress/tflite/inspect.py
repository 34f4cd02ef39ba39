"""inspect_tflite: the content of a .tflite file."""

from __future__ import annotations

import collections
import dataclasses
import functools
import gzip
import pathlib
from typing import Any

import numpy as np

from tfcompress.tables import as_text, size, table
from tfcompress.tensorflow_internals import flatbuffer_schema, operation_details
from tfcompress.tflite.costs import Estimate, estimate
from tfcompress.tflite.metadata import read_metadata
from tfcompress.tflite.parts import FAST_FLOAT
from tfcompress.tflite.run import TFLiteModel


@dataclasses.dataclass(frozen=True)
class FileReport:
    """The content of a file.

    Attributes:
        path: Path of the file.
        bytes: Its size.
        arena_bytes: Working memory of one inference with built-in kernels.
        inputs: (name, shape, dtype) of each input.
        outputs: Likewise of each output.
        ops: Number of operations of each kind.
        dtypes: Number of tensors of each type.
        float_tensors: Names of the float32 tensors that no integer form replaces, other than inputs
            and outputs.
        fast_floats: Names of the float32 tensors of operations that compute in float because that
            is faster (see `prefer` in `QuantizationScheme`).
        outside: The operations that XNNPACK does not take, with the share of the time that each
            kind takes, from the table in docs/operations.md; the most expensive first.
        estimated_speedup: How many times as fast as the same operations in float the file is, from
            the same table; None if it takes microseconds, or if no package can read its structure.
        sparsity: Share of zeros among the integers and floats of all constant matrices.
        weight_bytes: Bytes of constant matrices by type, "int4" where stored in 4 bits. Empty where
            no package can read the file's structure.
        metadata: Settings of the export, agreement with the model, labels, normalization; None if
            the file has no metadata.
        content: The bytes of the file, kept for `gzip_bytes`; None to read them from `path`.
    """

    path: str
    bytes: int
    arena_bytes: int
    inputs: list[tuple[str, tuple[int | None, ...], str]]
    outputs: list[tuple[str, tuple[int | None, ...], str]]
    ops: dict[str, int]
    dtypes: dict[str, int]
    float_tensors: list[str]
    sparsity: float
    weight_bytes: dict[str, int] = dataclasses.field(default_factory=dict)
    fast_floats: list[str] = dataclasses.field(default_factory=list)
    outside: dict[str, float] = dataclasses.field(default_factory=dict)
    estimated_speedup: float | None = None
    metadata: dict[str, Any] | None = None
    content: dataclasses.InitVar[Any] = None

    def __post_init__(self, content: Any) -> None:
        object.__setattr__(self, "_content", content)

    @functools.cached_property
    def gzip_bytes(self) -> int:
        """Its size after gzip, which is the size of a download."""
        content = vars(self)["_content"]
        if content is None:
            content = pathlib.Path(self.path).read_bytes()
        return len(gzip.compress(content, 9))

    def as_dict(self) -> dict[str, Any]:
        """Returns the report as a dict for JSON."""
        values = dataclasses.asdict(self)
        return {
            "path": values["path"],
            "bytes": values["bytes"],
            "gzip_bytes": self.gzip_bytes,
        } | values

    def rows(self) -> list[tuple[str, str]]:
        """Returns the rows of the table: names and values."""

        def side(items: list[tuple[str, tuple[int | None, ...], str]]) -> str:
            return "; ".join(
                f"{name} {dtype} ({', '.join('?' if n is None else str(n) for n in shape)})"
                for name, shape, dtype in items
            )

        def counts(items: dict[str, int]) -> str:
            return ", ".join(f"{name} {count}" for name, count in items.items())

        inside = f"{len(self.float_tensors)}"
        if self.float_tensors:
            inside += ": " + ", ".join(self.float_tensors[:3])
            inside += ", ..." if len(self.float_tensors) > 3 else ""
        return [
            ("size", f"{self.bytes:,} B ({self.gzip_bytes:,} B after gzip)"),
            ("arena", size(self.arena_bytes)),
            ("inputs", side(self.inputs)),
            ("outputs", side(self.outputs)),
            ("operations", counts(self.ops)),
            ("tensor types", counts(self.dtypes)),
            ("float tensors inside", inside),
            *([("float for speed", str(len(self.fast_floats)))] if self.fast_floats else []),
            ("outside of XNNPACK", _shares(self.outside)),
            ("weights", ", ".join(f"{k} {v:,} B" for k, v in self.weight_bytes.items()) or "?"),
            ("zeros in the weights", f"{self.sparsity:.1%}"),
            *_metadata_rows(self.metadata or {}),
        ]

    def __rich__(self) -> Any:
        return table(self.path, ("", "value"), self.rows())

    def __str__(self) -> str:
        return as_text(self.__rich__())


def inspect_tflite(path_or_bytes: Any) -> FileReport:
    """Reads the content of a `.tflite` file.

    Args:
        path_or_bytes: Path of the file, or its content.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a TFLite model, or a damaged one.

    Example:
        >>> import tfcompress as tfc
        >>> report = tfc.inspect_tflite("tflite_models/fashion_mnist_student_int8.tflite")
        >>> report.float_tensors
        []
    """
    model = TFLiteModel(path_or_bytes, delegates=False)
    interpreter = model.interpreter
    costs = _estimate(model)
    io_indices = {info.index for info in (*model.inputs, *model.outputs)}
    details = [d for d in interpreter.get_tensor_details() if d["name"]]
    ops = collections.Counter(op["op_name"] for op in operation_details(interpreter))
    dtypes = collections.Counter(np.dtype(d["dtype"]).name for d in details)
    inside = [
        d["name"] for d in details if d["dtype"] is np.float32 and d["index"] not in io_indices
    ]
    return FileReport(
        model.name,
        len(model.content),
        model.arena_bytes(),
        [(i.name, i.shape, i.dtype) for i in model.inputs],
        [(i.name, i.shape, i.dtype) for i in model.outputs],
        dict(ops.most_common()),
        dict(dtypes.most_common()),
        [name for name in inside if not name.endswith(FAST_FLOAT)],
        _sparsity(model),
        _weight_bytes(model.content),
        [name for name in inside if name.endswith(FAST_FLOAT)],
        {name: ns / costs.ns for name, ns in costs.outside.items()} if costs else {},
        costs.float_ns / costs.ns if costs and costs.ns > _LEAST_NS else None,
        read_metadata(model.content),
        model.content,
    )


def _estimate(model: TFLiteModel) -> Estimate | None:
    """Returns what a file costs by the table; None if no package can read the file's structure."""
    if _schema() is None:
        return None
    return estimate(model.interpreter_of(model.content), model.content)


_LEAST_NS = 50_000  # of a file whose time the table can tell


def _shares(outside: dict[str, float]) -> str:
    """Returns the shares of the time outside of XNNPACK as text."""
    if not outside:
        return "nothing"
    parts = [f"{name} {share:.0%}" for name, share in outside.items() if share >= 0.005]
    return f"about {sum(outside.values()):.0%} of the time" + (
        f": {', '.join(parts)}" if parts else ""
    )


def _schema() -> Any:
    """Returns the classes that read a file's structure, or None if no package has them."""
    try:
        return flatbuffer_schema()
    except ImportError:
        return None


def _weight_bytes(content: bytes) -> dict[str, int]:
    """Returns the bytes of constant matrices by type; the runtime reports int4 as int8."""
    schema = _schema()
    if schema is None:
        return {}
    names = {v: k.lower() for k, v in vars(schema.TensorType).items() if k.isupper()}
    model = schema.Model.GetRootAsModel(content, 0)
    sizes: dict[str, int] = {}
    for graph in (model.Subgraphs(i) for i in range(model.SubgraphsLength())):
        for tensor in (graph.Tensors(i) for i in range(graph.TensorsLength())):
            size = model.Buffers(tensor.Buffer()).DataLength()
            if tensor.ShapeLength() >= 2 and size:
                name = names[tensor.Type()]
                sizes[name] = sizes.get(name, 0) + size
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _metadata_rows(metadata: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the rows of the table for the metadata of a file."""
    rows = []
    if metadata.get("scheme"):
        ranges = metadata.get("ranges")
        rows.append(("made as", metadata["scheme"] + (f", ranges {ranges}" if ranges else "")))
    for entry in metadata.get("weights") or ():
        details = ", ".join(
            f"{k} {v}" for k, v in entry.items() if k not in ("transform", "weights") and v
        )
        rows.append((entry["transform"], f"{entry['weights']} weights: {details}"))
    if agreed := metadata.get("agreement"):
        lsb = agreed.get("max_lsb", agreed.get("max_steps"))  # older files have "max_steps"
        rows.append(
            (
                "agreed with its model",
                f"RMSE {agreed['rmse']} of the deviation"
                + (f", at most {lsb} LSB" if lsb is not None else "")
                + f" ({agreed['samples']} {agreed['source']} samples, {agreed['kernels']})",
            )
        )
    for name, (mean, deviation) in (metadata.get("normalization") or {}).items():
        rows.append((f"normalization of {name}", f"(x - {_short(mean)}) / {_short(deviation)}"))
    for file, labels in (metadata.get("labels") or {}).items():
        shown = ", ".join(labels[:5]) + (", ..." if len(labels) > 5 else "")
        rows.append((file, f"{len(labels)}: {shown}"))
    if versions := metadata.get("versions"):
        rows.append(("made with", ", ".join(f"{k} {v}" for k, v in versions.items())))
    return rows


def _short(values: list[float]) -> str:
    shown = ", ".join(f"{value:g}" for value in values)
    return shown if len(values) == 1 else f"[{shown}]"


def weights(model: TFLiteModel) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns the constant matrices of a file: quantized values (or floats) and scales, by name.

    Biases, shapes and other vectors are left out.
    """
    matrices = {}
    for details in model.interpreter.get_tensor_details():
        kinds = (np.int8, np.uint8, np.float16, np.float32)
        if len(details["shape"]) < 2 or details["dtype"] not in kinds:
            continue
        if details["sparsity_parameters"]:  # the data are in the order of the sparse format
            continue
        try:
            values = model.interpreter.tensor(details["index"])()
        except (ValueError, RuntimeError):  # a working tensor of the runtime
            continue
        if model.is_stored(values):
            scales = details["quantization_parameters"]["scales"]
            matrices[details["name"]] = (values.copy(), scales)
    return matrices


def _sparsity(model: TFLiteModel) -> float:
    arrays = [values for values, _ in weights(model).values()]
    total = sum(array.size for array in arrays)
    kept = sum(int(np.count_nonzero(array)) for array in arrays)
    schema = _schema()
    if schema is not None:
        kinds = {schema.TensorType.FLOAT32: np.float32, schema.TensorType.FLOAT16: np.float16}
        root = schema.Model.GetRootAsModel(model.content, 0)
        graph = root.Subgraphs(0)
        for tensor in (graph.Tensors(i) for i in range(graph.TensorsLength())):
            if tensor.Sparsity() is None:
                continue
            total += int(np.prod(tensor.ShapeAsNumpy()))
            # Stored blocks may contain zeros.
            buffer = root.Buffers(tensor.Buffer())
            raw = buffer.DataAsNumpy().tobytes() if buffer.DataLength() else b""
            kept += int(np.count_nonzero(np.frombuffer(raw, kinds.get(tensor.Type(), np.int8))))
    return 1 - kept / total if total else 0.0
