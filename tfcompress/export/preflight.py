"""Checks of arguments, and of models that cannot be converted, before the export starts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tfcompress.errors import CompressionWarning
from tfcompress.graph.cost import own_weights
from tfcompress.graph.inline import as_graph, code_of_open_sizes
from tfcompress.graph.read import Call, input_specs, walk_layers
from tfcompress.graph.resize import sized_layer
from tfcompress.graph.run import fixed_batch, run
from tfcompress.process import is_traced
from tfcompress.quantization.state import fake_quantizing_in_float, quantizers, trained_scheme
from tfcompress.scheme import INTEGER_SCHEMES, SCHEMES, QuantizationScheme, check_choice
from tfcompress.tflite.converter_workarounds import HUGE


def choose_scheme(scheme: Any, model: keras.Model, has_data: bool, is_trained: bool) -> str:
    """Returns the name of the requested scheme, or of the one that the model was trained for."""
    if isinstance(scheme, QuantizationScheme):
        return scheme.name
    if scheme is None:
        return trained_scheme(model) if is_trained else "int8" if has_data else "float32"
    return check_choice(scheme, "scheme", SCHEMES)


def check_arguments(
    scheme: str, io_dtype: str, batch_size: Any, sparse: bool, verbose: Any
) -> None:
    """Refuses arguments that are unknown or contradict each other."""
    check_choice(io_dtype, "io_dtype", ("float32", "int8", "uint8", "int16"))
    possible = {**dict.fromkeys(INTEGER_SCHEMES, ("int8", "uint8")), "int16x8": ("int16",)}
    if io_dtype != "float32" and io_dtype not in possible.get(scheme, ()):
        needed = "int16x8" if io_dtype == "int16" else "int8"
        raise ValueError(
            f"io_dtype={io_dtype!r} needs scheme={needed!r}. Received: scheme={scheme!r}. "
            "Use io_dtype='float32'."
        )
    if sparse and scheme not in ("float32", "float16"):
        raise ValueError(
            f"sparse=True needs scheme='float32' or 'float16': the runtime refuses sparse weights "
            f"of integers. Received: scheme={scheme!r}. A pruned {scheme} file is small after gzip "
            "all the same."
        )
    is_integer = isinstance(batch_size, int) and not isinstance(batch_size, bool)
    if batch_size is not None and not (is_integer and batch_size >= 1):
        raise ValueError(f"batch_size must be None or an integer >= 1. Received: {batch_size!r}")
    if verbose not in (True, False, "auto"):
        raise ValueError(f"verbose must be True, False or 'auto'. Received: {verbose!r}")


def batch_of(model: keras.Model, batch_size: int | None) -> int | None:
    """Returns the batch size of the file: that of the model if it has a fixed one."""
    fixed = fixed_batch(model)
    if fixed is None or batch_size in (1, fixed):
        return fixed or batch_size
    raise ValueError(
        f"batch_size={batch_size!r} is not possible: model {model.name!r} takes {fixed} samples at "
        "once, as its inputs or the shapes of its outputs say. Leave batch_size out."
    )


def check_trained(model: keras.Model, scheme: str, options: Any) -> None:
    """Refuses a quantization-aware model whose ranges were not trained, or not for the scheme."""
    trained_for = trained_scheme(model)
    if options is not None or scheme != trained_for:
        raise ValueError(
            f"scheme={options or scheme!r} is not what this model was trained for, which is "
            f"{trained_for!r}. Leave scheme out, or quantize strip(model) anew."
        )
    untrained = [q.name for q in quantizers(model) if not q.is_trained]
    if untrained:
        raise ValueError(
            f"The activation ranges of model {model.name!r} were never trained "
            f"({len(untrained)} of them, e.g. {untrained[0]!r}). Fit the model first, also if only "
            "for an epoch; for INT8 without training, pass strip(model) and a "
            "representative_dataset."
        )


def with_sizes_of(model: keras.Model, samples: Mapping[str, np.ndarray]) -> keras.Model:
    """Returns the model for inputs of the size of the samples, if code can be read only so.

    Warns:
        CompressionWarning: If that is the case.
    """
    left = code_of_open_sizes(model)
    shapes = {name: array.shape[1:] for name, array in samples.items()}
    if not left or any(0 in shape for shape in shapes.values()):
        return model
    warnings.warn(
        f"The code of {left[0]!r} ({len(left)} such layers) computes with the sizes of its inputs: "
        f"the file takes those of the samples, {shapes}. Pass input_shape for others.",
        CompressionWarning,
        stacklevel=3,
    )
    return as_graph(model, input_shape=shapes)


def check_sizes(model: keras.Model) -> None:
    """Refuses inputs of any size if a layer needs a minimum size.

    Raises:
        ValueError: If there is one.
    """
    sized = sized_layer(model)
    if sized is None:
        return
    spec = next(spec for spec in input_specs(model) if None in spec.shape)
    raise ValueError(
        f"Input {spec.name!r} takes any size, {spec.shape}, but layer {sized[0]!r} needs at least "
        f"{sized[1]}, and the runtime prepares a file for one size. Pass it as "
        f"input_shape={tuple(n or 224 for n in spec.shape)}, say."
    )


def check_weights(model: keras.Model) -> None:
    """Refuses weights that are not finite, or with which a layer computes NaN.

    Raises:
        ValueError: If there are any.
    """
    for path, layer in walk_layers(model):
        for weight in own_weights(layer):
            if not _is_finite(weight):
                raise ValueError(
                    f"The weight {weight.path!r} holds NaN or infinity. If trained, it "
                    "has diverged: load weights from before, and train on with a smaller learning "
                    "rate. Else repair what they were loaded from."
                )
        if isinstance(layer, keras.layers.BatchNormalization):
            least = float(np.min(keras.ops.convert_to_numpy(layer.moving_variance)))
            if least + layer.epsilon <= 0:
                raise ValueError(
                    f"The moving_variance of layer {path!r} is negative ({least:.3g}), so that it "
                    "computes NaN. No training does that: repair what it was loaded from."
                )


def check_ranges(model: keras.Model, samples: Mapping[str, np.ndarray] | None) -> None:
    """Refuses a quantized model whose activations were not finite.

    Args:
        model: The model.
        samples: Samples that its ranges were measured on; None if they were trained.

    Raises:
        ValueError: If a range is not finite, or a bias that was corrected.
    """
    ranges = {q.name: np.isfinite(q.range()).all() for q in quantizers(model)}
    # Without samples, weights are unchanged since `check_weights`.
    weights = samples is None or all(
        _is_finite(w) for _, layer in walk_layers(model) for w in own_weights(layer)
    )
    if weights and all(ranges.values()):
        return
    where = next((name for name, finite in ranges.items() if not finite), None)
    problem = (
        f"The input of {where!r} is not finite"
        if where
        else "What the model computes is not finite"
    )
    if samples is not None and (path := _first_infinite(model, samples)):
        problem = f"Layer or operation {path!r} computes NaN or infinity on these samples"
    raise ValueError(
        f"{problem}: integers have neither. Is it a logarithm or a quotient of what may be zero, "
        "or a constant that is infinite? Add a small number to the first, use a large one for the "
        "other."
    )


def _first_infinite(model: keras.Model, samples: Mapping[str, np.ndarray]) -> str | None:
    """Returns the first call of a model with finite inputs and an output that is not finite."""
    paths: list[str] = []

    def note(call: Call, inputs: list[Any], outputs: list[Any]) -> None:
        helps = getattr(call.operation, "is_compression_helper", False)
        if not (paths or helps or all(map(_all_finite, outputs))) and all(map(_all_finite, inputs)):
            paths.append(call.path)

    with fake_quantizing_in_float(model):
        for _ in run(model, samples, note=note):
            if paths:
                return paths[0]
    return None


def _all_finite(value: Any) -> bool:
    array = keras.ops.convert_to_numpy(value)
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _is_finite(weight: Any) -> bool:
    # The sum of a large weight takes no memory and is not finite if a value is not. It may
    # overflow, so then the values are checked.
    if math.prod(weight.shape) > HUGE:
        summed = keras.ops.sum(keras.ops.cast(weight, "float32"))
        if math.isfinite(summed):
            return True
    return bool(np.isfinite(weight.numpy()).all())


def backend_problem() -> str | None:
    """Returns why this process cannot convert, or None if it can."""
    if keras.backend.backend() == "tensorflow":
        if is_traced():
            return (
                "export_tflite was called inside of a tf.function, where there are no values to "
                "convert. Call it outside, as an ordinary Python function."
            )
        return None
    return (
        f"Export needs Keras on TensorFlow; this process runs it on {keras.backend.backend()}. "
        "Save the model to a .keras file, and load and export it in a process with "
        "KERAS_BACKEND=tensorflow."
    )
