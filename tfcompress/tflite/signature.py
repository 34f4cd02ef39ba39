"""Names and order of a file's inputs and outputs: those of the model.

The converter orders them by name, and phones find them by their place. TensorFlow takes for names
of inputs only what Python does; the file takes any.
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
    """Returns a name that TensorFlow takes for each name, the name itself where it can.

    Args:
        names: Names of inputs, or of outputs, all different.
        prefix: What other names begin with.
    """
    plain = [n for n in names if _PLAIN.fullmatch(n) and not keyword.iskeyword(n) and n != "self"]
    taken = {name.lower() for name in names}
    found = []
    for place, name in enumerate(names):
        other = f"{prefix}_{place}"
        while other in taken:
            other += "_"
        found.append(name if name in plain else other)
    return found


def as_in_model(
    content: bytes, inputs: Sequence[tuple[str, str]], outputs: Sequence[tuple[str, str]]
) -> bytes:
    """Returns the file with its inputs and outputs in order, and under their names.

    Args:
        content: A `.tflite` file with one signature.
        inputs: The name that the model has, and that the file has, of each input in order.
        outputs: Likewise of the outputs.
    """
    schema = flatbuffer_schema()

    made = bytearray(content)
    view = schema.Model.GetRootAsModel(made, 0)
    signature, graph = view.SignatureDefs(0), view.Subgraphs(0)
    for names, count, at, vector in (
        (inputs, signature.InputsLength(), signature.Inputs, graph.InputsAsNumpy()),
        (outputs, signature.OutputsLength(), signature.Outputs, graph.OutputsAsNumpy()),
    ):
        told = {at(i).Name().decode(): at(i).TensorIndex() for i in range(count)}
        order = [told[name] for _, name in names if name in told]
        # One tensor may be several outputs, and an input that nothing reads may be gone.
        if sorted(order) == sorted(int(index) for index in vector):
            vector[:] = np.array(order, vector.dtype)
    if all(ours == theirs for ours, theirs in (*inputs, *outputs)):
        return bytes(made)
    return _renamed(bytes(made), inputs, outputs)


def _renamed(
    content: bytes, inputs: Sequence[tuple[str, str]], outputs: Sequence[tuple[str, str]]
) -> bytes:
    from tensorflow.lite.tools import flatbuffer_utils

    model: Any = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    signature, tensors = model.signatureDefs[0], model.subgraphs[0].tensors
    for entries, names in ((signature.inputs, inputs), (signature.outputs, outputs)):
        ours = {theirs: name for name, theirs in names}
        for entry in entries:
            name = entry.name.decode()
            entry.name = ours.get(name, name)
            tensor = tensors[entry.tensorIndex]
            if entries is signature.inputs and entry.name != name:
                tensor.name = tensor.name.decode().replace(name, entry.name, 1)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))
