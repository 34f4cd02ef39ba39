"""Clipping that the grid behind it does, for the runtime has no such fused activation."""

from __future__ import annotations

from tfcompress.graph.layers import activation_name, plain
from tfcompress.graph.read import Call, Graph
from tfcompress.integer.roles import CLIP, role
from tfcompress.lowering.affine_conv import clip_range
from tfcompress.quantization.activation_quantizer import ActivationQuantizer

_FUSED = (None, 6, 6.0)  # ReLU and ReLU6


def has_int16_output(graph: Graph, call: Call) -> bool:
    """Returns whether the grid behind a call has 16 bits."""
    readers = graph.consumers.get(id(call.outputs[0]), [])
    return any(getattr(reader.operation, "bits", 8) == 16 for reader in readers)


def clipped_by_range(graph: Graph, call: Call) -> bool:
    """Returns whether the runtime has no such fused clipping, and the grid behind it clips."""
    layer = plain(call.operation)
    if activation_name(layer) in ("relu", "relu6") or getattr(layer, "max_value", 0) in _FUSED:
        return False
    readers = graph.consumers.get(id(call.outputs[0]), [])
    quantized = [isinstance(reader.operation, ActivationQuantizer) for reader in readers]
    if role(layer) == CLIP and has_int16_output(graph, call):
        low, high = clip_range(layer)
        if low not in (0, -high):
            return False
    return bool(quantized) and all(quantized)
