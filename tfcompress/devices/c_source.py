"""write_c_source: a file as an array of C, with what a microcontroller's program needs."""

from __future__ import annotations

import io
import math
import os
import pathlib
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from tfcompress.data import collect
from tfcompress.devices.micro import is_installed, run_micro
from tfcompress.devices.micro_file import MicroFile
from tfcompress.files import check_path, write_whole
from tfcompress.tflite.run import TFLiteModel


def write_c_source(path_or_bytes: Any, path: str | os.PathLike[str]) -> list[pathlib.Path]:
    """Writes a `.tflite` file as C source and a header of the same name.

    The source holds the file as a constant array, aligned to 16 bytes as the runtime needs it. The
    header declares it and, for tflite-micro in C++, registers the operations of the file and no
    others, which keeps the program small. With the extra `micro` the header also says how much
    working memory tflite-micro allocated for the file; the size differs a little between chips.

    Args:
        path_or_bytes: Path of the file, or its content.
        path: The source to write, which ends with `.c`; names in it are those of this file.

    Returns:
        The paths of source and header.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a TFLite model, or tflite-micro lacks an operation.

    Example:
        >>> import tempfile
        >>> import tfcompress as tfc
        >>> file = "tflite_models/fashion_mnist_student_int8.tflite"
        >>> folder = tempfile.mkdtemp()
        >>> [path.name for path in tfc.write_c_source(file, f"{folder}/student.c")]
        ['student.c', 'student.h']
    """
    target = check_path(path)
    if target.suffix != ".c":
        raise ValueError(f"path must end in .c. Received: {str(target)!r}")
    model = MicroFile(path_or_bytes)
    operations = model.operations
    unknown = [name for name in operations if name.startswith("Flex")]
    arena = None
    if is_installed("tflite_micro"):
        result = run_micro(model.content)
        unknown, arena = list(result.missing), result.arena_bytes
    if unknown:
        raise ValueError(
            f"{model.name} does not run on tflite-micro, which has no kernel for "
            f"{', '.join(unknown)}. `tfcompress micro` says more."
        )
    name = _identifier(target.stem)
    header = target.with_suffix(".h")
    write_whole(target, _source(name, header.name, model.content).encode())
    write_whole(header, _header(name, len(model.content), operations, arena).encode())
    return [target, header]


def write_golden(
    path_or_bytes: Any, x: Any, path: str | os.PathLike[str], count: int = 8
) -> list[pathlib.Path]:
    """Writes inputs and the integers that a file puts out for them, for a test on the device.

    A device that computes the same integers runs the file as it was checked. Its kernels decide:
    `outputs_...` are those of LiteRT with XNNPACK, as on phones; `micro_...`, and the header for C,
    those of tflite-micro, if it is installed and has the operations.

    Args:
        path_or_bytes: Path of the file, or its content.
        x: Real inputs, as for `TFLiteModel.predict`.
        path: The archive of numpy to write, which ends with `.npz`; a header for C of the same name
            is written beside it.
        count: Number of samples, the first of `x`.

    Returns:
        The paths of archive and header.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a TFLite model, `x` does not fit, or it has fewer samples.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> import tfcompress as tfc
        >>> file = "tflite_models/fashion_mnist_student_int8.tflite"
        >>> x = np.random.default_rng(0).uniform(size=(4, 28, 28, 1))
        >>> folder = tempfile.mkdtemp()
        >>> paths = tfc.write_golden(file, x, f"{folder}/student.npz", count=4)
        >>> np.load(paths[0])["inputs_image"].dtype
        dtype('int8')
    """
    target = check_path(path)
    if target.suffix != ".npz":
        raise ValueError(f"path must end in .npz. Received: {str(target)!r}")
    if count < 1:
        raise ValueError(f"count must be at least 1. Received: {count}")
    model = TFLiteModel(path_or_bytes)
    features, _ = collect(x, model.specs(), argument="x")
    available = min(len(value) for value in features.values())
    if available < count:
        raise ValueError(f"count is {count}, and x has {available} samples.")
    features = {name: value[:count] for name, value in features.items()}
    inputs = {info.name: info.quantized(features[info.name]) for info in model.inputs}
    outputs = _by_name(model, model.predict(features))
    # Exact: real outputs are quantized values times their scale.
    outputs = {info.name: info.quantized(outputs[info.name]) for info in model.outputs}
    arrays = {f"inputs_{name}": value for name, value in inputs.items()}
    arrays |= {f"outputs_{name}": value for name, value in outputs.items()}
    kernels = "LiteRT with XNNPACK"
    if is_installed("tflite_micro"):
        result = run_micro(model.content, features)
        if not result.missing:
            micro = _by_name(model, result.quantized)
            arrays |= {f"micro_{name}": value for name, value in micro.items()}
            outputs, kernels = micro, f"tflite-micro {result.version}"
    header = target.with_suffix(".h")
    archive = io.BytesIO()
    np.savez_compressed(archive, allow_pickle=False, **arrays)
    write_whole(target, archive.getvalue())
    name = _identifier(target.stem)
    write_whole(header, _golden_header(name, kernels, inputs, outputs).encode())
    return [target, header]


def _by_name(model: TFLiteModel, outputs: Any) -> dict[str, np.ndarray]:
    """Returns outputs by name, also if there is only one."""
    return outputs if isinstance(outputs, dict) else {model.outputs[0].name: outputs}


def _identifier(stem: str) -> str:
    """Returns a name for C, made of the name of a file."""
    name = re.sub(r"\W", "_", stem, flags=re.ASCII)
    return f"_{name}" if name[:1].isdigit() else name


def _rows(values: Iterable[Any], width: int) -> str:
    """Returns the elements of an array of C, some in each line."""
    texts = [str(value) for value in values]
    lines = (", ".join(texts[i : i + width]) for i in range(0, len(texts), width))
    return ",\n".join(f"    {line}" for line in lines)


def _source(name: str, header: str, content: bytes) -> str:
    return f"""\
/* Written by tfcompress. */
#include "{header}"

#if defined(__GNUC__) || defined(__clang__)
#define TFCOMPRESS_ALIGNED __attribute__((aligned(16)))
#else
#define TFCOMPRESS_ALIGNED
#endif

const unsigned char {name}_tflite[] TFCOMPRESS_ALIGNED = {{
{_rows((f"0x{byte:02x}" for byte in content), 16)}
}};
const unsigned int {name}_tflite_size = {len(content)};
"""


def _header(name: str, size: int, operations: dict[str, int], arena: int | None) -> str:
    upper = name.upper()
    adding = "\n".join(
        f"  ok &= static_cast<int>(resolver.{_method(kind)}()) == 0;" for kind in operations
    )
    memory = (
        f"/* Bytes that tflite-micro allocated on a 64-bit processor; a few less on others. */\n"
        f"#define {upper}_ARENA_BYTES {arena}\n\n"
        if arena
        else ""
    )
    return f"""\
/* Written by tfcompress: a TFLite model of {size} bytes. */
#ifndef {upper}_H_
#define {upper}_H_

#ifdef __cplusplus
extern "C" {{
#endif
extern const unsigned char {name}_tflite[];
extern const unsigned int {name}_tflite_size;
#ifdef __cplusplus
}}
#endif

{memory}/* Number of kinds of operations, for MicroMutableOpResolver. */
#define {upper}_OPERATIONS {len(operations)}

#ifdef __cplusplus
/* Adds the operations of the model to a tflite::MicroMutableOpResolver<{upper}_OPERATIONS>. */
template <typename Resolver>
bool {name}_add_operations(Resolver& resolver) {{
  bool ok = true;
{adding}
  return ok;
}}
#endif

#endif /* {upper}_H_ */
"""


_METHODS = {
    "BATCH_MATMUL": "AddBatchMatMul",
    "CUMSUM": "AddCumSum",
    "PADV2": "AddPadV2",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "AddUnidirectionalSequenceLSTM",
    "TFLM_DECODE": "AddDecode",
    "ethos-u": "AddEthosU",
}


def _method(kind: str) -> str:
    """Returns the method of tflite-micro's resolver that adds an operation."""
    parts = (part if part == "2D" else part.capitalize() for part in kind.split("_"))
    return _METHODS.get(kind, "Add" + "".join(parts))


def _golden_header(
    name: str, kernels: str, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]
) -> str:
    upper = name.upper()
    count = len(next(iter(inputs.values())))
    sides = [("input", [*inputs.items()]), ("output", [*outputs.items()])]
    arrays = "\n".join(
        _array(f"{name}_{side}_{index}", f"{side} {key!r}", value)
        for side, items in sides
        for index, (key, value) in enumerate(items)
    )
    return f"""\
/* Written by tfcompress: inputs, and what {kernels} puts out for them. */
#ifndef {upper}_H_
#define {upper}_H_

#include <stdint.h>

#define {upper}_SAMPLES {count}

{arrays}
#endif /* {upper}_H_ */
"""


def _array(name: str, what: str, values: np.ndarray) -> str:
    kinds = {"float32": "float", "bool": "uint8_t"}
    dtype = values.dtype.name
    kind = kinds.get(dtype, f"{dtype}_t")
    shape = values.shape[1:]
    samples = []
    for row in values.reshape(len(values), -1):
        texts = (f"{float(v).hex()}f" if dtype == "float32" else str(int(v)) for v in row)
        samples.append(f"  {{\n{_rows(texts, 16)}\n  }}")
    rows = ",\n".join(samples)
    return f"""\
/* {what}, of shape {shape} */
static const {kind} {name}[{len(values)}][{math.prod(shape)}] = {{
{rows}
}};
"""
