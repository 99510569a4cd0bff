"""Leaderboards as text for a terminal, and numbers as a reader would say them."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

import numpy as np
import rich.box
import rich.console
import rich.table
import rich.text

from utils.reporting.comparisons import Comparison
from utils.reporting.few_sessions import FewSessions, choose_on_validation
from utils.reporting.leaderboard import Table, title
from utils.reporting.original_figures import OriginalFigure
from utils.reporting.rows import Row
from utils.reporting.runs import PAST, TASKS, Measured

WIDTH = 100
"""Columns of a leaderboard, whatever the terminal: a table in a file or a pipe reads like one on the screen."""
REFERENCE = " (for reference: knows no past)"
"""Stands behind the label of a row that belongs to another table."""


def format_table(table: Table) -> str:
    """The leaderboard as text for a terminal, with what the original reported below it.

    Only the metric that orders the rows has its interval here; the page has all of them.
    """
    names = table.headlines
    grid = rich.table.Table(box=rich.box.HORIZONTALS, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    grid.add_column("", overflow="fold")
    headers = [title(name) for name in names] + ["gap closed"] * table.has_gap + ["seeds"] * table.has_seeds
    for header in [*headers, "weights", "time"]:
        grid.add_column(header, justify="right", no_wrap=True)
    for row, next_row in zip(table.rows, [*table.rows[1:], None], strict=True):
        cells = [format_metric(row.metrics.get(names[0])), *(format_mean(row.metrics.get(name)) for name in names[1:])]
        cells += [format_share(row.gap_closed)] * table.has_gap + [format_seeds(row, table.metric)] * table.has_seeds
        cells += [format_count(row.latest.get("n_parameters")), format_seconds(row.latest.get("seconds"))]
        ends = next_row is not None and next_row.rank != row.rank
        grid.add_row(rich.text.Text(row.label + REFERENCE * row.is_reference), *cells, end_section=ends)
    heading = f"{TASKS[table.task]}  {table.name}, {table.sessions}"
    sentences = [*(describe(comparison) for comparison in table.comparisons), *describe_few(table.few)]
    sentences += original_sentences(table.rows)
    lines = [wrap(sentence) for sentence in sentences]
    return "\n".join([wrap(heading), render(grid), *[""] * bool(lines), *lines])


def wrap(sentence: str) -> str:
    """A sentence in lines of `WIDTH` columns at most."""
    return textwrap.fill(sentence, WIDTH, subsequent_indent="  ")


def render(grid: rich.table.Table) -> str:
    """A table as plain text of `WIDTH` columns at most."""
    console = rich.console.Console(width=WIDTH, file=io.StringIO(), color_system=None, highlight=False, markup=False)
    with console.capture() as captured:
        console.print(grid)
    return "\n".join(line.rstrip() for line in captured.get().rstrip("\n").splitlines())


def original_sentences(rows: Sequence[Row]) -> list[str]:
    """What the original reported for models of the rows' kinds, each figure once."""
    beside: dict[OriginalFigure, list[str]] = {}
    for row in rows:
        if row.original_figure is not None:
            beside.setdefault(row.original_figure, []).append(row.label)
    return [f"{figure.sentence.removesuffix('.')} (beside {'; '.join(labels)})." for figure, labels in beside.items()]


def describe(comparison: Comparison) -> str:
    """A comparison in words."""
    difference = f"{format_metric(comparison.difference)} {title(comparison.metric)}"
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


def describe_few(few: FewSessions | None) -> list[str]:
    """What a small split can tell, and what validation chooses, in words."""
    if few is None:
        return []
    name, sentences = title(few.metric), []
    if few.detectable is not None:
        sentences.append(
            f"Few sessions: among {few.n_sessions:,}, a difference of less than about {few.detectable:.3f} {name} "
            "between two rows may be chance (half the width of the median 95 % interval of the best row against "
            "another, paired)."
        )
        if few.not_told_apart:
            rows = "; ".join(few.not_told_apart)
            sentences.append(f"Not told apart from {few.best}, the highest on these sessions: {rows}.")
        else:
            sentences.append(f"{few.best}, the highest on these sessions, is told apart from every other row.")
    if few.choice is not None:
        row, valid, test = few.choice
        sentences.append(
            f"Chosen on validation: {row.label} ({name} {format_number(valid)} there); its {name} on test is "
            f"{format_metric(test)}."
        )
    return sentences


def describe_choices(tables: Sequence[Table]) -> list[str]:
    """Which row validation chooses where rows of several protocols of the past predicted the same few sessions."""
    groups: dict[tuple[str, ...], list[Table]] = {}
    for table in tables:
        if table.has_siblings and table.few is not None:
            groups.setdefault(table.rows[-1].runs[0].scored_on, []).append(table)
    sentences = []
    for group in groups.values():
        rows = [row for table in group for row in table.rows if not row.is_reference]
        choice = choose_on_validation(rows, group[0].metric) if group[0].split.startswith("test") else None
        if choice is not None:
            name = title(group[0].metric)
            sentences.append(
                f"{TASKS[group[0].task]} Of all rows of {group[0].dataset['name']}, validation chooses "
                f"{choice.row.label} ({PAST[choice.row.past]}): {name} {format_number(choice.valid)} on validation, "
                f"{format_metric(choice.test)} on test."
            )
    return sentences


def format_number(value: float) -> str:
    """Three decimals below ten, fewer above."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def format_metric(metric: Measured | None) -> str:
    """`mean [low, high]`."""
    if metric is None or metric.mean is None or np.isnan(metric.mean):
        return "-"
    if metric.low is None or metric.high is None:
        return format_number(metric.mean)
    return f"{format_number(metric.mean)} [{format_number(metric.low)}, {format_number(metric.high)}]"


def format_mean(metric: Measured | None) -> str:
    """`mean`, without its interval."""
    return "-" if metric is None else format_metric(metric._replace(low=None, high=None))


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


def format_original_figure(figure: OriginalFigure | None, footnotes: dict[str, str]) -> str:
    """The original's figure with the mark of its footnote; a new reason is added to `footnotes` (reason -> mark)."""
    if figure is None:
        return ""
    mark = footnotes.setdefault(figure.sentence, chr(ord("a") + len(footnotes)))
    return f"{figure.maa:.3f} ({mark})"
