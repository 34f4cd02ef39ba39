"""How much noise rounding adds around each layer, told from one pass and no trial."""

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
from tfcompress.integer.role_queries import rounds_weights
from tfcompress.post_training.pipeline import post_training
from tfcompress.quantization.activation_quantizer import ActivationQuantizer
from tfcompress.quantization.state import quantizers
from tfcompress.scheme import QuantizationScheme
from tfcompress.wrap.wrapper import CompressionWrapper

_SAMPLES = 64


def rounding_noise(
    model: keras.Model, scheme: QuantizationScheme, samples: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Returns the noise over the signal around each layer, by path.

    It is averaged over channels, so that a channel that drowns counts however small it is: the
    noise of the layer's output with rounded weights, and that of the activations which it reads and
    makes, on the grids that they would have.

    Args:
        model: A float model.
        scheme: How it would be quantized.
        samples: Arrays by input name.
    """
    quantized = post_training(model, scheme, samples)
    wrappers = {path: layer for path, layer in walk_layers(quantized) if rounds_weights(layer)}
    noise = dict.fromkeys(wrappers, 0.0)
    around = _neighbours(quantized)

    def at_weights(path: str, wrapper: CompressionWrapper, _: Any, run: Callable[[], Any]) -> Any:
        kinds, wrapper.transforms = wrapper.transforms, []
        exact = ops.convert_to_numpy(run())
        wrapper.transforms = kinds
        outputs = run()
        noise[path] = max(noise[path], _relative(ops.convert_to_numpy(outputs), exact))
        return outputs

    def at_activations(quantizer: ActivationQuantizer, x: Any) -> None:
        exact = ops.convert_to_numpy(x)
        rounded = ops.convert_to_numpy(fake_quant_op(x, *quantizer.range(), quantizer.bits))
        for path in around.get(id(quantizer), ()):
            noise[path] = max(noise[path], _relative(rounded, exact))

    try:
        for path, wrapper in wrappers.items():
            wrapper.observer = functools.partial(at_weights, path, wrapper)
        for quantizer in quantizers(quantized):
            quantizer.observer = functools.partial(at_activations, quantizer)
        few = {name: array[:_SAMPLES] for name, array in samples.items()}
        for _ in run(quantized, few):
            pass
    finally:
        for layer in (*wrappers.values(), *quantizers(quantized)):
            layer.observer = None
    return noise


def _relative(rounded: np.ndarray, exact: np.ndarray) -> float:
    channels = exact.shape[-1] if exact.ndim > 1 else 1
    error = np.mean((rounded - exact).reshape(-1, channels) ** 2, axis=0)
    signal = np.var(exact.reshape(-1, channels), axis=0)
    alive = signal > 1e-12 * max(float(signal.max()), 1e-30)
    return float(np.mean(np.minimum(error[alive] / signal[alive], 1.0))) if alive.any() else 0.0


def _neighbours(model: keras.Model, path: str = "") -> dict[int, set[str]]:
    """Returns the weighted layers that make or read what each quantizer rounds, by its `id`."""
    graph = read_graph(model, path)
    producers = {id(t): call for call in graph.calls for t in call.outputs}
    found: dict[int, set[str]] = {}

    def before(call: Call) -> set[str]:
        if rounds_weights(call.operation):
            return {call.path}
        calls = [producers[id(t)] for t in call.inputs if id(t) in producers]
        return set().union(
            *(before(c) for c in calls if not isinstance(c.operation, ActivationQuantizer)), set()
        )

    def after(call: Call) -> set[str]:
        readers = [r for t in call.outputs for r in graph.consumers.get(id(t), [])]
        result: set[str] = set()
        for reader in readers:
            if rounds_weights(reader.operation):
                result.add(reader.path)
            elif not isinstance(reader.operation, ActivationQuantizer):
                result |= after(reader)
        return result

    for call in graph.calls:
        if is_graph(call.operation):
            found.update(_neighbours(call.operation, call.path + "/"))
        elif isinstance(call.operation, ActivationQuantizer):
            found.setdefault(id(call.operation), set()).update(before(call) | after(call))
    return found
