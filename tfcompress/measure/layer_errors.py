"""layer_errors: what each layer of a file adds to the difference from its Keras model."""

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


_CERTAIN = 15.0  # dB above which a tensor without a known name is taken for a layer's output


@dataclasses.dataclass(frozen=True)
class LayerError:
    """One layer, or layers that the file computes in one.

    Attributes:
        path: Path of the last of these layers.
        layers: Paths of all of them.
        kind: Class of the last layer with a kernel among them, else of the last.
        tensor: Name of the tensor in the file.
        sqnr: Signal over error of the layer alone, given what the file hands it, in dB.
        sqnr_total: The same with the errors of all layers before it.
        cosine: Cosine of the angle between the layer's own output and the file's.
        max_error: Largest absolute error of the layer alone.
        steps: The same in steps of the tensor's grid; None if it has none.
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
        rows: One for each tensor in the file that a layer ends in.
        unmatched: Paths of layers with weights of which the file holds no output.
        samples: Samples measured.
        kernels: The runtime and kernels that ran.
    """

    rows: list[LayerError]
    unmatched: list[str]
    samples: int
    kernels: str

    def __rich__(self) -> Any:
        columns = ("layer", "kind", "SQNR dB", "with all before", "cosine", "max error", "steps")
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
        made = table("layers, worst first", columns, rows)
        made.caption = f"{self.samples} samples, {self.kernels}"
        if self.unmatched:
            made.caption += f"; without a tensor of their own: {', '.join(self.unmatched)}"
        return made

    def __str__(self) -> str:
        return as_text(self.__rich__())


def layer_errors(model: keras.Model, tflite: Any, x: Any) -> LayerErrors:
    """Measures how well each layer of a file agrees with the layer of its model, worst first.

    Each layer of the model is run on what the file handed to its twin, so that a layer is blamed
    for its own error and not for those before it; `sqnr_total` has them, too. An int8 layer that is
    all right has 30 dB and more. Intermediate tensors are readable with the built-in kernels only,
    so these run.

    Args:
        model: The Keras model that the file was made from, wrapped or not. It is not changed.
        tflite: The file: its path, its bytes or a `TFLiteModel`.
        x: Samples as for `export_tflite`; 32 of them are used.

    Returns:
        Plain data that prints as a table.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If `model` is no Keras model.
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
    given = samples(x, specs, limit=_SAMPLES, argument="x")
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
    count = len(next(iter(given.values())))
    size = fixed_batch(model)
    for start in range(0, count, size or _BATCH):
        rows = np.arange(start, start + size if size else min(start + _BATCH, count))
        batch = {name: array[np.minimum(rows, count - 1)] for name, array in given.items()}
        tensors.run(batch)
        inputs = [ops.convert_to_tensor(batch[spec.name]) for spec in specs]
        forced.model(model, inputs)
        free.model(model, inputs)
    if not forced.found:
        raise ValueError("No layer of the model was found in the file. Is it made from this model?")
    return LayerErrors(
        sorted((_row(key, forced, free, tensors) for key in forced.found), key=lambda r: r.sqnr),
        [path for path in forced.weighted if path not in forced.covered],
        count,
        file.runtime,
    )


@dataclasses.dataclass
class _Sums:
    """Sums over all batches, of one tensor."""

    signal: float = 0.0
    noise: float = 0.0
    other: float = 0.0
    product: float = 0.0
    largest: float = 0.0

    def add(self, wanted: np.ndarray, got: np.ndarray) -> None:
        """Adds a batch; what is not finite in the model is left out."""
        known = np.isfinite(wanted)
        wanted, got = wanted[known].astype(np.float64), got[known].astype(np.float64)
        self.signal += float(np.sum(wanted**2))
        self.noise += float(np.sum((wanted - got) ** 2))
        self.other += float(np.sum(got**2))
        self.product += float(np.sum(wanted * got))
        self.largest = max(self.largest, float(np.max(np.abs(wanted - got), initial=0.0)))

    @property
    def sqnr(self) -> float:
        """Signal over noise in dB; 200 where there is no noise."""
        if self.noise == 0:
            return 200.0
        return 10 * float(np.log10(max(self.signal, 1e-30) / self.noise))

    @property
    def cosine(self) -> float:
        """Of the angle between the two; 1 where both are zero."""
        length = float(np.sqrt(self.signal * self.other))
        return self.product / length if length else float(self.signal == self.other)


class _Walk:
    """Runs a model call by call beside its file.

    Args:
        tensors: What the file computes.
        forced: Whether each layer is given what the file computed, not what the layers before it
            did.
    """

    def __init__(self, tensors: Tensors, *, forced: bool) -> None:
        self._tensors = tensors
        self._forced = forced
        self.found: dict[str, int] = {}
        self.sums: dict[str, _Sums] = {}
        self.inside: dict[str, list[tuple[str, Any]]] = {}
        self.weighted: dict[str, None] = {}
        self.covered: set[str] = set()
        self._open: dict[int, list[tuple[str, Any]]] = {}
        self._folded: dict[int, str] = {}

    def model(
        self,
        model: keras.Model,
        inputs: list[Any],
        path: str = "",
        key: str = "",
        ends: dict[int, int] | None = None,
    ) -> Any:
        """Returns the outputs of a model, and measures its layers.

        Args:
            model: The model, or one inside of it.
            inputs: Its inputs.
            path: Its path, ending in "/".
            key: Likewise, of its call.
            ends: The tensors of the file that its outputs are, by `id` of the output.
        """
        graph = read_graph(model, path)
        ends = self._tensors.ends if ends is None else ends
        values = {id(t): value for t, value in zip(model.inputs, inputs, strict=True)}
        if not path and self._forced:
            for tensor, name in zip(model.inputs, input_names(model), strict=True):
                if name in self._tensors.inputs:
                    made = self._tensors.values[self._tensors.inputs[name]]
                    given = values[id(tensor)]
                    values[id(tensor)] = (
                        _shaped(made, given) if made.size == math.prod(given.shape) else given
                    )
        for name, call in keyed(graph.calls):
            outputs = self._call(graph, call, key + name, values, ends)
            values.update((id(t), v) for t, v in zip(call.outputs, outputs, strict=True))
        return [values[id(t)] for t in model.outputs]

    def _call(
        self, graph: Graph, call: Call, key: str, values: dict[int, Any], ends: dict[int, int]
    ) -> list[Any]:
        def lookup(value: Any) -> Any:
            return values[id(value)] if isinstance(value, keras.KerasTensor) else value

        args, kwargs = tree.map_structure(lookup, (call.args, call.kwargs))
        if is_graph(call.operation):
            inside = {
                id(inner): ends[id(outer)]
                for inner, outer in zip(call.operation.outputs, call.outputs, strict=True)
                if id(outer) in ends
            }
            given = tree.flatten(args)[: len(call.operation.inputs)]
            outputs = self.model(call.operation, given, call.path + "/", key + "/", inside)
        else:
            outputs = tree.flatten(at_inference(call.operation, args, kwargs))
        helper = is_helper(call.operation) or is_graph(call.operation)
        if getattr(plain(call.operation), "weights", None) and not helper:
            self.weighted[call.path] = None
        # What is computed since the tensors before, by the tensors that it comes from.
        behind = [entry for t in call.inputs for entry in self._open.get(id(t), [])]
        behind = [*dict.fromkeys(behind), (call.path, call.operation)]
        index = None
        if is_folded(graph, call):
            self._folded[id(call.outputs[0])] = key
        elif not helper:
            index = self._tensor_of(graph, call, key, outputs, ends)
        for place, tensor in enumerate(call.outputs):
            self._open[id(tensor)] = [] if index is not None and place == 0 else behind
        if index is None:
            return outputs
        wanted = self._rounded(graph, call, outputs[0])
        got = _shaped(self._tensors.values[index], wanted)
        if self._forced:
            self.found[key] = index
            self.inside[key] = behind
            self.covered.update(path for path, _ in behind)
            outputs = [ops.cast(got, outputs[0].dtype), *outputs[1:]]
        self.sums.setdefault(key, _Sums()).add(ops.convert_to_numpy(wanted), np.asarray(got))
        return outputs

    def _tensor_of(
        self, graph: Graph, call: Call, key: str, outputs: list[Any], ends: dict[int, int]
    ) -> int | None:
        """Returns the tensor of the file that holds the output of a call, or None."""
        wanted = outputs[0]
        if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(wanted.dtype)):
            return None
        readers = graph.consumers.get(id(call.outputs[0]), [])
        after = [id(t) for r in readers if is_helper(r.operation) for t in r.outputs]
        end = [ends[k] for k in (id(call.outputs[0]), *after) if k in ends]
        if self._fitting(end, wanted):
            return end[0]
        keys = [key, *(self._folded[id(t)] for t in call.inputs if id(t) in self._folded)]
        fits = self._fitting([i for k in keys for i in self._tensors.owned.get(k, [])], wanted)
        scored = [(self._sqnr(graph, call, wanted, index), index) for index in fits]
        if not scored or max(scored)[0] < _CERTAIN:
            others = self._fitting(self._tensors.unknown, wanted)
            others = [i for i in others if self._sqnr(graph, call, wanted, i) >= _CERTAIN]
            scored += [(self._sqnr(graph, call, wanted, index), index) for index in others]
        return max(scored)[1] if scored else None

    def _fitting(self, indices: list[int], wanted: Any) -> list[int]:
        size, count = int(np.prod(wanted.shape)), wanted.shape[0]
        values = self._tensors.values
        return [i for i in indices if values[i].size == size and len(values[i]) == count]

    def _sqnr(self, graph: Graph, call: Call, wanted: Any, index: int) -> float:
        sums, wanted = _Sums(), self._rounded(graph, call, wanted)
        sums.add(
            ops.convert_to_numpy(wanted), np.asarray(_shaped(self._tensors.values[index], wanted))
        )
        return sums.sqnr

    @staticmethod
    def _rounded(graph: Graph, call: Call, value: Any) -> Any:
        """Returns an output as the quantizer behind it rounds it, if there is one."""
        readers = graph.consumers.get(id(call.outputs[0]), [])
        helpers = [r for r in readers if is_helper(r.operation)]
        if not helpers or len(readers) > 1:
            return value
        return helpers[0].operation(value, **helpers[0].kwargs)


def is_helper(operation: Any) -> bool:
    """Returns whether an operation is there for compression alone, as a quantizer is."""
    return getattr(operation, "is_compression_helper", False)


def is_folded(graph: Graph, call: Call) -> bool:
    """Returns whether a file has no output of a call, because it is one with what follows."""
    readers = graph.consumers.get(id(call.outputs[0]), [])
    return (
        role(call.operation) == LINEAR
        and len(readers) == 1
        and id(call.outputs[0]) not in graph.outputs
        and isinstance(plain(readers[0].operation), keras.layers.BatchNormalization)
    )


def _shaped(value: Any, like: Any) -> Any:
    return np.reshape(value, like.shape).astype(np.float32)


def _row(key: str, forced: _Walk, free: _Walk, tensors: Tensors) -> LayerError:
    index, own = forced.found[key], forced.sums[key]
    inside = forced.inside[key]
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
