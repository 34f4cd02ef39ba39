"""Ranges of activations without training: from what passes on samples (PTQ)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.graph.expand import MaskScores
from tfcompress.graph.keras_internals import flatten_layers
from tfcompress.graph.read import walk_layers
from tfcompress.graph.run import run
from tfcompress.quantization.activation_quantizer import ActivationQuantizer
from tfcompress.quantization.state import quantizers

_BINS = 2048


_STEPS = 255


def calibrate(model: keras.Model, samples: Mapping[str, np.ndarray], method: str) -> None:
    """Sets the ranges of a quantized model by what its activations are on samples.

    Args:
        model: A model from `quantize`. Its ranges are changed.
        samples: Arrays by input name.
        method: "min_max", "moving_average" (the mean of the ends of batches, and of the steps of
            recurrent layers), "percentile", "mse" or "kl"; see `QuantizationScheme`.
    """
    learning = [q for q in quantizers(model) if q.fixed_range is None]
    ends: dict[int, list[tuple[float, float]]] = {id(q): [] for q in learning}

    def note_ends(quantizer: ActivationQuantizer, values: np.ndarray) -> None:
        ends[id(quantizer)].append((float(values.min()), float(values.max())))

    _watch(model, samples, learning, note_ends)
    histograms: dict[int, np.ndarray] = {}
    whole = {key: (min(e[0] for e in es), max(e[1] for e in es)) for key, es in ends.items() if es}
    if method in _BY_HISTOGRAM:

        def note_histogram(quantizer: ActivationQuantizer, values: np.ndarray) -> None:
            low, high = whole[id(quantizer)]
            counts = np.histogram(values, _BINS, (low, max(high, low + 1e-9)))[0]
            histograms[id(quantizer)] = histograms.get(id(quantizer), 0) + counts

        _watch(model, samples, learning, note_histogram)
    for quantizer in learning:
        key = id(quantizer)
        if key not in whole:
            continue
        if quantizer.bits == 16:  # enough for all there is
            quantizer.set_range(*whole[key])
        elif method in _BY_HISTOGRAM:
            quantizer.set_range(*_BY_HISTOGRAM[method](histograms[key], *whole[key]))
        elif method == "moving_average":
            quantizer.set_range(*np.mean(ends[key], axis=0))
        else:
            quantizer.set_range(*whole[key])


def _watch(
    model: keras.Model,
    samples: Mapping[str, np.ndarray],
    learning: list[ActivationQuantizer],
    note: Callable[[ActivationQuantizer, np.ndarray], None],
) -> None:
    """Runs the model, without rounding of activations, and shows each quantizer's input."""
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
    """Yields ranges that shrink either end; zero stays inside."""
    shares = np.linspace(1, 0.1, 31)
    low, high = min(low, 0.0), max(high, 0.0)
    for below in shares if low < 0 else (1.0,):
        for above in shares if high > 0 else (1.0,):
            yield low * below, high * above


def _mse(counts: np.ndarray, low: float, high: float) -> tuple[float, float]:
    centers = _centers(low, high)
    width = max(high - low, 1e-9) / _BINS
    busy = counts * (np.abs(centers) > width)  # zero is on every grid

    def error(ends: tuple[float, float]) -> float:
        step = (ends[1] - ends[0]) / _STEPS
        outside = np.maximum(ends[0] - centers, 0) + np.maximum(centers - ends[1], 0)
        return float(np.sum(busy * np.where(outside > 0, outside**2, step**2 / 12)))

    return min(_candidates(low, high), key=error)


def _kl(counts: np.ndarray, low: float, high: float) -> tuple[float, float]:
    centers = _centers(low, high)
    best, least = (low, high), np.inf
    for share in np.linspace(1, 0.1, 61):
        ends = (min(low, 0.0) * share, max(high, 0.0) * share)
        step = max((ends[1] - ends[0]) / _STEPS, 1e-12)
        place = np.clip(np.round((centers - ends[0]) / step), 0, _STEPS).astype(int)
        inside = (centers >= ends[0]) & (centers <= ends[1])
        # What is clipped joins the outermost bins, and is not among what the grid can tell apart.
        reference = counts * inside
        edges = np.flatnonzero(inside)
        if not len(edges):
            continue
        reference[edges[0]] += counts[centers < ends[0]].sum()
        reference[edges[-1]] += counts[centers > ends[1]].sum()
        shown = np.bincount(place[inside], counts[inside], _STEPS + 1)
        taken = np.bincount(place[inside], (counts[inside] > 0).astype(float), _STEPS + 1)
        spread = np.where(counts > 0, (shown / np.maximum(taken, 1))[place], 0) * inside
        wanted = reference / reference.sum()
        given = np.maximum(spread / max(spread.sum(), 1e-12), 1e-12)
        used = wanted > 0
        divergence = float(np.sum(wanted[used] * np.log(wanted[used] / given[used])))
        if divergence < least:
            best, least = ends, divergence
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
