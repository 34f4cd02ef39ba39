"""A file that is compared with models, on the runtime that a model computes like."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfcompress.devices.micro import is_installed, run_micro
from tfcompress.export.compare_outputs import OutputComparison, compare_outputs
from tfcompress.samples.probes import Samples
from tfcompress.tensorflow_internals import operation_details
from tfcompress.tflite.run import TFLiteModel


class CheckedFile:
    """A file on the installed runtime.

    Args:
        content: The file.
        names: Names of its outputs, in the order of the model.

    Attributes:
        operations: Number of its operations.
        kernels: Name of the kernels that run it.
    """

    def __init__(self, content: Any, names: list[str]) -> None:
        self._file, self._names = TFLiteModel(content), names
        self._scales, self.operations = _scales_and_operations(content)
        self.kernels = self._file.runtime

    def few(self, samples: Any) -> Any:
        """Returns the samples, an array or a dict of arrays, that it can run in short time."""
        return samples

    def outputs(self, probes: Samples) -> dict[str, np.ndarray]:
        """Returns the outputs of the file, by name."""
        return self._by_name(self._file.predict(probes))

    def compare(
        self, expected: list[np.ndarray], actual: dict[str, np.ndarray], source: str
    ) -> OutputComparison:
        """Compares outputs of the file with those of a model, which are flat."""
        wanted = dict(zip(self._names, expected, strict=True))
        return compare_outputs(wanted, actual, self._scales, source=source, kernels=self.kernels)

    def _by_name(self, outputs: Any) -> dict[str, np.ndarray]:
        return outputs if isinstance(outputs, dict) else {self._names[0]: outputs}


_FEW = 16  # samples on tflite-micro, whose kernels are slow


class FileOnMicro(CheckedFile):
    """A file on tflite-micro."""

    def few(self, samples: Any) -> Any:
        """Returns the first samples."""
        if isinstance(samples, dict):
            return {name: array[:_FEW] for name, array in samples.items()}
        return samples[:_FEW]

    def outputs(self, probes: Samples) -> dict[str, np.ndarray]:
        """Returns the outputs of the file, by name."""
        result = run_micro(self._file.content, probes)
        self.kernels = f"tflite-micro {result.version}"
        return self._by_name(result.outputs)


def runs_on_micro(content: bytes) -> bool:
    """Returns whether tflite-micro is installed, and has the operations of a file."""
    return is_installed("tflite_micro") and not run_micro(content).missing


def _scales_and_operations(content: Any) -> tuple[dict[str, float], int]:
    """Returns the scale of each output, and the number of operations.

    Outputs that the file dequantizes have the scale from before that.
    """
    file = TFLiteModel(content, delegates=False)
    details = {d["index"]: d for d in file.interpreter.get_tensor_details()}
    computed = file.computed_outputs()
    scales = {
        info.name: info.scale or float(details[computed[info.name]]["quantization"][0])
        for info in file.outputs
    }
    return scales, len(operation_details(file.interpreter))
