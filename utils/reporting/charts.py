"""Charts of the report page, which matplotlib draws as inline SVG.

It draws them in placeholder colours that become the page's CSS variables, so that one chart fits light and dark mode.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.reporting.leaderboard import Table, title
from utils.reporting.learning_curves import read_history, series
from utils.reporting.runs import FinishedRun, Measured

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


def anchor(table: Table) -> str:
    """The name of the table's section in the page's address."""
    known = table.past if table.past != "none" else ""
    name = f"{table.dataset['name']}, {table.dataset['protocol']} protocol"
    words = f"{name} {table.task} {table.split} {known} {table.dataset['hash'][:6]}".lower()
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-")


def row_styles(table: Table) -> list[Style]:
    """Styles of a table's rows: models in colours, baselines in grey, repeat-last and the oracle dashed in ink.

    Markers differ as well, so that nothing depends on colour alone.
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


def interval_dot(metric: Measured | None, style: Style, place: Callable[[float], float]) -> dict[str, Any] | None:
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
    return drawing(draw, f"{anchor(table)} {label}", label, size=size)


def drawing(draw: Callable[[Axes], None], salt: str, label: str, *, size: tuple[float, float] = (5.3, 3.3)) -> Markup:
    """The same for a page without tables.

    Args:
        salt: differs between any two charts of a page; ids inside the chart are made of it.
    """
    with matplotlib.rc_context(CHART_STYLE | {"svg.hashsalt": salt}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        axes.set_axisbelow(True)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>", "", svg, flags=re.DOTALL)
    # Ids that nothing refers to go: they are the same in every chart.
    used = set(re.findall(r'(?:href="#|url\(#)([\w.-]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", svg)
    head = rf'<svg \1 role="img" aria-label="{escape(label)}">'
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', head, svg, count=1)
    for colour, variable in CSS_COLOURS.items():
        svg = svg.replace(colour, variable)
    return Markup(svg)


def answer_charts(table: Table, styles: Sequence[Style]) -> dict[str, Markup]:
    """Charts of right answers by position and by their number in a session; none if a session has only one answer."""
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
    axes.set_title(title(name), loc="left", fontsize=10, color=SOFT)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
