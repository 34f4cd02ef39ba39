"""Samples that a file is checked on: the user's, those of training, or noise that suits a model."""

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

_WORK = 2_000_000_000  # multiply-accumulates that a check may cost, about a second


_FEWEST, _MOST = 16, 512


_NUMBERS = 2**26  # of inputs and outputs together: 256 MiB


_NOISE = 64


Samples = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Probes:
    """Samples that a file is checked on.

    Attributes:
        samples: Arrays by input name.
        source: Where they come from: "representative_dataset", "training" or "noise".
        labels: The labels of these samples, if they have any.
    """

    samples: Samples
    source: str
    labels: np.ndarray | None = None


def probes(
    model: keras.Model,
    specs: Sequence[InputSpec],
    given: Samples | None,
    labels: np.ndarray | None = None,
) -> Probes:
    """Returns the samples that a file is checked on.

    They are spread over all that there is: not those that alone set the ranges, and as many as a
    second of work allows, 16 at least; of labelled ones more.

    Args:
        model: The Keras model.
        specs: What it expects.
        given: Samples of the user by input name, if there are any.
        labels: Their labels, if there are any.
    """
    if given is not None:
        far = np.any([far_samples(array) for array in given.values()], axis=0)
        count = affordable(model, 1 if labels is None else 8)
        rows = spread(np.flatnonzero(~far), count)
        chosen = {name: array[rows] for name, array in given.items()}
        return Probes(chosen, "representative_dataset", None if labels is None else labels[rows])
    kept = kept_samples(model)
    if kept is None or any(array is None for array in kept.values()):
        return Probes(noise_for(model, specs, min(_NOISE, affordable(model))), "noise")
    count = len(next(iter(kept.values()), ()))
    for spec in specs:  # an input that nothing reads
        kept.setdefault(spec.name, np.zeros([count, *(size or 1 for size in spec.shape)]))
    return Probes({s.name: kept[s.name].astype(s.dtype) for s in specs}, "training")


_FAR, _FEW = 20, 0.01  # deviations, and the share of samples that is called single


def far_samples(array: np.ndarray) -> np.ndarray:
    """Returns which samples hold a value beyond 20 deviations of its feature, if they are few.

    A feature is a place of the last axis. Its deviation is that without its largest values.

    Args:
        array: Samples, the first axis theirs.
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
        times: How many times as much work as usual is allowed.
    """
    count = np.clip(times * _WORK // max(macs(model), 1), _FEWEST, _MOST)
    numbers = sum(
        math.prod(size or 8 for size in tensor.shape[1:])
        for tensor in (*model.inputs, *model.outputs)
    )
    return int(min(count, max(2, _NUMBERS // max(numbers, 1))))


def kept_samples(model: keras.Model) -> dict[str, Any] | None:
    """Returns the samples of training that a model keeps, by input name; None if it keeps none.

    An input that kept none has None.
    """
    keepers = sample_keepers(model)
    if not keepers:
        return None
    names = dict(zip(map(id, model.inputs), input_names(model), strict=True))
    return {names[id(keeper.input)]: keeper.kept() for keeper in keepers}


def stressed(probes: Probes, count: int, seed: int = 0) -> Samples:
    """Returns samples at the ends of what each value may be, which data seldom reaches.

    Each value is drawn from those that its place has in the samples: in one half of the result any
    of them, so that nothing goes together; in the other the least or the largest. Values of noise
    are drawn from three times as far, and some from ten.

    Args:
        probes: The samples.
        count: How many to make.
        seed: Of the drawing.
    """
    generator = np.random.default_rng(seed)
    made = {}
    for name, array in probes.samples.items():
        rows = np.arange(count) % len(array)
        mixed = generator.permuted(array[rows], axis=0)
        if array.dtype.kind == "f" and count > 1:
            high = generator.integers(0, 2, mixed.shape, dtype=np.int8).astype(bool)
            ends = np.where(high, array.max(0), array.min(0)).astype(array.dtype)
            mixed[count // 2 :] = ends[count // 2 :]
            if probes.source == "noise":
                middle = array.mean(0, dtype=np.float64)
                far = np.where(rows % 4 == 0, 10, 3).reshape(-1, *(1 for _ in array.shape[1:]))
                mixed = (middle + far * (mixed - middle)).astype(array.dtype)
        made[name] = mixed
    return made


@dataclasses.dataclass(frozen=True)
class Scale:
    """Where the values of an input lie: both ends, for all or by channel; whole numbers or any."""

    low: Any = 0.0
    high: Any = 1.0
    whole: bool = False

    def draw(self, generator: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Any:
        """Returns values spread evenly between the ends."""
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
    """Returns noise of the scale that the first layers of a model expect.

    Tokens are drawn from the rows of their embedding. Values are as a first Normalization,
    Rescaling or BatchNormalization, or a trained range, has them; else of the scale at which the
    first BatchNormalization further on sees what its statistics say, or from 0 to 1.

    Args:
        model: A Keras model.
        specs: What it expects.
        count: Samples to make.
        seed: Of the noise.
    """
    known = [*expected_scales(model).values()]
    if any(scale is None for scale in known):
        usual = _usual(model, specs, known)
        known = [scale or usual for scale in known]
    return _drawn(specs, known, count, seed)


def expected_scales(model: keras.Model) -> dict[str, Scale | None]:
    """Returns where the first layers of a model expect the values of each input, if they tell."""
    graphs = read_graphs(model)
    return {
        name: _expected(graphs, graphs[id(model)], tensor)
        for name, tensor in zip(input_names(model), model.inputs, strict=True)
    }


def _drawn(
    specs: Sequence[InputSpec], scales: Sequence[Scale | None], count: int, seed: int
) -> Samples:
    generator = np.random.default_rng(seed)
    return {
        spec.name: (scale or Scale()).draw(
            generator, (count, *(size or 8 for size in spec.shape)), _numpy_type(spec)
        )
        for spec, scale in zip(specs, scales, strict=True)
    }


def _numpy_type(spec: InputSpec) -> str:
    return "float32" if spec.dtype == "bfloat16" else spec.dtype


def _expected(
    graphs: Mapping[int, Graph], graph: Graph, tensor: Any, is_input: bool = True
) -> Scale | None:
    """Returns what the layers that read a tensor first expect of it, if they tell."""
    for call in graph.consumers.get(id(tensor), []):
        operation = plain(call.operation)
        if is_graph(operation):
            at = [id(t) for t in call.inputs].index(id(tensor))
            inner = graphs[id(operation)]
            found = _expected(graphs, inner, operation.inputs[at], is_input)
        else:
            found = _scale_of(operation, tensor, is_input)
            name = type(operation).__name__
            if found is None and name in _HANDED_ON:
                as_it_is = is_input and name in _AS_IT_IS
                found = _expected(graphs, graph, call.outputs[0], as_it_is)
        if found is not None:
            return found
    return None


_AS_IT_IS = {"InputSamples", "Identity", "Dropout"}


_HANDED_ON = {*_AS_IT_IS, "ZeroPadding2D", "Reshape", "Permute", "Cast", "Resizing"}


_SPREAD = 3**0.5  # the half width of even values, over their deviation


def _scale_of(operation: Any, tensor: Any, is_input: bool) -> Scale | None:
    """Returns what a layer expects of its input, if it tells.

    Args:
        operation: The layer.
        tensor: What it reads.
        is_input: Whether that is an input of the model as it is, of which channels are known.
    """
    if isinstance(operation, keras.layers.Embedding):
        return Scale(0, operation.input_dim - 1, whole=True)
    if isinstance(operation, keras.layers.Rescaling):
        scale, offset = np.asarray(operation.scale), np.asarray(operation.offset)
        ends = ((-1.0 if (offset < 0).any() else 0.0) - offset) / scale, (1.0 - offset) / scale
        return Scale(float(np.min(ends)), float(np.max(ends)))
    if isinstance(operation, ActivationQuantizer) and operation.is_trained:
        return Scale(*operation.range())
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
        return Scale(float(low), float(high))
    return Scale(mean - half, mean + half)


def _usual(model: keras.Model, specs: Sequence[InputSpec], known: Sequence[Scale | None]) -> Scale:
    """Returns the usual scale of data at which the first BatchNormalization sees its statistics."""
    usual = (Scale(), Scale(-1.0), Scale(0.0, 255.0), Scale(-_SPREAD, _SPREAD))
    ratios = [
        first_statistics(model, _drawn(specs, [own or scale for own in known], 4, 0))
        for scale in (usual if _has_statistics(model) else ())
    ]
    told = [abs(np.log(max(ratio, 1e-12))) if ratio else 0.0 for ratio in ratios]
    return usual[int(np.argmin(told))] if told else usual[0]


class _Seen(Exception):
    """Ends a pass through a model."""


def _has_statistics(model: keras.Model) -> bool:
    layers = [plain(layer) for _, layer in walk_layers(model)]
    return any(isinstance(layer, keras.layers.BatchNormalization) for layer in layers)


def first_statistics(model: keras.Model, samples: Mapping[str, np.ndarray]) -> float | None:
    """Returns how the first BatchNormalization that was trained finds samples.

    Args:
        model: A Keras model.
        samples: Arrays by input name.

    Returns:
        The mean square of what it reads, from its moving means, over its moving variance: the
        middle channel. 1 is as in training; None if no such layer is read, or none was trained.
    """
    found: list[float] = []

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
            found.append(float(np.median((squares + 1e-12) / (variance + layer.epsilon))))
        raise _Seen

    if _has_statistics(model):
        with contextlib.suppress(_Seen):
            for _ in run(model, samples, note=note):
                pass
    return found[0] if found else None
