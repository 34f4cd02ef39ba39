"""Plots and the HTML page of a comparison: accuracy against bytes and milliseconds."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from tfcompress.page import folded, html_table, page, svg
from tfcompress.tflite.inspect import FileReport
from tfcompress.tflite.profile import Profile

_COLOURS = ("#177e6c", "#c98a1b", "#4c5a6b", "#b5443c", "#5a6fb0", "#8a5a9e")


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Returns the Pareto front: the points that no other beats in both cost and gain.

    Args:
        points: (cost, gain) of each.

    Returns:
        Indices of the points, by increasing cost.
    """
    kept: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not kept or points[index][1] > points[kept[-1]][1]:
            kept.append(index)
    return kept


def pareto_figure(rows: Sequence[Any], costs: Sequence[str] = ("bytes", "latency")) -> Any:
    """Draws accuracy against cost, with the Pareto front.

    Args:
        rows: `ComparisonRow`s.
        costs: "bytes" (after gzip), "latency", or both.
    """
    figure = Figure(figsize=(5 * len(costs), 4.2), layout="constrained")
    for axes, cost in zip(figure.subplots(1, len(costs), squeeze=False)[0], costs, strict=True):
        _draw(axes, rows, cost)
    return figure


def _draw(axes: Any, rows: Sequence[Any], cost: str) -> None:
    measured = [row for row in rows if row.accuracy is not None]
    costs = [row.gzip_bytes / 1000 if cost == "bytes" else row.latency_ms for row in rows]
    points = list(zip(costs, [100 * (row.accuracy or 0) for row in rows], strict=True))
    axes.set_xlabel("file after gzip, kB" if cost == "bytes" else "latency, ms")
    if len(measured) < len(rows):  # without data, only the costs are known
        bars = axes.barh([_plain(row.name) for row in rows], costs, color=_COLOURS[0], height=0.5)
        axes.bar_label(bars, [f"{value:.4g}" for value in costs], padding=4, fontsize=9)
        axes.margins(0.2, 0.1)
        axes.invert_yaxis()
    else:
        best = [points[i] for i in front(points)]
        axes.plot(*zip(*best, strict=True), color="#999999", linewidth=1)
        for index, (row, point) in enumerate(zip(rows, points, strict=True)):
            axes.scatter(*point, s=60, color=_COLOURS[index % len(_COLOURS)], zorder=3)
            axes.annotate(
                _plain(row.name),
                point,
                xytext=(6, -4 if index % 2 else 6),
                textcoords="offset points",
                va="top" if index % 2 else "bottom",
                fontsize=9,
            )
        axes.margins(0.25, 0.2)
        axes.set_ylabel("accuracy, %")
        cost_axis(axes, costs)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def cost_axis(axes: Any, costs: Sequence[float]) -> None:
    """Makes the horizontal axis logarithmic if costs differ by much, with plain numbers.

    Args:
        axes: Axes of matplotlib.
        costs: The costs that are shown.
    """
    if max(costs) > 3 * min(costs) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:g}")


def _plain(name: str) -> str:
    """Returns a name with its dollars escaped, which would start a formula."""
    return name.replace("$", r"\$")


def comparison_page(
    comparison: Any, reports: dict[str, FileReport], profiles: dict[str, Profile]
) -> str:
    """Returns the HTML page of a comparison.

    Args:
        comparison: A `Comparison`.
        reports: The content of each file, by name.
        profiles: Where the time of each file goes, by name.
    """
    known = ("model", "accuracy", "bytes", "after gzip", "smaller", "latency, ms", "faster")
    estimated = ("mJ (estimate)", "pays back after, inferences") if comparison.power else ()
    head = (*known, "outside of XNNPACK", *comparison.rows[0].devices, *estimated)
    figures = {cost: pareto_figure(comparison.rows, [cost]) for cost in ("bytes", "latency")}
    pictures = "".join(
        f"<figure>{svg(figure, f'Accuracy against {cost}')}</figure>"
        for cost, figure in figures.items()
    )
    details = "\n".join(
        folded(name, html_table(None, report.rows())) for name, report in reports.items()
    )
    times = "\n".join(
        folded(
            f"{name}: {profile.total_ms:.3f} ms",
            "".join(f'<div class="wide">{html_table(*part)}</div>' for part in profile.tables()),
        )
        for name, profile in profiles.items()
    )
    note = (
        f"{comparison.samples:,} samples; {comparison.threads} thread(s), {comparison.runtime}; "
        "Keras models are measured as float32 files."
    )
    body = f"""<div class="wide">{html_table(head, comparison.cells())}</div>
<p>{html.escape(note)}</p>
<div class="pictures">{pictures}</div>
<h2>What is in each file</h2>
{details}
<h2>Where its time goes</h2>
{times}"""
    return page("Models compared", body)
