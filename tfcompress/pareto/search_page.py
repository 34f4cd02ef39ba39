"""The HTML page of a search: the front, what each choice mattered, every recipe."""

from __future__ import annotations

import collections
import html
from typing import Any

from matplotlib.figure import Figure

from tfcompress.page import folded, html_table, page, svg
from tfcompress.pareto.words import described, shown

_FEWEST = 4
"""Finished trials without which importances mean nothing."""


def search_page(search: Any) -> str:
    """Returns the page of a search, which needs no other file.

    Args:
        search: A `Search`.
    """
    front = search.front()
    pictures = [svg(search.plot(cost=cost), f"Accuracy against {cost}") for cost in search.costs]
    counts = collections.Counter(trial.state for trial in search.trials)
    told = ", ".join(f"{count} {'given up' if s == 'pruned' else s}" for s, count in counts.items())
    reference = ", ".join(
        f"{name} {shown(name, value)}" for name, value in search.reference.items()
    )
    head = ("trial", *search.names, "recipe")
    rest = [trial for trial in search.trials if trial not in front]
    body = f"""<p>{len(search.trials)} trials: {html.escape(told)}. The float file: {reference}.</p>
<div class="pictures">{"".join(f"<figure>{picture}</figure>" for picture in pictures)}</div>
<h2>The front: no other file is better in everything</h2>
<div class="wide told">{html_table(head, [_cells(search, trial) for trial in front])}</div>
{_recipes(search, front)}
<h2>What each choice mattered</h2>
{_importances(search)}
<h2>All other trials</h2>
{_recipes(search, rest)}"""
    return page("Search", body)


def _cells(search: Any, trial: Any) -> list[str]:
    values = [shown(name, trial.values.get(name)) for name in search.names]
    return [str(trial.number), *values, described(trial.recipe)]


def _recipes(search: Any, trials: list[Any]) -> str:
    return "\n".join(_recipe(search, trial) for trial in trials)


def _recipe(search: Any, trial: Any) -> str:
    number, *values, words = _cells(search, trial)
    measured = ", ".join(f"{n} {v}" for n, v in zip(search.names, values, strict=True) if v)
    state = {"complete": "", "pruned": "given up"}.get(trial.state, trial.state)
    title = ": ".join(filter(None, [f"trial {number}", words, state, measured]))
    note = f"<p>{html.escape(trial.note)}</p>" if trial.note else ""
    recipe = html.escape(trial.recipe.to_yaml())
    return folded(title, f"{note}<pre>{recipe}</pre>")


def _importances(search: Any) -> str:
    """Returns bars: how much of an objective each choice of the space decides."""
    varied = [
        name for name in search.names if len({trial.values[name] for trial in search.complete}) > 1
    ]
    if len(search.complete) < _FEWEST or not varied or not search.importances(varied[0]):
        return f"<p>Not known before {_FEWEST} trials with a common choice are complete.</p>"
    figures = "".join(
        f"<figure>{_bars(name, search.importances(name))}</figure>" for name in varied
    )
    return f'<div class="pictures">{figures}</div>'


def _bars(name: str, shares: dict[str, float]) -> str:
    figure = Figure((5, 4), layout="constrained")
    axes = figure.subplots()
    axes.barh(list(shares), [100 * share for share in shares.values()], color="#177e6c")
    axes.invert_yaxis()
    axes.set_title(name, fontsize=10)
    axes.set_xlabel("importance, %")
    axes.spines[["top", "right"]].set_visible(False)
    return svg(figure, f"Importance of each choice for {name}")
