"""Metrics of all tasks, as pure functions on numpy arrays, and `METRICS`, the one table that names them.

Letters: N examples, T target positions. `known` marks the targets that count (padding and unknown labels do not).
The challenge's metric, mean average accuracy, is defined in Brost et al. (WWW 2019): with L(i) = 1 where prediction i
is right and A(i) = (L(1) + ... + L(i)) / i, a session of T targets scores AA = (1 / T) * sum_i A(i) L(i).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from utils.core.errors import UserError

BOOTSTRAP_GROUPS = 100_000
"""More sessions than this are resampled in this many random groups."""
SORTED_AT_ONCE = 2**20
"""Positives that `auc` looks up among the negatives at once."""
ROWS_AT_ONCE = 2**16
"""Examples whose metrics are computed at once, where that takes temporary arrays of several numbers a target."""
Task = Literal["skip", "seq", "pretrain"]


def average_accuracy(correct: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Average accuracy (AA) of each example; its mean over sessions is MAA.

    Args:
        correct: bool (N, T), prediction equals truth.
        known: bool (N, T), targets that count; positions are counted among them.

    Returns:
        float64 (N,), in [0, 1]; NaN where an example has no target.

    >>> average_accuracy(np.array([[1, 1, 0, 1, 1]], bool), np.ones((1, 5), bool)).round(2)
    array([0.71])
    """
    if correct.shape != known.shape or correct.ndim != 2:
        raise ValueError(f"correct {correct.shape} and known {known.shape} must have the same shape (N, T)")
    hits = (correct & known).astype(np.float64)
    position = known.cumsum(1)
    accuracy_so_far = np.divide(hits.cumsum(1), position, out=np.zeros_like(hits), where=position > 0)
    n_targets = known.sum(1)
    return np.divide((accuracy_so_far * hits).sum(1), n_targets, out=np.full(len(hits), np.nan), where=n_targets > 0)


def first_known(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The value at the first known target of each example: float64 (N,), NaN where there is none."""
    first = known.argmax(1)
    picked = np.take_along_axis(values, first[:, None], axis=1)[:, 0].astype(np.float64)
    return np.where(known.any(1), picked, np.nan)


def accuracy_by_position(correct: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Share of right predictions at each target position: float64 (T,), NaN where no example has that position."""
    n = known.sum(0)
    return np.divide((correct & known).sum(0), n, out=np.full(known.shape[1], np.nan), where=n > 0)


def number_correct_histogram(correct: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Share of examples with 0, 1, ..., T right predictions, among those with any target: float64 (T + 1,)."""
    n_correct = (correct & known).sum(1)[known.any(1)]
    return np.bincount(n_correct, minlength=known.shape[1] + 1) / max(len(n_correct), 1)


def binary_log_loss(probability: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Negative log-likelihood in nats of each 0/1 label; probabilities are clipped at 1e-7. Any shape."""
    p = np.clip(probability.astype(np.float64), 1e-7, 1 - 1e-7)
    return -np.where(labels == 1, np.log(p), np.log1p(-p))


def auc(probability: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve: how often a positive is more probable than a negative, ties half. NaN without both.

    It counts in sorted arrays of float32, which take a tenth of the memory of a curve with all of its thresholds.

    Args:
        probability: float32 (N,).
        labels: bool (N,).

    >>> auc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, False, True, True]))
    0.875
    """
    positive, negative = np.sort(probability[labels]), np.sort(probability[~labels])
    wins = 0  # each win counts 2, each tie 1
    for first in range(0, len(positive), SORTED_AT_ONCE):
        some = positive[first : first + SORTED_AT_ONCE]
        wins += sum(int(np.searchsorted(negative, some, side=side).sum()) for side in ("left", "right"))
    pairs = len(positive) * len(negative)
    return wins / (2 * pairs) if pairs else float("nan")


def hit_rate(rank: np.ndarray, k: int, tied: np.ndarray | float = 1.0) -> np.ndarray:
    """HR@k: 1 where the true track is among the first k, any shape.

    Args:
        rank: from 0; the middle one of tied tracks.
        tied: how many tracks share the true one's score, itself included. The value is the expectation over the orders
            of a tie, so a tie across the cut-off counts in part.

    >>> hit_rate(np.array([0.5]), 1, np.array([2.0]))
    array([0.5])
    """
    return _expected_gain(np.ones(k), rank, tied)


def ndcg(rank: np.ndarray, k: int, tied: np.ndarray | float = 1.0) -> np.ndarray:
    """NDCG@k with a single relevant track: 1 / log2(rank + 2) inside the first k, else 0; ties as in `hit_rate`."""
    return _expected_gain(1 / np.log2(np.arange(k) + 2.0), rank, tied)


def reciprocal_rank(rank: np.ndarray, k: int, tied: np.ndarray | float = 1.0) -> np.ndarray:
    """Reciprocal rank inside the first k, else 0; its mean is MRR@k. Ties as in `hit_rate`."""
    return _expected_gain(1 / (np.arange(k) + 1.0), rank, tied)


def _expected_gain(gains: np.ndarray, rank: np.ndarray, tied: np.ndarray | float) -> np.ndarray:
    """The mean gain over the places that a track may take: float64 of the shape of `rank`.

    Args:
        gains: float (k,), of the places 0 to k - 1; later places gain nothing.
        rank, tied: see `hit_rate`.
    """
    k = len(gains)
    total = np.append(0.0, np.cumsum(gains))  # (k + 1,): of the places before each
    first = np.asarray(rank, np.float64) - (np.asarray(tied, np.float64) - 1) / 2
    start, end = (np.interp(place, np.arange(k + 1), total) for place in (first, first + tied))
    return (end - start) / tied


def set_overlap(predicted: np.ndarray, tracks: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Share of an example's targets that its prediction holds anywhere (as multisets): float64 (N,), NaN without any.

    Args:
        predicted: int (N, T) predicted tracks; in an example with n targets, only the first n count.
        tracks: int (N, T) true tracks.
        known: bool (N, T), true at the first n positions of each example.
    """
    n_targets = known.sum(1)
    # Comparing occurrence numbers as well makes the members of a multiset distinct.
    equal = (predicted[:, :, None] == tracks[:, None, :]) & known[:, :, None] & known[:, None, :]
    same_occurrence = _occurrence_number(predicted)[:, :, None] == _occurrence_number(tracks)[:, None, :]
    shared = (equal & same_occurrence).sum((1, 2))
    return np.divide(shared, n_targets, out=np.full(len(tracks), np.nan), where=n_targets > 0)


def _occurrence_number(tracks: np.ndarray) -> np.ndarray:
    """How many earlier positions of the row hold the same track: int (N, T)."""
    same = tracks[:, :, None] == tracks[:, None, :]
    return np.tril(same, k=-1).sum(2)


def repetition(predicted: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Share of predicted tracks that were already predicted earlier in the same continuation: float64 (N,)."""
    n_targets = known.sum(1)
    repeated = ((_occurrence_number(predicted) > 0) & known).sum(1)
    return np.divide(repeated, n_targets, out=np.full(len(predicted), np.nan), where=n_targets > 0)


def coverage(predicted: np.ndarray, known: np.ndarray, n_tracks: int) -> float:
    """Share of the catalogue that is predicted at least once."""
    return len(np.unique(predicted[known])) / n_tracks


def bootstrap_intervals(
    numerators: np.ndarray, denominators: np.ndarray, *, n_resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ratios of sums over sessions, with percentile bootstrap intervals (Efron 1979) that resample sessions.

    More than `BOOTSTRAP_GROUPS` sessions are resampled in random groups of equal size: the groups' sums vary as the
    sessions do, and the cost of a resample no longer grows with the number of sessions.

    Args:
        numerators: float (N, M), the contribution of each session to each of M metrics.
        denominators: float (N, M), its weight.

    Returns:
        mean, low, high: float64 (M,) each; NaN where a metric has no weight at all. Resamples in which it has none do
        not count for its interval.
    """
    both = np.concatenate([numerators, denominators], axis=1, dtype=np.float64)
    rng = np.random.default_rng(seed)
    if len(both) > BOOTSTRAP_GROUPS:
        group = rng.permutation(len(both)) % BOOTSTRAP_GROUPS
        both = np.stack([np.bincount(group, column) for column in both.T], axis=1)
    n = len(both)
    sums = np.stack([np.bincount(rng.integers(0, n, n), minlength=n) @ both for _ in range(n_resamples)])
    n_metrics = numerators.shape[1]
    ratios = _ratio(sums[:, :n_metrics], sums[:, n_metrics:])
    mean = _ratio(numerators.sum(0), denominators.sum(0))
    tail = (1 - level) / 2
    low, high = np.full((2, n_metrics), np.nan)
    measured = ~np.isnan(ratios).all(axis=0)  # few sessions with a weight may all be missing from a resample
    if measured.any():
        low[measured], high[measured] = np.nanquantile(ratios[:, measured], [tail, 1 - tail], axis=0)
    return mean, low, high


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(np.shape(numerator), np.nan), where=denominator > 0)


class SkipCase(NamedTuple):
    """What skip metrics look at, (N, T) each."""

    probability: np.ndarray
    labels: np.ndarray
    """bool: skipped."""
    correct: np.ndarray
    known: np.ndarray


class SeqCase(NamedTuple):
    """What metrics of continuations look at."""

    predicted: np.ndarray
    """int (N, T)"""
    tracks: np.ndarray
    """int (N, T): the true tracks."""
    correct: np.ndarray
    """bool (N, T)"""
    known: np.ndarray
    """bool (N, T)"""
    in_vocabulary: np.ndarray
    """bool (N, T)"""
    n_tracks: int
    """In the catalogue."""
    log_probability: np.ndarray | None
    """float (N, T), of the true tracks."""
    rank: np.ndarray | None
    """float (N,), of the first true track, from 0."""
    tied: np.ndarray | float
    """float (N,): how many tracks share its score, itself included."""


class MaskedCase(NamedTuple):
    """What metrics of hidden tracks look at, (N, M) each."""

    hidden: np.ndarray
    """bool"""
    log_probability: np.ndarray
    rank: np.ndarray
    """float, infinity where nothing is hidden."""
    tied: np.ndarray | float


class Ratio(NamedTuple):
    """A metric as a ratio of sums over examples, (N,) each, so that sessions can be resampled."""

    numerator: np.ndarray
    denominator: NDArray[Any]


class Metric(NamedTuple):
    """One metric: how readers know it, which way it gets better, and how each task measures it.

    A task's function takes the task's case. It returns a `Ratio`; or a number, for a metric of a whole split, which has
    no interval; or None, where the model does not predict what the metric needs.
    """

    title: str
    better: Literal["max", "min"] = "max"
    skip: Callable[[SkipCase], Ratio | float | None] | None = None
    seq: Callable[[SeqCase], Ratio | float | None] | None = None
    pretrain: Callable[[MaskedCase], Ratio | float | None] | None = None
    final: Callable[[float], float] = float
    """From the ratio to the value that is reported."""


def _mean_average_accuracy(case: SkipCase | SeqCase) -> Ratio:
    return Ratio(_in_parts(average_accuracy, case.correct, case.known), np.any(case.known, axis=1))


def _first_accuracy(case: SkipCase | SeqCase) -> Ratio:
    return Ratio(first_known(case.correct, case.known), np.any(case.known, axis=1))


def _accuracy(case: SkipCase | SeqCase) -> Ratio:
    return Ratio((case.correct & case.known).sum(1), case.known.sum(1))


def _log_loss(case: SkipCase) -> Ratio:
    def of_rows(probability: np.ndarray, labels: np.ndarray, known: np.ndarray) -> np.ndarray:
        return np.sum(binary_log_loss(probability, labels) * known, axis=1)

    return Ratio(_in_parts(of_rows, case.probability, case.labels, case.known), case.known.sum(1))


def _overlap(case: SeqCase) -> Ratio:
    return Ratio(_in_parts(set_overlap, case.predicted, case.tracks, case.known), np.any(case.known, axis=1))


def _repetition(case: SeqCase) -> Ratio:
    return Ratio(_in_parts(repetition, case.predicted, case.known), np.any(case.known, axis=1))


def _mean_surprise(case: SeqCase) -> Ratio | None:
    if case.log_probability is None:
        return None
    surprise = np.where(case.in_vocabulary, -case.log_probability, 0.0)
    return Ratio(surprise.sum(1), case.in_vocabulary.sum(1))


def _mean_surprise_of_hidden(case: MaskedCase) -> Ratio:
    surprise = -np.where(case.hidden, case.log_probability, 0.0)
    return Ratio(surprise.sum(1), case.hidden.sum(1))


def _of_rank(of: Callable[..., np.ndarray], k: int, case: SeqCase) -> Ratio | None:
    return None if case.rank is None else Ratio(of(case.rank, k, case.tied), np.any(case.known, axis=1))


def _of_hidden_ranks(of: Callable[..., np.ndarray], k: int, case: MaskedCase) -> Ratio:
    return Ratio(of(case.rank, k, case.tied).sum(1), case.hidden.sum(1))


def _ranked(title: str, of: Callable[..., np.ndarray], k: int, *, hidden: bool = True) -> Metric:
    """A metric of ranks, of the next track and, if `hidden`, of hidden tracks."""
    return Metric(
        f"{title}@{k}", seq=partial(_of_rank, of, k), pretrain=partial(_of_hidden_ranks, of, k) if hidden else None
    )


def _in_parts(metric: Callable[..., np.ndarray], *arrays: np.ndarray) -> np.ndarray:
    """A metric of each row of arrays (N, T), computed in parts to keep temporary arrays small: (N,)."""
    starts = range(0, max(len(arrays[0]), 1), ROWS_AT_ONCE)
    return np.concatenate([metric(*(array[i : i + ROWS_AT_ONCE] for array in arrays)) for i in starts])


METRICS = {
    "maa": Metric("MAA", skip=_mean_average_accuracy, seq=_mean_average_accuracy),
    "first_accuracy": Metric("first", skip=_first_accuracy, seq=_first_accuracy),
    "accuracy": Metric("accuracy", skip=_accuracy, seq=_accuracy),
    "log_loss": Metric("log loss", "min", skip=_log_loss),
    "auc": Metric("AUC", skip=lambda case: auc(case.probability[case.known], case.labels[case.known])),
    "overlap": Metric("overlap", seq=_overlap),
    "repetition": Metric("repetition", seq=_repetition),
    "perplexity": Metric("perplexity", "min", seq=_mean_surprise, pretrain=_mean_surprise_of_hidden, final=np.exp),
    "hr@1": _ranked("HR", hit_rate, 1),
    "hr@10": _ranked("HR", hit_rate, 10),
    "hr@20": _ranked("HR", hit_rate, 20),
    "ndcg@10": _ranked("NDCG", ndcg, 10, hidden=False),
    "ndcg@20": _ranked("NDCG", ndcg, 20, hidden=False),
    "mrr@20": _ranked("MRR", reciprocal_rank, 20),
    "coverage": Metric(
        "coverage", seq=lambda case: coverage(case.predicted, case.known & (case.predicted != 0), case.n_tracks)
    ),
}
"""Name -> metric. Evaluation, training, leaderboard, report and comparisons all read this table."""

HEADLINES: dict[str, tuple[str, ...]] = {
    "skip": ("maa", "first_accuracy"),
    "seq": ("maa", "hr@20", "mrr@20"),
    "prefixes": ("mrr@20", "hr@20", "hr@1"),
    "pretrain": ("mrr@20", "hr@20", "hr@1", "perplexity"),
}
"""The metrics that a reader sees first; `prefixes` is seq after every prefix of a session."""


def measure(case: Any, task: Task) -> tuple[dict[str, Ratio], dict[str, float]]:
    """All metrics of a task that its case defines: those with an interval, and those of the whole split."""
    found = {name: getattr(metric, task)(case) for name, metric in METRICS.items() if getattr(metric, task)}
    ratios = {name: value for name, value in found.items() if isinstance(value, Ratio)}
    return ratios, {name: float(value) for name, value in found.items() if not isinstance(value, Ratio | None)}


def direction(metric: str, task: Task) -> Literal["max", "min"]:
    """Which way a metric gets better.

    Raises:
        UserError: the task has no such metric. Training should not have to reach its first validation to find out.
    """
    known = [name for name, each in METRICS.items() if getattr(each, task)]
    if metric not in known:
        raise UserError(f"monitor is {metric}, which is no metric of this task; choose one of {', '.join(known)}")
    return METRICS[metric].better
