"""Metadata of a file: normalization of inputs, labels, export settings, agreement.

Tools for phones (Android Studio, MediaPipe, the TFLite Task Library) read the metadata of TFLite's
own schema: normalization of inputs, labels of outputs. The settings of the export and the agreement
with the model are JSON. The JSON and the labels are files in a zip at the end of the file, as that
schema requires: `unzip -p model.tflite tfcompress.json` prints the JSON.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfcompress.tensorflow_internals import flatbuffer_schema
from tfcompress.tflite.run import SETTINGS, TFLiteModel
from tfcompress.tflite.trial import trust

_NAME, _IDENTIFIER = "TFLITE_METADATA", b"M001"
_DAMAGES = (zipfile.BadZipFile, zlib.error, KeyError, ValueError, AttributeError, OSError)
# Values of the schema's enumerations and unions.
_FEATURE, _IMAGE = 1, 2
_RGB, _GRAYSCALE = 1, 2
_NORMALIZATION, _AXIS_LABELS = 1, 2


def write_metadata(
    content: bytes,
    settings: Mapping[str, Any],
    *,
    name: str = "",
    labels: Mapping[str, Sequence[str]] | None = None,
    normalization: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    tried: bool = False,
) -> bytes:
    """Returns the file with metadata.

    Args:
        content: A `.tflite` file without metadata.
        settings: How the file was made, as values that JSON can hold.
        name: Name of the model.
        labels: By output, the label of each position of its last axis.
        normalization: By input, mean and standard deviation (one, or one for each channel), of
            `(x - mean) / deviation`, which the caller applies to the input.
        tried: Whether the runtime has run the file: it then needs no trial when it is opened.
    """
    labels, normalization = labels or {}, normalization or {}
    files, associated = {SETTINGS: ""}, {}
    for output, names in labels.items():
        associated[output] = "labels.txt" if len(labels) == 1 else f"labels_{output}.txt"
        files[associated[output]] = "\n".join(names) + "\n"
    if labels or normalization:
        content = _embed(content, _described(content, name, associated, normalization))
    told = {**settings, "normalization": normalization}
    files[SETTINGS] = json.dumps(told, separators=(",", ":"))
    buffer = io.BytesIO(content)
    buffer.seek(0, io.SEEK_END)
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive:
        for file, text in files.items():
            # Without a date, the same model gives the same bytes.
            archive.writestr(zipfile.ZipInfo(file), text, zipfile.ZIP_DEFLATED)
    if tried:
        trust(buffer.getvalue())
    return buffer.getvalue()


def read_metadata(content: bytes) -> dict[str, Any] | None:
    """Returns what `write_metadata` wrote, with "labels" by file; None if there is none.

    Args:
        content: A `.tflite` file.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            texts = {file: archive.read(file).decode() for file in archive.namelist()}
        settings = json.loads(texts.pop(SETTINGS))
    except (*_DAMAGES, RuntimeError):
        return None
    labels = {
        file: text.removesuffix("\n").split("\n")
        for file, text in texts.items()
        if file.startswith("labels")
    }
    return {**settings, "labels": labels}


def _embed(content: bytes, described: bytes) -> bytes:
    schema = flatbuffer_schema()
    from tensorflow.lite.tools import flatbuffer_utils

    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(described, np.uint8)
    model.buffers.append(buffer)
    entry.name, entry.buffer = _NAME, len(model.buffers) - 1
    model.metadata = [*(model.metadata or []), entry]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _described(
    content: bytes,
    name: str,
    files: Mapping[str, str],
    normalization: Mapping[str, tuple[Sequence[float], Sequence[float]]],
) -> bytes:
    """Returns a `ModelMetadata` of TFLite's metadata schema 1.1.

    Keys are field numbers of the schema. A union has two fields: its type and its value.
    """
    import flatbuffers  # comes with TensorFlow

    build = flatbuffers.Builder(1024)

    def table(fields: Mapping[int, Any], size: int) -> _MetadataTable:
        offsets = {slot: _placed(build, value) for slot, value in fields.items()}
        build.StartObject(size)
        for slot, value in offsets.items():
            if isinstance(value, _MetadataTable):
                build.PrependUOffsetTRelativeSlot(slot, value.offset, 0)
            else:
                build.PrependUint8Slot(slot, value, 0)
        return _MetadataTable(build.EndObject())

    def processing(info: Any) -> dict[int, Any]:
        if info.name not in normalization:
            return {}
        mean, deviation = normalization[info.name]
        options = table({0: list(mean), 1: list(deviation)}, 2)
        return {4: [table({0: _NORMALIZATION, 1: options}, 2)]}

    def tensor(info: Any, more: dict[int, Any]) -> _MetadataTable:
        channels = info.shape[-1] if len(info.shape) == 4 else 0
        image = info.name in normalization and channels in (1, 3)
        color = {0: _RGB if channels == 3 else _GRAYSCALE}
        properties = table(color, 2) if image else table({}, 0)
        content = table({0: _IMAGE if image else _FEATURE, 1: properties}, 3)
        return table({0: info.name, 3: content, **more}, 7)

    model = TFLiteModel(content, delegates=False)
    inputs = [tensor(info, processing(info)) for info in model.inputs]
    outputs = []
    for info in model.outputs:
        more = {}
        if info.name in files:
            more[6] = [table({0: files[info.name], 2: _AXIS_LABELS}, 4)]
        outputs.append(tensor(info, more))
    graph = table({2: inputs, 3: outputs}, 7)
    root = table({0: name, 3: [graph], 7: "1.0.0"}, 8)
    build.Finish(root.offset, _IDENTIFIER)
    return bytes(build.Output())


@dataclasses.dataclass(frozen=True)
class _MetadataTable:
    """A table, string or vector in the buffer of the builder."""

    offset: int


def _placed(build: Any, value: Any) -> Any:
    """Writes a string or vector that a field refers to; numbers are stored in the field itself."""
    if isinstance(value, str):
        return _MetadataTable(build.CreateString(value))
    if not isinstance(value, list):
        return value
    build.StartVector(4, len(value), 4)
    for item in reversed(value):
        if isinstance(item, _MetadataTable):
            build.PrependUOffsetTRelative(item.offset)
        else:
            build.PrependFloat32(item)
    return _MetadataTable(build.EndVector())
