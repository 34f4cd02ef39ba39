"""Post-training quantization: ranges and rounded weights of a float model, chosen on samples."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
from collections.abc import Callable, Iterator, Mapping

import keras
import numpy as np

from tfcompress.data import spread
from tfcompress.graph.layers import plain
from tfcompress.graph.read import walk_layers
from tfcompress.graph.run import fixed_batch, outputs_of
from tfcompress.lowering.strip import without_transforms
from tfcompress.post_training.adaround import recording_floats, round_by_output
from tfcompress.post_training.calibrate import calibrate
from tfcompress.post_training.equalize import equalize
from tfcompress.post_training.fold_batch_norm import fold_batch_norm
from tfcompress.post_training.smooth import smooth
from tfcompress.quantization.layers.recurrent import RuntimeRecurrent
from tfcompress.quantization.quantize import quantized
from tfcompress.samples.probes import far_samples
from tfcompress.scheme import QuantizationScheme
from tfcompress.wrap.state import is_wrapped

_TRIED = 64  # samples, to compare methods


def _best_range_method(
    quantized_model: keras.Model,
    float_model: keras.Model,
    samples: Mapping[str, np.ndarray],
    methods: tuple[str, ...],
    measured: Mapping[str, np.ndarray],
) -> str:
    """Returns the method to measure ranges that gives the smallest error of the outputs.

    Args:
        quantized_model: A quantized model. Its ranges are changed.
        float_model: The float model.
        samples: Samples that the outputs are compared on.
        methods: Methods of `calibrate`.
        measured: Samples that ranges are measured on.
    """
    wanted = _outputs(float_model, samples)
    errors = {}
    for method in methods:
        calibrate(quantized_model, measured, method)
        errors[method] = _error(quantized_model, samples, wanted)
    return min(errors, key=lambda method: errors[method])


def _error(
    model: keras.Model, samples: Mapping[str, np.ndarray], wanted: list[np.ndarray]
) -> float:
    """Returns the squared error of the outputs, in variances, without the worst samples."""
    pairs = zip(_outputs(model, samples), wanted, strict=True)
    each = [((a - b) ** 2).reshape(len(a), -1).mean(1) / (np.var(b) or 1) for a, b in pairs]
    by_sample = np.sort(np.sum(each, axis=0))
    return float(by_sample[: max(1, int(0.98 * len(by_sample)))].mean())


def _range_method(
    method: str | None,
    quantized_model: keras.Model,
    float_model: keras.Model,
    samples: Mapping[str, np.ndarray],
) -> str:
    """Returns the method to measure ranges: that of the scheme, or the best one on samples."""
    few = {name: spread(array, _TRIED) for name, array in samples.items()}
    if method == "auto":
        return _best_range_method(quantized_model, float_model, few, _AUTOMATIC, samples)
    layers = (plain(layer) for _, layer in walk_layers(quantized_model))
    recurrent = any(isinstance(layer, RuntimeRecurrent) for layer in layers)
    if method is None and recurrent:
        # The state grows over the time steps, which share one range. In long sequences few values
        # reach its minimum or maximum.
        few = {name: array[:_TRIED] for name, array in samples.items()}
        methods = ("moving_average", "min_max")
        return _best_range_method(quantized_model, float_model, few, methods, few)
    return method or "min_max"


_AUTOMATIC = ("min_max", "moving_average", "percentile", "mse")


def _outputs(model: keras.Model, samples: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    return [array.astype(np.float64) for array in outputs_of(model, samples)]  # booleans as well


def _remaining_overrides(
    scheme: QuantizationScheme, model: keras.Model, folded: keras.Model
) -> dict[str, str | QuantizationScheme]:
    """Returns the overrides without those that match only layers which were folded."""
    before, after = ([path for path, _ in walk_layers(m)] for m in (model, folded))
    return {
        glob: other
        for glob, other in scheme.overrides.items()
        if fnmatch.filter(after, glob) or not fnmatch.filter(before, glob)
    }


def post_training(
    model: keras.Model,
    scheme: QuantizationScheme,
    samples: Mapping[str, np.ndarray],
    say: Callable[[str], None] = lambda text: None,
) -> keras.Model:
    """Quantizes a model without training.

    Args:
        model: A float model, pruned or not. It is not changed.
        scheme: Bits, and the methods to choose ranges and rounding.
        samples: Arrays by input name, like those of training.
        say: Called with texts about the progress.
    """
    original = model
    if is_wrapped(model):
        model = without_transforms(model)
    folded = fold_batch_norm(model)
    if scheme.equalize:
        say("equalizing channels")
        few = {name: spread(array, _TRIED) for name, array in samples.items()}
        folded = smooth(equalize(folded), few)
    if scheme.weight_range == "learned":
        scheme = dataclasses.replace(scheme, weight_range="mse")
    scheme = dataclasses.replace(scheme, overrides=_remaining_overrides(scheme, model, folded))
    quantized_model = quantized(folded, scheme, move=folded is not original)
    adaptive = scheme.rounding == "adaround"
    any_batch = fixed_batch(model) is None  # needed to run many samples in one batch
    if adaptive and not any_batch:
        raise ValueError(
            f"rounding='adaround' needs a model that takes any number of samples at once; "
            f"{model.name!r} takes {fixed_batch(model)}. Use rounding='nearest'."
        )
    say("measuring the ranges of activations")
    if scheme.activation_range == "auto":
        far = np.any([far_samples(array) for array in samples.values()], axis=0)
        samples = {name: array[~far] for name, array in samples.items()}
    method = _range_method(scheme.activation_range, quantized_model, original, samples)
    if not (any_batch and (adaptive or scheme.correct_bias)):
        calibrate(quantized_model, samples, method)
        return quantized_model
    order = np.random.default_rng(0).permutation(len(next(iter(samples.values()))))
    samples = {name: array[order] for name, array in samples.items()}
    # After the correction, activations and their ranges are close to those of the float model.
    most = max(1, len(order) * 3 // 4)
    with recording_floats(quantized_model, samples, adaptive=adaptive, most=most) as floats:
        calibrate(quantized_model, samples, method)
    say("choosing how weights are rounded")
    # AdaRound was chosen with the biases as they are corrected.
    used = len(order) if adaptive else floats.count
    with _keeping_biases_that_help(quantized_model, original, samples, used):
        round_by_output(
            quantized_model, samples, floats, adaptive=adaptive, correct_bias=scheme.correct_bias
        )
    return quantized_model


_FEWEST_OTHERS = 8


@contextlib.contextmanager
def _keeping_biases_that_help(
    model: keras.Model, original: keras.Model, samples: Mapping[str, np.ndarray], used: int
) -> Iterator[None]:
    """Puts biases back if the outputs of other samples than those used are worse afterwards."""
    others = {name: array[used : used + _TRIED] for name, array in samples.items()}
    if len(next(iter(others.values()))) < _FEWEST_OTHERS:
        yield
        return
    wanted = _outputs(original, others)
    layers = (plain(layer) for _, layer in walk_layers(model))
    biases = [layer.bias for layer in layers if getattr(layer, "bias", None) is not None]
    kept = [keras.ops.convert_to_numpy(bias) for bias in biases]
    before = _error(model, others, wanted)
    yield
    if _error(model, others, wanted) > before:
        for bias, value in zip(biases, kept, strict=True):
            bias.assign(value)
