"""Whether a file computes what its Keras model computes: on which samples, and how well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfcompress.data import InputSpec, spread
from tfcompress.errors import ExportError
from tfcompress.graph.cost import plain
from tfcompress.graph.read import output_names, walk_layers
from tfcompress.graph.run import outputs_of
from tfcompress.ptq import Measured
from tfcompress.tflite.run import TFLiteModel
from tfcompress.tflite.verify import WARNED, Agreement, compare_outputs, judge, synthetic
from tfcompress.wrap.samples import InputSamples

VERIFICATION_SAMPLES = 64


class _File:
    """A file, to be compared with models."""

    def __init__(self, content: Any, names: list[str]) -> None:
        self._file, self._names = TFLiteModel(content), names
        self._scales = _output_scales(content)

    def against(
        self, expected: list[np.ndarray], probes: dict[str, np.ndarray], source: str
    ) -> Agreement:
        """Measures how well the file agrees with what a model puts out, flat."""
        actual = self._file.predict(probes)
        if not isinstance(actual, dict):
            actual = {self._names[0]: actual}
        wanted = dict(zip(self._names, expected, strict=True))
        kernels = self._file.runtime
        return compare_outputs(wanted, actual, self._scales, source=source, kernels=kernels)


def measure(
    model: keras.Model, content: Any, probes: dict[str, np.ndarray], source: str = "given"
) -> Agreement:
    """Measures how well a file agrees with a Keras model.

    Args:
        model: The Keras model.
        content: Path or bytes of the file.
        probes: Samples by input name.
        source: Where the samples come from, for the record.
    """
    # Eagerly: for so few samples, compiling the model for predict() takes ten times as long.
    return _File(content, output_names(model)).against(outputs_of(model, probes), probes, source)


def check(
    model: keras.Model,
    content: bytes,
    probes: dict[str, np.ndarray],
    expected: list[np.ndarray],
    source: str,
    tolerance: str,
    measured: Measured | None,
) -> tuple[Agreement, str | None]:
    """Measures how well a new file agrees with its model.

    Args:
        model: The Keras model.
        content: The file.
        probes: Samples by input name.
        expected: What the model puts out for them, flat.
        source: Where the samples come from.
        tolerance: How well it must agree: a key of `verify.REFUSED`.
        measured: The model quantized after training, if it was. Against the float model, what the
            converter does wrong would hide behind the rounding.

    Returns:
        The agreement, and a warning if it is poor.

    Raises:
        ExportError: If the file cannot be run, or does not compute what its model does.
    """
    try:
        file = _File(content, output_names(model))
        agreed = file.against(expected, probes, source)
        found = [(agreed, tolerance)]
        if measured is not None and not computes_in_half(model):
            seen = dict(measured.samples)
            copied = file.against(measured.put_out(), seen, source)
            if copied.rmse > WARNED["int8 measured"]:  # deep networks in floats may be as far off
                copied = file.against(outputs_of(measured.model, seen), seen, source)
            found.append((copied, "int8 measured"))
    except ExportError:
        raise
    except (RuntimeError, ValueError) as error:
        raise ExportError(
            f"The runtime here cannot run the file: {' '.join(str(error).split())}. It is not "
            "written. Another scheme may do; of a layer without kernels in this one, the message "
            "names the operation."
        ) from error
    problems = [judge(each, allowed) for each, allowed in found]
    return agreed, next(filter(None, problems), None)


def computes_in_half(model: keras.Model) -> bool:
    """Returns whether the model itself is less precise than its float32 file."""
    dtypes = {plain(layer).compute_dtype for _, layer in walk_layers(model)}
    return bool(dtypes & {"float16", "bfloat16"})


def _output_scales(content: Any) -> dict[str, float]:
    """Returns the step of each output, also of outputs that the file ends by making floats."""
    file = TFLiteModel(content, delegates=False)
    details = {d["index"]: d for d in file.interpreter.get_tensor_details()}
    computed = file.computed_outputs()
    return {
        info.name: info.scale or float(details[computed[info.name]]["quantization"][0])
        for info in file.outputs
    }


def probes(
    model: keras.Model, specs: Sequence[InputSpec], given: dict[str, np.ndarray] | None
) -> tuple[dict[str, np.ndarray], str]:
    """Returns the samples that a file is checked on, and where they come from.

    Args:
        model: The Keras model.
        specs: What it expects.
        given: Samples of the user by input name, if there are any.

    Raises:
        ValueError: If there are none that could be used.
    """
    if given is not None:
        return (
            {name: spread(array, VERIFICATION_SAMPLES) for name, array in given.items()},
            "representative_dataset",
        )
    keepers = [layer for _, layer in walk_layers(model) if isinstance(layer, InputSamples)]
    if not keepers:
        return synthetic(specs, 16), "synthetic"
    names = {id(t): spec.name for t, spec in zip(model.inputs, specs, strict=True)}
    kept = {names[id(keeper.input)]: keeper.kept() for keeper in keepers}
    count = max((len(array) for array in kept.values() if array is not None), default=0)
    for spec in specs:  # an input that nothing reads
        shape = [count, *(size or 1 for size in spec.shape)]
        kept.setdefault(spec.name, np.zeros(shape))
    if any(array is None for array in kept.values()):
        raise ValueError(
            "There are no samples to check the file on: the inputs have no fixed size, so none "
            "were kept in training. Pass representative_dataset=."
        )
    return {spec.name: kept[spec.name].astype(spec.dtype) for spec in specs}, "training"
