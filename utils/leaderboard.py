"""From run folders to leaderboards: read every result, put seeds together, order the rows, compare runs in pairs.

A *run* is one folder `runs/<experiment>/<stamp>/` with a `result.json`. A *row* is what the reader compares: the latest
run of one experiment, label and configuration on one dataset, together with its runs under other seeds. A *table* holds
the rows of one dataset and task, from the bottom up: baselines, models, the oracle, each by rising score.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t as student

from utils.cli import UserError
from utils.files import read_json
from utils.history import mean_of_curve
from utils.metrics import bootstrap_intervals
from utils.schema import PREFIXES
from utils.seed_figures import SeedFigure, seed_figure

TASKS = {
    "skip": "Which tracks will be skipped?",
    "seq": "Which tracks come next?",
    "pretrain": "Which tracks are hidden?",
}
KINDS = ("baseline", "model", "oracle")
METRIC_NAMES = {
    "maa": "MAA",
    "first_accuracy": "first",
    "accuracy": "accuracy",
    "log_loss": "log loss",
    "auc": "AUC",
    "overlap": "overlap",
    "repetition": "repetition",
    "coverage": "coverage",
    "perplexity": "perplexity",
    "hr@1": "HR@1",
    "hr@10": "HR@10",
    "hr@20": "HR@20",
    "ndcg@10": "NDCG@10",
    "ndcg@20": "NDCG@20",
    "mrr@20": "MRR@20",
}
"""How metrics are written for readers; others keep their own name."""
HEADLINES = {
    "skip": ("maa", "first_accuracy"),
    "seq": ("maa", "hr@20", "mrr@20"),
    "prefixes": ("mrr@20", "hr@20", "hr@1"),
    "pretrain": ("mrr@20", "hr@20", "hr@1", "perplexity"),
}
"""Metrics of the terminal's table; the first one that every row has orders the rows."""

INCIDENTAL = ("run", "seed")
"""Groups of options that may differ between the runs of one row: seed, folders, label."""
STARTS = {"pretrained", "warm_start"}
"""Options that name the run whose weights a run started from."""
RESULT_KEYS = ("experiment", "label", "task", "kind", "dataset", "seed", "scores")
DATASET_KEYS = ("name", "hash", "protocol")


class Metric(NamedTuple):
    """A mean over sessions with its 95 % interval; `low` and `high` are None where there is no interval."""

    mean: float
    low: float | None
    high: float | None


class FinishedRun(NamedTuple):
    """One finished run, seen through one of the splits that it scored."""

    folder: Path
    result: dict[str, Any]
    split: str

    @property
    def scores(self) -> dict[str, Any]:
        """Scores of the split."""
        return self.result["scores"][self.split]

    @property
    def metrics(self) -> dict[str, Metric]:
        """Metrics of the split that have a value."""
        return {
            name: Metric(value["mean"], value.get("low"), value.get("high"))
            for name, value in self.scores["metrics"].items()
            if value["mean"] is not None
        }

    @property
    def table_key(self) -> tuple[str, str, str, str, str]:
        """What runs of one table share: dataset name, hash and protocol, task, split."""
        dataset = self.result["dataset"]
        return dataset["name"], dataset["hash"], dataset["protocol"], self.result["task"], self.split

    @property
    def configuration(self) -> str:
        """The run's configuration but for its seed and folders, as text that equal configurations share.

        So does the run that it started from: pre-training long-2 is to seed 2 what long-1 is to seed 1.
        """
        config = {name: value for name, value in self.result.get("config", {}).items() if name not in INCIDENTAL}
        for name in STARTS & config.keys():
            config[name] = re.sub(rf"(?<!\d){self.result['seed']}$", "{seed}", str(config[name]))
        return json.dumps(config, sort_keys=True, default=str)


class Row(NamedTuple):
    """One line of a leaderboard: a run, or several that differ only in their seed (the latest first)."""

    runs: tuple[FinishedRun, ...]
    metrics: dict[str, Metric]
    """Means over the seeds, of the mean and of both ends of the interval."""
    spread: dict[str, float]
    """Standard deviation over the seeds; empty with one seed."""
    gap_closed: float | None
    """Share of the way from repeat-last to the oracle, in MAA; None where either is missing."""
    seed_figure: SeedFigure | None

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
        """Place of the kind in a table: baselines, models, the oracle."""
        return KINDS.index(self.kind)

    @property
    def is_repeat_last(self) -> bool:
        """Whether this row is the baseline that repeats the last action of the history."""
        return self.kind == "baseline" and "repeat" in f"{self.latest['experiment']} {self.label}".lower()


class Comparison(NamedTuple):
    """A paired comparison of two rows on the same sessions, in the metric that orders their table."""

    better: str
    worse: str
    metric: str
    difference: Metric
    """Of the means over the seeds; the interval is over sessions, and over seeds where there are several."""
    n_seeds: int
    """Of the row with more of them."""
    n_sessions: int
    curves: tuple[float | None, float | None] = (None, None)
    """Means over all validations of training, and over the seeds: of the better, of the worse."""

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.difference.low is not None and self.difference.low > 0


class Table(NamedTuple):
    """The leaderboard of one dataset and task."""

    dataset: dict[str, Any]
    task: str
    split: str
    metric: str
    """Orders the rows."""
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def name(self) -> str:
        """The dataset and protocol, for titles."""
        return f"{self.dataset['name']}, {self.dataset['protocol']} protocol"

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
    def has_seed_figures(self) -> bool:
        """Whether the seed reported a figure for any of the rows."""
        return any(row.seed_figure is not None for row in self.rows)

    def find(self, kind: str) -> Row | None:
        """The highest row of a kind."""
        return next((row for row in reversed(self.rows) if row.kind == kind), None)

    @property
    def repeat_last(self) -> Row | None:
        return next((row for row in self.rows if row.is_repeat_last), None)


def load_runs(root: Path) -> tuple[list[FinishedRun], list[str]]:
    """Read `root/*/*/result.json`.

    Returns:
        The finished runs, latest stamp first, one for each reported split: test (valid where test was not scored), and
        the same with every prefix where that was scored. And a note on each folder that was left out, with the reason.

    Raises:
        UserError: `root` does not exist, or holds no finished run.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give the folder of the runs: --runs FOLDER")
    runs, notes = [], []
    folders = [folder for folder in root.glob("*/*") if folder.is_dir() and not folder.name.startswith(".")]
    for folder in sorted(folders, key=stamp_order, reverse=True):
        path = folder / "result.json"
        if not path.exists():
            notes.append(f"{folder} is not finished (no result.json); left out")
            continue
        try:
            result = read_json(path)
            check_result(result)
        except UserError as error:
            notes.append(f"{error}; left out" if str(path) in str(error) else f"{path} {error}; left out")
            continue
        split = "test" if "test" in result["scores"] else "valid"
        runs += [FinishedRun(folder, result, name) for name in (split, split + PREFIXES) if name in result["scores"]]
    if not runs:
        found = ", ".join(notes) or "it is empty"
        raise UserError(f"no finished run in {root} ({found}); train one first, for example with `make demo`")
    return runs, notes


def stamp_order(folder: Path) -> tuple[list[int], str]:
    """Sorts run folders by time; the tenth run of a second comes after the second one."""
    return [int(number) for number in re.findall(r"\d+", folder.name)], str(folder)


def check_result(result: Any) -> None:
    """Check the parts of a result that leaderboards are made of.

    Raises:
        UserError: a key is missing or has an unknown value; names it.
    """
    if not isinstance(result, dict):
        raise UserError("is not a JSON object")
    dataset = result.get("dataset")
    missing = [key for key in RESULT_KEYS if key not in result]
    missing += [f"dataset.{key}" for key in DATASET_KEYS if not isinstance(dataset, dict) or key not in dataset]
    if missing:
        raise UserError(f"lacks {', '.join(missing)}")
    for key, known in (("task", tuple(TASKS)), ("kind", KINDS)):
        if result[key] not in known:
            raise UserError(f"{key} is {result[key]!r}, not one of {', '.join(known)}")
    scores = result["scores"]
    if not isinstance(scores, dict) or not {"test", "valid"} & scores.keys():
        raise UserError("scores have neither test nor valid")
    for split, values in scores.items():
        metrics = values.get("metrics") if isinstance(values, dict) else None
        if not isinstance(metrics, dict) or not metrics:
            raise UserError(f"scores.{split} has no metrics")
        for name, value in metrics.items():
            if not isinstance(value, dict) or "mean" not in value:
                raise UserError(f"scores.{split}.metrics.{name} has no mean")


def add_comparisons(tables: Sequence[Table], pairs: Iterable[tuple[str, str]]) -> tuple[list[Table], list[str]]:
    """Compare rows by their labels, in each table that has both.

    Returns:
        The tables, and a note on each pair that could be compared in none of them.
    """
    tables, notes = list(tables), []
    for label, other in dict.fromkeys(tuple(pair) for pair in pairs):
        found = False
        for i, table in enumerate(tables):
            rows = [[row for row in table.rows if row.label == name] for name in (label, other)]
            if any(len(each) > 1 for each in rows):
                notes.append(f"{table.name} has several rows called {label!r} or {other!r}: not compared")
            elif any({label, other} == {each.better, each.worse} for each in table.comparisons):
                found = True
            elif all(rows):
                comparison = compare(rows[0][0], rows[1][0], table.metric)
                if comparison is not None:
                    found = True
                    tables[i] = table._replace(comparisons=(*table.comparisons, comparison))
        if not found:
            notes.append(f"no table has predictions of both {label!r} and {other!r}: not compared")
    return tables, notes


def build_tables(runs: Iterable[FinishedRun]) -> list[Table]:
    """Put runs (latest first) together into leaderboards, ordered by dataset name, then by task as in `TASKS`."""
    groups: dict[tuple[str, ...], list[FinishedRun]] = defaultdict(list)
    for run in runs:
        groups[run.table_key].append(run)
    order = list(TASKS)
    keys = sorted(groups, key=lambda key: (*key[:3], order.index(key[3]), key[4]))
    return [build_table(groups[key]) for key in keys]


def build_table(runs: Sequence[FinishedRun]) -> Table:
    """The leaderboard of runs (latest first) that share their dataset, task and split."""
    seeds = group_seeds(runs)
    first = runs[0]
    task = first.result["task"]
    metric = next((m for m in headlines(task, first.split) if all(m in group[0].metrics for group in seeds)), None)
    metric = metric or next(iter(first.metrics))
    rows = [build_row(group) for group in seeds]
    rows.sort(key=lambda row: (row.rank, row.metrics[metric].mean if metric in row.metrics else -np.inf))
    if task == "skip":
        rows = add_gap_closed(rows)
    return Table(first.result["dataset"], task, first.split, metric, tuple(rows), tuple(compare_best(rows, metric)))


def headlines(task: str, split: str) -> tuple[str, ...]:
    """Metrics of the terminal's table, the most telling first."""
    return HEADLINES["prefixes" if split.endswith(PREFIXES) else task]


def group_seeds(runs: Iterable[FinishedRun]) -> list[list[FinishedRun]]:
    """Group runs (latest first) by experiment and label: the latest, and the latest of each other seed that was run
    with the very same configuration. Older runs and other configurations are superseded."""
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
        metrics[name] = Metric(*(mean_or_none([value[i] for value in values]) for i in range(3)))  # type: ignore[arg-type]
        if len(values) > 1:
            spread[name] = float(np.std([value.mean for value in values], ddof=1))
    result = runs[0].result
    # The seed scored the second halves of sessions, never every prefix.
    figure = None if runs[0].split.endswith(PREFIXES) else seed_figure(result["experiment"], result["label"])
    return Row(tuple(runs), metrics, spread, None, figure)


def mean_or_none(values: Sequence[float | None]) -> float | None:
    """Mean, or None if a value is missing."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def add_gap_closed(rows: Sequence[Row]) -> list[Row]:
    """Fill in (row - repeat-last) / (oracle - repeat-last) in MAA for the models, if both rows are there."""
    low = next((row for row in rows if row.is_repeat_last), None)
    high = next((row for row in rows if row.kind == "oracle"), None)
    if low is None or high is None or high.metrics["maa"].mean <= low.metrics["maa"].mean:
        return list(rows)
    start, width = low.metrics["maa"].mean, high.metrics["maa"].mean - low.metrics["maa"].mean
    return [
        row._replace(gap_closed=(row.metrics["maa"].mean - start) / width) if "maa" in row.metrics else row
        for row in rows
    ]


def compare_best(rows: Sequence[Row], metric: str) -> list[Comparison]:
    """The best model against the runner-up (model or baseline) and against repeat-last, where predictions are kept."""
    models = [row for row in rows if row.kind == "model"]
    if not models:
        return []
    best = models[-1]
    others = sorted(
        (row for row in rows if row.kind != "oracle" and row is not best and metric in row.metrics),
        key=lambda row: row.metrics[metric].mean,
    )
    rivals = others[-1:] + [row for row in others[:-1] if row.is_repeat_last]
    compared = (compare(best, rival, metric) for rival in rivals)
    return [comparison for comparison in compared if comparison is not None]


def compare(row: Row, other: Row, metric: str) -> Comparison | None:
    """Paired bootstrap over the sessions that all runs of both rows predicted; None where any kept no predictions.

    The difference is taken session by session, which removes what makes a session hard for everybody. What another seed
    would change is added to the interval, see `seed_error`: other sessions and other seeds are chance both.
    """
    sums = [session_sums(run, metric) for run in (*row.runs, *other.runs)]
    known = [each for each in sums if each is not None]
    if len(known) < len(sums):
        return None
    both = pd.concat(known, axis=1, join="inner").to_numpy()  # two columns a run
    both = both[(both[:, 1::2] > 0).all(axis=1)]
    if not len(both):
        return None
    numerator, denominator = both[:, ::2], both[:, 1:2]
    first, second = numerator[:, : len(row.runs)], numerator[:, len(row.runs) :]  # (N, seeds)
    difference = first.mean(1, keepdims=True) - second.mean(1, keepdims=True)  # (N, 1)
    mean, low, high = (float(value[0]) for value in bootstrap_intervals(difference, denominator))
    of_first, of_second = (
        {run.result["seed"]: column.sum() / denominator.sum() for run, column in zip(each.runs, part.T, strict=True)}
        for each, part in ((row, first), (other, second))
    )
    error = seed_error(of_first, of_second)
    low, high = mean - np.hypot(mean - low, error), mean + np.hypot(high - mean, error)
    n_seeds = max(len(of_first), len(of_second))
    curves = curve_mean(row, metric), curve_mean(other, metric)
    if mean < 0:
        return Comparison(other.label, row.label, metric, Metric(-mean, -high, -low), n_seeds, len(both), curves[::-1])
    return Comparison(row.label, other.label, metric, Metric(mean, low, high), n_seeds, len(both), curves)


def curve_mean(row: Row, metric: str) -> float | None:
    """Mean over the seeds of a row of `mean_of_curve`."""
    return mean_or_none([mean_of_curve(run.folder / "metrics.jsonl", metric) for run in row.runs])


def seed_error(of_first: dict[int, float], of_second: dict[int, float]) -> float:
    """Half the width of the 95 % interval (Student's t) of a difference of means over seeds; 0 if each has one seed.

    Args:
        of_first, of_second: seed -> score, of either row. With the same seeds they are taken in pairs, for one may have
            started from the other, or both from the same pre-training.
    """
    if of_first.keys() == of_second.keys():
        groups = [[of_first[seed] - of_second[seed] for seed in of_first]]
    else:
        groups = [list(of_first.values()), list(of_second.values())]
    groups = [group for group in groups if len(group) > 1]
    if not groups:
        return 0.0
    variance = sum(np.var(group, ddof=1) / len(group) for group in groups)
    return float(student.ppf(0.975, min(len(group) for group in groups) - 1) * np.sqrt(variance))


def session_sums(run: FinishedRun, metric: str) -> pd.DataFrame | None:
    """Numerator and denominator of a metric for each session of the reported split, indexed by session; None where
    they were not kept."""
    path = run.folder / f"predictions_{run.split}.npz"
    if not path.exists():
        return None
    with np.load(path) as arrays:
        if f"sums_{metric}" not in arrays:  # a metric that is no mean over sessions, or a run of an earlier version
            return None
        return pd.DataFrame(
            arrays[f"sums_{metric}"], index=np.unique(arrays["session"]), columns=["numerator", "denominator"]
        )


def run_records(runs: Iterable[FinishedRun], tables: Iterable[Table]) -> list[dict[str, Any]]:
    """One flat record a run and reported split, for `leaderboard.json`: what it is, how it scored, what it cost.

    `shown` says whether the run is in the leaderboard, or was superseded by a later one."""
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
