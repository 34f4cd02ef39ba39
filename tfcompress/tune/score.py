"""Scores quantized models on labels, or by their agreement with the float model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfcompress.data import collect
from tfcompress.export.export_tflite import CALIBRATION_SAMPLES
from tfcompress.graph.inline import as_graph
from tfcompress.graph.layers import plain
from tfcompress.graph.read import input_specs, walk_layers
from tfcompress.graph.run import predict
from tfcompress.graph.weights import compressible_weights
from tfcompress.lowering.strip import without_transforms
from tfcompress.quantization.state import quantizers
from tfcompress.wrap.state import is_wrapped

Metric = Callable[[Any, Any], float]
"""Takes labels (or the float model's outputs) and predictions; more is better."""


class Scorer:
    """Scores models on one set of samples.

    Args:
        model: The float model.
        x: Samples.
        y: Their labels, or None to compare with the outputs of the float model.
        metric: None for accuracy where the outputs are vectors, else minus the mean squared error
            over the variance.
    """

    def __init__(self, model: keras.Model, x: Any, y: Any, metric: Metric | None) -> None:
        model = as_graph(model)
        if quantizers(model):
            raise ValueError(
                f"model {model.name!r} is quantized already. Precision is chosen for the float "
                "model: pass strip(model)."
            )
        self.model = without_transforms(model) if is_wrapped(model) else model
        if y is not None:
            x = (x, y)
        self.samples, labels = collect(x, input_specs(model), argument="x")
        self.calibration = {n: a[:CALIBRATION_SAMPLES] for n, a in self.samples.items()}
        self.reference = self.outputs(self.model)
        self.labels = self.reference if labels is None else np.asarray(labels)
        self.metric = metric or (_accuracy if self._classifies() else _closeness)
        self.best = self.score(self.model)

    def _classifies(self) -> bool:
        return self.reference.ndim == 2 and self.reference.shape[1] > 1

    def outputs(self, model: keras.Model) -> np.ndarray:
        """Returns the first output of a model on the samples."""
        outputs = predict(model, self.samples)
        return np.asarray(keras.tree.flatten(outputs)[0])

    def score(self, model: keras.Model) -> float:
        """Returns the metric of a model."""
        return float(self.metric(self.labels, self.outputs(model)))

    def sqnr(self, model: keras.Model) -> float:
        """Returns the ratio of signal to error of a model's outputs, in decibels."""
        error = np.mean((self.outputs(model) - self.reference) ** 2)
        return float(10 * np.log10(max(np.var(self.reference), 1e-30) / max(error, 1e-30)))


def weighted_layers(model: keras.Model) -> list[tuple[str, Any]]:
    """Returns (path, layer) of the layers with compressible weights."""
    layers = [(path, plain(layer)) for path, layer in walk_layers(model)]
    layers = [(path, layer) for path, layer in layers if compressible_weights(layer)]
    if not layers:
        raise ValueError(f"model {model.name!r} has no layer with a kernel or embeddings.")
    return layers


def _accuracy(labels: Any, predictions: Any) -> float:
    labels = np.asarray(labels)
    if labels.ndim > 1 and labels.shape[-1] > 1:
        labels = labels.argmax(-1)
    return float(np.mean(labels.reshape(-1) == predictions.argmax(-1)))


def _closeness(labels: Any, predictions: Any) -> float:
    labels = np.asarray(labels).reshape(predictions.shape)
    return -float(np.mean((labels - predictions) ** 2) / (np.var(labels) or 1.0))
