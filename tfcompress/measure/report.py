"""Plots and the HTML page of a comparison: accuracy against bytes and milliseconds."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

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
        if max(costs) > 3 * min(costs):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _plain(name: str) -> str:
    """Returns a name with its dollars escaped, which would start a formula."""
    return name.replace("$", r"\$")


def page(comparison: Any, reports: dict[str, FileReport], profiles: dict[str, Profile]) -> str:
    """Returns an HTML page without external scripts, fonts or images.

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
        f"<figure>{_svg(figure, f'Accuracy against {cost}')}</figure>"
        for cost, figure in figures.items()
    )
    details = "\n".join(
        f"<details><summary>{html.escape(name)}</summary>{_table(None, report.rows())}</details>"
        for name, report in reports.items()
    )
    times = "\n".join(
        f"<details><summary>{html.escape(name)}: {profile.total_ms:.3f} ms</summary>"
        + "".join(f'<div class="wide">{_table(*part)}</div>' for part in profile.tables())
        + "</details>"
        for name, profile in profiles.items()
    )
    note = (
        f"{comparison.samples:,} samples; {comparison.threads} thread(s), {comparison.runtime}; "
        "Keras models are measured as float32 files."
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Models compared</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>Models compared</h1>
<div class="wide">{_table(head, comparison.cells())}</div>
<p>{html.escape(note)}</p>
<div class="pictures">{pictures}</div>
<h2>What is in each file</h2>
{details}
<h2>Where its time goes</h2>
{times}
</main>
</body>
</html>
"""


_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0; background: #fff; color: #1c2430; }
main { max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid #8884; text-align: left;
  vertical-align: top; overflow-wrap: anywhere; }
.wide th, .wide td { white-space: nowrap; overflow-wrap: normal; }
.wide th:not(:first-child), .wide td:not(:first-child) { text-align: right; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1rem 0; }
figure { margin: 0; background: #fff; border-radius: .4rem; flex: 1 1 20rem; }
svg { width: 100%; height: auto; display: block; }
summary { cursor: pointer; padding: .4rem 0; font-weight: 600; }
details td:first-child { width: 12rem; opacity: .75; }
@media (max-width: 40rem) { details td:first-child { width: 6.5rem; } }
@media (prefers-color-scheme: dark) { body { background: #14181f; color: #e6e9ee; } }
"""


def _svg(figure: Any, label: str) -> str:
    """Returns a figure as SVG for a page; its ids differ from those of other figures."""
    out = io.StringIO()
    with rc_context({"svg.hashsalt": label}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    svg = out.getvalue()
    return svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _table(head: Sequence[str] | None, rows: Sequence[Sequence[Any]]) -> str:
    def line(cells: Sequence[Any], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(c))}</{tag}>" for c in cells) + "</tr>"

    top = f"<thead>{line(head, 'th')}</thead>" if head else ""
    return f"<table>{top}<tbody>{''.join(line(row, 'td') for row in rows)}</tbody></table>"
