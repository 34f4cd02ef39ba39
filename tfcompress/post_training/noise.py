"""Estimates the quantization noise around each layer in one pass, without trials."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.graph.read import Call, is_graph, read_graph, walk_layers
from tfcompress.graph.run import run
from tfcompress.integer.fake_quant import fake_quant_op
from tfcompress.integer.role_queries import quantizes_weights
from tfcompress.post_training.pipeline import post_training
from tfcompress.quantization.activation_quantizer import ActivationQuantizer
from tfcompress.quantization.state import quantizers
from tfcompress.scheme import QuantizationScheme
from tfcompress.wrap.wrapper import CompressionWrapper

_SAMPLES = 64


def quantization_noise(
    model: keras.Model, scheme: QuantizationScheme, samples: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Returns the noise-to-signal ratio around each layer, by path.

    This is the largest of the ratio of the layer's output with quantized weights, and those of its
    input and output activations, fake-quantized. The ratio is averaged over channels, so that a
    small channel counts as much as a large one.

    Args:
        model: A float model.
        scheme: The scheme to estimate.
        samples: Arrays by input name.
    """
    quantized = post_training(model, scheme, samples)
    wrappers = {path: layer for path, layer in walk_layers(quantized) if quantizes_weights(layer)}
    noise = dict.fromkeys(wrappers, 0.0)
    around = _neighbours(quantized)

    def at_weights(path: str, wrapper: CompressionWrapper, _: Any, run: Callable[[], Any]) -> Any:
        transforms, wrapper.transforms = wrapper.transforms, []
        exact = ops.convert_to_numpy(run())
        wrapper.transforms = transforms
        outputs = run()
        noise[path] = max(noise[path], _relative(ops.convert_to_numpy(outputs), exact))
        return outputs

    def at_activations(quantizer: ActivationQuantizer, x: Any) -> None:
        exact = ops.convert_to_numpy(x)
        quantized_x = ops.convert_to_numpy(fake_quant_op(x, *quantizer.range(), quantizer.bits))
        for path in around.get(id(quantizer), ()):
            noise[path] = max(noise[path], _relative(quantized_x, exact))

    try:
        for path, wrapper in wrappers.items():
            wrapper.observer = functools.partial(at_weights, path, wrapper)
        for quantizer in quantizers(quantized):
            quantizer.observer = functools.partial(at_activations, quantizer)
        subset = {name: array[:_SAMPLES] for name, array in samples.items()}
        for _ in run(quantized, subset):
            pass
    finally:
        for layer in (*wrappers.values(), *quantizers(quantized)):
            layer.observer = None
    return noise


def _relative(quantized: np.ndarray, exact: np.ndarray) -> float:
    channels = exact.shape[-1] if exact.ndim > 1 else 1
    error = np.mean((quantized - exact).reshape(-1, channels) ** 2, axis=0)
    signal = np.var(exact.reshape(-1, channels), axis=0)
    alive = signal > 1e-12 * max(float(signal.max()), 1e-30)
    return float(np.mean(np.minimum(error[alive] / signal[alive], 1.0))) if alive.any() else 0.0


def _neighbours(model: keras.Model, path: str = "") -> dict[int, set[str]]:
    """Returns the layers with weights before and after each quantizer, by `id` of the quantizer."""
    graph = read_graph(model, path)
    producers = {id(t): call for call in graph.calls for t in call.outputs}
    neighbours: dict[int, set[str]] = {}

    def before(call: Call) -> set[str]:
        if quantizes_weights(call.operation):
            return {call.path}
        calls = [producers[id(t)] for t in call.inputs if id(t) in producers]
        return set().union(
            *(before(c) for c in calls if not isinstance(c.operation, ActivationQuantizer)), set()
        )

    def after(call: Call) -> set[str]:
        consumers = [r for t in call.outputs for r in graph.consumers.get(id(t), [])]
        result: set[str] = set()
        for consumer in consumers:
            if quantizes_weights(consumer.operation):
                result.add(consumer.path)
            elif not isinstance(consumer.operation, ActivationQuantizer):
                result |= after(consumer)
        return result

    for call in graph.calls:
        if is_graph(call.operation):
            neighbours.update(_neighbours(call.operation, call.path + "/"))
        elif isinstance(call.operation, ActivationQuantizer):
            neighbours.setdefault(id(call.operation), set()).update(before(call) | after(call))
    return neighbours
