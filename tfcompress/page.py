"""HTML pages without external scripts, fonts or images."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context


def page(title: str, body: str) -> str:
    """Returns a page.

    Args:
        title: What it is called.
        body: HTML.
    """
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{html.escape(title)}</h1>
{body}
</main>
</body>
</html>
"""


def svg(figure: Any, label: str) -> str:
    """Returns a figure as SVG for a page.

    Args:
        figure: A figure of matplotlib.
        label: What it shows, for people who do not see it; another for each figure of a page.
    """
    out = io.StringIO()
    with rc_context({"svg.hashsalt": label}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    drawn = out.getvalue()
    named = f'<svg role="img" aria-label="{html.escape(label)}"'
    return drawn[drawn.index("<svg") :].replace("<svg", named, 1)


def html_table(head: Sequence[str] | None, rows: Sequence[Sequence[Any]]) -> str:
    """Returns a table.

    Args:
        head: The names of the columns, if they have some.
        rows: The cells of each row.
    """

    def line(cells: Sequence[Any], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(c))}</{tag}>" for c in cells) + "</tr>"

    top = f"<thead>{line(head, 'th')}</thead>" if head else ""
    return f"<table>{top}<tbody>{''.join(line(row, 'td') for row in rows)}</tbody></table>"


def folded(title: str, body: str) -> str:
    """Returns something that a click on its title opens.

    Args:
        title: The title, as text.
        body: HTML.
    """
    return f"<details><summary>{html.escape(title)}</summary>{body}</details>"


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
.told td:last-child, .told th:last-child { white-space: normal; text-align: left !important;
  min-width: 16rem; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1rem 0; }
figure { margin: 0; background: #fff; border-radius: .4rem; flex: 1 1 20rem; }
svg { width: 100%; height: auto; display: block; }
pre { overflow-x: auto; margin: .2rem 0 .8rem; }
summary { cursor: pointer; padding: .4rem 0; font-weight: 600; }
details td:first-child { width: 12rem; opacity: .75; }
@media (max-width: 40rem) { details td:first-child { width: 6.5rem; } }
@media (prefers-color-scheme: dark) { body { background: #14181f; color: #e6e9ee; } }
"""
