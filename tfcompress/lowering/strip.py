"""strip: returns to the ordinary model, without anything of tfcompress."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import keras
from keras import ops

from tfcompress.errors import CompressionWarning
from tfcompress.graph.clone import Rewriter
from tfcompress.graph.copies import clone_layer
from tfcompress.graph.expand import Expanded
from tfcompress.graph.keras_internals import producing_operation
from tfcompress.graph.read import Call, Graph, check_built
from tfcompress.graph.sameness import check_same
from tfcompress.integer.grid_ops import Requantize
from tfcompress.quantization.activation_quantizer import ActivationQuantizer
from tfcompress.quantization.input_samples import InputSamples
from tfcompress.quantization.kept_in_float import AwayFromZero
from tfcompress.quantization.layers.merge import RuntimeMerge
from tfcompress.quantization.quantized_models import ChainedModel, QuantizedModel
from tfcompress.quantization.state import quantizers
from tfcompress.transforms.fake_quant import FakeQuant
from tfcompress.wrap.state import (
    is_wrapped,
    original_variables,
    transformed_values,
    warn_unfinished,
    without_compression,
)
from tfcompress.wrap.wrapper import CompressionWrapper


def strip(model: Any, *, check: bool = True) -> Any:
    """Returns the ordinary model: transforms applied to the weights, all additions removed.

    Architecture, classes and names are those of the model that was wrapped, and nothing of
    tfcompress is left in it. Pruned weights are zero. Weights that were trained quantization-aware
    are fake-quantized to INT8; without training they are unchanged. Learned activation ranges
    are dropped: to export an INT8 file, export the unstripped model.

    Args:
        model: A model (or layer) from `prune` or `quantize`. It is not changed.
        check: Whether to compare the result with the model first, without rounding of activations,
            on a few random samples. Use False for models that cannot be run here.

    Returns:
        A new model, not compiled.

    Raises:
        TypeError: If `model` is not a model.
        ValueError: If there is nothing to strip.

    Warns:
        CompressionWarning: If trained ranges are dropped, or a schedule has not ended.

    Example:
        >>> import keras
        >>> import tfcompress as tfc
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> type(tfc.strip(tfc.quantize(model))).__name__
        'Sequential'
    """
    if isinstance(model, CompressionWrapper):
        layer = clone_layer(model.layer)
        layer.build_from_config(model.layer.get_build_config())
        values = transformed_values(model)
        for old, new in zip(model.layer.variables, layer.variables, strict=True):
            new.assign(values.get(id(old), old))
        return layer
    check_built(model)
    if not is_wrapped(model):
        raise ValueError(f"model {model.name!r} has nothing to strip: it was not wrapped.")
    if any(q.fixed_range is None and q.is_trained for q in quantizers(model)):
        warnings.warn(
            "strip() drops the activation ranges learned in training. To write an INT8 file, call "
            "export_tflite() on the unstripped model.",
            CompressionWarning,
            stacklevel=2,
        )
    warn_unfinished(model, "strip")
    stripped = without_transforms(model)
    if check:
        with without_compression(model, () if _is_trained(model) else (FakeQuant,)):
            check_same(model, stripped, "strip")
    return stripped


def without_transforms(model: keras.Model) -> keras.Model:
    """Returns what `strip` returns, also for a model that was not wrapped, without a warning."""
    return _Strip(rounds=_is_trained(model)).run(model)


def _is_trained(model: keras.Model) -> bool:
    """Returns whether weights were trained with fake quantization, as far as ranges show it."""
    learning = [q for q in quantizers(model) if q.fixed_range is None]
    return not learning or any(q.is_trained for q in learning)


@dataclasses.dataclass
class _Parts:
    """Takes the place of the output of a split layer until its last part is reached."""

    wrappers: list[CompressionWrapper]
    args: Any
    kwargs: Any


_PASS_THROUGH = (ActivationQuantizer, AwayFromZero, Requantize, InputSamples)


class _Strip(Rewriter):
    def __init__(self, rounds: bool) -> None:
        super().__init__()
        self._rounds = rounds
        self._values: dict[int, Any] = {}

    def class_for(self, model: keras.Model) -> type[keras.Model]:
        if isinstance(model, QuantizedModel):
            return keras.Sequential if isinstance(model, ChainedModel) else keras.Model
        return super().class_for(model)

    def value_of(self, variable: Any) -> Any:
        return self._values.get(id(variable), variable)

    def visit(self, graph: Graph, call: Call, args: Any, kwargs: Any) -> Any:
        if isinstance(call.operation, _PASS_THROUGH):
            return args[0]
        if isinstance(call.operation, RuntimeMerge) and call.operation.operation:
            outputs = ops.add(*args[0])
            producing_operation(outputs).name = call.operation.operation
            return outputs
        if not isinstance(call.operation, CompressionWrapper):
            return super().visit(graph, call, args, kwargs)
        wrapper = call.operation
        self._values.update(transformed_values(wrapper, self._rounds))
        if wrapper.origin is None:
            return self.clone(wrapper.layer)(*args, **kwargs)
        if wrapper.origin["part"] == 0:
            parts = _Parts([wrapper], args, kwargs)
        else:
            before = args[0]
            parts = _Parts([*before.wrappers, wrapper], before.args, before.kwargs)
        if len(parts.wrappers) < wrapper.origin["parts"]:
            return parts
        return self._restored(parts.wrappers)(*parts.args, **parts.kwargs)

    def visit_model(self, graph: Graph, call: Call, args: Any, kwargs: Any) -> Any:
        expanded = call.operation
        if not isinstance(expanded, Expanded):
            return super().visit_model(graph, call, args, kwargs)

        def make() -> Any:
            # Its layers may be split themselves, so they are restored first.
            inner = self._rebuild(expanded, call.path + "/")
            layer = expanded.layer()
            self.carry(inner, layer)
            return layer

        return self.once(expanded, make)(**expanded.arguments(args[0]))

    def _restored(self, wrappers: list[CompressionWrapper]) -> Any:
        def make() -> Any:
            origin = wrappers[0].origin or {}
            layer = keras.saving.deserialize_keras_object(_copied(origin["layer"]))
            self.carry(wrappers, layer)
            return layer

        return self.once(wrappers[0], make)

    def match(self, old: Any, new: Any) -> Any:
        if isinstance(old, Expanded):
            return [(part, layer) for layer, part in old.pairs(new)]
        if not isinstance(old, list):
            return super().match(old, new)
        parts = [wrapper.layer for wrapper in old]
        return zip(original_variables(parts), new.variables, strict=True)


def _copied(config: Any) -> Any:
    """Returns a copy of a config, which some layers change.

    Keras stores the config of a layer in containers that hold the layer itself, which `deepcopy`
    would copy as well.
    """
    if isinstance(config, dict):
        return {key: _copied(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        copied = [_copied(value) for value in config]
        return tuple(copied) if isinstance(config, tuple) else copied
    return config
