"""From finished runs to leaderboards: put seeds together, order the rows, compare them in pairs.

A *run* is one folder `runs/<experiment>/<stamp>/` with a `result.json`. A *row* is what the reader compares: the latest
run of one experiment, label and configuration on one dataset, together with its runs under other seeds. A *table* holds
the rows of one dataset, task, split and protocol of the past: baselines, then models, then the oracle, each from the
lowest to the highest score.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from utils.data.schema import PREFIXES
from utils.evaluation.metrics import HEADLINES, METRICS
from utils.reporting.comparisons import Comparison, compare, compare_best
from utils.reporting.few_sessions import FewSessions, few_sessions
from utils.reporting.rows import Row, add_gap_closed, build_row, group_seeds
from utils.reporting.runs import PAST, TASKS, FinishedRun


class Table(NamedTuple):
    """The leaderboard of one dataset, task, split and protocol of the past."""

    dataset: dict[str, Any]
    task: str
    split: str
    metric: str
    """Orders the rows."""
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    past: str = "none"
    """What the rows knew of the plays before a session, a key of `PAST`; references knew nothing."""
    has_siblings: bool = False
    """Whether the same targets were also predicted under another protocol of the past."""
    few: FewSessions | None = None
    """What few sessions can tell; None for splits that are large enough."""

    @property
    def name(self) -> str:
        """The dataset, its protocol, and what was known of the past where that differs between tables, for titles."""
        past = f", {PAST[self.past]}" if self.has_siblings or self.past != "none" else ""
        return f"{self.dataset['name']}, {self.dataset['protocol']} protocol{past}"

    @property
    def sessions(self) -> str:
        """Which sessions were scored, in words."""
        split, prefixes, _ = self.split.partition(PREFIXES)
        return f"{split} sessions, the next track after every prefix" if prefixes else f"{split} sessions"

    @property
    def headlines(self) -> list[str]:
        """Metrics of the table's columns, the one that orders the rows first."""
        names = (self.metric, *headlines(self.task, self.split))
        return [name for name in dict.fromkeys(names) if any(name in row.metrics for row in self.rows)]

    @property
    def has_gap(self) -> bool:
        """Whether "gap closed" is known."""
        return any(row.gap_closed is not None for row in self.rows)

    @property
    def has_seeds(self) -> bool:
        """Whether a row has more than one seed."""
        return any(len(row.runs) > 1 for row in self.rows)

    @property
    def has_original_figures(self) -> bool:
        """Whether the original reported a figure for any of the rows."""
        return any(row.original_figure is not None for row in self.rows)

    @property
    def rows_by_label(self) -> dict[str, list[Row]]:
        """The rows of each label."""
        rows: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows:
            rows[row.label].append(row)
        return rows

    def find(self, kind: str) -> Row | None:
        """The row of a kind with the highest score."""
        return next((row for row in reversed(self.rows) if row.kind == kind), None)

    @property
    def repeat_last(self) -> Row | None:
        return next((row for row in self.rows if row.is_repeat_last), None)


def add_comparisons(tables: Sequence[Table], pairs: Iterable[tuple[str, str]]) -> tuple[list[Table], list[str]]:
    """Compare rows by their labels, in each table that has both.

    Returns:
        The tables, and a note on each pair that could be compared in none of them.
    """
    tables, notes = list(tables), []
    for first, second in dict.fromkeys(tuple(pair) for pair in pairs):
        found = False
        for i, table in enumerate(tables):
            rows = table.rows_by_label
            candidates = rows.get(first, []), rows.get(second, [])
            if any(len(each) > 1 for each in candidates):
                notes.append(f"{table.name} has several rows called {first!r} or {second!r}: not compared")
            elif any({first, second} == {each.better, each.worse} for each in table.comparisons):
                found = True
            elif all(candidates) and not all(each[0].is_reference for each in candidates):
                comparison = compare(candidates[0][0], candidates[1][0], table.metric)
                if comparison is not None:
                    found = True
                    tables[i] = table._replace(comparisons=(*table.comparisons, comparison))
        if not found:
            notes.append(f"no table has predictions of both {first!r} and {second!r}: not compared")
    return tables, notes


def build_tables(runs: Iterable[FinishedRun]) -> list[Table]:
    """Put runs (latest first) together into leaderboards, ordered by dataset name, then by task as in `TASKS`, then by
    protocol of the past as in `PAST`.

    Rows of different protocols never share a table. The floor and the ceiling, which use no statistics of the past, are
    shown in the other tables as references, marked as such.
    """
    groups: dict[tuple[str, ...], dict[str, list[FinishedRun]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        groups[run.scored_on][run.past].append(run)
    order = list(TASKS)
    tables = []
    for key in sorted(groups, key=lambda key: (*key[:3], order.index(key[3]), key[4])):
        protocols, references = groups[key], list[Row]()
        for past in (past for past in PAST if past in protocols):
            table = build_table(protocols[past], references, has_siblings=len(protocols) > 1)
            if past == "none":
                references = [row._replace(is_reference=True) for row in table.rows if row.is_yardstick]
            tables.append(table)
    return tables


def build_table(runs: Sequence[FinishedRun], references: Sequence[Row] = (), *, has_siblings: bool = False) -> Table:
    """The leaderboard of runs (latest first) that share their dataset, task, split and protocol of the past.

    Args:
        runs: of the table.
        references: rows without statistics of the past that are shown beside them.
        has_siblings: whether the same targets were also predicted under another protocol of the past.
    """
    seeds = group_seeds(runs)
    first = runs[0]
    task = first.result["task"]
    metric = next((m for m in headlines(task, first.split) if all(m in group[0].metrics for group in seeds)), None)
    metric = metric or next(iter(first.metrics))
    rows = [*references, *(build_row(group) for group in seeds)]
    rows.sort(key=lambda row: (row.rank, row.metrics[metric].mean if metric in row.metrics else -np.inf))
    if task == "skip":
        rows = add_gap_closed(rows)
    few = few_sessions(rows, metric, first.split)
    comparisons = tuple(compare_best(rows, metric))
    dataset = first.result["dataset"]
    return Table(dataset, task, first.split, metric, tuple(rows), comparisons, first.past, has_siblings, few)


def title(metric: str) -> str:
    """The name that readers see of a metric, or of another recorded value."""
    return METRICS[metric].title if metric in METRICS else metric


def headlines(task: str, split: str) -> tuple[str, ...]:
    """Metrics of the terminal's table, the most telling first."""
    return HEADLINES["prefixes" if split.endswith(PREFIXES) else task]


def run_records(runs: Iterable[FinishedRun], tables: Iterable[Table]) -> list[dict[str, Any]]:
    """One flat record a run and reported split, for `leaderboard.json`: what it is, how it scored, what it cost.

    `shown` says whether the run is in the leaderboard; if not, a later one superseded it."""
    shown = {(run.folder, run.split) for table in tables for row in table.rows for run in row.runs}
    return [
        {
            "folder": str(run.folder),
            "experiment": run.result["experiment"],
            "label": run.result["label"],
            "kind": run.result["kind"],
            "task": run.result["task"],
            "dataset": run.result["dataset"]["name"],
            "dataset_hash": run.result["dataset"]["hash"],
            "protocol": run.result["dataset"]["protocol"],
            "past": run.past,
            "split": run.split,
            "n_sessions": run.scores.get("n_sessions"),
            "metrics": {name: metric._asdict() for name, metric in run.metrics.items()},
            "seconds": run.result.get("seconds"),
            "peak_memory_mib": run.result.get("peak_memory_mib"),
            "n_parameters": run.result.get("n_parameters"),
            "seed": run.result["seed"],
            "git_commit": run.result.get("git_commit"),
            "shown": (run.folder, run.split) in shown,
        }
        for run in runs
    ]
