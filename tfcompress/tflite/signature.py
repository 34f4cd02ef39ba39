"""Gives the inputs and outputs of a file the names and the order of the model.

The converter orders them by name, but applications find them by position. TensorFlow allows only
Python identifiers as names of inputs; the file format allows any name.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfcompress.tensorflow_internals import flatbuffer_schema

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def safe_names(names: Sequence[str], prefix: str) -> list[str]:
    """Returns for each name one that TensorFlow allows: the name itself where possible.

    Args:
        names: Names of inputs, or of outputs, all different.
        prefix: Prefix of the replacement names.
    """
    plain = [n for n in names if _PLAIN.fullmatch(n) and not keyword.iskeyword(n) and n != "self"]
    taken = {name.lower() for name in names}
    safe = []
    for position, name in enumerate(names):
        replacement = f"{prefix}_{position}"
        while replacement in taken:
            replacement += "_"
        safe.append(name if name in plain else replacement)
    return safe


def as_in_model(
    content: bytes, inputs: Sequence[tuple[str, str]], outputs: Sequence[tuple[str, str]]
) -> bytes:
    """Returns the file with the inputs and outputs in the order of the model, under its names.

    Args:
        content: A `.tflite` file with one signature.
        inputs: Name in the model and name in the file, for each input in order.
        outputs: Likewise for each output.
    """
    schema = flatbuffer_schema()

    result = bytearray(content)
    view = schema.Model.GetRootAsModel(result, 0)
    signature, graph = view.SignatureDefs(0), view.Subgraphs(0)
    for names, count, entry, vector in (
        (inputs, signature.InputsLength(), signature.Inputs, graph.InputsAsNumpy()),
        (outputs, signature.OutputsLength(), signature.Outputs, graph.OutputsAsNumpy()),
    ):
        tensor_indices = {entry(i).Name().decode(): entry(i).TensorIndex() for i in range(count)}
        order = [tensor_indices[name] for _, name in names if name in tensor_indices]
        # One tensor may be several outputs, and an input that nothing reads may be gone.
        if sorted(order) == sorted(int(index) for index in vector):
            vector[:] = np.array(order, vector.dtype)
    if all(ours == theirs for ours, theirs in (*inputs, *outputs)):
        return bytes(result)
    return _renamed(bytes(result), inputs, outputs)


def _renamed(
    content: bytes, inputs: Sequence[tuple[str, str]], outputs: Sequence[tuple[str, str]]
) -> bytes:
    from tensorflow.lite.tools import flatbuffer_utils

    model: Any = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    signature, tensors = model.signatureDefs[0], model.subgraphs[0].tensors
    for entries, names in ((signature.inputs, inputs), (signature.outputs, outputs)):
        new_names = {old: name for name, old in names}
        for entry in entries:
            name = entry.name.decode()
            entry.name = new_names.get(name, name)
            tensor = tensors[entry.tensorIndex]
            if entries is signature.inputs and entry.name != name:
                tensor.name = tensor.name.decode().replace(name, entry.name, 1)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))
