"""Leaderboards as text for a terminal, and numbers as a reader would say them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from utils.reporting.comparisons import Comparison
from utils.reporting.leaderboard import METRIC_NAMES, Table
from utils.reporting.original_figures import SeedFigure
from utils.reporting.rows import Row
from utils.reporting.runs import TASKS, Metric


def format_table(table: Table) -> str:
    """The leaderboard as text for a terminal, with its footnotes."""
    names = table.headlines
    footnotes: dict[str, str] = {}
    header = ["", *(METRIC_NAMES.get(name, name) for name in names)]
    header += ["gap closed"] * table.has_gap + ["seeds"] * table.has_seeds + ["parameters", "time"]
    header += ["reported by seed"] * table.has_seed_figures
    lines, last_kind = [header], ""
    for row in table.rows:
        if row.kind != last_kind:
            lines.append([])
            last_kind = row.kind
        cells = [row.label, *(format_metric(row.metrics.get(name)) for name in names)]
        if table.has_gap:
            cells.append(format_share(row.gap_closed))
        if table.has_seeds:
            cells.append(format_seeds(row, table.metric))
        cells += [format_count(row.latest.get("n_parameters")), format_seconds(row.latest.get("seconds"))]
        if table.has_seed_figures:
            cells.append(format_seed_figure(row.seed_figure, footnotes))
        lines.append(cells)
    title = f"{TASKS[table.task]}  {table.name}, {table.sessions}"
    parts = [title, align(lines), *(describe(comparison) for comparison in table.comparisons)]
    return "\n".join(parts + [f"  {mark} {text}" for text, mark in footnotes.items()])


def align(lines: Sequence[Sequence[str]]) -> str:
    """Columns of equal width: the first to the left, the others to the right; an empty line becomes a rule."""
    widths = [max(len(line[i]) for line in lines if line) for i in range(len(lines[0]))]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        if line
        else rule
        for line in lines
    )


def describe(comparison: Comparison) -> str:
    """A comparison in words."""
    difference = f"{format_metric(comparison.difference)} {METRIC_NAMES.get(comparison.metric, comparison.metric)}"
    seeds = "one seed" if comparison.n_seeds == 1 else f"{comparison.n_seeds} seeds"
    basis = f"{comparison.n_sessions:,} sessions, paired; {seeds}"
    if comparison.is_clear:
        result = f"{comparison.better} is better than {comparison.worse} by {difference} ({basis})."
    else:
        result = f"{comparison.better} and {comparison.worse} cannot be told apart: {difference} ({basis})."
    better, worse = comparison.curves
    if better is None or worse is None:
        return result
    return f"{result} Mean of all validations in training: {better:.3f} and {worse:.3f}."


def format_number(value: float) -> str:
    """Three decimals below ten, fewer above."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def format_metric(metric: Metric | None) -> str:
    """`mean [low, high]`."""
    if metric is None or metric.mean is None or np.isnan(metric.mean):
        return "-"
    if metric.low is None or metric.high is None:
        return format_number(metric.mean)
    return f"{format_number(metric.mean)} [{format_number(metric.low)}, {format_number(metric.high)}]"


def format_share(share: float | None) -> str:
    """A share in percent."""
    return "-" if share is None else f"{100 * share:.0f} %"


def format_seeds(row: Row, metric: str) -> str:
    """Number of seeds, with the standard deviation of the metric over them."""
    return f"{len(row.runs)} (sd {row.spread[metric]:.3f})" if metric in row.spread else "1"


def format_count(count: float | None) -> str:
    """1234567 as 1.23 M."""
    if not count:
        return "-"
    if count < 1000:
        return str(int(count))
    return f"{count / 1e3:.0f} k" if count < 999_500 else f"{count / 1e6:.3g} M"


def format_seconds(seconds: float | None) -> str:
    """Seconds, minutes or hours, as a reader would say it."""
    if seconds is None:
        return "-"
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 9.5 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def format_memory(mebibytes: float | None) -> str:
    """MiB below one GiB, else GiB."""
    if mebibytes is None:
        return "-"
    return f"{mebibytes:.0f} MiB" if mebibytes < 1024 else f"{mebibytes / 1024:.1f} GiB"


def format_seed_figure(figure: SeedFigure | None, footnotes: dict[str, str]) -> str:
    """The seed's figure with the mark of its footnote; a new reason is added to `footnotes` (reason -> mark)."""
    if figure is None:
        return ""
    text = f'reported by the seed for its "{figure.name}", not comparable: {figure.reason}.'
    mark = footnotes.setdefault(text, chr(ord("a") + len(footnotes)))
    return f"{figure.maa:.3f} ({mark})"
