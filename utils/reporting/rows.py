"""Rows of a leaderboard: runs that differ only in their seed, put together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from utils.data.schema import PREFIXES
from utils.reporting.original_figures import OriginalFigure, original_figure
from utils.reporting.runs import KINDS, FinishedRun, Measured
from utils.training.run import POSITION_MAJORITY, REPEAT_LAST, flat


class Row(NamedTuple):
    """One line of a leaderboard: a run, or several that differ only in their seed (the latest first)."""

    runs: tuple[FinishedRun, ...]
    metrics: dict[str, Measured]
    """Means over the seeds, of the mean and of both ends of the interval."""
    spread: dict[str, float]
    """Standard deviation over the seeds; empty with one seed."""
    gap_closed: float | None
    """Share of the way from repeat-last to the oracle, in MAA; None where either is missing."""
    original_figure: OriginalFigure | None
    is_reference: bool = False
    """Whether the row belongs to the table without statistics of the past, and stands here to compare with."""

    @property
    def latest(self) -> dict[str, Any]:
        """The latest run's result."""
        return self.runs[0].result

    @property
    def label(self) -> str:
        return self.latest["label"]

    @property
    def kind(self) -> str:
        return self.latest["kind"]

    @property
    def rank(self) -> int:
        """Place of the kind in a table: references, baselines, models, the oracle."""
        return -1 if self.is_reference and self.kind == "baseline" else KINDS.index(self.kind)

    @property
    def past(self) -> str:
        """What the runs knew of the plays before a session, a key of `PAST`."""
        return self.runs[0].past

    @property
    def is_repeat_last(self) -> bool:
        """Whether this row is the baseline that repeats the last action of the history."""
        return self.latest["experiment"] == REPEAT_LAST

    @property
    def is_yardstick(self) -> bool:
        """Whether tables of every protocol show this row: it is the floor or the ceiling of all of them."""
        return self.latest["experiment"] in (POSITION_MAJORITY, REPEAT_LAST) or self.kind == "oracle"


def group_seeds(runs: Iterable[FinishedRun]) -> list[list[FinishedRun]]:
    """Group runs (latest first) by experiment and label: the latest, and the latest of each other seed that has the
    very same configuration. Older runs and other configurations are superseded."""
    groups: dict[tuple[str, str], list[FinishedRun]] = {}
    for run in runs:
        group = groups.setdefault((run.result["experiment"], run.result["label"]), [run])
        known = {member.result["seed"] for member in group}
        if run.result["seed"] not in known and run.configuration == group[0].configuration:
            group.append(run)
    return list(groups.values())


def build_row(runs: Sequence[FinishedRun]) -> Row:
    """One row from runs that differ only in their seed."""
    metrics, spread = {}, {}
    for name in runs[0].metrics:
        values = [run.metrics[name] for run in runs if name in run.metrics]
        metrics[name] = Measured(*(mean_or_none([value[i] for value in values]) for i in range(3)))  # type: ignore[arg-type]
        if len(values) > 1:
            spread[name] = float(np.std([value.mean for value in values], ddof=1))
    result = runs[0].result
    # The original scored the second halves of sessions, never every prefix, and told its models nothing of the past.
    figure = (
        None
        if runs[0].split.endswith(PREFIXES) or runs[0].past != "none"
        else original_figure(result["experiment"], flat(result.get("config", {})))
    )
    return Row(tuple(runs), metrics, spread, None, figure)


def mean_or_none(values: Sequence[float | None]) -> float | None:
    """Mean, or None if a value is missing."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def add_gap_closed(rows: Sequence[Row]) -> list[Row]:
    """Fill in (row - repeat-last) / (oracle - repeat-last) in MAA for all rows, if both of these rows are there."""
    low = next((row for row in rows if row.is_repeat_last), None)
    high = next((row for row in rows if row.kind == "oracle"), None)
    if low is None or high is None or high.metrics["maa"].mean <= low.metrics["maa"].mean:
        return list(rows)
    start, width = low.metrics["maa"].mean, high.metrics["maa"].mean - low.metrics["maa"].mean
    return [
        row._replace(gap_closed=(row.metrics["maa"].mean - start) / width) if "maa" in row.metrics else row
        for row in rows
    ]
