"""Is a copy the model? Compared before anybody gets it."""

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

_SIZES = (32, 8, 2)  # of an axis that may have any, tried in turn
_SAMPLES = 2
_CLOSE, _CLOSE_IN_HALF = 1e-3, 0.1  # of the largest value of a sample


def check_same(original: keras.Model, copy: keras.Model, function: str) -> None:
    """Compares what a copy puts out with the original, on a few made-up samples.

    A model that puts out something else each time is not compared.

    Args:
        original: The model.
        copy: Its copy, which should compute the same.
        function: What made it, for messages.

    Raises:
        ValueError: If the model does not run on samples of the shapes and types of its inputs.
        RuntimeError: If they differ; the message names the first layer that does.
    """
    if _signature(original) != _signature(copy):
        raise RuntimeError(_differs(function, "its inputs and outputs"))
    _check_tables(original, copy, function)
    samples, wanted = made_up_samples(original, function)
    got = _outputs(copy, samples)
    if are_close(wanted, got, original) or not are_close(
        wanted, _outputs(original, samples), original
    ):
        return
    found: dict[str, list[Any]] = {}
    differing: list[str] = []

    def note(call: Call, inputs: list[Any], outputs: list[Any]) -> None:
        found.setdefault(call.path, outputs)

    def compare(call: Call, inputs: list[Any], outputs: list[Any]) -> None:
        before = found.get(call.path)
        if before is not None and not is_graph(call.operation):
            wanted, got = ([*map(keras.ops.convert_to_numpy, v)] for v in (before, outputs))
            if not are_close(wanted, got, original):
                differing.append(call.path)

    _outputs(original, samples, note)
    _outputs(copy, samples, compare)
    raise RuntimeError(
        _differs(function, f"layer {differing[0]!r}" if differing else "its outputs")
    )


def check_kept(
    original: keras.Model, copy: keras.Model, function: str, changed: Collection[str] = ()
) -> None:
    """Compares what a smaller model kept of the original: weights, tables, inputs and outputs.

    Args:
        original: The model.
        copy: What is left of it. Weights of other shapes are not compared.
        function: What made it, for messages.
        changed: Paths of layers that have other weights now.

    Raises:
        RuntimeError: If something differs; the message names the first layer that does.
    """
    before, after = _signature(original), _signature(copy)
    if changed:  # these may be outputs, under other names
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
    # No shapes of outputs: code that sees values may know sizes that its graph does not.
    return input_specs(model), output_names(model), layer_names(model.outputs)


def _pairs(original: keras.Model, copy: keras.Model) -> Iterator[tuple[str, Any, Any]]:
    layers = dict(walk_layers(copy))
    for path, layer in walk_layers(original):
        if type(layers.get(path)) is type(layer):
            yield path, layer, layers[path]


def _values(layer: Any) -> Iterator[np.ndarray]:
    for part in flatten_layers(layer):
        if isinstance(part, keras.layers.Normalization):  # what it makes of its weights
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


def made_up_samples(model: keras.Model, function: str) -> tuple[dict[str, np.ndarray], list[Any]]:
    """Returns samples that the model runs on, and what it puts out: numbers, if it can."""
    failure: Exception | None = None
    found = None
    specs = input_specs(model)
    for size, make in itertools.product(_SIZES, (_noise, _small, _zeros)):
        generator = np.random.default_rng(0)
        samples = {
            spec.name: make(generator, (_SAMPLES, *(n or size for n in spec.shape)), spec.dtype)
            for spec in specs
        }
        try:
            found = samples, _outputs(model, samples)
        except Exception as error:  # it wants other values, or sizes
            failure = failure or error
            continue
        if all(np.isfinite(array).any() for array in found[1] if array.dtype.kind == "f"):
            return found
    if found is None:
        raise ValueError(
            f"{function}() compares its result with the model, which does not run on made-up "
            "samples: "
            f"{' '.join(str(failure).split())[:300]}. If it needs special inputs or another "
            "machine, pass check=False."
        ) from failure
    return found


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
    with keras.StatelessScope():  # nobody's statistics and random states move on
        return outputs_of(model, samples, note)


def are_close(wanted: list[Any], got: list[Any], model: keras.Model) -> bool:
    """Returns whether two lists of outputs of a model are the same but for rounding."""
    half = any("16" in part.compute_dtype for part in flatten_layers(model))
    share = _CLOSE_IN_HALF if half else _CLOSE
    return all(_near(a, b, share) for a, b in zip(wanted, got, strict=True))


def _near(wanted: np.ndarray, got: np.ndarray, share: float) -> bool:
    if wanted.shape != got.shape:
        return False
    if wanted.dtype.kind not in "fV":  # a rounding may decide which is the larger
        return float(np.mean(wanted == got)) > 1 - 10 * share if wanted.size else True
    wanted, got = wanted.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(wanted)
    if not np.array_equal(finite, np.isfinite(got)):
        return False
    # Sample by sample, for their sizes differ.
    size = np.abs(np.where(finite, wanted, 0.0)).reshape(len(wanted), -1).max(1, initial=0.0)
    allowed = share * size.reshape(-1, *(1 for _ in wanted.shape[1:])) + 1e-6
    return bool(np.all((np.abs(np.where(finite, wanted - got, 0.0))) <= allowed))
