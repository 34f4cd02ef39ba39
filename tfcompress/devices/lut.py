"""compress_lut: weights of few values as indices into tables, for tflite-micro."""

from __future__ import annotations

import dataclasses
import os
import warnings
from typing import Any

import numpy as np

from tfcompress.devices.micro import require, run_micro
from tfcompress.devices.micro_file import MicroFile
from tfcompress.errors import ExportError
from tfcompress.files import check_path, write_whole
from tfcompress.tables import as_text, size, table
from tfcompress.tensorflow_internals import flatbuffer_schema

_MOST_BITS = 7  # of an index, in tflite-micro's format
_OVERHEAD = 150  # bytes of an operator, two tensors and their names, about
_SAMPLES = 4


@dataclasses.dataclass(frozen=True)
class LutResult:
    """A file in tflite-micro's compressed form.

    Attributes:
        path: The file.
        bytes: Its size.
        bytes_before: The size of the file that it was made of.
        arena_bytes: Working memory on tflite-micro, into which weights are decompressed.
        arena_bytes_before: The same of the file that it was made of.
        weights: Bits of an index, by name of the weight that was compressed.
    """

    path: str
    bytes: int
    bytes_before: int
    arena_bytes: int
    arena_bytes_before: int
    weights: dict[str, int]

    def __rich__(self) -> Any:
        rows = [
            ("size", size(self.bytes_before), size(self.bytes)),
            ("arena", size(self.arena_bytes_before), size(self.arena_bytes)),
        ]
        title = f"{self.path}: {len(self.weights)} weights in tables"
        return table(title, ("", "before", "now"), rows)

    def __str__(self) -> str:
        return as_text(self.__rich__())


def compress_lut(path_or_bytes: Any, path: str | os.PathLike[str]) -> LutResult:
    """Writes a file for tflite-micro that stores weights as indices into tables of their values.

    16 values in a weight take 4 bits each in place of 8; `cluster` makes such weights. tflite-micro
    decompresses a weight into its working memory before each use, so the file shrinks and the
    arena grows. A weight with a scale for each channel gets a table for each, where that takes
    fewer bytes. The compressed file is run beside the original, and must compute the same to the
    bit. LiteRT and Vela cannot read it.

    Args:
        path_or_bytes: Path of an integer `.tflite` file, or its content.
        path: The file to write, which ends with `.tflite`.

    Returns:
        Sizes and working memory before and after.

    Raises:
        ExportError: If the compressed file does not compute the same.
        FileNotFoundError: If there is no such file.
        ImportError: If tflite-micro is not installed.
        ValueError: If the file does not run on tflite-micro, or no weight has few enough values.

    Example:
        >>> import tempfile
        >>> import keras
        >>> import numpy as np
        >>> import tfcompress as tfc
        >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64)])
        >>> shared = tfc.strip(tfc.cluster(model, 8))
        >>> scheme = tfc.QuantizationScheme(weight_granularity="tensor")
        >>> data = np.random.default_rng(0).normal(size=(256, 64))
        >>> folder = tempfile.mkdtemp()
        >>> file = f"{folder}/model.tflite"
        >>> result = tfc.export_tflite(
        ...     model=shared, path=file, scheme=scheme, representative_dataset=data,
        ...     io_dtype="int8", metadata=False, verbose=False,
        ... )
        >>> compressed = tfc.compress_lut(file, f"{folder}/compressed.tflite")
        >>> compressed.bytes < 0.8 * compressed.bytes_before
        True
    """
    require("tflite_micro", "tflite-micro", "micro")
    target = check_path(path, ".tflite")
    file = MicroFile(path_or_bytes)
    inputs = _noise(file)
    before = run_micro(file.content, inputs)
    if before.missing:
        raise ValueError(f"{file.name} does not run on tflite-micro: {before.missing}.")
    content, weights = _compressed(file)
    if len(content) >= len(file.content):
        raise ValueError(
            f"The compressed form of {file.name} takes {len(content) - len(file.content)} bytes "
            "more: its weights are too small, or have too many values."
        )
    after = run_micro(content, inputs)
    if after.missing or not _equal(before.quantized, after.quantized):
        raise ExportError(
            f"The compressed form of {file.name} does not compute the same on tflite-micro "
            f"{before.version}. {after.missing or ''} It is not written."
        )
    write_whole(target, content)
    return LutResult(
        str(target),
        len(content),
        len(file.content),
        after.arena_bytes or 0,
        before.arena_bytes or 0,
        weights,
    )


def _compressed(file: MicroFile) -> tuple[bytes, dict[str, int]]:
    """Returns the compressed file, and the bits of an index by name of the weight."""
    from tflite_micro import compression  # installed with the extra only
    from tflite_micro.tensorflow.lite.micro.compression import spec

    builder, bits_of = compression.SpecBuilder(), {}
    for index, values, axis in _weights(file):
        bits, channels = _bits(values, axis)
        if bits is None:
            continue
        mode = spec.PerTensor() if channels is None else spec.PerChannel(axis=channels)
        builder = builder.add_tensor(0, index).with_lut(bits, mode)
        bits_of[file.objects.subgraphs[0].tensors[index].name.decode()] = bits
    if not bits_of:
        raise ValueError(
            f"{file.name} has no weight of few enough values to pay. Train it with cluster(), and "
            'quantize with QuantizationScheme(weight_granularity="tensor").'
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bytes(compression.compress(file.content, builder.build())), bits_of


def _weights(file: MicroFile) -> list[tuple[int, np.ndarray, int | None]]:
    """Returns number, values and axis of the channels of each constant matrix of int8."""
    graph, found = file.objects.subgraphs[0], []
    int8 = flatbuffer_schema().TensorType.INT8
    weighted = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
    read = {
        int(t) for op in graph.operators if file.kind_of(op) in weighted for t in op.inputs[1:2]
    }
    for index in sorted(read):
        tensor = graph.tensors[index]
        data = file.objects.buffers[tensor.buffer].data
        if tensor.type != int8 or data is None or not len(data):
            continue
        values = np.frombuffer(bytes(data), np.int8).reshape(tensor.shape)
        scales = tensor.quantization.scale
        axis = tensor.quantization.quantizedDimension if len(scales) > 1 else None
        found.append((index, values, axis))
    return found


def _bits(values: np.ndarray, axis: int | None) -> tuple[int | None, int | None]:
    """Returns the bits of an index and the axis of tables that take the fewest bytes.

    Both are None where a weight takes fewer bytes as it is.
    """
    choices: list[tuple[float, int, int | None]] = []
    for channels in {None, axis}:
        if channels is not None and channels not in (0, values.ndim - 1):
            continue
        parts = [values] if channels is None else list(np.moveaxis(values, channels, 0))
        longest = max(len(np.unique(part)) for part in parts)
        bits = max(1, int(longest - 1).bit_length())
        if bits <= _MOST_BITS:
            choices.append((values.size * bits / 8 + longest * len(parts), bits, channels))
    if not choices:
        return None, None
    cost, bits, channels = min(choices, key=lambda choice: choice[0])
    return (bits, channels) if cost + _OVERHEAD < values.size else (None, None)


def _noise(file: MicroFile) -> dict[str, np.ndarray]:
    """Returns samples that reach all quantized values of the inputs."""
    generator = np.random.default_rng(0)
    samples = {}
    for info in file.inputs:
        shape = (_SAMPLES, *(size or 1 for size in info.shape[1:]))
        if info.scale:
            limits = np.iinfo(info.dtype)
            integers = generator.integers(limits.min, limits.max + 1, shape)
            samples[info.name] = info.dequantized(integers.astype(info.dtype))
        elif info.dtype.startswith("float"):
            samples[info.name] = generator.normal(size=shape).astype(info.dtype)
        else:
            samples[info.name] = np.zeros(shape, info.dtype)
    return samples


def _equal(one: Any, other: Any) -> bool:
    """Returns whether outputs are equal to the bit."""
    if isinstance(one, dict):
        return all(np.array_equal(value, other[name]) for name, value in one.items())
    return np.array_equal(one, other)
