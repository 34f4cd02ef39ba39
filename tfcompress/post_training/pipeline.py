"""Post-training quantization: a float model with ranges and roundings chosen on samples."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping

import keras
import numpy as np

from tfcompress.data import spread
from tfcompress.graph.layers import plain
from tfcompress.graph.read import walk_layers
from tfcompress.graph.run import fixed_batch, outputs_of
from tfcompress.lowering.strip import without_transforms
from tfcompress.post_training.adaround import noting_floats, round_by_output
from tfcompress.post_training.calibrate import calibrate
from tfcompress.post_training.equalize import equalize
from tfcompress.post_training.fold_batch_norm import fold_batch_norm
from tfcompress.quantization.layers.recurrent import RuntimeRecurrent
from tfcompress.quantization.quantize import quantized
from tfcompress.samples.probes import far_samples
from tfcompress.scheme import QuantizationScheme
from tfcompress.wrap.state import is_wrapped

_TRIED = 64  # samples


def _better_range(
    made: keras.Model,
    given: keras.Model,
    samples: Mapping[str, np.ndarray],
    methods: tuple[str, ...],
    measured: Mapping[str, np.ndarray],
) -> str:
    """Returns the way to choose ranges with which the outputs come out best.

    Args:
        made: A quantized model. Its ranges are changed.
        given: The float model.
        samples: What it is compared on.
        methods: Ways that `calibrate` knows.
        measured: What ranges are measured on.
    """
    wanted = _numbers(given, samples)
    errors = {}
    for method in methods:
        calibrate(made, measured, method)
        pairs = zip(_numbers(made, samples), wanted, strict=True)
        each = [((a - b) ** 2).reshape(len(a), -1).mean(1) / (np.var(b) or 1) for a, b in pairs]
        by_sample = np.sort(np.sum(each, axis=0))  # one that is odd would outweigh all others
        errors[method] = float(by_sample[: max(1, int(0.98 * len(by_sample)))].mean())
    return min(errors, key=lambda method: errors[method])


def _range(
    method: str | None, made: keras.Model, given: keras.Model, samples: Mapping[str, np.ndarray]
) -> str:
    """Returns how ranges are chosen: as the scheme says, or the better way, on samples."""
    few = {name: spread(array, _TRIED) for name, array in samples.items()}
    if method == "auto":
        return _better_range(made, given, few, _AUTOMATIC, samples)
    recurrent = any(isinstance(plain(layer), RuntimeRecurrent) for _, layer in walk_layers(made))
    if method is None and recurrent:
        # A cell adds up over the steps, which share its grid: of long sequences few reach its ends.
        few = {name: array[:_TRIED] for name, array in samples.items()}
        return _better_range(made, given, few, ("moving_average", "min_max"), few)
    return method or "min_max"


_AUTOMATIC = ("min_max", "moving_average", "percentile", "mse")


def _numbers(model: keras.Model, samples: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    return [array.astype(np.float64) for array in outputs_of(model, samples)]  # booleans, too


def _left(
    scheme: QuantizationScheme, model: keras.Model, folded: keras.Model
) -> dict[str, str | QuantizationScheme]:
    """Returns the overrides without those that are for layers folded into others only."""
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
        scheme: Bits, and how ranges and roundings are chosen.
        samples: Arrays by input name, like those of training.
        say: Is told what is being done.
    """
    given = model
    if is_wrapped(model):
        model = without_transforms(model)
    folded = fold_batch_norm(model)
    if scheme.equalize:
        say("equalizing channels")
        folded = equalize(folded)
    if scheme.weight_range == "learned":
        scheme = dataclasses.replace(scheme, weight_range="mse")
    scheme = dataclasses.replace(scheme, overrides=_left(scheme, model, folded))
    made = quantized(folded, scheme, move=folded is not given)
    adaptive = scheme.rounding == "adaround"
    whole = fixed_batch(model) is None  # else many samples cannot be looked at together
    if adaptive and not whole:
        raise ValueError(
            f"rounding='adaround' needs a model that takes any number of samples at once; "
            f"{model.name!r} takes {fixed_batch(model)}. Use rounding='nearest'."
        )
    say("measuring the ranges of activations")
    if scheme.activation_range == "auto":
        far = np.any([far_samples(array) for array in samples.values()], axis=0)
        samples = {name: array[~far] for name, array in samples.items()}
    method = _range(scheme.activation_range, made, given, samples)
    if not (whole and (adaptive or scheme.correct_bias)):
        calibrate(made, samples, method)
        return made
    # Corrected outputs are near those of the float model, and so are their ranges.
    with noting_floats(made, samples, adaptive=adaptive) as floats:
        calibrate(made, samples, method)
    say("choosing roundings")
    round_by_output(made, samples, floats, adaptive=adaptive, correct_bias=scheme.correct_bias)
    return made
