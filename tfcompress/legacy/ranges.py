"""The ranges that tfmot trained, taken from its wrappers and put where they were."""

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
from tfcompress.transforms import FakeQuant


def trained_ranges(model: Any) -> dict[str, dict[str, Any]]:
    """Returns the ranges that tfmot trained: of weights, before and behind the activation."""
    told: dict[str, dict[str, Any]] = {}
    for wrapper in model.submodules:
        kind = type(wrapper).__name__
        if not kind.startswith("Quantize") or not hasattr(wrapper, "weights"):
            continue
        found = {last_name(weight): weight.numpy() for weight in wrapper.weights}
        if kind == "QuantizeLayer":
            ends = [v for k, v in sorted(found.items()) if k.endswith(("_max", "_min"))]
            told[wrapper.name] = {"post": (float(ends[1]), float(ends[0]))} if ends else {}
        elif kind.startswith("QuantizeWrapper"):
            entry: dict[str, Any] = {}
            for place, name in (("pre", "pre_activation"), ("post", "post_activation")):
                if f"{name}_min" in found:
                    entry[place] = float(found[f"{name}_min"]), float(found[f"{name}_max"])
            if "output_min" in found:
                entry["post"] = float(found["output_min"]), float(found["output_max"])
            for name in ("kernel", "depthwise_kernel"):
                if f"{name}_max" in found:
                    entry["ends"] = np.maximum(-found[f"{name}_min"], found[f"{name}_max"])
            told[wrapper.layer.name] = entry
    return told


def with_ranges(model: keras.Model, told: dict[str, dict[str, Any]]) -> keras.Model:
    """Returns the model with the roundings of tfmot, on the same grids at the same places."""
    granularity = {}
    for path, layer in walk_layers(model):
        entry = told.get(layer.name, {})
        if "ends" in entry and compressible_weights(layer):
            (weight,) = compressible_weights(layer)[:1]
            granularity[path] = (
                "channel" if entry["ends"].size == weight.shape[-1] > 1 else "tensor"
            )
            _stretch(weight, entry["ends"])
    split = {p for p, layer in walk_layers(model) if told.get(layer.name, {}).get("pre")}
    wrapped = WrapCanonicalForms(
        lambda path, layer: FakeQuant(8, "min_max", granularity.get(path, "channel")),
        set(granularity) | split,
    ).run(model)
    return _Place(told).run(wrapped)


def _stretch(weight: Any, ends: np.ndarray) -> None:
    """Ends the grid of each channel where it was trained to end.

    A grid of ours ends at the largest weight. That of tfmot ends at the largest weight of one step
    before, so that the largest weight may lie a little inside of its last place, or outside of it.
    """
    value = keras.ops.convert_to_numpy(weight)
    ends = np.broadcast_to(ends, (value.shape[-1],)) if ends.size > 1 else ends.reshape(())
    value = np.clip(value, -ends, ends)
    flat = value.reshape(-1, value.shape[-1]) if ends.ndim else value.reshape(-1, 1)
    largest = np.abs(flat).argmax(0)
    columns = np.arange(flat.shape[1])
    flat[largest, columns] = np.copysign(ends, flat[largest, columns])
    weight.assign(flat.reshape(value.shape))


class _Place(Rewriter):
    """Puts quantizers with given ranges where tfmot had them."""

    sequential_class = ChainedModel

    def __init__(self, told: dict[str, dict[str, Any]]) -> None:
        super().__init__()
        self._told = told

    def visit(self, graph: Graph, call: Call, args: Any, kwargs: Any) -> Any:
        operation = call.operation
        origin = getattr(operation, "origin", None) or {"name": operation.name, "part": 0}
        entry = self._told.get(origin["name"], {})
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

    def _quantizer(self, path: str, place: str, ends: tuple[float, float]) -> Any:
        def make() -> ActivationQuantizer:
            name = path.split("/")[-1]
            quantizer = ActivationQuantizer(name=f"{name}_{place}_quantizer")
            quantizer.build(None)
            quantizer.built = True
            quantizer.set_range(*ends)
            return quantizer

        key = self._told.setdefault(f"{path} {place}", {})  # the same at each call
        return self.once(key, make)
