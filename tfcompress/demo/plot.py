"""The plot of the demo."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from tfcompress.files import save_figure


def draw(rows: Mapping[str, Any], names: Mapping[str, str], path: pathlib.Path) -> None:
    """Draws accuracy against size, and latency.

    Args:
        rows: `Measured` by key.
        names: The label of each key.
        path: PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours = ("#4c5a6b", "#c98a1b", "#177e6c")
    labels = [names[key].replace(", ", "\n") for key in rows]
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))

    for (key, row), colour, label in zip(rows.items(), colours, labels, strict=True):
        kilobytes = row.gzip_bytes / 1000
        left.scatter(kilobytes, 100 * row.accuracy, s=90, color=colour, zorder=3)
        below = key != "teacher"
        left.annotate(
            f"{label}\n{kilobytes:,.1f} kB, {row.accuracy:.2%}",
            (kilobytes, 100 * row.accuracy),
            # Labels must not overlap, even at equal accuracies: the teacher's is above and to the
            # left, those of the students are below and to the right, at different sizes.
            xytext=(0, -9 if below else 9),
            textcoords="offset points",
            ha="left" if below else "right",
            va="top" if below else "bottom",
            color=colour,
            fontsize=9,
        )
    left.set_xscale("log")
    sizes = [row.gzip_bytes / 1000 for row in rows.values()]
    ticks = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
    left.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    left.set_xticks([], minor=True)
    left.set_xlim(min(sizes) / 1.8, max(sizes) * 1.8)
    accuracies = [100 * row.accuracy for row in rows.values()]
    left.set_ylim(min(accuracies) - 1, max(accuracies) + 1)
    left.set_xlabel("file after gzip, kB (log scale)")
    left.set_ylabel("test accuracy, %")
    left.set_title("Accuracy against size")

    latencies = [row.latency_ms for row in rows.values()]
    bars = right.barh(labels, latencies, color=colours, height=0.55)
    right.bar_label(bars, [f"{value:.3f} ms" for value in latencies], padding=4, fontsize=9)
    right.set_xlim(0, max(latencies) * 1.3)
    right.invert_yaxis()
    right.set_xlabel("one inference, one thread, ms")
    right.set_title("Latency")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x" if axes is right else "both", alpha=0.25)
        axes.set_axisbelow(True)
    save_figure(figure, path, dpi=130)
