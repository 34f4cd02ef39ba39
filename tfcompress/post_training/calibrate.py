"""Measures the ranges of activations on samples, without training (PTQ)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.graph.keras_internals import flatten_layers
from tfcompress.graph.plain_layers import MaskScores
from tfcompress.graph.read import walk_layers
from tfcompress.graph.run import run
from tfcompress.quantization.activation_quantizer import ActivationQuantizer
from tfcompress.quantization.state import quantizers

_BINS = 2048


_QMAX = 255  # of unsigned 8-bit integers


def calibrate(model: keras.Model, samples: Mapping[str, np.ndarray], method: str) -> None:
    """Sets the ranges of a quantized model from its activations on samples.

    Args:
        model: A model from `quantize`. Its ranges are changed.
        samples: Arrays by input name.
        method: "min_max", "moving_average" (the mean of the minima and maxima of batches, and of
            the time steps of recurrent layers), "percentile", "mse" or "kl"; see
            `QuantizationScheme`.
    """
    learning = [q for q in quantizers(model) if q.fixed_range is None]
    ranges: dict[int, list[tuple[float, float]]] = {id(q): [] for q in learning}

    def record_range(quantizer: ActivationQuantizer, values: np.ndarray) -> None:
        ranges[id(quantizer)].append((float(values.min()), float(values.max())))

    _watch(model, samples, learning, record_range)
    histograms: dict[int, np.ndarray] = {}
    min_max = {
        key: (min(low for low, _ in each), max(high for _, high in each))
        for key, each in ranges.items()
        if each
    }
    if method in _BY_HISTOGRAM:

        def record_histogram(quantizer: ActivationQuantizer, values: np.ndarray) -> None:
            low, high = min_max[id(quantizer)]
            counts = np.histogram(values, _BINS, (low, max(high, low + 1e-9)))[0]
            histograms[id(quantizer)] = histograms.get(id(quantizer), 0) + counts

        _watch(model, samples, learning, record_histogram)
    for quantizer in learning:
        key = id(quantizer)
        if key not in min_max:
            continue
        if quantizer.bits == 16:  # fine enough for the whole range
            quantizer.set_range(*min_max[key])
        elif method in _BY_HISTOGRAM:
            quantizer.set_range(*_BY_HISTOGRAM[method](histograms[key], *min_max[key]))
        elif method == "moving_average":
            quantizer.set_range(*np.mean(ranges[key], axis=0))
        else:
            quantizer.set_range(*min_max[key])


def _watch(
    model: keras.Model,
    samples: Mapping[str, np.ndarray],
    learning: list[ActivationQuantizer],
    note: Callable[[ActivationQuantizer, np.ndarray], None],
) -> None:
    """Runs the model with unquantized activations, and passes each quantizer's input to `note`."""
    every = quantizers(model)
    parts = [part for _, layer in walk_layers(model) for part in flatten_layers(layer)]
    masking = [part for part in parts if isinstance(part, MaskScores)]
    known = {id(q) for q in learning}

    def observer(quantizer: ActivationQuantizer) -> Callable[[Any], None]:
        if id(quantizer) not in known:
            return lambda values: None
        return lambda values: note(
            quantizer, ops.convert_to_numpy(values).astype(np.float32, copy=False)
        )

    try:
        for part in masking:
            part.measured = True
        for quantizer in every:
            quantizer.observer = observer(quantizer)
        for _ in run(model, samples):
            pass
    finally:
        for part in masking:
            part.measured = False
        for quantizer in every:
            quantizer.observer = None


def _percentile(counts: np.ndarray, low: float, high: float) -> tuple[float, float]:
    share = np.cumsum(counts) / counts.sum()
    edges = np.linspace(low, high, _BINS + 1)
    first = int(np.searchsorted(share, 1e-4))
    last = min(int(np.searchsorted(share, 1 - 1e-4)), _BINS - 1)
    return float(edges[first]), float(edges[last + 1])


def _candidates(low: float, high: float) -> Iterator[tuple[float, float]]:
    """Yields ranges with a smaller minimum, maximum or both; zero stays inside."""
    shares = np.linspace(1, 0.1, 31)
    low, high = min(low, 0.0), max(high, 0.0)
    for below in shares if low < 0 else (1.0,):
        for above in shares if high > 0 else (1.0,):
            yield low * below, high * above


def _mse(counts: np.ndarray, low: float, high: float) -> tuple[float, float]:
    centers = _centers(low, high)
    width = max(high - low, 1e-9) / _BINS
    nonzero = counts * (np.abs(centers) > width)  # zero is exact with any scale

    def error(clip: tuple[float, float]) -> float:
        scale = (clip[1] - clip[0]) / _QMAX
        outside = np.maximum(clip[0] - centers, 0) + np.maximum(centers - clip[1], 0)
        return float(np.sum(nonzero * np.where(outside > 0, outside**2, scale**2 / 12)))

    return min(_candidates(low, high), key=error)


def _kl(counts: np.ndarray, low: float, high: float) -> tuple[float, float]:
    centers = _centers(low, high)
    best, least = (low, high), np.inf
    for share in np.linspace(1, 0.1, 61):
        clip = (min(low, 0.0) * share, max(high, 0.0) * share)
        scale = max((clip[1] - clip[0]) / _QMAX, 1e-12)
        quantized = np.clip(np.round((centers - clip[0]) / scale), 0, _QMAX).astype(int)
        inside = (centers >= clip[0]) & (centers <= clip[1])
        # Clipped values count in the outermost bins of the reference only, not in those of the
        # quantized distribution.
        reference = counts * inside
        edges = np.flatnonzero(inside)
        if not len(edges):
            continue
        reference[edges[0]] += counts[centers < clip[0]].sum()
        reference[edges[-1]] += counts[centers > clip[1]].sum()
        level_counts = np.bincount(quantized[inside], counts[inside], _QMAX + 1)
        bins = np.bincount(quantized[inside], (counts[inside] > 0).astype(float), _QMAX + 1)
        spread = np.where(counts > 0, (level_counts / np.maximum(bins, 1))[quantized], 0) * inside
        expected = reference / reference.sum()
        actual = np.maximum(spread / max(spread.sum(), 1e-12), 1e-12)
        used = expected > 0
        divergence = float(np.sum(expected[used] * np.log(expected[used] / actual[used])))
        if divergence < least:
            best, least = clip, divergence
    return best


def _centers(low: float, high: float) -> np.ndarray:
    edges = np.linspace(low, max(high, low + 1e-9), _BINS + 1)
    return (edges[1:] + edges[:-1]) / 2


_BY_HISTOGRAM: dict[str, Callable[[np.ndarray, float, float], tuple[float, float]]] = {
    "percentile": _percentile,
    "mse": _mse,
    "learned": _mse,
    "kl": _kl,
}
