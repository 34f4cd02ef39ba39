"""AdaRound and bias correction: rounding that minimizes the error of a layer's output."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.graph.kernel_axes import WEIGHTED, array
from tfcompress.graph.layers import DEPTHWISE, TRANSPOSED
from tfcompress.graph.read import called_once, walk_layers
from tfcompress.graph.run import batch_size_for, largest_tensor, run
from tfcompress.integer.producers import weight_and_quantizer
from tfcompress.quantization.state import fake_quantizing_in_float
from tfcompress.transforms.fake_quant import FakeQuant
from tfcompress.wrap.wrapper import CompressionWrapper

_SAMPLES = (32, 256)  # minimum and maximum, about 4 million values of input in all


_LARGEST = 2**25  # values of one tensor inside the model: 128 MiB


_POSITIONS = 128  # of the output of each sample that are used


@dataclasses.dataclass
class FloatOutputs:
    """Inputs and outputs of layers without quantization.

    Attributes:
        count: Number of samples.
        inputs: The input of each layer, by path, if AdaRound is used.
        means: The mean of each output channel, by path, of layers that are called once.
    """

    count: int
    inputs: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    means: dict[str, Any] = dataclasses.field(default_factory=dict)


@contextlib.contextmanager
def recording_floats(
    model: keras.Model, samples: Mapping[str, np.ndarray], *, adaptive: bool, most: int
) -> Iterator[FloatOutputs]:
    """Makes a model compute with unquantized weights, and records its layers' inputs and outputs.

    Args:
        model: A model from `quantize` without masks. Its activations must not be quantized
            meanwhile.
        samples: Samples that `run` will pass through it, by input name. Recorded are the first
            batches, of 32 to 256 samples (about 4 million values of input), fewer where tensors
            are large.
        adaptive: Whether inputs are recorded.
        most: The largest number of samples to record.
    """
    values = sum(array[0].size for array in samples.values())
    count = min(int(np.clip(2**22 // values, *_SAMPLES)), most)
    count = min(count, max(8, _LARGEST // largest_tensor(model)))
    size = batch_size_for(model)
    # Only the first pass is recorded; histograms need a second one.
    passed = math.ceil(len(next(iter(samples.values()))) / size)
    batches = max(min(count // size, passed), 1)
    floats = FloatOutputs(batches * size)
    once = called_once(model)
    seen: collections.Counter[str] = collections.Counter()  # calls of a layer
    rows: collections.Counter[str] = collections.Counter()  # of its input

    def note(path: str, wrapper: CompressionWrapper, x: Any, run: Callable[[], Any]) -> Any:
        outputs = run()
        first, shared = not seen[path], id(wrapper) not in once
        seen[path] += 1
        if seen[path] > batches:
            return outputs
        if not shared:  # weighted by rows: the last batch may be smaller
            rows[path] += len(x)
            before = floats.means.get(path, 0)
            change = (_channel_means(outputs) - before) * (len(x) / rows[path])
            floats.means[path] = before + change
        if adaptive and (first or not shared):
            read = np.clip(ops.convert_to_numpy(x), -65000, 65000).astype(np.float16)
            floats.inputs[path] = read if first else np.concatenate([floats.inputs[path], read])
        return outputs

    wrappers = [w for _, w in walk_layers(model) if isinstance(w, CompressionWrapper)]
    transforms = [wrapper.transforms for wrapper in wrappers]
    try:
        with _observed(_wrappers(model), note):
            for wrapper in wrappers:
                wrapper.transforms = []
            yield floats
    finally:
        for wrapper, own in zip(wrappers, transforms, strict=True):
            wrapper.transforms = own


def round_by_output(
    model: keras.Model,
    samples: Mapping[str, np.ndarray],
    floats: FloatOutputs,
    *,
    adaptive: bool,
    correct_bias: bool,
    iterations: int = 1000,
) -> None:
    """Chooses the rounding of each weight, and corrects biases, by the outputs of the layers.

    A weight is rounded up or down so that the squared error of its layer's output is minimal on the
    samples, not the error of the weight itself. The target is the output of the float model, so a
    layer also compensates errors of the layers before it. The remaining error in the mean of each
    output channel is subtracted from the bias. Both happen in one pass of the samples, so that the
    input of each layer comes from layers that are already corrected. Only Dense, Conv1D, Conv2D and
    depthwise layers without groups take part; the others are unchanged.

    Args:
        model: A model from `quantize` with ranges. Its weights are changed: they are
            fake-quantized afterwards.
        samples: Arrays by input name.
        floats: Inputs and outputs of its layers without quantization, on these samples.
        adaptive: Whether to use AdaRound, or rounding to nearest.
        correct_bias: Whether biases are corrected by the outputs without quantization.
        iterations: Steps of gradient descent for each layer.

    References:
        Nagel et al. 2020, arXiv:2004.10568 (AdaRound); Nagel et al. 2019, arXiv:1906.04721 (bias
        correction).
    """

    def rows_of(wrapper: CompressionWrapper, x: Any) -> np.ndarray:
        # At the same positions of the output for both models.
        return _rows(wrapper.layer, ops.convert_to_numpy(x), np.random.default_rng(0))

    def improve(path: str, wrapper: CompressionWrapper, x: Any, run: Callable[[], Any]) -> Any:
        wrapper.observer = None  # a shared layer is improved at its first call only
        if adaptive:
            read = floats.inputs.pop(path)
            _choose(wrapper, rows_of(wrapper, x[: len(read)]), rows_of(wrapper, read), iterations)
        bias = getattr(wrapper.layer, "bias", None)
        outputs = run()
        # A shared layer has another error at each call: one bias cannot correct them all.
        if correct_bias and bias is not None and path in floats.means:
            error = _channel_means(outputs) - floats.means[path]
            bias.assign_sub(error)
            outputs = outputs - ops.cast(error, outputs.dtype)
        return outputs

    batch = {name: array[: floats.count] for name, array in samples.items()}
    # Rounding in floats takes half as long, and has the same mean.
    with _observed(_wrappers(model), improve), fake_quantizing_in_float(model):
        for _ in run(model, batch, batch_size=floats.count):
            pass


@contextlib.contextmanager
def _observed(
    wrappers: dict[str, CompressionWrapper],
    visit: Callable[[str, CompressionWrapper, Any, Callable[[], Any]], Any],
) -> Iterator[None]:
    """Calls `visit` in place of each layer."""
    try:
        for path, wrapper in wrappers.items():
            wrapper.observer = functools.partial(visit, path, wrapper)
        yield
    finally:
        for wrapper in wrappers.values():
            wrapper.observer = None


def _wrappers(model: keras.Model) -> dict[str, CompressionWrapper]:
    return {
        path: layer
        for path, layer in walk_layers(model)
        if isinstance(layer, CompressionWrapper) and _takes_part(layer)
    }


def _channel_means(outputs: Any) -> np.ndarray:
    axes = range(len(outputs.shape) - 1)
    return ops.convert_to_numpy(ops.mean(ops.cast(outputs, "float32"), tuple(axes)))


def _takes_part(wrapper: CompressionWrapper) -> bool:
    layer = wrapper.layer
    known = type(layer) in WEIGHTED and not isinstance(layer, TRANSPOSED)
    known = known and getattr(layer, "data_format", "channels_last") == "channels_last"
    flat = type(layer) is not keras.layers.Conv3D and getattr(layer, "groups", 1) == 1
    return known and flat and any(isinstance(t, FakeQuant) for t in wrapper.transforms)


def _rows(layer: Any, x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Returns the inputs that the layer multiplies its kernel with, at some output positions."""
    x = x.astype(np.float32)
    if isinstance(layer, keras.layers.Dense):
        rows = x.reshape(-1, x.shape[-1])
        limit = _POSITIONS * len(x)
        if len(rows) > limit:
            rows = rows[generator.choice(len(rows), limit, replace=False)]
        return rows[:, None, :]
    rank = x.ndim - 2
    sizes, channels = x.shape[1:-1], x.shape[-1]
    reach = [(k - 1) * d + 1 for k, d in zip(layer.kernel_size, layer.dilation_rate, strict=True)]
    strides = layer.strides
    if layer.padding == "valid":
        output_sizes = [(n - r) // s + 1 for n, r, s in zip(sizes, reach, strides, strict=True)]
        pads = [(0, 0)] * rank
    else:
        output_sizes = [-(-n // s) for n, s in zip(sizes, strides, strict=True)]
        missing = [
            max(0, (m - 1) * s + r - n)
            for m, s, r, n in zip(output_sizes, strides, reach, sizes, strict=True)
        ]
        causal = layer.padding == "causal"
        pads = [(reach[0] - 1, 0)] if causal else [(p // 2, p - p // 2) for p in missing]
    x = np.pad(x, [(0, 0), *pads, (0, 0)])
    positions = np.stack([generator.integers(0, m, (len(x), _POSITIONS)) for m in output_sizes], -1)
    offsets = np.stack(
        np.meshgrid(*(np.arange(k) for k in layer.kernel_size), indexing="ij"), -1
    ).reshape(-1, rank) * np.asarray(layer.dilation_rate)
    index = positions[:, :, None, :] * np.asarray(strides) + offsets
    sample = np.arange(len(x))[:, None, None]
    patches = x[(sample, *np.moveaxis(index, -1, 0))]  # (samples, positions, taps, channels)
    patches = patches.reshape(-1, len(offsets), channels)
    if isinstance(layer, DEPTHWISE):
        return patches.transpose(0, 2, 1)
    return patches.reshape(len(patches), 1, -1)


def _grouped(layer: Any, kernel: np.ndarray) -> np.ndarray:
    """Returns a kernel as (channel groups, weights of an output, outputs of the group)."""
    if isinstance(layer, DEPTHWISE):
        channels, outputs = kernel.shape[-2:]
        return kernel.reshape(-1, channels, outputs).transpose(1, 0, 2)
    return kernel.reshape(1, -1, kernel.shape[-1])


def _ungrouped(layer: Any, weights: np.ndarray, shape: Any) -> np.ndarray:
    if isinstance(layer, DEPTHWISE):
        weights = weights.transpose(1, 0, 2)
    return weights.reshape(shape)


def _choose(
    wrapper: CompressionWrapper, rows: np.ndarray, floats: np.ndarray, iterations: int
) -> None:
    """Fake-quantizes the weights of a layer, each rounded up or down as chosen.

    Args:
        wrapper: The layer.
        rows: Inputs that its kernel is multiplied with in the quantized model.
        floats: The same in the float model.
        iterations: Steps of gradient descent.
    """
    layer = wrapper.layer
    ((variable, _),) = wrapper.pipelines()
    value, rounding = weight_and_quantizer(wrapper)
    nearest = _grouped(layer, array(rounding.call(value)))
    wanted = _grouped(layer, array(value))
    scale = _grouped(layer, np.broadcast_to(array(rounding.scale(value)), variable.shape))
    rows, floats = np.moveaxis(rows, 1, 0), np.moveaxis(floats, 1, 0)
    gram = np.matmul(rows.transpose(0, 2, 1), rows) / rows.shape[1]
    # The error of the layers before it, which this layer compensates.
    missing = np.matmul(rows.transpose(0, 2, 1), np.matmul(floats - rows, wanted)) / rows.shape[1]
    rounded = _adaround(wanted, nearest, scale, rounding.qmax, gram, missing, iterations)
    variable.assign(_ungrouped(layer, rounded, variable.shape).astype(np.float32))
    rounding.settle()


def _adaround(
    wanted: np.ndarray,
    nearest: np.ndarray,
    scale: np.ndarray,
    qmax: int,
    gram: np.ndarray,
    missing: np.ndarray,
    iterations: int,
) -> np.ndarray:
    """Returns the rounded weights, chosen by gradient descent on a relaxed choice (Adam)."""
    scaled = np.clip(wanted / scale, -qmax, qmax)
    floor = np.floor(scaled)
    # Zeros stay zero, and weights at -qmax or qmax stay there: the converter computes the scale
    # from them.
    fixed = (wanted == 0) | (np.abs(scaled) >= qmax - 1e-3)
    target, gram = wanted.astype(np.float32), gram.astype(np.float32)
    missing = missing.astype(np.float32)
    floor32, scale32 = floor.astype(np.float32), scale.astype(np.float32)
    share = np.clip((scaled - floor + 0.1) / 1.2, 0.01, 0.99).astype(np.float32)
    choice = np.log(share / (1 - share))
    difference = nearest.astype(np.float32) - target
    least = float(np.sum(difference * (gram @ difference))) or 1.0
    moments = [np.zeros_like(choice), np.zeros_like(choice)]
    for step in range(1, iterations + 1):
        sigmoid = 1 / (1 + np.exp(-choice))
        up = np.clip(1.2 * sigmoid - 0.1, 0, 1)
        slope = 1.2 * sigmoid * (1 - sigmoid) * ((up > 0) & (up < 1))
        difference = (floor32 + up) * scale32 - target
        gradient = 2 * (gram @ difference - missing) * scale32 * (choice.size / least)
        done = step / iterations
        if done > 0.2:  # then choices are pushed to 0 or 1, ever harder
            power = 20 - 18 * (done - 0.2) / 0.8
            centered = 2 * up - 1
            gradient -= 0.1 * 2 * power * np.sign(centered) * np.abs(centered) ** (power - 1)
        gradient *= slope
        for moment, rate, seen in zip(moments, (0.9, 0.999), (gradient, gradient**2), strict=True):
            moment += (1 - rate) * (seen - moment)
        first, second = moments[0] / (1 - 0.9**step), moments[1] / (1 - 0.999**step)
        choice -= 0.01 * first / (np.sqrt(second) + 1e-8)
    sigmoid = 1 / (1 + np.exp(-choice))
    chosen = np.clip(floor + (1.2 * sigmoid - 0.1 >= 0.5), -qmax, qmax) * scale
    chosen = np.where(fixed, nearest, chosen)

    def error(weights: np.ndarray) -> np.ndarray:
        change = weights - wanted
        return np.sum(change * (gram @ change - 2 * missing), axis=1, keepdims=True)

    best = np.where(error(chosen) < error(nearest), chosen, nearest)
    other = np.clip(np.where(best > wanted, floor, floor + 1), -qmax, qmax) * scale
    return _flipped(best, np.where(fixed, best, other), wanted, gram, missing)


def _flipped(
    best: np.ndarray, other: np.ndarray, wanted: np.ndarray, gram: np.ndarray, missing: np.ndarray
) -> np.ndarray:
    """Returns weights rounded to the other side, one after the other, where that reduces the error.

    Large layers are returned unchanged, since it would take minutes.
    """
    best = best.copy()
    if best.shape[1] * best.size > 2**31:
        return best
    slope = gram @ (best - wanted) - missing
    for index in range(best.shape[1]):
        change = other[:, index] - best[:, index]
        better = change * (2 * slope[:, index] + gram[:, index, index, None] * change) < 0
        best[:, index] += change * better
        slope += gram[:, :, index, None] * (change * better)[:, None]
    return best
