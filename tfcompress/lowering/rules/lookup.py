"""Lookups in tables of weights, such as embeddings."""

from __future__ import annotations

from typing import Any

from tfcompress.integer.grid_ops import fake_quant_of_table
from tfcompress.integer.role_queries import is_joined, quantizes_weights
from tfcompress.integer.roles import TABLE, role
from tfcompress.lowering.context import Lowering
from tfcompress.lowering.lowering_rules import Site, Stage, lowering_rule


@lowering_rule(Stage.OPERATION, 100)
def quantize_rows(lowering: Lowering, site: Site) -> Any:
    """Adds the quantization parameters of the rows, unless a concatenation adds its own."""
    table = role(site.operation) == TABLE and quantizes_weights(site.operation)
    if not (lowering.rounds and table) or is_joined(site.graph, site.call.outputs[0]):
        return None
    rows = lowering.clone(site.layer)(*site.args, **site.kwargs)
    return lowering.once(site.operation, lambda: fake_quant_of_table(site.operation))(rows)
