"""The report page: leaderboards, curves and slices of all runs in one HTML file that needs no network."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.core.files import atomic_file
from utils.data.schema import PREFIXES
from utils.evaluation.slices import OUTSIDE
from utils.reporting import text
from utils.reporting.charts import anchor, answer_charts, interval_strip, learning_curves, row_styles, swatch
from utils.reporting.leaderboard import Table
from utils.reporting.runs import TASKS, FinishedRun
from utils.reporting.templates import render_template


def write_report(path: Path, runs: Sequence[FinishedRun], tables: Sequence[Table], notes: Sequence[str]) -> None:
    """Write the page.

    Args:
        path: the HTML file, replaced if it exists.
        runs: all finished runs.
        tables: their leaderboards.
        notes: what was left out, and why.
    """
    page = render_template(
        "report.html.jinja",
        sections=[section(table) for table in tables],
        choices=text.describe_choices(tables),
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
        "original_cells": [text.format_original_figure(row.original_figure, footnotes) for row in table.rows],
        "footnotes": {mark: text for text, mark in footnotes.items()},
        "sentences": [*map(text.describe, table.comparisons), *text.describe_few(table.few)],
        "best": table.find("model") or table.find("baseline"),
        "styles": styles,
        "swatches": [swatch(style) for style in styles],
        "charts": answer_charts(table, styles),
        "curves": learning_curves(table, styles) if not table.split.endswith(PREFIXES) else [],
        "slices": slice_tables(table),
    }


def slice_tables(table: Table) -> list[dict[str, Any]]:
    """MAA in parts of the split, and accuracy by training plays of the target's track."""
    slices = [row.runs[0].scores.get("slices") or {} for row in table.rows]
    names = dict.fromkeys(name for row in slices for name in row)
    tables = [slice_table(table, name, [row.get(name, {}) for row in slices], "maa") for name in names]
    found = [row.runs[0].scores.get("by_plays") or {} for row in table.rows]
    by_plays = [{"new tracks" if name == OUTSIDE else name: row[name] for name in row} for row in found]
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
        "labels": labels if name == "listener" else [label.replace("_", " ") for label in labels],
        "sizes": sizes,
        "lines": lines,
    }
