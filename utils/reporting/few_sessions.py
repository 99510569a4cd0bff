"""What a small split can tell: how large a difference must be, which rows are not told apart, what validation chooses.

Among a few hundred sessions the highest score is often the luckiest. So the row to use is chosen on validation, among
baselines and models alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from utils.reporting.comparisons import compare
from utils.reporting.rows import Row, mean_or_none
from utils.reporting.runs import Measured

FEW = 1000
"""A split with fewer sessions than this is small."""


class Choice(NamedTuple):
    """The row that validation chooses."""

    row: Row
    valid: float
    """Its metric on validation, the mean over its seeds."""
    test: Measured | None
    """The same metric on test."""


class FewSessions(NamedTuple):
    """What the sessions of a small split can tell of the rows of its table."""

    n_sessions: int
    metric: str
    best: str
    """The label of the row (no oracle) with the highest score."""
    detectable: float | None
    """Half the width of the median paired interval between the best row and another; None without saved predictions."""
    not_told_apart: tuple[str, ...]
    """Labels of the rows whose paired interval with the best row holds zero, from the highest score down."""
    choice: Choice | None


def few_sessions(rows: Sequence[Row], metric: str, split: str) -> FewSessions | None:
    """Compare the best row of a small split with every other row, and choose one on validation.

    Args:
        rows: of one table; the oracle is left out, for nobody can use it.
        metric: that orders the rows.
        split: that the table reports.

    Returns:
        None if the split has `FEW` sessions or more, or no row was scored by the metric.
    """
    usable = sorted(
        (row for row in rows if row.kind != "oracle" and metric in row.metrics),
        key=lambda row: row.metrics[metric].mean,
    )
    n_sessions = usable[-1].runs[0].scores.get("n_sessions") if usable else None
    if n_sessions is None or n_sessions >= FEW:
        return None
    *others, best = usable
    widths, close = [], []
    for row in reversed(others):
        comparison = compare(best, row, metric)
        if comparison is not None and comparison.difference.low is not None and comparison.difference.high is not None:
            widths.append((comparison.difference.high - comparison.difference.low) / 2)
            close += [] if comparison.is_clear else [row.label]
    detectable = float(np.median(widths)) if widths else None
    chosen = choose_on_validation(usable, metric) if split.startswith("test") else None
    return FewSessions(n_sessions, metric, best.label, detectable, tuple(close), chosen)


def choose_on_validation(rows: Iterable[Row], metric: str) -> Choice | None:
    """The row with the highest metric on validation, baselines and models alike; the simpler kind where they are equal.

    Rows that did not score validation cannot be chosen; None if that is all of them.
    """
    found = [(valid_mean(row, metric), row) for row in rows]
    known = [(value, row) for value, row in found if value is not None and row.kind != "oracle"]
    if not known:
        return None
    value, row = max(known, key=lambda each: (each[0], -each[1].rank))
    return Choice(row, value, row.metrics.get(metric))


def valid_mean(row: Row, metric: str) -> float | None:
    """Mean over the seeds of a row of a metric on validation, after every prefix where the row's split is; None if a
    run did not score it."""
    values = []
    for run in row.runs:
        split = run.split.replace("test", "valid", 1)
        scores = run.result["scores"].get(split) or {}
        values.append(scores.get("metrics", {}).get(metric, {}).get("mean"))
    return mean_or_none(values)
