"""prune_channels: removes whole channels, by a ratio or within a budget."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfcompress.data import collect
from tfcompress.errors import CompressionWarning
from tfcompress.export.export_tflite import export_tflite
from tfcompress.files import temporary_folder
from tfcompress.graph.cost import macs
from tfcompress.graph.read import input_specs
from tfcompress.graph.run import packed
from tfcompress.graph.sameness import check_kept
from tfcompress.graph.select import LayerSelection, select
from tfcompress.rewrite.channels.coupling import Coupling, Group
from tfcompress.rewrite.channels.cutting import cut
from tfcompress.rewrite.channels.scoring import CRITERIA, Criterion, unit_scores
from tfcompress.scheme import check_choice
from tfcompress.tflite.run import TFLiteModel
from tfcompress.wrap.state import as_unwrapped

_TAYLOR_SAMPLES = 512
_BATCH = 32
_TRIES = 9


def prune_channels(
    model: keras.Model,
    ratio: float = 0.5,
    *,
    target_macs: float | None = None,
    target_latency_ms: float | None = None,
    criterion: Criterion = "l2",
    data: Any = None,
    ranking: str = "global",
    round_to: int = 1,
    layers: LayerSelection = None,
    unknown: str = "keep",
    seed: int = 0,
) -> keras.Model:
    """Returns a smaller model of the same classes and names, without some of its channels.

    Channels that depend on each other are removed together: those of tensors that are added, of a
    depthwise convolution and its input, of attention heads. Inputs and outputs of the model are
    kept. Fine-tune the result: removal costs accuracy, most of which fine-tuning recovers;
    removal in several small rounds costs less.

    Saves bytes, milliseconds and RAM, on every runtime and without a special kernel.

    Args:
        model: A built model, not wrapped. It is not changed.
        ratio: Share of the channels to remove, in (0, 1): of each group of coupled channels with
            `ranking="layer"`, of all removable channels with "global".
        target_macs: Instead of `ratio`: the smallest share that brings the multiply-accumulates of
            one sample to this number.
        target_latency_ms: Instead of `ratio`: likewise, milliseconds for one sample in float on
            this machine's TFLite runtime with one thread, measured.
        criterion: The importance of channels: "l1" or "l2" norm of the weights,
            "bn_gamma" (scales of BatchNormalization: network slimming), "taylor" (change of the
            loss to first order, on `data`), "fpgm" (distance to the other filters of the layer),
            "random" (for comparison), or a function of your own. It is called with an array
            (channels, weights of each) for every kernel, once by output channels and once by input
            channels, and for every gamma; it returns a score >= 0 for each channel. Scores are
            divided by their mean, and those of coupled channels averaged.
        data: For "taylor": inputs, or (inputs, labels), like those of training; up to 512 samples.
            Without labels, the classes that the model predicts serve as labels.
        ranking: "global", or "layer" to remove the same share in every layer.
        round_to: The number of remaining channels is a multiple of this where possible, e.g. 8 for
            SIMD kernels.
        layers: The layers whose channels may be removed: None, a glob or list of globs on layer
            paths, or a predicate. Coupled channels are removed only if all layers that produce them
            are named.
        unknown: "keep" to keep the channels around a layer whose coupling is unknown, and warn; or
            "raise".
        seed: Seed for "random".

    Returns:
        A new model, not compiled. `channels_kept` is a dict from the layers around which channels
        were kept to the reasons.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If it is wrapped, an argument is out of range, nothing may be removed, a budget
            cannot be met, or a layer is unknown and `unknown` is "raise".

    Warns:
        CompressionWarning: If channels were kept because a layer is unknown.

    Example:
        >>> import keras
        >>> import tfcompress as tfc
        >>> model = keras.Sequential([keras.Input((8,)), *map(keras.layers.Dense, (16, 4))])
        >>> [layer.units for layer in tfc.prune_channels(model, 0.5).layers]
        [8, 4]

    References:
        DepGraph: Fang et al. 2023, arXiv:2301.12900. Norms: Li et al. 2017, arXiv:1608.08710.
        Network slimming: Liu et al. 2017, arXiv:1708.06519. Taylor: Molchanov et al. 2019,
        arXiv:1906.10771. FPGM: He et al. 2019, arXiv:1811.00250.
    """
    if not callable(criterion):
        check_choice(criterion, "criterion", CRITERIA)
    check_choice(ranking, "ranking", ("global", "layer"))
    check_choice(unknown, "unknown", ("raise", "keep"))
    _check_numbers(ratio, target_macs, target_latency_ms, round_to)
    model = as_unwrapped(model, "prune_channels")
    batches = _batches(model, criterion, data)
    coupling = Coupling(model, unknown)
    groups = _chosen(coupling, layers)
    scores = unit_scores(model, coupling, criterion, batches, seed)

    def shrunk(share: float) -> keras.Model:
        return cut(model, coupling, _removed(groups, scores, share, ranking, round_to))

    if target_macs is not None:
        smaller = _search(shrunk, macs, target_macs, "target_macs")
    elif target_latency_ms is not None:
        smaller = _search(shrunk, _latency, target_latency_ms, "target_latency_ms")
    else:
        smaller = shrunk(ratio)
    if coupling.kept:
        reasons = "; ".join(f"{path!r}: {reason}" for path, reason in coupling.kept.items())
        warnings.warn(
            f"The input and output channels of some layers were kept. {reasons}. A rule for these "
            "layers makes the channels removable (tfcompress.rewrite.channels.rules).",
            CompressionWarning,
            stacklevel=2,
        )
    check_kept(model, smaller, "prune_channels")
    smaller.channels_kept = dict(coupling.kept)
    return smaller


def _check_numbers(ratio: Any, target_macs: Any, target_latency_ms: Any, round_to: Any) -> None:
    if not isinstance(ratio, (int, float)) or isinstance(ratio, bool) or not 0 < ratio < 1:
        raise ValueError(
            "ratio is the share of the channels to remove, between 0 and 1: with all of them gone "
            f"a layer would be empty. Received: ratio={ratio!r}"
        )
    if target_macs is not None and target_latency_ms is not None:
        raise ValueError("Give target_macs or target_latency_ms, not both.")
    for name, value in (("target_macs", target_macs), ("target_latency_ms", target_latency_ms)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive. Received: {value!r}")
    if not isinstance(round_to, int) or isinstance(round_to, bool) or round_to < 1:
        raise ValueError(f"round_to must be an integer >= 1. Received: {round_to!r}")


def _batches(model: keras.Model, criterion: Criterion, data: Any) -> list[tuple[Any, Any]] | None:
    if criterion != "taylor":
        if data is not None:
            raise ValueError(f"data is for criterion='taylor'. Received: criterion={criterion!r}")
        return None
    if data is None:
        raise ValueError("criterion='taylor' needs data=: inputs, or (inputs, labels).")
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "criterion='taylor' needs Keras on TensorFlow for its gradients. Received: "
            f"{keras.backend.backend()}. Take criterion='l2'."
        )
    arrays, labels = collect(data, input_specs(model), limit=_TAYLOR_SAMPLES, argument="data")
    count = len(next(iter(arrays.values())))
    slices = [slice(start, start + _BATCH) for start in range(0, count, _BATCH)]
    return [
        (
            packed(model, {name: array[part] for name, array in arrays.items()}),
            None if labels is None else labels[part],
        )
        for part in slices
    ]


def _chosen(coupling: Coupling, layers: LayerSelection) -> list[Group]:
    groups = coupling.groups
    if not groups:
        raise ValueError("There is nothing to remove: all channels lead to inputs or outputs.")
    named = select(coupling.makers.items(), layers)
    selected = [group for group in groups if set(group.layers) <= named]
    if not selected:
        coupled = sorted({path for g in groups if named & set(g.layers) for path in g.layers})
        raise ValueError(
            f"layers={layers!r} names no layer whose channels may go without those of others. "
            f"Coupled with them: {', '.join(coupled) or 'inputs and outputs of the model'}"
        )
    return selected


def _removed(
    groups: list[Group], scores: np.ndarray, ratio: float, ranking: str, round_to: int
) -> np.ndarray:
    """Returns the units to remove; at least one of each group remains."""
    all_units = np.concatenate([group.units for group in groups])
    least_important = set(
        all_units[np.argsort(scores[all_units], kind="stable")][: round(ratio * len(all_units))]
    )
    removed = []
    for group in groups:
        ordered = group.units[np.argsort(scores[group.units], kind="stable")]
        count = len(ordered)
        if ranking == "global":
            remaining = count - len(least_important & set(ordered))
        else:
            remaining = count - round(ratio * count)
        multiple = 1 if group.heads else round_to
        remaining = min(count, max(multiple, -(-remaining // multiple) * multiple))
        removed.append(ordered[: count - remaining])
    return np.concatenate(removed)


def _search(
    shrunk: Callable[[float], keras.Model],
    cost: Callable[[keras.Model], float],
    target: float,
    argument: str,
) -> keras.Model:
    """Returns the model of the smallest ratio that meets a budget, by bisection."""
    low, high = 0.0, 0.999
    best = shrunk(high)
    if (least := cost(best)) > target:
        raise ValueError(
            f"{argument}={target:g} cannot be met: with as few channels as may stay it is "
            f"{least:g}. Inputs, outputs and layers that are not named stay as they are."
        )
    for _ in range(_TRIES):
        middle = (low + high) / 2
        model = shrunk(middle)
        if cost(model) <= target:
            best, high = model, middle
        else:
            low = middle
    return best


def _latency(model: keras.Model) -> float:
    with temporary_folder() as folder:
        path = f"{folder}/m.tflite"
        export_tflite(model, path, batch_size=1, verify=False, verbose=False)
        return TFLiteModel(path).benchmark().median_ms
