"""lower: rewrites the trained model as plain float layers, with ranges as constants."""

from __future__ import annotations

from typing import Any

import keras
from keras import tree

from tfcompress.graph.layers import plain
from tfcompress.graph.read import Call, Graph, walk_layers
from tfcompress.integer.role_queries import quantizes_weights
from tfcompress.integer.trace import known_accumulations
from tfcompress.lowering import rules as _registers_them  # noqa: F401
from tfcompress.lowering.affine_conv import as_tensor
from tfcompress.lowering.context import Lowering
from tfcompress.lowering.lowering_rules import Site, Stage, rules_of
from tfcompress.quantization.state import quantizers
from tfcompress.wrap.state import transformed_values
from tfcompress.wrap.wrapper import CompressionWrapper


def lower(model: keras.Model, *, int16: bool = False) -> keras.Model:
    """Returns a float32 model that computes what the trained one does, ready for conversion.

    Args:
        model: A Sequential or Functional model, wrapped or not.
        int16: Whether activations will be int16. Then recurrent layers become a copy of their cell
            for each time step, and normalizations become operations that have int16 kernels.

    Returns:
        A model of plain layers, with weights as they are used (pruned, fake-quantized).
    """
    rounds = any(quantizes_weights(layer) for _, layer in walk_layers(model))
    lowering = _ByRules(rounds or bool(quantizers(model)), int16, known_accumulations(model))
    lowering.outer = {id(tensor) for tensor in model.inputs}
    return lowering.run(model)


class _ByRules(Lowering):
    def visit(self, graph: Graph, call: Call, args: Any, kwargs: Any) -> Any:
        self.record(call)
        layer = plain(call.operation)
        site = Site(graph, call, layer, args, kwargs)
        result = self._by_rule(Stage.WHOLE, site)
        if result is not None:
            return result
        if isinstance(call.operation, CompressionWrapper):
            self.values.update(transformed_values(call.operation))
        result = self._by_rule(Stage.DEFERRED, site)
        if result is not None:
            return result
        args, kwargs = tree.map_structure(as_tensor, (args, kwargs))
        for rule in rules_of(Stage.OPERANDS):
            args, kwargs = rule(self, Site(graph, call, layer, args, kwargs)) or (args, kwargs)
        result = self._by_rule(Stage.OPERATION, Site(graph, call, layer, args, kwargs))
        return self.clone(layer)(*args, **kwargs) if result is None else result

    def _by_rule(self, stage: Stage, site: Site) -> Any:
        for rule in rules_of(stage):
            result = rule(self, site)
            if result is not None:
                return result
        return None
