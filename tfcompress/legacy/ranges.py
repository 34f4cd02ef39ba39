"""Transfers the ranges that tfmot trained from its wrappers to quantizers at the same tensors."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tfcompress.graph.clone import Rewriter
from tfcompress.graph.read import Call, Graph, walk_layers
from tfcompress.graph.weights import compressible_weights
from tfcompress.legacy.convert import last_name
from tfcompress.quantization.activation_quantizer import ActivationQuantizer
from tfcompress.quantization.canonical_wrapping import WrapCanonicalForms
from tfcompress.quantization.quantized_models import ChainedModel
from tfcompress.transforms.fake_quant import FakeQuant


def trained_ranges(model: Any) -> dict[str, dict[str, Any]]:
    """Returns the ranges that tfmot trained, by layer.

    An entry may have the keys "weights" (the largest absolute value per channel), "pre" (the range
    before the activation) and "post" (the range behind it).
    """
    ranges: dict[str, dict[str, Any]] = {}
    for wrapper in model.submodules:
        kind = type(wrapper).__name__
        if not kind.startswith("Quantize") or not hasattr(wrapper, "weights"):
            continue
        weights = {last_name(weight): weight.numpy() for weight in wrapper.weights}
        if kind == "QuantizeLayer":
            limits = [v for k, v in sorted(weights.items()) if k.endswith(("_max", "_min"))]
            ranges[wrapper.name] = {"post": (float(limits[1]), float(limits[0]))} if limits else {}
        elif kind.startswith("QuantizeWrapper"):
            entry: dict[str, Any] = {}
            for position, name in (("pre", "pre_activation"), ("post", "post_activation")):
                if f"{name}_min" in weights:
                    entry[position] = float(weights[f"{name}_min"]), float(weights[f"{name}_max"])
            if "output_min" in weights:
                entry["post"] = float(weights["output_min"]), float(weights["output_max"])
            for name in ("kernel", "depthwise_kernel"):
                if f"{name}_max" in weights:
                    entry["weights"] = np.maximum(-weights[f"{name}_min"], weights[f"{name}_max"])
            ranges[wrapper.layer.name] = entry
    return ranges


def with_ranges(model: keras.Model, ranges: dict[str, dict[str, Any]]) -> keras.Model:
    """Returns the model with the quantizers of tfmot: the same ranges at the same tensors."""
    granularity = {}
    for path, layer in walk_layers(model):
        entry = ranges.get(layer.name, {})
        if "weights" in entry and compressible_weights(layer):
            (weight,) = compressible_weights(layer)[:1]
            granularity[path] = (
                "channel" if entry["weights"].size == weight.shape[-1] > 1 else "tensor"
            )
            _extend_to_range(weight, entry["weights"])
    split = {p for p, layer in walk_layers(model) if ranges.get(layer.name, {}).get("pre")}
    wrapped = WrapCanonicalForms(
        lambda path, layer: FakeQuant(8, "min_max", granularity.get(path, "channel")),
        set(granularity) | split,
    ).run(model)
    return _InsertQuantizers(ranges).run(wrapped)


def _extend_to_range(weight: Any, limits: np.ndarray) -> None:
    """Clips the weights to the trained range, and extends the largest of each channel to its limit.

    FakeQuant computes the range from the largest absolute weight. The range of tfmot is from the
    training step before, so that the largest weight may lie slightly inside or outside of it.
    """
    value = keras.ops.convert_to_numpy(weight)
    limits = np.broadcast_to(limits, (value.shape[-1],)) if limits.size > 1 else limits.reshape(())
    value = np.clip(value, -limits, limits)
    flat = value.reshape(-1, value.shape[-1]) if limits.ndim else value.reshape(-1, 1)
    largest = np.abs(flat).argmax(0)
    columns = np.arange(flat.shape[1])
    flat[largest, columns] = np.copysign(limits, flat[largest, columns])
    weight.assign(flat.reshape(value.shape))


class _InsertQuantizers(Rewriter):
    """Inserts quantizers with the trained ranges where tfmot had them."""

    sequential_class = ChainedModel

    def __init__(self, ranges: dict[str, dict[str, Any]]) -> None:
        super().__init__()
        self._ranges = ranges

    def visit(self, graph: Graph, call: Call, args: Any, kwargs: Any) -> Any:
        operation = call.operation
        origin = getattr(operation, "origin", None) or {"name": operation.name, "part": 0}
        entry = self._ranges.get(origin["name"], {})
        first, last = origin["part"] == 0, origin["part"] == origin.get("parts", 1) - 1
        if type(operation) is keras.layers.Identity and entry:
            outputs = args[0]
        else:
            outputs = super().visit(graph, call, args, kwargs)
        if first and "pre" in entry:
            outputs = self._quantizer(call.path, "pre", entry["pre"])(outputs)
        if last and "post" in entry:
            outputs = self._quantizer(call.path, "post", entry["post"])(outputs)
        return outputs

    def _quantizer(self, path: str, position: str, limits: tuple[float, float]) -> Any:
        def create() -> ActivationQuantizer:
            name = path.split("/")[-1]
            quantizer = ActivationQuantizer(name=f"{name}_{position}_quantizer")
            quantizer.build(None)
            quantizer.built = True
            quantizer.set_range(*limits)
            return quantizer

        key = self._ranges.setdefault(f"{path} {position}", {})  # the same object at each call
        return self.once(key, create)
