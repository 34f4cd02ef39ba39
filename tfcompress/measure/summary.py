"""summary: compression and cost of each layer of a model."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
import numpy as np

from tfcompress.graph.cost import call_macs, own_weights, parameters
from tfcompress.graph.inline import as_graph
from tfcompress.graph.layers import plain
from tfcompress.graph.read import is_graph, read_graph
from tfcompress.graph.weights import compressible_weights
from tfcompress.quantization.activation_quantizer import ActivationQuantizer
from tfcompress.quantization.input_samples import sample_keepers
from tfcompress.tables import as_text, table
from tfcompress.wrap.wrapper import CompressionWrapper


@dataclasses.dataclass(frozen=True)
class LayerSummary:
    """One layer.

    Attributes:
        path: Names of the nested models and the layer.
        kind: Its class.
        parameters: Number of scalars in its weights.
        macs: Multiply-accumulates of one sample, summed over all its calls; None if unknown.
        bits: Bits per weight in training and in the file; None if it has no kernel.
        sparsity: Share of zeros in its effective kernels; None if it has no kernel.
        target: Final sparsity of its pruning schedule; None without a schedule.
        step: Training steps that its schedule has counted; None without a schedule.
        kernel_size: Number of scalars in its kernels, without biases.
    """

    path: str
    kind: str
    parameters: int
    macs: int | None
    bits: int | None
    sparsity: float | None
    target: float | None
    step: int | None
    kernel_size: int = 0


@dataclasses.dataclass(frozen=True)
class Summary:
    """The compression and cost of a model, layer by layer.

    Attributes:
        name: Name of the model.
        layers: Its layers, without those that compression adds.
        parameters: Number of scalars in all weights.
        macs: Multiply-accumulates of one sample, over the layers where they are known.
        quantizers: Number of activation quantizers in the model.
        trained_quantizers: Number of those whose range is known.
        samples: Number of training samples that the model and its files store; see
            `forget_samples`.
    """

    name: str
    layers: list[LayerSummary]
    parameters: int
    macs: int
    quantizers: int
    trained_quantizers: int
    samples: int = 0

    def __rich__(self) -> Any:
        columns = ("layer", "kind", "parameters", "MACs", "bits", "sparsity", "target", "step")
        rows = [
            (
                layer.path,
                layer.kind,
                layer.parameters,
                "?" if layer.macs is None else layer.macs,
                layer.bits,
                None if layer.sparsity is None else f"{layer.sparsity:.1%}",
                None if layer.target is None else f"{layer.target:.1%}",
                layer.step,
            )
            for layer in self.layers
        ]
        result = table(self.name, columns, rows)
        result.add_section()
        result.add_row("total", "", f"{self.parameters:,}", f"{self.macs:,}")
        if self.quantizers:
            result.caption = (
                f"{self.quantizers} activation quantizers, {self.trained_quantizers} with a range; "
                f"{self.samples} training samples kept"
            )
        return result

    def __str__(self) -> str:
        return as_text(self.__rich__())


def summary(model: keras.Model) -> Summary:
    """Describes a model layer by layer: bits, sparsity now and target, step, parameters, MACs.

    Args:
        model: A built Sequential or Functional model, wrapped or not. It is not changed.

    Returns:
        Plain data that prints as a table.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If it is not built.

    Example:
        >>> import keras
        >>> import tfcompress as tfc
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> tfc.summary(tfc.prune(model, 0.5)).layers[0].target
        0.5
    """
    model = as_graph(model)
    rows: dict[str, LayerSummary] = {}
    quantizers: dict[int, ActivationQuantizer] = {}
    _collect(model, "", rows, quantizers)
    stored = [samples for keeper in sample_keepers(model) if (samples := keeper.kept()) is not None]
    return Summary(
        model.name,
        list(rows.values()),
        parameters(model),
        sum(row.macs or 0 for row in rows.values()),
        len(quantizers),
        sum(q.is_trained for q in quantizers.values()),
        max(map(len, stored), default=0),
    )


def _collect(
    model: keras.Model,
    path: str,
    rows: dict[str, LayerSummary],
    quantizers: dict[int, ActivationQuantizer],
) -> None:
    for call in read_graph(model, path).calls:
        operation = call.operation
        if isinstance(operation, ActivationQuantizer):
            quantizers[id(operation)] = operation
        if is_graph(operation):
            _collect(operation, call.path + "/", rows, quantizers)
        elif not getattr(operation, "is_compression_helper", False):
            macs = call_macs(call)
            if call.path in rows:  # a further call adds MACs, but no weights
                before = rows[call.path]
                known = macs is not None and before.macs is not None
                total = (macs or 0) + (before.macs or 0) if known else None
                rows[call.path] = dataclasses.replace(before, macs=total)
            else:
                rows[call.path] = _row(call.path, operation, macs)


def _row(path: str, operation: Any, macs: int | None) -> LayerSummary:
    layer = plain(operation)
    if not isinstance(layer, keras.layers.Layer):
        return LayerSummary(path, type(layer).__name__, 0, macs, None, None, None, None)
    bits = sparsity = target = step = None
    weights = compressible_weights(layer)
    if weights:
        report: dict[str, Any] = {}
        values = {id(w): w for w in weights}
        if isinstance(operation, CompressionWrapper):
            for weight, transforms in operation.pipelines():
                values[id(weight)] = operation.effective_value(weight, transforms)
                for transform in transforms:
                    report.update(transform.report())
        zeros = sum(int(np.sum(keras.ops.convert_to_numpy(v) == 0)) for v in values.values())
        sparsity = zeros / sum(math.prod(w.shape) for w in weights)
        bits = report.get("bits", 8 * np.dtype(weights[0].dtype).itemsize)
        target, step = report.get("target"), report.get("step")
    count = sum(math.prod(w.shape) for w in own_weights(operation))
    kernels = sum(math.prod(w.shape) for w in weights)
    kind = type(layer).__name__
    return LayerSummary(path, kind, count, macs, bits, sparsity, target, step, kernels)
