"""Clipping that the range of the next quantizer does, without a kernel."""

from __future__ import annotations

from tfcompress.graph.layers import activation_name, plain
from tfcompress.graph.read import Call, Graph
from tfcompress.integer.roles import CLIP, role
from tfcompress.lowering.affine_conv import clip_range
from tfcompress.quantization.activation_quantizer import ActivationQuantizer

_FUSED = (None, 6, 6.0)  # ReLU and ReLU6


def has_int16_output(graph: Graph, call: Call) -> bool:
    """Returns whether the output of a call is quantized to int16."""
    readers = graph.consumers.get(id(call.outputs[0]), [])
    return any(getattr(reader.operation, "bits", 8) == 16 for reader in readers)


def clipped_by_range(graph: Graph, call: Call) -> bool:
    """Returns whether the next quantizer clips, in place of a clipping that cannot be fused."""
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
