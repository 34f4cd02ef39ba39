"""Whether a file computes what its Keras model computes: on which samples, and how well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfcompress.data import InputSpec
from tfcompress.graph.read import walk_layers
from tfcompress.graph.run import outputs_of, packed
from tfcompress.tflite.convert import output_names
from tfcompress.tflite.run import TFLiteModel
from tfcompress.tflite.verify import Agreement, compare_outputs, synthetic
from tfcompress.wrap.samples import InputSamples

VERIFICATION_SAMPLES = 64


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
    names = output_names(model)
    file = TFLiteModel(content)
    # Eagerly: for so few samples, compiling the model for predict() takes ten times as long.
    expected = outputs_of(model, probes)
    actual = file.predict(probes)
    if not isinstance(actual, dict):
        actual = {names[0]: actual}
    return compare_outputs(
        dict(zip(names, expected, strict=True)),
        actual,
        _output_scales(content),
        source=source,
        kernels=file.runtime,
    )


def predict(model: keras.Model, features: dict[str, np.ndarray]) -> Any:
    """Runs a Keras model on arrays by input name."""
    return model.predict(packed(model, features), verbose=0)


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
    kept = {keeper.input._keras_history.operation.name: keeper.kept() for keeper in keepers}
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


def spread(array: np.ndarray, count: int) -> np.ndarray:
    """Returns at most `count` samples from all over an array."""
    if len(array) <= count:
        return array
    return array[np.linspace(0, len(array) - 1, count).astype(int)]
