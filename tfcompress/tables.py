"""Formatted tables from plain rows."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from typing import Any


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    """Returns a `rich` table; numbers are right-aligned."""
    # Imported late: a device that only runs files does not have rich.
    from rich.markup import escape
    from rich.table import Table

    result = Table(title=escape(title), title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        numeric = any(isinstance(row[index], (int, float)) for row in rows)
        right = numeric or (bool(rows) and all(_looks_numeric(row[index]) for row in rows))
        result.add_column(column, justify="right" if right else "left")
    for row in rows:
        result.add_row(*(_cell(value) for value in row))
    return result


def as_text(*renderables: Any) -> str:
    """Renders without colours, for example for `str()` of a result."""
    from rich.console import Console  # as above

    width = max(100, shutil.get_terminal_size((100, 20)).columns)
    out = io.StringIO()
    Console(file=out, width=width, no_color=True).print(*renderables, sep="\n")
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def size(count: int) -> str:
    """Returns a number of bytes in a readable form."""
    return f"{count} B" if count < 1000 else f"{count / 1000:,.1f} kB"


def _looks_numeric(value: Any) -> bool:
    text = _cell(value)
    return bool(text) and (text[0].isdigit() or text in ("-", "?"))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    # Imported late: a device that only runs files does not have rich.
    from rich.markup import escape

    return escape(str(value))
