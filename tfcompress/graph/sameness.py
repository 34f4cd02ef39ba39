"""Compares a rewritten model with the original before it is returned."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from typing import Any

import keras
import numpy as np

from tfcompress.graph.keras_internals import flatten_layers
from tfcompress.graph.read import (
    Call,
    input_specs,
    is_graph,
    layer_names,
    output_names,
    walk_layers,
)
from tfcompress.graph.run import outputs_of

_SIZES = (32, 8, 2)  # tried in turn for an axis of unknown size
_SAMPLES = 2
_CLOSE, _CLOSE_IN_HALF = 1e-3, 0.1  # relative to the largest value of a sample


def check_same(original: keras.Model, copy: keras.Model, function: str) -> None:
    """Compares the outputs of a copy with those of the original, on a few synthetic samples.

    A model whose outputs differ from run to run is not compared.

    Args:
        original: The model.
        copy: Its copy, which should compute the same.
        function: The function that made the copy, for messages.

    Raises:
        ValueError: If the model does not run on samples of the shapes and types of its inputs.
        RuntimeError: If they differ; the message names the first layer that does.
    """
    if _signature(original) != _signature(copy):
        raise RuntimeError(_differs(function, "its inputs and outputs"))
    _check_tables(original, copy, function)
    samples, expected = synthetic_samples(original, function)
    actual = _outputs(copy, samples)
    if are_close(expected, actual, original) or not are_close(
        expected, _outputs(original, samples), original
    ):
        return
    recorded: dict[str, list[Any]] = {}
    differing: list[str] = []

    def note(call: Call, inputs: list[Any], outputs: list[Any]) -> None:
        recorded.setdefault(call.path, outputs)

    def compare(call: Call, inputs: list[Any], outputs: list[Any]) -> None:
        before = recorded.get(call.path)
        if before is not None and not is_graph(call.operation):
            expected, actual = ([*map(keras.ops.convert_to_numpy, v)] for v in (before, outputs))
            if not are_close(expected, actual, original):
                differing.append(call.path)

    _outputs(original, samples, note)
    _outputs(copy, samples, compare)
    raise RuntimeError(
        _differs(function, f"layer {differing[0]!r}" if differing else "its outputs")
    )


def check_kept(
    original: keras.Model, copy: keras.Model, function: str, changed: Collection[str] = ()
) -> None:
    """Compares what a smaller model retains of the original: weights, tables, inputs, outputs.

    Args:
        original: The model.
        copy: The smaller model. Weights of other shapes are not compared.
        function: The function that made the smaller model, for messages.
        changed: Paths of layers whose weights were changed.

    Raises:
        RuntimeError: If something differs; the message names the first layer that does.
    """
    before, after = _signature(original), _signature(copy)
    if changed:  # changed layers may be outputs, under other names
        before, after = before[0], after[0]
    if before != after:
        raise RuntimeError(_differs(function, "its inputs and outputs"))
    _check_tables(original, copy, function)
    for path, old, new in _pairs(original, copy):
        shapes = [[tuple(v.shape) for v in layer.variables] for layer in (old, new)]
        if path in changed or shapes[0] != shapes[1]:
            continue
        for before, after in zip(_values(old), _values(new), strict=True):
            if not np.array_equal(before, after, equal_nan=before.dtype.kind == "f"):
                raise RuntimeError(_differs(function, f"layer {path!r}"))


def _differs(function: str, what: str) -> str:
    return (
        f"{function}() made a model that differs from the one it was given, first in {what}. This "
        "is a fault of tfcompress, or of a layer whose get_config() does not tell all: please "
        "report it."
    )


def _signature(model: keras.Model) -> Any:
    # Without output shapes: code that sees values may know sizes that its graph does not.
    return input_specs(model), output_names(model), layer_names(model.outputs)


def _pairs(original: keras.Model, copy: keras.Model) -> Iterator[tuple[str, Any, Any]]:
    layers = dict(walk_layers(copy))
    for path, layer in walk_layers(original):
        if type(layers.get(path)) is type(layer):
            yield path, layer, layers[path]


def _values(layer: Any) -> Iterator[np.ndarray]:
    for part in flatten_layers(layer):
        if isinstance(part, keras.layers.Normalization):  # derived from its weights
            yield from map(keras.ops.convert_to_numpy, (part.mean, part.variance))
    yield from map(keras.ops.convert_to_numpy, layer.variables)


def _check_tables(original: keras.Model, copy: keras.Model, function: str) -> None:
    for path, *pair in _pairs(original, copy):
        before, after = ([*_vocabularies(layer)] for layer in pair)
        if before != after:
            raise RuntimeError(_differs(function, f"layer {path!r}"))


def _vocabularies(layer: Any) -> Iterator[list[Any]]:
    for part in flatten_layers(layer):
        if hasattr(part, "get_vocabulary"):
            yield [*part.get_vocabulary()]


def synthetic_samples(model: keras.Model, function: str) -> tuple[dict[str, np.ndarray], list[Any]]:
    """Returns samples that the model runs on, and its outputs, which are finite if possible."""
    failure: Exception | None = None
    result = None
    specs = input_specs(model)
    for size, generate in itertools.product(_SIZES, (_noise, _small, _zeros)):
        generator = np.random.default_rng(0)
        samples = {
            spec.name: generate(
                generator, (_SAMPLES, *(length or size for length in spec.shape)), spec.dtype
            )
            for spec in specs
        }
        try:
            result = samples, _outputs(model, samples)
        except Exception as error:  # the model needs other values, or sizes
            failure = failure or error
            continue
        if all(np.isfinite(array).any() for array in result[1] if array.dtype.kind == "f"):
            return result
    if result is None:
        raise ValueError(
            f"{function}() compares its result with the model, which does not run on made-up "
            "samples: "
            f"{' '.join(str(failure).split())[:300]}. If it needs special inputs or another "
            "machine, pass check=False."
        ) from failure
    return result


def _noise(generator: Any, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if dtype == "string":
        return generator.choice(["a", "b"], shape)
    if np.dtype(dtype).kind != "f":
        return generator.integers(0, 2, shape).astype(dtype)
    values = generator.normal(size=shape)
    values[1:] = generator.uniform(0, 255, values[1:].shape)
    return values.astype(dtype)


def _small(generator: Any, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if dtype == "string" or np.dtype(dtype).kind != "f":
        return _noise(generator, shape, dtype)
    return generator.uniform(size=shape).astype(dtype)


def _zeros(generator: Any, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.zeros(shape, str if dtype == "string" else dtype)


def _outputs(model: keras.Model, samples: dict[str, np.ndarray], note: Any = None) -> list[Any]:
    with keras.StatelessScope():  # statistics and random states stay unchanged
        return outputs_of(model, samples, note)


def are_close(expected: list[Any], actual: list[Any], model: keras.Model) -> bool:
    """Returns whether two lists of outputs of a model are the same but for rounding."""
    half = any("16" in part.compute_dtype for part in flatten_layers(model))
    tolerance = _CLOSE_IN_HALF if half else _CLOSE
    return all(_near(a, b, tolerance) for a, b in zip(expected, actual, strict=True))


def _near(expected: np.ndarray, actual: np.ndarray, tolerance: float) -> bool:
    if expected.shape != actual.shape:
        return False
    if expected.dtype.kind not in "fV":  # rounding may decide a comparison
        return float(np.mean(expected == actual)) > 1 - 10 * tolerance if expected.size else True
    expected, actual = expected.astype(np.float64), actual.astype(np.float64)
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(actual)):
        return False
    # Sample by sample, because their magnitudes differ.
    size = np.abs(np.where(finite, expected, 0.0)).reshape(len(expected), -1).max(1, initial=0.0)
    allowed = tolerance * size.reshape(-1, *(1 for _ in expected.shape[1:])) + 1e-6
    return bool(np.all((np.abs(np.where(finite, expected - actual, 0.0))) <= allowed))
