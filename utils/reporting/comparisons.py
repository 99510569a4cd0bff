"""Paired comparisons of two rows on the same sessions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t as student

from utils.evaluation.metrics import bootstrap_intervals
from utils.reporting.learning_curves import mean_of_curve
from utils.reporting.rows import Row, mean_or_none
from utils.reporting.runs import FinishedRun, Measured


class Comparison(NamedTuple):
    """A paired comparison of two rows on the same sessions, in the metric that orders their table."""

    better: str
    worse: str
    metric: str
    difference: Measured
    """Of the means over the seeds; the interval is over sessions, and over seeds where there are several."""
    n_seeds: int
    """Of the row with more of them."""
    n_sessions: int
    curves: tuple[float | None, float | None] = (None, None)
    """Means over all validations in training and over the seeds: of the better row, of the worse row."""

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.difference.low is not None and self.difference.low > 0


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
    """Paired bootstrap over the sessions that all runs of both rows predicted; None if a run kept no predictions.

    The difference is taken session by session, which removes what makes a session hard for every model. What another
    seed would change is added to the interval, see `seed_error`: sessions and seeds are both chance.
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
        return Comparison(
            other.label, row.label, metric, Measured(-mean, -high, -low), n_seeds, len(both), curves[::-1]
        )
    return Comparison(row.label, other.label, metric, Measured(mean, low, high), n_seeds, len(both), curves)


def curve_mean(row: Row, metric: str) -> float | None:
    """Mean over the seeds of a row of `mean_of_curve`."""
    return mean_or_none([mean_of_curve(run.folder / "metrics.jsonl", metric) for run in row.runs])


def seed_error(of_first: dict[int, float], of_second: dict[int, float]) -> float:
    """Half the width of the 95 % interval (Student's t) of a difference of means over seeds; 0 if each has one seed.

    Args:
        of_first, of_second: seed -> score, of each row. Rows with the same seeds are compared in pairs, for one run may
            have started from the other, or both from the same pre-training.
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
    """Numerator and denominator of a metric for each session of the reported split, indexed by session; None if the run
    did not keep them."""
    path = run.folder / f"predictions_{run.split}.npz"
    if not path.exists():
        return None
    with np.load(path) as arrays:
        if f"sums_{metric}" not in arrays:  # the metric is no mean over sessions, or the run is of an earlier version
            return None
        return pd.DataFrame(
            arrays[f"sums_{metric}"], index=np.unique(arrays["session"]), columns=["numerator", "denominator"]
        )
