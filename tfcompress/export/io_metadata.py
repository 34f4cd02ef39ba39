"""The metadata of a file: normalization and labels, checked, and how it was made."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress.graph.read import input_specs, output_names
from tfcompress.scheme import INTEGER_SCHEMES
from tfcompress.wrap.state import transforms_of


def labels_by_output(labels: Any, model: keras.Model) -> dict[str, list[str]]:
    """Returns the labels of each output that has any.

    Args:
        labels: None, a list for the only output, or a dict of lists by output name.
        model: The model.

    Raises:
        TypeError: If they are not strings.
        ValueError: If an output is unknown, or has another number of channels.
    """
    if labels is None:
        return {}
    checked = {}
    sizes = dict(zip(output_names(model), (t.shape[-1] for t in model.outputs), strict=True))
    for output, names in _by_name(labels, list(sizes), "labels", "output").items():
        strings = isinstance(names, Sequence) and not isinstance(names, str)
        lines = strings and all(isinstance(n, str) and len(n.splitlines()) <= 1 for n in names)
        if not lines:
            raise TypeError(f"labels must be a list of strings of one line. Received: {names!r}")
        if len(names) != sizes[output]:
            raise ValueError(
                f"labels must name each of the {sizes[output]} channels of output {output!r}. "
                f"Received: {len(names)} labels."
            )
        checked[output] = list(names)
    return checked


def normalization_by_input(
    normalization: Any, model: keras.Model
) -> dict[str, tuple[list[float], list[float]]]:
    """Returns mean and deviation, as lists, of each input that has any.

    Args:
        normalization: None, a pair (mean, deviation) for the only input, or a dict of pairs by
            input name; numbers, or one for each channel.
        model: The model.

    Raises:
        TypeError: If one is not a pair of numbers.
        ValueError: If an input is unknown, has another number of channels, or a deviation is not
            positive.
    """
    if normalization is None:
        return {}
    checked = {}
    channels = {spec.name: spec.shape[-1] if spec.shape else 1 for spec in input_specs(model)}
    for name, pair in _by_name(normalization, list(channels), "normalization", "input").items():
        try:
            mean, deviation = (np.atleast_1d(np.asarray(value, float)) for value in pair)
        except (TypeError, ValueError):
            raise TypeError(
                "normalization must be a pair (mean, deviation) of numbers, or of one number for "
                f"each channel. Received: {pair!r}"
            ) from None
        allowed = {1, channels[name]}
        if mean.ndim > 1 or mean.shape != deviation.shape or mean.size not in allowed:
            raise ValueError(
                f"normalization of input {name!r} must hold one mean and deviation, or one of each "
                f"for its {channels[name]} channels. Received: {pair!r}"
            )
        if not (deviation > 0).all() or not np.isfinite([mean, deviation]).all():
            raise ValueError(f"normalization needs deviations above 0. Received: {pair!r}")
        checked[name] = mean.tolist(), deviation.tolist()
    return checked


def _by_name(value: Any, names: list[str], argument: str, kind: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        if len(names) > 1:
            raise ValueError(
                f"{argument} must be a dict by {kind} where there are several: "
                f"{', '.join(map(repr, names))}. Received: {value!r}"
            )
        return {names[0]: value}
    unknown = [name for name in value if name not in names]
    if unknown:
        raise ValueError(
            f"{argument} names the {kind} {unknown[0]!r}, which the model does not have. It has: "
            f"{', '.join(map(repr, names))}"
        )
    return value


def settings_of(model: keras.Model, scheme: str, trained: bool, agreed: Any) -> dict[str, Any]:
    """Returns how a file was made, for its metadata."""
    checked = {
        key: float(f"{value:.4g}") if isinstance(value, float) else value
        for key, value in (dataclasses.asdict(agreed) if agreed else {}).items()
    }
    return {
        "scheme": scheme,
        "ranges": "trained" if trained else "measured" if scheme in INTEGER_SCHEMES else None,
        "weights": transforms_of(model),
        "agreement": checked or None,
        "versions": versions("tfcompress", "tensorflow", "keras"),
    }


def versions(*modules: str) -> dict[str, str]:
    """Returns the versions of modules; those of packages have several names, as tensorflow-cpu."""
    return {name: importlib.import_module(name).__version__ for name in modules}
