"""sensitivity: the effect of quantizing one layer alone on the model."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import keras

from tfcompress.files import save_figure
from tfcompress.graph.read import walk_layers
from tfcompress.graph.select import LayerSelection, select
from tfcompress.post_training.pipeline import post_training
from tfcompress.scheme import INTEGER_SCHEMES, QuantizationScheme, check_choice
from tfcompress.tables import as_text, table
from tfcompress.tune.score import Metric, Scorer, weighted_layers


@dataclasses.dataclass(frozen=True)
class LayerSensitivity:
    """The effect of quantizing one layer alone.

    Attributes:
        layer: Path of the layer.
        candidate: The scheme of the quantized layer.
        sqnr: Signal-to-quantization-noise ratio of the model's outputs, in decibels; less is worse.
        drop: The metric of the float model minus that of the quantized one.
    """

    layer: str
    candidate: str
    sqnr: float
    drop: float


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """The sensitivity of each layer, worst first.

    Attributes:
        rows: One for each layer and candidate.
        score: The metric of the float model.
    """

    rows: list[LayerSensitivity]
    score: float

    def __rich__(self) -> Any:
        rows = [(r.layer, r.candidate, f"{r.sqnr:.1f}", f"{r.drop:+.4f}") for r in self.rows]
        title = f"one layer quantized at a time (float: {self.score:.4f})"
        return table(title, ("layer", "scheme", "SQNR, dB", "drop"), rows)

    def __str__(self) -> str:
        return as_text(self.__rich__())

    def plot(self, path: str | pathlib.Path) -> None:
        """Draws the SQNR of every layer to an image file.

        Args:
            path: File to write, such as "sensitivity.png".
        """
        from matplotlib.figure import Figure

        names = list(dict.fromkeys(row.layer for row in self.rows))
        kinds = list(dict.fromkeys(row.candidate for row in self.rows))
        figure = Figure(figsize=(8, 1.2 + 0.28 * len(names) * len(kinds)), layout="constrained")
        axes = figure.subplots()
        for number, kind in enumerate(kinds):
            by_layer = {row.layer: row.sqnr for row in self.rows if row.candidate == kind}
            height = 0.8 / len(kinds)
            shift = (number - (len(kinds) - 1) / 2) * height
            positions = [index + shift for index in range(len(names))]
            axes.barh(positions, [by_layer[name] for name in names], height, label=kind)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel("SQNR of the model's outputs, dB (less is worse)")
        axes.legend()
        save_figure(figure, path, dpi=120)


def sensitivity(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    candidates: Sequence[str] = ("int8", "w4a8"),
    metric: Metric | None = None,
    layers: LayerSelection = None,
    verbose: bool = True,
) -> Sensitivity:
    """Measures the loss from quantizing each layer alone: its weights and its output.

    All other layers stay in float. Takes one quantization and one run over `x` for each layer and
    candidate; give a few hundred samples. `assign_precision` chooses a scheme by it.

    Args:
        model: A built Sequential or Functional model. It is not changed.
        x: Samples, in any form that `export_tflite` takes; they also serve for calibration.
        y: Their labels; None compares with the outputs of the float model.
        candidates: Which of "int8", "w4a8" and "int16x8".
        metric: A function of labels and predictions, more is better. None is accuracy for outputs
            that are vectors, else minus the squared error over the variance.
        layers: Which layers, as for `quantize`; None for all with weights.
        verbose: Whether to print each result as soon as it is measured.

    Returns:
        SQNR and drop of every layer and candidate, worst first.

    Raises:
        ValueError: If a candidate is unknown, there are no samples, or the model is quantized.

    Example:
        >>> import keras, numpy as np
        >>> import tfcompress as tfc
        >>> keras.utils.set_random_seed(0)
        >>> dense = [keras.layers.Dense(6, name="a"), keras.layers.Dense(4, name="b")]
        >>> model = keras.Sequential([keras.Input((8,)), *dense])
        >>> x = np.random.default_rng(0).normal(size=(64, 8))
        >>> result = tfc.sensitivity(model, x, candidates=["int8"], verbose=False)
        >>> sorted(row.layer for row in result.rows)
        ['a', 'b']
    """
    for candidate in candidates:
        check_choice(candidate, "candidates", INTEGER_SCHEMES)
    scorer = Scorer(model, x, y, metric)
    weighted = weighted_layers(scorer.model)
    chosen = select(list(walk_layers(scorer.model)), layers) if layers else {p for p, _ in weighted}
    rows = []
    for path in sorted(chosen):
        for candidate in candidates:
            scheme = QuantizationScheme(
                correct_bias=False,
                prefer="bytes",  # 4 bits wherever there is a kernel
                overrides={path: candidate, "*": "float32"},
            )
            quantized = post_training(scorer.model, scheme, scorer.calibration)
            drop = scorer.best - scorer.score(quantized)
            rows.append(LayerSensitivity(path, candidate, scorer.sqnr(quantized), drop))
            if verbose:
                print(f"sensitivity: {path} {candidate}: {rows[-1].sqnr:.1f} dB, {drop:+.4f}")
    return Sensitivity(sorted(rows, key=lambda row: row.sqnr), scorer.best)
