"""Samples that a file is checked on: the user's, those of training, or noise for a model."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress.data import InputSpec, spread
from tfcompress.graph.cost import macs
from tfcompress.graph.layers import plain
from tfcompress.graph.read import Call, Graph, input_names, is_graph, read_graphs, walk_layers
from tfcompress.graph.run import run
from tfcompress.quantization.activation_quantizer import ActivationQuantizer
from tfcompress.quantization.input_samples import sample_keepers

_WORK = 2_000_000_000  # multiply-accumulates of a check, about a second


_FEWEST, _MOST = 16, 512


_NUMBERS = 2**26  # values of inputs and outputs together: 256 MiB


_NOISE = 64  # samples


_FEWEST_APART = 8


Samples = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Probes:
    """Samples that a file is checked on.

    Attributes:
        samples: Arrays by input name.
        source: Where they come from: "representative_dataset", "training" or "noise".
        labels: The labels of these samples, if they have any.
        rows: Which of the user's samples they are.
    """

    samples: Samples
    source: str
    labels: np.ndarray | None = None
    rows: np.ndarray | None = None

    def others(self, samples: Samples) -> Samples:
        """Returns those of the user's samples that these are not."""
        if self.rows is None:
            return samples
        return {name: np.delete(array, self.rows, axis=0) for name, array in samples.items()}


def spare(samples: Samples) -> int:
    """Returns how many of the user's samples may be kept from fitting; 0 if they are too few."""
    third = len(next(iter(samples.values()))) // 3
    return third if third >= _FEWEST_APART else 0


def probes(
    model: keras.Model,
    specs: Sequence[InputSpec],
    samples: Samples | None,
    labels: np.ndarray | None = None,
    *,
    most: int | None = None,
) -> Probes:
    """Returns the samples that a file is checked on.

    They are spread over all samples, without outliers that set the ranges alone. There are as many
    as a second of work allows, at least 16, and more of labelled ones.

    Args:
        model: The Keras model.
        specs: Its inputs.
        samples: Samples of the user by input name, if there are any.
        labels: Their labels, if there are any.
        most: The largest number of the user's samples to take.
    """
    if samples is not None:
        far = np.any([far_samples(array) for array in samples.values()], axis=0)
        count = affordable(model, 1 if labels is None else 8)
        rows = spread(np.flatnonzero(~far), count if most is None else min(count, most))
        chosen = {name: array[rows] for name, array in samples.items()}
        known = None if labels is None else labels[rows]
        return Probes(chosen, "representative_dataset", known, rows)
    kept = kept_samples(model)
    if kept is None or any(array is None for array in kept.values()):
        return Probes(noise_for(model, specs, min(_NOISE, affordable(model))), "noise")
    count = len(next(iter(kept.values()), ()))
    for spec in specs:  # an input without consumers
        kept.setdefault(spec.name, np.zeros([count, *(size or 1 for size in spec.shape)]))
    return Probes({s.name: kept[s.name].astype(s.dtype) for s in specs}, "training")


_FAR, _FEW = 20, 0.01  # deviations, and the largest share of samples that are outliers


def far_samples(array: np.ndarray) -> np.ndarray:
    """Returns which samples hold a value beyond 20 deviations of its feature, if they are few.

    A feature is an index of the last axis. Its deviation is computed without its largest values.

    Args:
        array: Samples, along the first axis.
    """
    if array.dtype.kind != "f" or len(array) < _FEWEST:
        return np.zeros(len(array), bool)
    values = array.reshape(len(array), -1, array.shape[-1] if array.ndim > 1 else 1)
    largest = np.abs(values - np.median(values, axis=(0, 1))).max(1)  # (samples, features)
    few = max(1, int(_FEW * len(array)))
    kept = np.sort(largest, axis=0)[:-few].astype(np.float64)
    usual = np.sqrt(np.mean(kept**2, axis=0))
    far = ((largest > _FAR * usual) & (usual > 0)).any(1)
    return far if far.sum() <= few else np.zeros(len(array), bool)


def affordable(model: keras.Model, times: float = 1) -> int:
    """Returns how many samples may be passed through a model to check a file.

    Args:
        model: The Keras model.
        times: Factor for the work that is allowed.
    """
    count = np.clip(times * _WORK // max(macs(model), 1), _FEWEST, _MOST)
    values = sum(
        math.prod(size or 8 for size in tensor.shape[1:])
        for tensor in (*model.inputs, *model.outputs)
    )
    return int(min(count, max(2, _NUMBERS // max(values, 1))))


def kept_samples(model: keras.Model) -> dict[str, Any] | None:
    """Returns the samples of training that a model keeps, by input name; None if it keeps none.

    Inputs without kept samples have None.
    """
    keepers = sample_keepers(model)
    if not keepers:
        return None
    names = dict(zip(map(id, model.inputs), input_names(model), strict=True))
    return {names[id(keeper.input)]: keeper.kept() for keeper in keepers}


def stressed(probes: Probes, count: int, seed: int = 0) -> Samples:
    """Returns samples with extreme values, which data seldom contains.

    Each value is drawn from the values at its position in the samples: in one half of the result
    from all of them, so that values are uncorrelated; in the other it is the minimum or maximum.
    Noise is scaled by a factor of three, and some of it by ten.

    Args:
        probes: The samples.
        count: Number of samples to return.
        seed: Seed of the random numbers.
    """
    generator = np.random.default_rng(seed)
    result = {}
    for name, array in probes.samples.items():
        rows = np.arange(count) % len(array)
        mixed = generator.permuted(array[rows], axis=0)
        if array.dtype.kind == "f" and count > 1:
            high = generator.integers(0, 2, mixed.shape, dtype=np.int8).astype(bool)
            extremes = np.where(high, array.max(0), array.min(0)).astype(array.dtype)
            mixed[count // 2 :] = extremes[count // 2 :]
            if probes.source == "noise":
                middle = array.mean(0, dtype=np.float64)
                far = np.where(rows % 4 == 0, 10, 3).reshape(-1, *(1 for _ in array.shape[1:]))
                mixed = (middle + far * (mixed - middle)).astype(array.dtype)
        result[name] = mixed
    return result


@dataclasses.dataclass(frozen=True)
class ValueRange:
    """The range of an input: minimum and maximum, for all values or by channel; integers or not."""

    low: Any = 0.0
    high: Any = 1.0
    whole: bool = False

    def draw(self, generator: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Any:
        """Returns values drawn uniformly between minimum and maximum."""
        if self.whole or np.dtype(dtype).kind in "iu":
            low, high = int(np.min(self.low)), int(np.max(self.high))
            return generator.integers(low, high + 1, shape).astype(dtype)
        values = generator.random(shape)
        if np.dtype(dtype).kind == "b":
            return values > 0.5
        return (self.low + (np.asarray(self.high) - self.low) * values).astype(dtype)


def noise_for(
    model: keras.Model, specs: Sequence[InputSpec], count: int = _NOISE, seed: int = 0
) -> Samples:
    """Returns noise in the range that the first layers of a model expect.

    Tokens are drawn from the rows of their embedding. Other values are in the range of a first
    Normalization, Rescaling or BatchNormalization, or of a trained quantizer; else in the usual
    range that fits the statistics of the first BatchNormalization further on, or from 0 to 1.

    Args:
        model: A Keras model.
        specs: Its inputs.
        count: Number of samples to return.
        seed: Seed of the random numbers.
    """
    known = [*expected_ranges(model).values()]
    if any(own is None for own in known):
        usual = _usual_range(model, specs, known)
        known = [own or usual for own in known]
    return _drawn(specs, known, count, seed)


def expected_ranges(model: keras.Model) -> dict[str, ValueRange | None]:
    """Returns the range that the first layers expect of each input; None if it is unknown."""
    graphs = read_graphs(model)
    return {
        name: _expected(graphs, graphs[id(model)], tensor)
        for name, tensor in zip(input_names(model), model.inputs, strict=True)
    }


def _drawn(
    specs: Sequence[InputSpec], ranges: Sequence[ValueRange | None], count: int, seed: int
) -> Samples:
    generator = np.random.default_rng(seed)
    return {
        spec.name: (own or ValueRange()).draw(
            generator, (count, *(size or 8 for size in spec.shape)), _numpy_type(spec)
        )
        for spec, own in zip(specs, ranges, strict=True)
    }


def _numpy_type(spec: InputSpec) -> str:
    return "float32" if spec.dtype == "bfloat16" else spec.dtype


def _expected(
    graphs: Mapping[int, Graph], graph: Graph, tensor: Any, is_input: bool = True
) -> ValueRange | None:
    """Returns the range that the first consumers of a tensor expect, if it is known."""
    for call in graph.consumers.get(id(tensor), []):
        operation = plain(call.operation)
        if is_graph(operation):
            index = [id(t) for t in call.inputs].index(id(tensor))
            inner = graphs[id(operation)]
            expected = _expected(graphs, inner, operation.inputs[index], is_input)
        else:
            expected = _range_of(operation, tensor, is_input)
            name = type(operation).__name__
            if expected is None and name in _PASS_THROUGH:
                same_shape = is_input and name in _IDENTITIES
                expected = _expected(graphs, graph, call.outputs[0], same_shape)
        if expected is not None:
            return expected
    return None


_IDENTITIES = {"InputSamples", "Identity", "Dropout"}


_PASS_THROUGH = {*_IDENTITIES, "ZeroPadding2D", "Reshape", "Permute", "Cast", "Resizing"}


_SPREAD = 3**0.5  # half the width of a uniform distribution, over its deviation


def _range_of(operation: Any, tensor: Any, is_input: bool) -> ValueRange | None:
    """Returns the range that a layer expects of its input, if it is known.

    Args:
        operation: The layer.
        tensor: Its input.
        is_input: Whether that is an unchanged input of the model, whose channels are known.
    """
    if isinstance(operation, keras.layers.Embedding):
        return ValueRange(0, operation.input_dim - 1, whole=True)
    if isinstance(operation, keras.layers.Rescaling):
        scale, offset = np.asarray(operation.scale), np.asarray(operation.offset)
        limits = ((-1.0 if (offset < 0).any() else 0.0) - offset) / scale, (1.0 - offset) / scale
        return ValueRange(float(np.min(limits)), float(np.max(limits)))
    if isinstance(operation, ActivationQuantizer) and operation.is_trained:
        return ValueRange(*operation.range())
    if isinstance(operation, keras.layers.Normalization) and operation.built:
        if operation.invert:
            return None
        mean, variance = operation.mean, operation.variance
    elif isinstance(operation, keras.layers.BatchNormalization):
        mean, variance = operation.moving_mean, operation.moving_variance
    else:
        return None
    mean, variance = (keras.ops.convert_to_numpy(v).ravel() for v in (mean, variance))
    half = _SPREAD * np.sqrt(np.maximum(variance, 0))
    rank, size = len(tensor.shape), tensor.shape[-1]
    axes = np.atleast_1d(operation.axis if operation.axis is not None else [])
    if len(mean) > 1 and not (is_input and len(mean) == size and {*(axes % rank)} == {rank - 1}):
        low, high = (mean - half).min(), (mean + half).max()
        return ValueRange(float(low), float(high))
    return ValueRange(mean - half, mean + half)


def _usual_range(
    model: keras.Model, specs: Sequence[InputSpec], known: Sequence[ValueRange | None]
) -> ValueRange:
    """Returns the usual range of data that fits the statistics of the first BatchNormalization."""
    usual = (ValueRange(), ValueRange(-1.0), ValueRange(0.0, 255.0), ValueRange(-_SPREAD, _SPREAD))
    ratios = [
        first_statistics(model, _drawn(specs, [own or other for own in known], 4, 0))
        for other in (usual if _has_statistics(model) else ())
    ]
    distances = [abs(np.log(max(ratio, 1e-12))) if ratio else 0.0 for ratio in ratios]
    return usual[int(np.argmin(distances))] if distances else usual[0]


class _Stop(Exception):
    """Ends a pass through a model early."""


def _has_statistics(model: keras.Model) -> bool:
    layers = [plain(layer) for _, layer in walk_layers(model)]
    return any(isinstance(layer, keras.layers.BatchNormalization) for layer in layers)


def first_statistics(model: keras.Model, samples: Mapping[str, np.ndarray]) -> float | None:
    """Returns the variance of samples at the first trained BatchNormalization, over its own.

    Args:
        model: A Keras model.
        samples: Arrays by input name.

    Returns:
        The mean square of its input minus its moving mean, over its moving variance: the median
        over channels. It is 1 in training; None if there is no such layer, or it was not trained.
    """
    ratios: list[float] = []

    def note(call: Call, inputs: list[Any], outputs: list[Any]) -> None:
        layer = plain(call.operation)
        if not isinstance(layer, keras.layers.BatchNormalization):
            return
        mean, variance = (
            keras.ops.convert_to_numpy(v) for v in (layer.moving_mean, layer.moving_variance)
        )
        if np.any(mean) or np.any(variance != 1):
            values = np.moveaxis(keras.ops.convert_to_numpy(inputs[0]), layer.axis, -1)
            values = values.reshape(-1, values.shape[-1]).astype(np.float64)
            squares = ((values - mean) ** 2).mean(0)
            ratios.append(float(np.median((squares + 1e-12) / (variance + layer.epsilon))))
        raise _Stop

    if _has_statistics(model):
        with contextlib.suppress(_Stop):
            for _ in run(model, samples, note=note):
                pass
    return ratios[0] if ratios else None
