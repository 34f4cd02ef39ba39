"""Recurrent layers: unrolled, or with the rounding of the runtime in each time step."""

from __future__ import annotations

from typing import Any

from keras import layers

from tfcompress.lowering.context import Lowering
from tfcompress.lowering.lowering_rules import Site, Stage, lowering_rule
from tfcompress.quantization.layers.base import RuntimeLayer


@lowering_rule(Stage.OPERATION, 110)
def freeze_ranges(lowering: Lowering, site: Site) -> Any:
    """Makes the ranges inside a layer constant that quantizes its own intermediate values."""
    layer = site.layer
    if not isinstance(layer, RuntimeLayer):
        return None

    def frozen() -> Any:
        copy = layer.frozen()
        lowering.carry(layer, copy)
        return copy

    return lowering.once(layer, frozen)(*site.args, **site.kwargs)


@lowering_rule(Stage.OPERATION, 120)
def unroll(lowering: Lowering, site: Site) -> Any:
    """Unrolls a recurrent layer over its time steps: int16 activations do not support loops."""
    if not (lowering.int16 and isinstance(site.layer, (layers.RNN, layers.Bidirectional))):
        return None
    changed = _unrolled(site.layer.get_config())
    return lowering.clone(site.layer, **changed)(*site.args, **site.kwargs)


def _unrolled(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the config entries that unroll a layer and the layers inside it."""
    changed: dict[str, Any] = {"unroll": True} if "unroll" in config else {}
    for name in ("layer", "backward_layer"):
        inner = config.get(name)
        if isinstance(inner, dict) and "unroll" in inner.get("config", {}):
            changed[name] = {**inner, "config": {**inner["config"], "unroll": True}}
    return changed
