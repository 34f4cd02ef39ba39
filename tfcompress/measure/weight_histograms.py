"""histograms: distributions of the weights of each layer, and ranges of the activations."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import keras
import numpy as np

from tfcompress.files import check_path, save_figure
from tfcompress.graph.inline import as_graph
from tfcompress.graph.layers import plain
from tfcompress.graph.read import walk_layers
from tfcompress.graph.weights import compressible_weights, variable_name
from tfcompress.quantization.state import quantizers
from tfcompress.tables import as_text, table
from tfcompress.tflite.inspect import weights
from tfcompress.tflite.run import TFLiteModel
from tfcompress.wrap.wrapper import CompressionWrapper

_SHOWN = 24  # maximum number of panels of a figure


@dataclasses.dataclass(frozen=True)
class WeightHistogram:
    """The distribution of one effective weight, as it is used in computation.

    Attributes:
        name: Its layer and name, or its tensor in a file.
        counts: Number of its values in each bin.
        edges: Edges of the bins, one more than there are counts.
        zeros: Share of zeros.
        levels: Number of distinct values.
    """

    name: str
    counts: list[int]
    edges: list[float]
    zeros: float
    levels: int


@dataclasses.dataclass(frozen=True)
class ActivationRange:
    """The quantization range of an activation.

    Attributes:
        name: The layer or tensor.
        minimum: Minimum of the range.
        maximum: Maximum of the range.
    """

    name: str
    minimum: float
    maximum: float


@dataclasses.dataclass(frozen=True)
class Histograms:
    """The weights and ranges of a model or file.

    Attributes:
        weights: One for each kernel and embedding table.
        ranges: One for each activation with a range; empty for float models.
    """

    weights: list[WeightHistogram]
    ranges: list[ActivationRange]

    def __rich__(self) -> Any:
        rows: list[tuple[Any, ...]] = [
            (w.name, f"{w.edges[0]:.4g}", f"{w.edges[-1]:.4g}", f"{w.zeros:.1%}", w.levels)
            for w in self.weights
        ]
        rows += [(r.name, f"{r.minimum:.4g}", f"{r.maximum:.4g}", None, None) for r in self.ranges]
        return table("weights and ranges", ("", "from", "to", "zeros", "values"), rows)

    def __str__(self) -> str:
        return as_text(self.__rich__())

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws a histogram of each weight (the first 24) and the ranges.

        Args:
            path: File to write, such as "weights.png".
        """
        from matplotlib.figure import Figure

        target = check_path(path)
        if not self.weights:
            raise ValueError("There is nothing to draw: the model has no kernels.")
        shown = self.weights[:_SHOWN]
        columns = min(4, max(1, len(shown)))
        lines = -(-len(shown) // columns)
        below = 0.6 + 0.2 * len(self.ranges) if self.ranges else 0.01
        figure = Figure(figsize=(11, 1.9 * lines + below), layout="constrained")
        halves: Any = figure.subfigures(2, 1, height_ratios=(1.9 * lines, below))
        upper, lower = halves
        for axes, weight in zip(
            upper.subplots(lines, columns, squeeze=False).flat, shown, strict=False
        ):
            axes.stairs(weight.counts, weight.edges, fill=True, color="#177e6c")
            axes.set_title(f"{_short(weight.name)}\n{weight.zeros:.0%} zeros", fontsize=8)
            axes.tick_params(labelsize=7)
            axes.set_yscale("symlog")
        for axes in upper.axes[len(shown) :]:
            axes.set_visible(False)
        if self.ranges:
            axes = lower.subplots()
            positions = range(len(self.ranges))
            widths = [r.maximum - r.minimum for r in self.ranges]
            axes.barh(positions, widths, left=[r.minimum for r in self.ranges], color="#c98a1b")
            axes.set_yticks(positions, [_short(r.name) for r in self.ranges], fontsize=7)
            axes.invert_yaxis()
            axes.axvline(0, color="grey", linewidth=0.8)
            axes.set_title("ranges of activations", fontsize=9)
        save_figure(figure, target, dpi=120)


def histograms(model: Any, *, bins: int = 64) -> Histograms:
    """Returns the distributions of the weights of a model or file, and its activation ranges.

    The weights are the effective ones, as used in computation: pruned and fake-quantized.

    Args:
        model: A Keras model, wrapped or not, a `TFLiteModel`, or the path of a `.tflite` file.
        bins: Number of bins of each histogram.

    Returns:
        Plain data that prints as a table; `plot` draws it.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If `model` is none of these.
        ValueError: If `bins` is not positive, or the model cannot be read.

    Example:
        >>> import tfcompress as tfc
        >>> result = tfc.histograms("tflite_models/fashion_mnist_student_int8.tflite")
        >>> sum(result.weights[0].counts) > 0 and len(result.ranges) > 0
        True
    """
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise ValueError(f"bins must be an integer >= 1. Received: bins={bins!r}")
    if isinstance(model, (str, os.PathLike)):
        model = TFLiteModel(model)
    if isinstance(model, TFLiteModel):
        return _of_file(TFLiteModel(model.content, delegates=False), bins)
    model = as_graph(model)
    weight_histograms = []
    for path, layer in walk_layers(model):
        values = {id(weight): weight for weight in compressible_weights(plain(layer))}
        names = {key: f"{path}/{variable_name(weight)}" for key, weight in values.items()}
        if isinstance(layer, CompressionWrapper):
            for weight, transforms in layer.pipelines():
                values[id(weight)] = layer.effective_value(weight, transforms)
        weight_histograms += [
            _histogram(names[key], keras.ops.convert_to_numpy(value), bins)
            for key, value in values.items()
        ]
    ranges = [
        ActivationRange(q.name.removesuffix("_quantizer"), *q.range())
        for q in quantizers(model)
        if q.fixed_range is not None or q.is_trained
    ]
    return Histograms(weight_histograms, ranges)


def _of_file(file: TFLiteModel, bins: int) -> Histograms:
    stored = weights(file)
    weight_histograms = []
    for details in file.interpreter.get_tensor_details():
        if details["name"] not in stored:
            continue
        values, scales = stored[details["name"]]
        if len(scales):
            shape = [1] * values.ndim
            shape[details["quantization_parameters"]["quantized_dimension"]] = -1
            values = values * np.asarray(scales).reshape(shape)
        weight_histograms.append(_histogram(details["name"].split(";")[0], values, bins))
    ranges = []
    for details in file.interpreter.get_tensor_details():
        scale, zero_point = details["quantization"]
        kind = np.dtype(details["dtype"])
        if not scale or kind.name not in ("int8", "uint8", "int16") or details["name"] in stored:
            continue
        integers = np.iinfo(kind)
        minimum, maximum = ((q - zero_point) * scale for q in (integers.min, integers.max))
        ranges.append(
            ActivationRange(details["name"].split(";")[0], float(minimum), float(maximum))
        )
    return Histograms(weight_histograms, ranges)


def _histogram(name: str, values: np.ndarray, bins: int) -> WeightHistogram:
    values = values.astype(np.float64)
    counts, edges = np.histogram(values, bins)
    zeros = 1 - np.count_nonzero(values) / max(values.size, 1)
    return WeightHistogram(
        name, counts.tolist(), edges.tolist(), float(zeros), len(np.unique(values))
    )


def _short(name: str, limit: int = 34) -> str:
    return name if len(name) <= limit else "..." + name[3 - limit :]
