"""The page that answers which tracks a listener now skips, and when: one HTML file that needs no network."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from utils.core.files import atomic_file
from utils.reporting.charts import SERIES, SOFT, as_percent, drawing
from utils.reporting.listening_text import TITLES, Answers, basis, between, day, findings, headline, moved, rate_tables
from utils.reporting.skip_rates import WEEKDAYS, HeatMap, Rate
from utils.reporting.templates import render_template


def write_listening(path: Path, title: str, answers: Sequence[Answers], *, min_sessions: int) -> None:
    """Write the page.

    Args:
        path: the HTML file, replaced if it exists.
        title: what is told of.
        answers: of each listener.
        min_sessions: fewest sessions before and now of what was compared.
    """
    page = render_template(
        "listening.html.jinja",
        title=title,
        listeners=[listener_section(i, title, each, min_sessions) for i, each in enumerate(answers)],
        written=datetime.datetime.now(datetime.UTC).strftime("%-d %B %Y, %H:%M UTC"),
        day=day,
        between=between,
    )
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def listener_section(number: int, title: str, answers: Answers, min_sessions: int) -> dict[str, Any]:
    """Everything that the template shows of one listener; `number` tells the sections apart."""
    changes, habits = answers.changes, answers.habits
    tables = [
        {
            "heading": heading,
            "what": what,
            "rows": getattr(changes, direction)[what],
            "basis": basis(changes, direction, what, min_sessions),
            "says_when": direction == "skipped_now",
        }
        for (direction, what), heading in TITLES.items()
        if changes is not None
    ]
    return {
        "anchor": f"listener-{number}",
        "listener": answers.listener,
        "headline": headline(title, answers),
        "moved": "" if changes is None else moved(changes),
        "changes": tables,
        "findings": [] if habits is None else findings(habits),
        "heat_map": None if habits is None or habits.heat_map is None else heat_rows(habits.heat_map),
        "charts": [] if habits is None else rate_charts(number, rate_charts_of(answers)),
        "rates": {} if habits is None else rate_tables(habits),
    }


def heat_rows(cells: HeatMap) -> list[tuple[str, list[dict[str, Any]]]]:
    """(weekday, cells) of the heat map; a cell has its shade in percent of the highest rate, its rate and plays."""
    highest = np.nanmax(cells.rate) if not np.isnan(cells.rate).all() else 1.0
    return [
        (
            name,
            [
                {
                    "rate": None if np.isnan(rate) else round(100 * rate),
                    "shade": 0 if np.isnan(rate) else round(100 * rate / max(highest, 1e-9)),
                    "plays": int(plays),
                }
                for rate, plays in zip(cells.rate[i], cells.plays[i], strict=True)
            ],
        )
        for i, name in enumerate(WEEKDAYS)
    ]


def rate_charts_of(answers: Answers) -> list[tuple[str, str, list[Rate]]]:
    """Caption, name of the axis and rates of each chart; a chart needs two rates."""
    assert answers.habits is not None
    habits = answers.habits
    charts = [
        ("How the skip rate moved over the months.", "month", habits.months),
        ("By hour of the day.", "hour", habits.hours),
        ("By place in the session.", "place in the session", habits.positions),
    ]
    return [chart for chart in charts if len(chart[2]) > 1]


def rate_charts(number: int, charts: Sequence[tuple[str, str, list[Rate]]]) -> list[dict[str, Any]]:
    """Each chart as SVG with its caption."""
    return [
        {
            "svg": drawing(partial(draw_rates, axis=axis, rates=rates), f"{number} {axis}", caption, size=(5.3, 2.8)),
            "caption": caption,
        }
        for caption, axis, rates in charts
    ]


def draw_rates(axes: Axes, axis: str, rates: Sequence[Rate]) -> None:
    """Rates in order, with their intervals as a band."""
    place = np.arange(len(rates))
    axes.fill_between(place, [r.low for r in rates], [r.high for r in rates], color=SERIES[0], alpha=0.2, linewidth=0)
    axes.plot(place, [r.rate for r in rates], color=SERIES[0], marker="o", markersize=3)
    axes.set_xlabel(axis, color=SOFT)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(as_percent)
    step = -(-len(rates) // 8)
    axes.set_xticks(place[::step], [rate.label for rate in rates[::step]])
