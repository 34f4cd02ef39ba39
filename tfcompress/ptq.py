"""Post-training quantization: a float model with ranges and roundings chosen on samples."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping

import keras
import numpy as np

from tfcompress.data import spread
from tfcompress.graph.cost import plain
from tfcompress.graph.read import walk_layers
from tfcompress.graph.run import fixed_batch, outputs_of
from tfcompress.rewrite.adaround import noting_floats, round_by_output
from tfcompress.rewrite.equalize import equalize
from tfcompress.rewrite.fold import fold_batch_norm
from tfcompress.scheme import QuantizationScheme
from tfcompress.wrap.apply import quantized
from tfcompress.wrap.calibrate import calibrate
from tfcompress.wrap.recurrent import RuntimeRecurrent
from tfcompress.wrap.strip import is_wrapped, rounding_in_floats, without_transforms

_TRIED = 64  # samples
_KEPT = 8  # samples that a file can be compared on with the model


def _default_range(made: keras.Model, given: keras.Model, samples: Mapping[str, np.ndarray]) -> str:
    """Returns how ranges are chosen where the scheme does not say: the better way, on samples."""
    if not any(isinstance(plain(layer), RuntimeRecurrent) for _, layer in walk_layers(made)):
        return "min_max"
    # A cell adds up over the steps, which share its grid: of long sequences few reach its ends.
    few = {name: array[:_TRIED] for name, array in samples.items()}
    wanted = _numbers(given, few)
    errors = {}
    for method in ("moving_average", "min_max"):
        calibrate(made, few, method)
        pairs = zip(_numbers(made, few), wanted, strict=True)
        errors[method] = sum(np.var(a - b) / (np.var(b) or 1) for a, b in pairs)
    return min(errors, key=lambda method: errors[method])


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


@dataclasses.dataclass(frozen=True)
class Measured:
    """A model quantized without training.

    Attributes:
        model: The model, as `quantize` would return it trained.
        samples: A few that it was measured on, by input name.
        outputs: What it puts out for these, flat, rounded in floats; None if that was not computed
            on the way.
    """

    model: keras.Model
    samples: Mapping[str, np.ndarray]
    outputs: list[np.ndarray] | None = None

    def put_out(self) -> list[np.ndarray]:
        """Returns what the model puts out for the samples, flat, rounded in floats."""
        if self.outputs is not None:
            return self.outputs
        with rounding_in_floats(self.model):
            return outputs_of(self.model, self.samples)


def post_training(
    model: keras.Model, scheme: QuantizationScheme, samples: Mapping[str, np.ndarray]
) -> keras.Model:
    """Returns the model that `measured_model` makes of another."""
    return measured_model(model, scheme, samples).model


def measured_model(
    model: keras.Model,
    scheme: QuantizationScheme,
    samples: Mapping[str, np.ndarray],
    say: Callable[[str], None] = lambda text: None,
) -> Measured:
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
    method = scheme.activation_range or _default_range(made, given, samples)
    if not (whole and (adaptive or scheme.correct_bias)):
        calibrate(made, samples, method)
        return Measured(made, {name: spread(array, _KEPT) for name, array in samples.items()})
    # Corrected outputs are near those of the float model, and so are their ranges.
    with noting_floats(made, samples, adaptive=adaptive) as floats:
        calibrate(made, samples, method)
    say("choosing roundings")
    outputs = round_by_output(
        made, samples, floats, adaptive=adaptive, correct_bias=scheme.correct_bias
    )
    kept = {name: spread(array[: floats.count], _KEPT) for name, array in samples.items()}
    return Measured(made, kept, [spread(x, _KEPT) if x.ndim else x for x in outputs])
