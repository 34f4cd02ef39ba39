"""layer_errors: the error that each layer of a file adds, compared with its Keras model."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from tfcompress.data import samples
from tfcompress.graph.inline import as_graph
from tfcompress.graph.layers import plain
from tfcompress.graph.read import Call, Graph, input_names, input_specs, is_graph, read_graph
from tfcompress.graph.run import at_inference, fixed_batch
from tfcompress.graph.weights import compressible_weights
from tfcompress.integer.roles import LINEAR, role
from tfcompress.tables import as_text, table
from tfcompress.tflite.run import TFLiteModel
from tfcompress.tflite.tensor_owners import keyed
from tfcompress.tflite.tensors import Tensors

_SAMPLES, _BATCH = 32, 8


_CERTAIN = 15.0  # SQNR in dB above which a tensor without a known name counts as a layer's output


@dataclasses.dataclass(frozen=True)
class LayerError:
    """One layer, or several layers that the file computes in one operation.

    Attributes:
        path: Path of the last of these layers.
        layers: Paths of all of them.
        kind: Class of the last of them with a kernel, or of the last if none has one.
        tensor: Name of the tensor in the file.
        sqnr: Signal-to-error ratio in dB of the layer alone, computed on its inputs in the file.
        sqnr_total: The same, including the errors of all layers before it.
        cosine: Cosine of the angle between the output of the layer and that of the file.
        max_error: Largest absolute error of the layer alone.
        steps: The same in LSB of the quantized tensor; None if it is not quantized.
    """

    path: str
    layers: tuple[str, ...]
    kind: str
    tensor: str
    sqnr: float
    sqnr_total: float
    cosine: float
    max_error: float
    steps: float | None


@dataclasses.dataclass(frozen=True)
class LayerErrors:
    """The layers of a file, the worst first.

    Attributes:
        rows: One for each tensor in the file that is the output of a layer.
        unmatched: Paths of layers with weights whose output was not found in the file.
        samples: Number of samples measured.
        kernels: The runtime and its kernels.
    """

    rows: list[LayerError]
    unmatched: list[str]
    samples: int
    kernels: str

    def __rich__(self) -> Any:
        columns = ("layer", "kind", "SQNR dB", "with all before", "cosine", "max error", "LSB")
        rows = [
            (
                row.path,
                row.kind,
                f"{row.sqnr:.1f}",
                f"{row.sqnr_total:.1f}",
                f"{row.cosine:.6f}",
                f"{row.max_error:.4g}",
                None if row.steps is None else f"{row.steps:.1f}",
            )
            for row in self.rows
        ]
        result = table("layers, worst first", columns, rows)
        result.caption = f"{self.samples} samples, {self.kernels}"
        if self.unmatched:
            result.caption += f"; without a tensor of their own: {', '.join(self.unmatched)}"
        return result

    def __str__(self) -> str:
        return as_text(self.__rich__())


def layer_errors(model: keras.Model, tflite: Any, x: Any) -> LayerErrors:
    """Measures how well each layer of a file agrees with the layer of its model, worst first.

    Each layer of the model runs on the inputs that its counterpart has in the file, so that the
    error is that of the layer alone; `sqnr_total` includes the errors of the layers before it. A
    correct int8 layer has at least 30 dB. Intermediate tensors are readable with the built-in
    kernels only, so these run.

    Args:
        model: The Keras model that the file was made from, wrapped or not. It is not changed.
        tflite: The file: its path, its bytes or a `TFLiteModel`.
        x: Samples as for `export_tflite`; 32 of them are used.

    Returns:
        Plain data that prints as a table.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If `model` is not a Keras model.
        ValueError: If the model cannot be read, or no layer of it is found in the file.

    Example:
        >>> import keras, numpy as np, tempfile
        >>> import tfcompress as tfc
        >>> layers = [keras.Input((8,)), keras.layers.Dense(4, name="head")]
        >>> model, x = keras.Sequential(layers), np.random.default_rng(0).random((32, 8))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = tfc.export_tflite(model, folder + "/m.tflite", representative_dataset=x)
        ...     tfc.layer_errors(model, result.path, x).rows[0].path
        'head'
    """
    model = as_graph(model)
    specs = input_specs(model)
    arrays = samples(x, specs, limit=_SAMPLES, argument="x")
    content = tflite.content if isinstance(tflite, TFLiteModel) else tflite
    file = TFLiteModel(content, delegates=False, keep_tensors=True)
    missing = {spec.name for spec in specs} - {info.name for info in file.inputs}
    if missing:
        raise ValueError(
            f"tflite is no file of this model: it has no input {sorted(missing)[0]!r}. It has: "
            f"{', '.join(repr(info.name) for info in file.inputs)}"
        )
    tensors = Tensors(file, model)
    forced, free = _Walk(tensors, forced=True), _Walk(tensors, forced=False)
    count = len(next(iter(arrays.values())))
    size = fixed_batch(model)
    for start in range(0, count, size or _BATCH):
        rows = np.arange(start, start + size if size else min(start + _BATCH, count))
        batch = {name: array[np.minimum(rows, count - 1)] for name, array in arrays.items()}
        tensors.run(batch)
        inputs = [ops.convert_to_tensor(batch[spec.name]) for spec in specs]
        forced.model(model, inputs)
        free.model(model, inputs)
    if not forced.tensor_indices:
        raise ValueError("No layer of the model was found in the file. Is it made from this model?")
    return LayerErrors(
        sorted(
            (_row(key, forced, free, tensors) for key in forced.tensor_indices),
            key=lambda r: r.sqnr,
        ),
        [path for path in forced.weighted if path not in forced.covered],
        count,
        file.runtime,
    )


@dataclasses.dataclass
class _ErrorSums:
    """Sums of one tensor over all batches, for its error measures."""

    signal: float = 0.0
    noise: float = 0.0
    other: float = 0.0
    product: float = 0.0
    largest: float = 0.0

    def add(self, expected: np.ndarray, actual: np.ndarray) -> None:
        """Adds a batch, except where the values of the model are not finite."""
        finite = np.isfinite(expected)
        expected, actual = expected[finite].astype(np.float64), actual[finite].astype(np.float64)
        self.signal += float(np.sum(expected**2))
        self.noise += float(np.sum((expected - actual) ** 2))
        self.other += float(np.sum(actual**2))
        self.product += float(np.sum(expected * actual))
        self.largest = max(self.largest, float(np.max(np.abs(expected - actual), initial=0.0)))

    @property
    def sqnr(self) -> float:
        """Signal over noise in dB; 200 where there is no noise."""
        if self.noise == 0:
            return 200.0
        return 10 * float(np.log10(max(self.signal, 1e-30) / self.noise))

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the two; 1 where both are zero."""
        length = float(np.sqrt(self.signal * self.other))
        return self.product / length if length else float(self.signal == self.other)


class _Walk:
    """Runs a model call by call, and compares it with its file.

    Args:
        tensors: The tensors that the file computes.
        forced: Whether each layer reads the tensors of the file instead of the outputs of the
            layers before it.
    """

    def __init__(self, tensors: Tensors, *, forced: bool) -> None:
        self._tensors = tensors
        self._forced = forced
        self.tensor_indices: dict[str, int] = {}
        self.sums: dict[str, _ErrorSums] = {}
        self.layers: dict[str, list[tuple[str, Any]]] = {}
        self.weighted: dict[str, None] = {}
        self.covered: set[str] = set()
        self._pending: dict[int, list[tuple[str, Any]]] = {}
        self._folded: dict[int, str] = {}

    def model(
        self,
        model: keras.Model,
        inputs: list[Any],
        path: str = "",
        key: str = "",
        output_tensors: dict[int, int] | None = None,
    ) -> Any:
        """Returns the outputs of a model, and measures its layers.

        Args:
            model: The model, or one nested in it.
            inputs: Its inputs.
            path: Its path, ending in "/".
            key: Key of its call, likewise.
            output_tensors: The tensor of the file for each output, by `id` of the output.
        """
        graph = read_graph(model, path)
        output_tensors = self._tensors.outputs if output_tensors is None else output_tensors
        values = {id(t): value for t, value in zip(model.inputs, inputs, strict=True)}
        if not path and self._forced:
            for tensor, name in zip(model.inputs, input_names(model), strict=True):
                if name in self._tensors.inputs:
                    value = self._tensors.values[self._tensors.inputs[name]]
                    own = values[id(tensor)]
                    values[id(tensor)] = (
                        _shaped(value, own) if value.size == math.prod(own.shape) else own
                    )
        for name, call in keyed(graph.calls):
            outputs = self._call(graph, call, key + name, values, output_tensors)
            values.update((id(t), v) for t, v in zip(call.outputs, outputs, strict=True))
        return [values[id(t)] for t in model.outputs]

    def _call(
        self,
        graph: Graph,
        call: Call,
        key: str,
        values: dict[int, Any],
        output_tensors: dict[int, int],
    ) -> list[Any]:
        def lookup(value: Any) -> Any:
            return values[id(value)] if isinstance(value, keras.KerasTensor) else value

        args, kwargs = tree.map_structure(lookup, (call.args, call.kwargs))
        if is_graph(call.operation):
            nested_tensors = {
                id(inner): output_tensors[id(outer)]
                for inner, outer in zip(call.operation.outputs, call.outputs, strict=True)
                if id(outer) in output_tensors
            }
            inputs = tree.flatten(args)[: len(call.operation.inputs)]
            outputs = self.model(call.operation, inputs, call.path + "/", key + "/", nested_tensors)
        else:
            outputs = tree.flatten(at_inference(call.operation, args, kwargs))
        helper = is_helper(call.operation) or is_graph(call.operation)
        if getattr(plain(call.operation), "weights", None) and not helper:
            self.weighted[call.path] = None
        # Calls since the last matched tensors that lead to this call.
        pending = [entry for t in call.inputs for entry in self._pending.get(id(t), [])]
        pending = [*dict.fromkeys(pending), (call.path, call.operation)]
        index = None
        if is_folded(graph, call):
            self._folded[id(call.outputs[0])] = key
        elif not helper:
            index = self._tensor_of(graph, call, key, outputs, output_tensors)
        for position, tensor in enumerate(call.outputs):
            self._pending[id(tensor)] = [] if index is not None and position == 0 else pending
        if index is None:
            return outputs
        expected = self._fake_quantized(graph, call, outputs[0])
        actual = _shaped(self._tensors.values[index], expected)
        if self._forced:
            self.tensor_indices[key] = index
            self.layers[key] = pending
            self.covered.update(path for path, _ in pending)
            outputs = [ops.cast(actual, outputs[0].dtype), *outputs[1:]]
        self.sums.setdefault(key, _ErrorSums()).add(
            ops.convert_to_numpy(expected), np.asarray(actual)
        )
        return outputs

    def _tensor_of(
        self, graph: Graph, call: Call, key: str, outputs: list[Any], output_tensors: dict[int, int]
    ) -> int | None:
        """Returns the tensor of the file that holds the output of a call, or None."""
        expected = outputs[0]
        if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(expected.dtype)):
            return None
        consumers = graph.consumers.get(id(call.outputs[0]), [])
        after = [id(t) for r in consumers if is_helper(r.operation) for t in r.outputs]
        matches = [output_tensors[k] for k in (id(call.outputs[0]), *after) if k in output_tensors]
        if self._fitting(matches, expected):
            return matches[0]
        keys = [key, *(self._folded[id(t)] for t in call.inputs if id(t) in self._folded)]
        fits = self._fitting([i for k in keys for i in self._tensors.owned.get(k, [])], expected)
        scored = [(self._sqnr(graph, call, expected, index), index) for index in fits]
        if not scored or max(scored)[0] < _CERTAIN:
            others = self._fitting(self._tensors.unknown, expected)
            others = [i for i in others if self._sqnr(graph, call, expected, i) >= _CERTAIN]
            scored += [(self._sqnr(graph, call, expected, index), index) for index in others]
        return max(scored)[1] if scored else None

    def _fitting(self, indices: list[int], expected: Any) -> list[int]:
        size, count = int(np.prod(expected.shape)), expected.shape[0]
        values = self._tensors.values
        return [i for i in indices if values[i].size == size and len(values[i]) == count]

    def _sqnr(self, graph: Graph, call: Call, expected: Any, index: int) -> float:
        sums, expected = _ErrorSums(), self._fake_quantized(graph, call, expected)
        sums.add(
            ops.convert_to_numpy(expected),
            np.asarray(_shaped(self._tensors.values[index], expected)),
        )
        return sums.sqnr

    @staticmethod
    def _fake_quantized(graph: Graph, call: Call, value: Any) -> Any:
        """Returns an output, fake-quantized by the quantizer that follows it, if there is one."""
        consumers = graph.consumers.get(id(call.outputs[0]), [])
        helpers = [r for r in consumers if is_helper(r.operation)]
        if not helpers or len(consumers) > 1:
            return value
        return helpers[0].operation(value, **helpers[0].kwargs)


def is_helper(operation: Any) -> bool:
    """Returns whether an operation serves compression only, such as a quantizer."""
    return getattr(operation, "is_compression_helper", False)


def is_folded(graph: Graph, call: Call) -> bool:
    """Returns whether a call has no tensor in a file, because its consumer is folded into it."""
    consumers = graph.consumers.get(id(call.outputs[0]), [])
    return (
        role(call.operation) == LINEAR
        and len(consumers) == 1
        and id(call.outputs[0]) not in graph.outputs
        and isinstance(plain(consumers[0].operation), keras.layers.BatchNormalization)
    )


def _shaped(value: Any, like: Any) -> Any:
    return np.reshape(value, like.shape).astype(np.float32)


def _row(key: str, forced: _Walk, free: _Walk, tensors: Tensors) -> LayerError:
    index, own = forced.tensor_indices[key], forced.sums[key]
    inside = forced.layers[key]
    layers = [plain(operation) for _, operation in inside]
    weighted = [x for x in layers if isinstance(x, keras.layers.Layer) and compressible_weights(x)]
    scale = tensors.scales[index]
    return LayerError(
        path=inside[-1][0],
        layers=tuple(path for path, _ in inside),
        kind=type((weighted or layers)[-1]).__name__,
        tensor=tensors.names[index],
        sqnr=own.sqnr,
        sqnr_total=free.sums[key].sqnr if key in free.sums else own.sqnr,
        cosine=own.cosine,
        max_error=own.largest,
        steps=own.largest / scale if scale else None,
    )
