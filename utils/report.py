"""The report page: leaderboards, curves and slices of all runs in one HTML file that needs no network.

Charts are drawn by matplotlib as SVG and stand inline. They are drawn in placeholder colours that become the page's CSS
variables, so that the same chart fits light and dark mode.
"""

from __future__ import annotations

import datetime
import io
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils import leaderboard
from utils.files import atomic_file
from utils.history import read_history, series
from utils.leaderboard import METRIC_NAMES, TASKS, FinishedRun, Metric, Table
from utils.schema import PREFIXES

INK, SOFT, RULE = "#010101", "#020202", "#030303"
SERIES = tuple(f"#0400{i:02x}" for i in range(8))
CSS_COLOURS = {INK: "var(--ink)", SOFT: "var(--soft)", RULE: "var(--rule)"} | {
    colour: f"var(--series-{i})" for i, colour in enumerate(SERIES)
}
"""Placeholder colours of the charts and the CSS variables that take their place."""
MARKERS = {
    "o": "M6 2a4 4 0 1 0 .01 0z",
    "s": "M2.5 2.5h7v7h-7z",
    "^": "M6 1.5 10.5 10h-9z",
    "D": "M6 1 11 6 6 11 1 6z",
    "v": "M6 10.5 1.5 2h9z",
    "P": "M4.5 1.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
    "X": "M3 1 6 4 9 1 11 3 8 6 11 9 9 11 6 8 3 11 1 9 4 6 1 3z",
    "p": "M6 1 11 4.8 9 10.5H3L1 4.8z",
}
"""matplotlib's marker and the same shape as an SVG path in a box of 12 x 12, for the legend."""
CHART_STYLE: dict[Any, Any] = {
    "axes.edgecolor": RULE,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": SOFT,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "sans-serif",
    "font.size": 10,
    "grid.color": RULE,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "svg.fonttype": "none",
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "ytick.major.size": 0,
}
SLICE_NAMES = {
    "length": "Session length",
    "context_type": "Where the listener started",
    "shuffle": "Shuffle mode",
    "premium": "Premium account",
    "history": "Kind of listener, by the first half",
    "continuation": "First transition seen in training",
    "plays": "Training plays of the track: accuracy",
}


class Style(NamedTuple):
    """How one row looks in every chart and in the legend."""

    colour: str
    marker: str
    dashes: tuple[float, ...]
    width: float

    @property
    def css_colour(self) -> str:
        return CSS_COLOURS[self.colour]

    def line(self) -> dict[str, Any]:
        """Keyword arguments of `Axes.plot`."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "linewidth": self.width,
            "dashes": self.dashes or (None, None),
        }


def write_report(path: Path, runs: Sequence[FinishedRun], tables: Sequence[Table], notes: Sequence[str]) -> None:
    """Write the page.

    Args:
        path: the HTML file, replaced if it exists.
        runs: all finished runs.
        tables: their leaderboards.
        notes: what was left out, and why.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "metric": leaderboard.format_metric,
        "number": leaderboard.format_number,
        "share": leaderboard.format_share,
        "count": leaderboard.format_count,
        "seconds": leaderboard.format_seconds,
        "memory": leaderboard.format_memory,
        "metric_name": lambda name: METRIC_NAMES.get(name, name),
        "slice_name": lambda name: SLICE_NAMES.get(name, name.replace("_", " ")),
    }
    page = environment.get_template("report.html.jinja").render(
        sections=[section(table) for table in tables],
        n_runs=len({run.folder for run in runs}),
        notes=notes,
        written=datetime.datetime.now(datetime.UTC).strftime("%-d %B %Y, %H:%M UTC"),
    )
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def section(table: Table) -> dict[str, Any]:
    """Everything that the template shows of one table."""
    styles = row_styles(table)
    footnotes: dict[str, str] = {}
    return {
        "anchor": anchor(table),
        "table": table,
        "title": TASKS[table.task],
        "n_sessions": table.rows[0].runs[0].scores.get("n_sessions"),
        "metrics": list(dict.fromkeys(name for row in table.rows for name in row.metrics)),
        "strip": interval_strip(table, styles),
        "seed_cells": [leaderboard.format_seed_figure(row.seed_figure, footnotes) for row in table.rows],
        "footnotes": {mark: text for text, mark in footnotes.items()},
        "sentences": [leaderboard.describe(comparison) for comparison in table.comparisons],
        "best": table.find("model") or table.find("baseline"),
        "styles": styles,
        "swatches": [swatch(style) for style in styles],
        "charts": answer_charts(table, styles),
        "curves": learning_curves(table, styles) if not table.split.endswith(PREFIXES) else [],
        "slices": slice_tables(table),
    }


def anchor(table: Table) -> str:
    """The section's name in addresses."""
    words = f"{table.name} {table.task} {table.split} {table.dataset['hash'][:6]}".lower()
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-")


def row_styles(table: Table) -> list[Style]:
    """Styles of a table's rows: models in colours, baselines in grey, repeat-last and the oracle dashed in ink.

    Markers differ as well, so that nothing hangs on colour alone.
    """
    markers = list(MARKERS)
    count = {"model": 0, "baseline": 0, "oracle": 0}
    styles = []
    for row in table.rows:
        i = count[row.kind]
        count[row.kind] += 1
        if row.kind == "oracle":
            styles.append(Style(INK, "o", (6, 2), 1.4))
        elif row.is_repeat_last:
            styles.append(Style(SOFT, "s", (2, 1.5), 1.4))
        elif row.kind == "baseline":
            styles.append(Style(SOFT, markers[-1 - i % len(markers)], (), 0.8))
        else:
            styles.append(Style(SERIES[i % len(SERIES)], markers[i % len(markers)], (), 1.8))
    return styles


def interval_strip(table: Table, styles: Sequence[Style]) -> dict[str, Any]:
    """Positions in percent of the dots, intervals and grid lines of the leaderboard's interval plot."""
    known = [row.metrics[table.metric] for row in table.rows if table.metric in row.metrics]
    ends = [value for metric in known for value in metric if value is not None]
    low, high = min(ends), max(ends)
    margin = 0.06 * (high - low) or 0.05
    low, high = low - margin, high + margin

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    ticks = [tick for tick in MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= tick <= high]
    guides = [row.metrics[table.metric].mean for row in table.rows if row.kind == "oracle" or row.is_repeat_last]
    return {
        "ticks": [(place(tick), f"{tick:.3g}") for tick in ticks],
        "guides": [place(value) for value in guides],
        "dots": [
            interval_dot(row.metrics.get(table.metric), style, place)
            for row, style in zip(table.rows, styles, strict=True)
        ],
    }


def interval_dot(metric: Metric | None, style: Style, place: Callable[[float], float]) -> dict[str, Any] | None:
    """One dot with its interval, in percent of the strip's width."""
    if metric is None:
        return None
    low = metric.mean if metric.low is None else metric.low
    high = metric.mean if metric.high is None else metric.high
    return {
        "x": place(metric.mean),
        "left": place(low),
        "width": round(place(high) - place(low), 2),
        "colour": style.css_colour,
    }


def swatch(style: Style) -> Markup:
    """A piece of a row's line with its marker, for legends."""
    dashes = " ".join(str(dash * style.width) for dash in style.dashes) or "none"
    return Markup(
        '<svg class="swatch" viewBox="0 0 30 12" aria-hidden="true"><path d="M0 6h30" fill="none" stroke="{colour}" '
        'stroke-width="{width}" stroke-dasharray="{dashes}"/><path d="{marker}" transform="translate(9 0)" '
        'fill="{colour}"/></svg>'
    ).format(colour=style.css_colour, width=style.width, dashes=dashes, marker=MARKERS[style.marker])


def chart(draw: Callable[[Axes], None], table: Table, label: str, *, size: tuple[float, float] = (5.3, 3.3)) -> Markup:
    """Let `draw` fill one pair of axes and return them as inline SVG.

    Args:
        table: whose chart it is.
        label: what the chart shows, for screen readers; no two charts of a table share it.
        size: width and height in inches; the page scales the chart to the column.
    """
    with matplotlib.rc_context(CHART_STYLE | {"svg.hashsalt": f"{anchor(table)} {label}"}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        axes.set_axisbelow(True)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>", "", svg, flags=re.DOTALL)
    # Ids that nothing refers to are the same in every chart.
    used = set(re.findall(r'(?:href="#|url\(#)([\w.-]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", svg)
    head = rf'<svg \1 role="img" aria-label="{escape(label)}">'
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', head, svg, count=1)
    for colour, variable in CSS_COLOURS.items():
        svg = svg.replace(colour, variable)
    return Markup(svg)


def answer_charts(table: Table, styles: Sequence[Style]) -> dict[str, Markup]:
    """Right answers by position and by their number in a session; none where there is one answer a session."""
    if max(len(row.runs[0].scores.get("histogram") or []) for row in table.rows) <= 2:
        return {}
    return {
        "position": chart(partial(draw_positions, table=table, styles=styles), table, "Accuracy by position"),
        "histogram": chart(
            partial(draw_histogram, table=table, styles=styles), table, "Sessions by number of right answers"
        ),
    }


def draw_positions(axes: Axes, table: Table, styles: Sequence[Style]) -> None:
    """Accuracy at each target position, one line a row."""
    for row, style in zip(table.rows, styles, strict=True):
        accuracy = as_floats(row.runs[0].scores.get("by_position", {}).get("accuracy", []))
        axes.plot(np.arange(1, len(accuracy) + 1), accuracy, **style.line())
    axes.set_xlabel("position after the cut")
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.yaxis.set_major_formatter(as_percent)


def draw_histogram(axes: Axes, table: Table, styles: Sequence[Style]) -> None:
    """Share of sessions by their number of right answers, one line a row."""
    for row, style in zip(table.rows, styles, strict=True):
        share = as_floats(row.runs[0].scores.get("histogram", []))
        axes.plot(np.arange(len(share)), share, **style.line())
    axes.set_xlabel("right answers in a session")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.yaxis.set_major_formatter(as_percent)


def as_percent(value: float, _position: float) -> str:
    """Tick labels of shares."""
    return f"{100 * value:.4g} %"


def as_floats(values: Iterable[float | None]) -> np.ndarray:
    """Numbers with NaN for None, which lines leave out."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def learning_curves(table: Table, styles: Sequence[Style]) -> list[dict[str, Any]]:
    """For each row that was trained in steps: the loss, and the table's metric where validation recorded it."""
    panels = []
    for row, style in zip(table.rows, styles, strict=True):
        histories = [(run, read_history(run.folder / "metrics.jsonl")) for run in row.runs]
        names = [name for name in ("loss", table.metric) if any(series(h, "valid", name) for _, h in histories)]
        charts = [
            chart(
                partial(draw_curve, histories=histories, name=name, style=style),
                table,
                f"{row.label}: {name}",
                size=(3.3, 2.2),
            )
            for name in names
        ]
        if charts:
            panels.append({"label": row.label, "charts": charts, "n_seeds": len(row.runs)})
    return panels


def draw_curve(
    axes: Axes, histories: Sequence[tuple[FinishedRun, list[dict[str, Any]]]], name: str, style: Style
) -> None:
    """One recorded value by step: training thin, validation in the row's colour, a ring at the best step."""
    for run, history in histories:
        train, valid = series(history, "train", name), series(history, "valid", name)
        if train:
            axes.plot(*zip(*train, strict=True), color=SOFT, linewidth=0.9)
        if valid:
            axes.plot(*zip(*valid, strict=True), color=style.colour, marker="o", markersize=2.5)
        best = [point for point in valid if point[0] == run.result.get("best_step")]
        if best:
            axes.axvline(best[0][0], color=SOFT, linewidth=0.8, linestyle=":")
            axes.plot(*best[0], marker="o", markersize=9, markerfacecolor="none", color=style.colour)
    axes.set_xlabel("step")
    axes.set_title(METRIC_NAMES.get(name, name), loc="left", fontsize=10, color=SOFT)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))


def slice_tables(table: Table) -> list[dict[str, Any]]:
    """MAA in parts of the test set, and accuracy by training plays of the target's track."""
    slices = [row.runs[0].scores.get("slices") or {} for row in table.rows]
    names = dict.fromkeys(name for row in slices for name in row)
    tables = [slice_table(table, name, [row.get(name, {}) for row in slices], "maa") for name in names]
    by_plays = [row.runs[0].scores.get("by_plays") or {} for row in table.rows]
    if any(by_plays):
        tables.append(slice_table(table, "plays", by_plays, "mean"))
    return tables


def slice_table(table: Table, name: str, parts: list[dict[str, dict[str, Any]]], metric: str) -> dict[str, Any]:
    """The labels of a slice, their sizes, and a line of cells a row.

    A cell is (value or None, shade in percent): the shade runs from the lowest to the highest value of the slice.

    Args:
        table: whose rows they are.
        name: of the slice.
        parts: of each row, label -> its size "n" and its value.
        metric: the key of the value.
    """
    labels = sorted({label for row in parts for label in row})
    sizes = [next(row[label]["n"] for row in parts if label in row) for label in labels]
    values = [[row.get(label, {}).get(metric) for label in labels] for row in parts]
    known = [value for line in values for value in line if value is not None]
    low, width = min(known), (max(known) - min(known)) or 1.0
    lines = [
        (row.label, [(value, 0 if value is None else round(100 * (value - low) / width)) for value in line])
        for row, line in zip(table.rows, values, strict=True)
    ]
    return {
        "name": name,
        "counted": "sessions" if metric == "maa" else "plays",
        "labels": [label.replace("_", " ") for label in labels],
        "sizes": sizes,
        "lines": lines,
    }
