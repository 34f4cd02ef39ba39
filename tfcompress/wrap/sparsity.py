"""The sparsity of each pruned layer: one for all, one by name, or by global ranking."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress.errors import CompressionWarning
from tfcompress.graph.layers import plain
from tfcompress.graph.select import LayerSelection, select
from tfcompress.graph.weights import compressible_weights
from tfcompress.scheme import check_choice
from tfcompress.transforms.base import WeightTransform
from tfcompress.transforms.keep import KeepZeros
from tfcompress.transforms.mask import MagnitudeMask
from tfcompress.transforms.patterns import Blocks, as_pattern
from tfcompress.wrap.wrapper import CompressionWrapper

_DEFAULT = 0.8


def masks(
    sparsity: Any,
    pattern: Any,
    ranking: str,
    candidates: Sequence[tuple[str, Any]],
    layers: LayerSelection,
) -> dict[str, WeightTransform]:
    """Returns the mask of each layer to prune, by path.

    Args:
        sparsity: A number, a schedule, "keep", a dict of these by glob, or None for the usual one.
        pattern: See `prune`.
        ranking: See `prune`.
        candidates: (path, layer) of all layers that could be pruned.
        layers: Which of them to prune.
    """
    check_choice(ranking, "ranking", ("layer", "global"))
    chosen = select(candidates, layers)
    if not isinstance(sparsity, Mapping):
        mask = mask_of(sparsity, pattern, ranking)
        return dict.fromkeys(chosen, mask)
    if ranking == "global":
        raise ValueError(
            "ranking='global' shares one sparsity out among all layers. Received: "
            f"sparsity={dict(sparsity)!r}. Pass one number or schedule, or use ranking='layer'."
        )
    if not sparsity:
        raise ValueError(
            "sparsity is an empty dict: name at least one layer, such as {'dense*': 0.8}."
        )
    among = [(path, layer) for path, layer in candidates if path in chosen]
    chosen_masks: dict[str, WeightTransform] = {}
    for glob, value in sparsity.items():
        mask = mask_of(value, pattern, ranking)
        for path in select(among, glob, argument="sparsity"):
            chosen_masks.setdefault(path, mask)
    return chosen_masks


def mask_of(sparsity: Any, pattern: Any, ranking: str) -> WeightTransform:
    """Returns a mask; if `sparsity` is None, with the sparsity of the pattern."""
    pattern = as_pattern(pattern)
    if isinstance(sparsity, str):
        check_choice(sparsity, "sparsity", ("keep",))
        if pattern.spec != "unstructured" or ranking != "layer":
            raise ValueError(
                "sparsity='keep' keeps the zeros that are there: leave pattern and ranking out. "
                f"Received: pattern={pattern.spec!r}, ranking={ranking!r}"
            )
        return KeepZeros()
    if sparsity is None:
        sparsity = _DEFAULT if pattern.sparsity is None else pattern.sparsity
    return MagnitudeMask(sparsity, pattern.spec, ranking)


def start_kept(wrappers: Iterable[CompressionWrapper]) -> None:
    """Sets the masks of `KeepZeros` transforms by the weights as they are now."""
    for wrapper in wrappers:
        wrapper.start(KeepZeros)


def warn_of_zeros(layers: Iterable[tuple[str, Any]]) -> None:
    """Warns of pruned weights without a mask: training would change their zeros.

    Args:
        layers: (path, layer) of the layers that will be trained, wrapped or not.
    """
    pruned = []
    for path, layer in layers:
        if any(transform.keeps_zeros and transform.order == 0 for transform in _transforms(layer)):
            continue
        for weight in compressible_weights(plain(layer)):
            zeros = float(np.mean(keras.ops.convert_to_numpy(weight) == 0))
            if _MANY <= zeros < 1:  # all of them: an initializer
                pruned.append((path, zeros))
    if pruned:
        path, zeros = max(pruned, key=lambda entry: entry[1])
        warnings.warn(
            f"{zeros:.0%} of the weights of layer {path!r} are zero ({len(pruned)} such weights in "
            "all): this model was pruned. Training will change them. To keep the zeros, call "
            "quantize(prune(model, 'keep')).",
            CompressionWarning,
            stacklevel=3,
        )


_MANY = 0.1


def _transforms(layer: Any) -> Sequence[WeightTransform]:
    return getattr(layer, "transforms", ())


def _masks(
    wrappers: Mapping[str, CompressionWrapper],
) -> list[tuple[str, MagnitudeMask, Any]]:
    """Returns (path, mask, scores) of each mask whose units are ranked; shared layers once."""
    once = {id(wrapper): (path, wrapper) for path, wrapper in wrappers.items()}
    return [
        (path, mask, mask.scores(keras.ops.cast(weight, "float32")))
        for path, wrapper in once.values()
        for weight, transforms in wrapper.pipelines()
        for mask in transforms
        if isinstance(mask, MagnitudeMask)
        and (mask.ranking == "global" or isinstance(mask.pattern, Blocks))
    ]


def _warn_if_coarse(path: str, mask: MagnitudeMask, count: int) -> None:
    """Warns of a weight with so few blocks that it cannot reach its sparsity."""
    if np.floor(mask.schedule.target * count + 0.5) > count - 1:
        warnings.warn(
            f"layer {path!r} has {count} block(s) of {mask.pattern.spec}, of which one stays: it "
            f"cannot reach a sparsity of {mask.schedule.target:.2g}. Use smaller blocks, or leave "
            "it out with layers=.",
            CompressionWarning,
            stacklevel=5,
        )


def allocate(wrappers: Mapping[str, CompressionWrapper]) -> None:
    """Sets the share of each weight where the smallest weights of all layers are pruned.

    Args:
        wrappers: The wrapped layers by path. Their masks are changed.

    Warns:
        CompressionWarning: If the ranking would prune a whole weight, which then keeps one unit,
            or if blocks are too large for the requested sparsity.
    """
    ranked = _masks(wrappers)
    for path, mask, scores in ranked:
        if isinstance(mask.pattern, Blocks):
            _warn_if_coarse(path, mask, scores.shape[0])
    entries = [
        (path, mask, keras.ops.convert_to_numpy(scores))
        for path, mask, scores in ranked
        if mask.ranking == "global"
    ]
    if not entries:
        return
    sizes = np.array([scores.size for _, _, scores in entries])
    owners = np.repeat(np.arange(len(entries)), sizes)
    order = owners[np.argsort(np.concatenate([scores for _, _, scores in entries]), kind="stable")]
    levels = entries[0][1].levels
    shares = np.zeros((len(entries), len(levels)))
    for column, level in enumerate(levels):
        pruned = order[: int(np.floor(level * len(order) + 0.5))]
        shares[:, column] = np.bincount(pruned, minlength=len(entries)) / sizes
    emptied = sorted({entries[i][0] for i in np.flatnonzero(shares[:, -1] == 1)})
    if emptied:
        warnings.warn(
            f"ranking='global' would set all of layer {emptied[0]!r} to zero, as its weights are "
            f"the smallest ({len(emptied)} layer(s) in all). One weight of each is kept. Leave "
            "these layers out with layers=, or use ranking='layer'.",
            CompressionWarning,
            stacklevel=4,
        )
    for (_, mask, scores), share in zip(entries, shares, strict=True):
        mask.allocate(np.minimum(share, 1 - 1 / scores.size))
