"""Recurrent layers: without a loop, or as the runtime rounds each step."""

from __future__ import annotations

from typing import Any

from keras import layers

from tfcompress.lowering.context import Lowering
from tfcompress.lowering.lowering_rules import Site, Stage, lowering_rule
from tfcompress.quantization.layers.base import RuntimeLayer


@lowering_rule(Stage.OPERATION, 110)
def freeze_ranges(lowering: Lowering, site: Site) -> Any:
    """Makes constants of the ranges inside a layer that rounds its steps by itself."""
    layer = site.layer
    if not isinstance(layer, RuntimeLayer):
        return None

    def frozen() -> Any:
        made = layer.frozen()
        lowering.carry(layer, made)
        return made

    return lowering.once(layer, frozen)(*site.args, **site.kwargs)


@lowering_rule(Stage.OPERATION, 120)
def unroll(lowering: Lowering, site: Site) -> Any:
    """Writes a recurrent layer out step by step, for activations of 16 bits have no loops."""
    if not (lowering.int16 and isinstance(site.layer, (layers.RNN, layers.Bidirectional))):
        return None
    changed = _unrolled(site.layer.get_config())
    return lowering.clone(site.layer, **changed)(*site.args, **site.kwargs)


def _unrolled(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the entries of a config to change so that no loop is left in the layer."""
    changed: dict[str, Any] = {"unroll": True} if "unroll" in config else {}
    for name in ("layer", "backward_layer"):
        inner = config.get(name)
        if isinstance(inner, dict) and "unroll" in inner.get("config", {}):
            changed[name] = {**inner, "config": {**inner["config"], "unroll": True}}
    return changed
