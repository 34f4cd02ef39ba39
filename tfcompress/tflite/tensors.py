"""Intermediate tensors of a file, dequantized, and the layers that they belong to."""

from __future__ import annotations

import keras
import numpy as np

from tfcompress.graph.read import output_names
from tfcompress.tensorflow_internals import operation_details
from tfcompress.tflite.run import TFLiteModel
from tfcompress.tflite.tensor_owners import Owners


class Tensors:
    """The tensors that a file computes, by tensor index.

    Args:
        file: The file, run so that its tensors stay readable.
        model: The Keras model that it was made from.

    Attributes:
        names: Name of each tensor that an operation computes.
        scales: Its quantization scale; 0 if it is not quantized.
        owned: The tensors of each call, by the key of the call (see `tensor_owners.keyed`).
        inputs: The tensor of each quantized input, by name of the input.
        outputs: The tensor of each output of the model, by `id` of the output.
        unknown: Tensors whose names match no call.
        values: Real values of the last run, a row for each sample.
    """

    def __init__(self, file: TFLiteModel, model: keras.Model) -> None:
        self._file = file
        owners = Owners(model)
        details = {d["index"]: d for d in file.interpreter.get_tensor_details()}
        computed = [
            int(t)
            for op in operation_details(file.interpreter)
            for t in op["outputs"]
            if op["op_name"] != "DELEGATE" and int(t) in details
        ]
        self.names = {index: details[index]["name"] for index in computed}
        self.scales = {index: float(details[index]["quantization"][0]) for index in computed}
        self._zero_points = {index: details[index]["quantization"][1] for index in computed}
        self.owned: dict[str, list[int]] = {}
        self.inputs: dict[str, int] = {}
        self.unknown: list[int] = []
        for index in computed:
            owner = owners.of(self.names[index])
            if owner is not None:
                self.owned.setdefault(owner, []).append(index)
            elif name := owners.input_of(self.names[index]):
                self.inputs[name] = index
            else:
                self.unknown.append(index)
        self.values: dict[int, np.ndarray] = {}
        outputs = file.computed_outputs()
        self.outputs = {
            id(tensor): outputs[name]
            for tensor, name in zip(model.outputs, output_names(model), strict=True)
            if outputs.get(name) in self.names
        }

    def run(self, batch: dict[str, np.ndarray]) -> None:
        """Runs the file, and reads and dequantizes all its tensors."""
        size = self._file.inputs[0].shape[0] or len(next(iter(batch.values())))
        count = len(next(iter(batch.values())))
        parts: dict[int, list[np.ndarray]] = {index: [] for index in self.names}
        for start in range(0, count, size):
            rows = np.minimum(np.arange(start, start + size), count - 1)
            self._file.set_inputs(
                [info.quantized(batch[info.name][rows]) for info in self._file.inputs]
            )
            self._file.invoke_once()
            for index, kept in parts.items():
                value = np.array(self._file.interpreter.get_tensor(index))
                if self.scales[index]:
                    value = value.astype(np.float32) - self._zero_points[index]
                    value = value * np.float32(self.scales[index])
                # The file may drop the batch axis. The result has a row for each sample.
                kept.append(value.reshape(size, -1) if value.size % size == 0 else value.ravel())
        self.values = {index: np.concatenate(kept)[:count] for index, kept in parts.items()}
