"""strip: back to the ordinary model, with nothing of tfcompress left in it."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from tfcompress.errors import CompressionWarning
from tfcompress.graph.clone import Rewriter
from tfcompress.graph.copies import clone_layer
from tfcompress.graph.expand import Expanded
from tfcompress.graph.inline import as_graph
from tfcompress.graph.read import Call, Graph, check_built, walk_layers
from tfcompress.graph.sameness import check_same
from tfcompress.transforms import FakeQuant, WeightTransform
from tfcompress.wrap.activations import ActivationQuantizer
from tfcompress.wrap.canonicalize import original_variables
from tfcompress.wrap.fixed import GridCrossing
from tfcompress.wrap.models import ChainedModel, QuantizedModel
from tfcompress.wrap.precision import AwayFromZero
from tfcompress.wrap.runtime import RuntimeLayer, RuntimeMerge
from tfcompress.wrap.samples import InputSamples
from tfcompress.wrap.wrapper import CompressionWrapper


def strip(model: Any, *, check: bool = True) -> Any:
    """Returns the ordinary model: transforms applied for good, everything added taken out.

    Architecture, classes and names are those of the model that was wrapped, and nothing of
    tfcompress is left in it. Pruned weights are zero; weights that were trained quantization-aware
    lie on their INT8 grid (without training, they are what they were). Learned activation ranges
    are dropped: to export an INT8 file, export the unstripped model.

    Args:
        model: A model (or layer) from `prune` or `quantize`. It is not changed.
        check: Whether to compare the result with the model first, without rounding of activations,
            on a few made-up samples. False is for models that cannot be run here.

    Returns:
        A new model, not compiled.

    Raises:
        TypeError: If `model` is no model.
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
        values = baked_values(model)
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
        with passing_through(model, () if _is_trained(model) else (FakeQuant,)):
            check_same(model, stripped, "strip")
    return stripped


def without_transforms(model: keras.Model) -> keras.Model:
    """Returns what `strip` returns, also for a model that was not wrapped, without a warning."""
    return _Strip(rounds=_is_trained(model)).run(model)


def _is_trained(model: keras.Model) -> bool:
    """Returns whether weights were trained with their rounding, as far as there is a sign of it."""
    learning = [q for q in quantizers(model) if q.fixed_range is None]
    return not learning or any(q.is_trained for q in learning)


def as_unwrapped(model: Any, function: str) -> keras.Model:
    """Returns a model as a graph, for a function that makes ordinary models smaller.

    Raises:
        TypeError: If `model` is no Keras model.
        ValueError: If it is wrapped, or cannot be read.
    """
    model = as_graph(model)
    if is_wrapped(model):
        raise ValueError(
            f"model {model.name!r} is wrapped by prune() or quantize(). Call "
            f"{function}(strip(model)) first, then wrap the result."
        )
    return model


def is_wrapped(model: keras.Model) -> bool:
    """Returns whether anything of tfcompress is in the model."""
    helpers = (CompressionWrapper, ActivationQuantizer, InputSamples)
    return any(isinstance(layer, helpers) for _, layer in walk_layers(model))


def quantizers(model: keras.Model) -> list[ActivationQuantizer]:
    """Returns the activation quantizers of a model; empty if it is not quantization-aware."""
    return [
        part
        for _, layer in walk_layers(model)
        for part in layer._flatten_layers()
        if isinstance(part, ActivationQuantizer) and not part.follows
    ]


@contextlib.contextmanager
def rounding_in_floats(model: keras.Model) -> Iterator[None]:
    """Has a quantization-aware model round at inference as it does in training, and as tfmot."""
    every = quantizers(model)
    try:
        for quantizer in every:
            quantizer.in_floats = True
        yield
    finally:
        for quantizer in every:
            quantizer.in_floats = False


@contextlib.contextmanager
def passing_through(
    model: keras.Model, skipped: tuple[type, ...] = (WeightTransform,)
) -> Iterator[None]:
    """Has a wrapped model round no activations, and not transform its weights.

    Args:
        model: The model.
        skipped: The kinds of transforms that are left out.
    """
    parts = {id(p): p for _, layer in walk_layers(model) for p in layer._flatten_layers()}
    wrappers = [p for p in parts.values() if isinstance(p, CompressionWrapper)]
    rounding = [p for p in parts.values() if isinstance(p, RuntimeLayer)]
    every = quantizers(model)
    try:
        for wrapper in wrappers:
            wrapper.skipped = skipped
        for layer in rounding:
            layer.passes = True
        for quantizer in every:
            quantizer.observer = lambda values: None
        yield
    finally:
        for wrapper in wrappers:
            wrapper.skipped = ()
        for layer in rounding:
            layer.passes = False
        for quantizer in every:
            quantizer.observer = None


def check_wrapped(original: keras.Model, wrapped: keras.Model, function: str) -> None:
    """Compares a wrapped model with what it was made from; see `check_same`."""
    with passing_through(original), passing_through(wrapped):
        check_same(original, wrapped, function)


def trained_scheme(model: keras.Model) -> str:
    """Returns the name of the scheme that a quantized model is trained for."""
    if any(rounding.bits == 4 for rounding in roundings(model)):
        return "w4a8"
    bits = [q.bits for q in quantizers(model) if q.fixed_range is None]
    return "int16x8" if 2 * bits.count(16) > len(bits) else "int8"


def uses_sixteen_bits(model: keras.Model) -> bool:
    """Returns whether any activations of a quantized model have 16 bits."""
    return any(quantizer.bits == 16 for quantizer in quantizers(model))


def rounds_per_channel(model: keras.Model) -> bool:
    """Returns whether the kernels of a quantized model have a scale for each channel."""
    return not any(rounding.granularity == "tensor" for rounding in roundings(model))


def roundings(model: keras.Model) -> Iterator[FakeQuant]:
    """Yields the roundings of a model's weights."""
    for _, layer in walk_layers(model):
        for transform in getattr(layer, "transforms", ()):
            if isinstance(transform, FakeQuant):
                yield transform


def baked_values(wrapper: CompressionWrapper, rounds: bool = True) -> dict[int, Any]:
    """Returns the transformed value of each compressible weight, by `id` of the variable.

    Args:
        wrapper: The wrapped layer.
        rounds: Whether weights are rounded.
    """
    return {
        id(weight): wrapper.effective_value(
            weight, [t for t in transforms if rounds or not isinstance(t, FakeQuant)]
        )
        for weight, transforms in wrapper.pipelines()
    }


def warn_unfinished(model: keras.Model, action: str) -> None:
    """Warns once, with the first layer as the example, if a schedule has not ended."""
    unfinished = [
        (path, reason)
        for path, layer in walk_layers(model)
        if isinstance(layer, CompressionWrapper)
        for transform in layer.weight_transforms
        if (reason := transform.unfinished())
    ]
    if unfinished:
        path, reason = unfinished[0]
        warnings.warn(
            f"{action}: layer {path!r} is not finished: {reason} "
            f"({len(unfinished)} weights in all). Train on, or let the schedule end earlier.",
            CompressionWarning,
            stacklevel=3,
        )


@dataclasses.dataclass
class _Parts:
    """Stands for the output of a split layer until its last part is reached."""

    wrappers: list[CompressionWrapper]
    args: Any
    kwargs: Any


_HANDING_ON = (ActivationQuantizer, AwayFromZero, GridCrossing, InputSamples)


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
        if isinstance(call.operation, _HANDING_ON):
            return args[0]
        if isinstance(call.operation, RuntimeMerge) and call.operation.operation:
            total = ops.add(*args[0])
            total._keras_history.operation.name = call.operation.operation
            return total
        if not isinstance(call.operation, CompressionWrapper):
            return super().visit(graph, call, args, kwargs)
        wrapper = call.operation
        self._values.update(baked_values(wrapper, self._rounds))
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
            # Its parts may have been split in turn, so they are put together first.
            inner = self._rebuild(expanded, call.path + "/")
            layer = expanded.layer()
            self.carry(inner, layer)
            return layer

        return self.once(expanded, make)(**expanded.arguments(args[0]))

    def _restored(self, wrappers: list[CompressionWrapper]) -> Any:
        def make() -> Any:
            origin = wrappers[0].origin or {}
            # Some layers take their config apart.
            layer = keras.saving.deserialize_keras_object(copy.deepcopy(origin["layer"]))
            self.carry(wrappers, layer)
            return layer

        return self.once(wrappers[0], make)

    def match(self, old: Any, new: Any) -> Any:
        if isinstance(old, Expanded):
            return [(part, whole) for whole, part in old.pairs(new)]
        if not isinstance(old, list):
            return super().match(old, new)
        parts = [wrapper.layer for wrapper in old]
        return zip(original_variables(parts), new.variables, strict=True)
