"""The one selection rule: which layers an operation applies to."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Sequence
from typing import Any

LayerSelection = str | Sequence[str] | Callable[[Any], bool] | None


def select(
    candidates: Iterable[tuple[str, Any]], layers: LayerSelection, argument: str = "layers"
) -> set[str]:
    """Returns the paths of the candidates that `layers` selects.

    Args:
        candidates: (path, layer) of all layers that could be selected. A path joins the names of
            nested models and of the layer with "/".
        layers: None for all; a glob, or a list of globs, on the path; or a predicate on the layer.
        argument: What to call `layers` in messages.

    Returns:
        A set of paths, never empty.

    Raises:
        TypeError: If `layers` is something else.
        ValueError: If a glob matches nothing; the message lists the nearest names.
    """
    candidates = list(candidates)
    paths = [path for path, _ in candidates]
    if layers is None:
        return set(paths)
    if callable(layers):
        chosen = {path for path, layer in candidates if layers(layer)}
        if not chosen:
            raise ValueError(
                f"layers is a predicate that selects none of the {len(paths)} layers that could be "
                f"selected: {_listing(paths)}"
            )
        return chosen
    globs = [layers] if isinstance(layers, str) else layers
    if not isinstance(globs, Sequence) or not all(isinstance(g, str) for g in globs) or not globs:
        raise TypeError(
            "layers must be None, a glob or a non-empty list of globs on layer paths, or a "
            f"predicate. Received: layers={layers!r}"
        )
    chosen = set()
    for glob in globs:
        matched = fnmatch.filter(paths, glob)
        if not matched:
            nearest = difflib.get_close_matches(glob, paths, n=3, cutoff=0.3)
            raise ValueError(
                f"{argument}={glob!r} matches no layer that could be selected. "
                + (f"Nearest names: {', '.join(nearest)}. " if nearest else "")
                + f"All: {_listing(paths)}"
            )
        chosen.update(matched)
    return chosen


def _listing(paths: Sequence[str], limit: int = 20) -> str:
    shown = ", ".join(paths[:limit]) or "none"
    return shown + (f", and {len(paths) - limit} more" if len(paths) > limit else "")
