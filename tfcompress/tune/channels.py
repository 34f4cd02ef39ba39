"""prune_channels: channels chosen and removed, to a ratio or to a budget."""

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

    Channels that depend on each other go together: those of tensors that are added, of a depthwise
    convolution and what it reads, of heads of attention. Inputs and outputs of the model stay as
    they are. Train the result on: removal costs accuracy, which fine-tuning mostly brings back;
    removing a little at a time costs less.

    Pays in: bytes, milliseconds and RAM, on every runtime and without a special kernel.

    Args:
        model: A built model, not wrapped. It is not changed.
        ratio: Share of the channels to remove, in (0, 1): of each group of coupled channels with
            `ranking="layer"`, of all that may go with "global".
        target_macs: Instead of `ratio`: the smallest share that brings the multiply-accumulates of
            one sample to this number.
        target_latency_ms: Instead of `ratio`: likewise, milliseconds for one sample in float on
            this machine's TFLite runtime with one thread, measured.
        criterion: What says which channels matter least: "l1" or "l2" norm of the weights,
            "bn_gamma" (scales of BatchNormalization: network slimming), "taylor" (change of the
            loss to first order, on `data`), "fpgm" (distance to the other filters of the layer),
            "random" (for comparison), or a function of your own. It is called with an array
            (channels, weights of each) of every kernel, by the channels that it makes and by those
            that it reads, and of every gamma; it returns a score >= 0 for each channel. Scores are
            divided by their mean, and those of coupled channels averaged.
        data: For "taylor": inputs, or (inputs, labels), like those of training; up to 512 samples.
            Without labels, the classes that the model itself finds.
        ranking: "global", or "layer" to remove the same share everywhere.
        round_to: Numbers of channels that stay are multiples of this where they can be, e.g. 8 for
            the widths that SIMD likes.
        layers: The layers whose channels may go: None, a glob or list of globs on layer paths, or a
            predicate. Coupled channels go only if all layers that make them are named.
        unknown: "keep" to leave the channels around a layer alone of which it is not known how they
            are coupled, with a warning that names it; or "raise".
        seed: For "random".

    Returns:
        A new model, not compiled. `channels_kept` is a dict of the layers around which channels
        were left alone, and why.

    Raises:
        TypeError: If `model` is no Keras model.
        ValueError: If it is wrapped, an argument is out of range, nothing may be removed, a budget
            cannot be met, or a layer is not known and `unknown` is "raise".

    Warns:
        CompressionWarning: If channels were left alone because a layer is not known.

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
    given = _batches(model, criterion, data)
    coupling = Coupling(model, unknown)
    groups = _chosen(coupling, layers)
    scores = unit_scores(model, coupling, criterion, given, seed)

    def shrunk(share: float) -> keras.Model:
        return cut(model, coupling, _removed(groups, scores, share, ranking, round_to))

    if target_macs is not None:
        made = _search(shrunk, macs, target_macs, "target_macs")
    elif target_latency_ms is not None:
        made = _search(shrunk, _latency, target_latency_ms, "target_latency_ms")
    else:
        made = shrunk(ratio)
    if coupling.kept:
        told = "; ".join(f"{path!r}: {reason}" for path, reason in coupling.kept.items())
        warnings.warn(
            f"The channels that some layers read and make were left alone. {told}. A rule for them "
            "lets these go, too (tfcompress.rewrite.channels.rules).",
            CompressionWarning,
            stacklevel=2,
        )
    check_kept(model, made, "prune_channels")
    made.channels_kept = dict(coupling.kept)
    return made


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
    found = [group for group in groups if set(group.layers) <= named]
    if not found:
        coupled = sorted({path for g in groups if named & set(g.layers) for path in g.layers})
        raise ValueError(
            f"layers={layers!r} names no layer whose channels may go without those of others. "
            f"Coupled with them: {', '.join(coupled) or 'inputs and outputs of the model'}"
        )
    return found


def _removed(
    groups: list[Group], scores: np.ndarray, ratio: float, ranking: str, round_to: int
) -> np.ndarray:
    """Returns the units to remove, at least one in each group staying."""
    every = np.concatenate([group.units for group in groups])
    lowest = set(every[np.argsort(scores[every], kind="stable")][: round(ratio * len(every))])
    removed = []
    for group in groups:
        ordered = group.units[np.argsort(scores[group.units], kind="stable")]
        count = len(ordered)
        if ranking == "global":
            stay = count - len(lowest & set(ordered))
        else:
            stay = count - round(ratio * count)
        multiple = 1 if group.heads else round_to
        stay = min(count, max(multiple, -(-stay // multiple) * multiple))
        removed.append(ordered[: count - stay])
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
    if (reached := cost(best)) > target:
        raise ValueError(
            f"{argument}={target:g} cannot be met: with as few channels as may stay it is "
            f"{reached:g}. Inputs, outputs and layers that are not named stay as they are."
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
