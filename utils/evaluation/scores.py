"""One judge for everything that predicts: models, baselines and the oracle are scored by the same functions.

Predictions are arrays in the order of a loader's examples; scores are ratios of sums over sessions, so that every
interval is a bootstrap over sessions, also where a session gives several examples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from utils.core.errors import UserError
from utils.core.files import atomic_file
from utils.data.dataloaders import Targets
from utils.data.vocab import N_SPECIAL, PAD
from utils.evaluation import metrics
from utils.evaluation.predictions import MaskedPredictions, SeqPredictions, SkipPredictions
from utils.evaluation.slices import Labels, targets_by_plays

CUTOFFS = (1, 10, 20)
"""The k of HR@k and NDCG@k."""
MRR_CUTOFF = 20
ROWS_AT_ONCE = 2**16
"""Examples whose metrics are computed together where that takes temporary arrays of several numbers a target."""
LOWER_IS_BETTER = ("log_loss", "perplexity")
MASKED_METRICS = ("mrr@20", "hr@1", "hr@10", "hr@20", "perplexity")
"""What `evaluate_masked` measures."""
SEQ_METRICS = (
    *("maa", "first_accuracy", "accuracy", "overlap", "repetition", "coverage", "perplexity"),
    *("hr@1", "hr@10", "hr@20", "ndcg@10", "ndcg@20", "mrr@20"),
)
"""What `evaluate_seq` measures."""


def direction(metric: str, known: tuple[str, ...]) -> Literal["max", "min"]:
    """Which way a metric gets better.

    Raises:
        UserError: it is none of the `known` ones, which is better found before training than at the first validation.
    """
    if metric not in known:
        raise UserError(f"monitor is {metric}, which is no metric of this task; choose one of {', '.join(known)}")
    return "min" if metric in LOWER_IS_BETTER else "max"


@dataclass
class Scores:
    """Per-session contributions to every metric of one split."""

    n_sessions: int
    average_accuracy: np.ndarray
    """float64 (n_sessions,): AA of each session, for slices and paired tests."""
    numerators: dict[str, np.ndarray]
    """Metric -> float64 (n_sessions,)"""
    denominators: dict[str, np.ndarray]
    plain: dict[str, float]
    """Metrics of the whole split that are no ratios of sums: no interval."""
    by_position: np.ndarray
    """float64 (T,): accuracy at each target position."""
    histogram: np.ndarray
    """float64 (T + 1,): share of examples with 0..T right targets."""
    slices: dict[str, Labels] = field(default_factory=dict)
    """Name -> label of each session."""
    by_plays: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    """Group of `targets_by_plays` -> right answers and answers in each session, float64 (n_sessions,)."""

    def means(self) -> dict[str, float | None]:
        """Every metric without interval: quick enough for each validation."""
        ratios = {name: float(_mean(self.numerators[name], self.denominators[name])) for name in self.numerators}
        return {name: _finish(name, value) for name, value in (ratios | self.plain).items()}

    def summary(self) -> dict[str, Any]:
        """The contract's entry of a split in `result.json`: intervals, accuracy by position, histogram, slices."""
        of_metrics = {name: (self.numerators[name], self.denominators[name]) for name in self.numerators}
        found = _with_intervals(of_metrics | self.by_plays)
        plain = {name: {"mean": _finish(name, value), "low": None, "high": None} for name, value in self.plain.items()}
        return {
            "n_sessions": self.n_sessions,
            "metrics": {name: found[name] for name in of_metrics} | plain,
            "by_position": {"accuracy": [_finish("accuracy", value) for value in self.by_position]},
            "histogram": self.histogram.tolist(),
            "slices": {name: self._slice(labels) for name, labels in self.slices.items()},
            "by_plays": {name: {"n": int(n.sum()), **found[name]} for name, (_, n) in self.by_plays.items()},
        }

    def _slice(self, labels: Labels) -> dict[str, dict[str, float]]:
        counted = ~np.isnan(self.average_accuracy)
        codes, n_labels = labels.codes[counted], len(labels.categories)
        n = np.bincount(codes, minlength=n_labels)
        total = np.bincount(codes, weights=self.average_accuracy[counted], minlength=n_labels)
        rows = sorted(zip(labels.categories, n.tolist(), total.tolist(), strict=True))
        return {label: {"n": n, "maa": total / n} for label, n, total in rows if n}


def _with_intervals(ratios: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, dict[str, float | None]]:
    """Ratios of sums over sessions with their intervals, from numerator and denominator (n_sessions,) of each."""
    numerators, denominators = (np.stack(arrays, axis=1) for arrays in zip(*ratios.values(), strict=True))
    return {
        name: {"mean": _finish(name, mean), "low": _finish(name, low), "high": _finish(name, high)}
        for name, mean, low, high in zip(ratios, *metrics.bootstrap_intervals(numerators, denominators), strict=True)
    }


def _mean(numerator: np.ndarray, denominator: np.ndarray) -> float:
    total = denominator.sum()
    return float(numerator.sum() / total) if total > 0 else float("nan")


def _finish(name: str, value: float) -> float | None:
    """The reported value of a mean: perplexity is the exponential of a mean; JSON knows no NaN."""
    value = float(np.exp(value)) if name == "perplexity" else float(value)
    return value if np.isfinite(value) else None


def evaluate_skip(
    predictions: SkipPredictions,
    targets: Targets,
    *,
    slices: dict[str, Labels] | None = None,
    train_plays: np.ndarray | None = None,
) -> Scores:
    """Score skip predictions against the labels of a loader.

    Args:
        predictions: of all N examples.
        targets: `loader.targets()` of the same loader.
        slices: name -> label of each example (`session_slices`).
        train_plays: int (V,), for the accuracy by training plays of the target's track.
    """
    known = targets.skips >= 0
    _check_shape(predictions.decision, known)
    _check_shape(predictions.probability, known)
    if not ((predictions.probability >= 0) & (predictions.probability <= 1))[known].all():
        raise ValueError("skip probabilities must be numbers from 0 to 1")
    labels = targets.skips == 1
    correct = predictions.decision == labels
    per_example = {
        "maa": (_in_parts(metrics.average_accuracy, correct, known), known.any(1)),
        "first_accuracy": (metrics.first_known(correct, known), known.any(1)),
        "accuracy": ((correct & known).sum(1), known.sum(1)),
        "log_loss": (_in_parts(_log_loss_of_rows, predictions.probability, labels, known), known.sum(1)),
    }
    plain = {"auc": metrics.auc(predictions.probability[known], labels[known])}
    return _scores(per_example, plain, correct, known, targets, slices, train_plays)


def evaluate_seq(
    predictions: SeqPredictions,
    targets: Targets,
    *,
    n_ids: int,
    slices: dict[str, Labels] | None = None,
    train_plays: np.ndarray | None = None,
) -> Scores:
    """Score continuations against the true tracks of a loader. A target outside the vocabulary can only be missed.

    Args:
        predictions: of all N examples.
        targets: `loader.targets()` of the same loader.
        n_ids: V, for the coverage of the catalogue.
        slices: name -> label of each example (`session_slices`).
        train_plays: int (V,), for the accuracy by training plays of the target.
    """
    known = targets.tracks != PAD
    _check_shape(predictions.tracks, known)
    # A special id is no prediction, not even of an unknown track.
    predicted = np.where(predictions.tracks >= N_SPECIAL, predictions.tracks, PAD)
    correct = predicted == targets.tracks
    has_targets = known.any(1)
    per_example = {
        "maa": (_in_parts(metrics.average_accuracy, correct, known), has_targets),
        "first_accuracy": (metrics.first_known(correct, known), has_targets),
        "accuracy": ((correct & known).sum(1), known.sum(1)),
        "overlap": (_in_parts(metrics.set_overlap, predicted, targets.tracks, known), has_targets),
        "repetition": (_in_parts(metrics.repetition, predicted, known), has_targets),
    }
    if predictions.log_probability is not None:
        in_vocabulary = targets.tracks >= N_SPECIAL
        _check_shape(predictions.log_probability, known)
        if np.isnan(predictions.log_probability[in_vocabulary]).any():
            raise ValueError("log-probabilities of tracks must be numbers")
        negative = np.where(in_vocabulary, -predictions.log_probability, 0.0)
        per_example["perplexity"] = (negative.sum(1), in_vocabulary.sum(1))
    if predictions.rank is not None:
        rank = predictions.rank.astype(np.float64)
        for k in CUTOFFS:
            per_example[f"hr@{k}"] = (metrics.hit_rate(rank, k), has_targets)
        for k in CUTOFFS[1:]:
            per_example[f"ndcg@{k}"] = (metrics.ndcg(rank, k), has_targets)
        per_example[f"mrr@{MRR_CUTOFF}"] = (metrics.reciprocal_rank(rank, MRR_CUTOFF), has_targets)
    plain = {"coverage": metrics.coverage(predicted, known & (predicted != PAD), n_ids - N_SPECIAL)}
    return _scores(per_example, plain, correct, known, targets, slices, train_plays)


def evaluate_masked(predictions: MaskedPredictions, targets: Targets) -> Scores:
    """Score guesses of hidden tracks, each hidden track alike; intervals are over sessions.

    There are no slices, no accuracy by position and no histogram: which tracks are hidden is left to chance.

    Args:
        predictions: of all N examples.
        targets: `loader.targets()` of the same loader; only tells which session an example is of.
    """
    hidden = predictions.tracks != PAD
    _check_shape(predictions.log_probability, hidden)
    _check_shape(predictions.rank, hidden)
    if np.isnan(predictions.log_probability[hidden]).any():
        raise ValueError("log-probabilities of tracks must be numbers")
    rank = np.where(hidden, predictions.rank, np.inf).astype(np.float64)
    of_each = {f"mrr@{MRR_CUTOFF}": metrics.reciprocal_rank(rank, MRR_CUTOFF)}
    of_each |= {f"hr@{k}": metrics.hit_rate(rank, k) for k in CUTOFFS}
    of_each["perplexity"] = -np.where(hidden, predictions.log_probability, 0.0)
    n_hidden = hidden.sum(1)
    first_row, numerators, denominators = _add_up(
        {name: (values.sum(1), n_hidden) for name, values in of_each.items()}, targets
    )
    n = len(first_row)
    return Scores(n, np.full(n, np.nan), numerators, denominators, {}, np.empty(0), np.empty(0))


def _in_parts(metric: Callable[..., np.ndarray], *arrays: np.ndarray) -> np.ndarray:
    """A metric of each row of arrays (N, T), so many rows at a time that its temporary arrays stay small: (N,)."""
    starts = range(0, max(len(arrays[0]), 1), ROWS_AT_ONCE)
    return np.concatenate([metric(*(array[i : i + ROWS_AT_ONCE] for array in arrays)) for i in starts])


def _log_loss_of_rows(probability: np.ndarray, labels: np.ndarray, known: np.ndarray) -> np.ndarray:
    return np.sum(metrics.binary_log_loss(probability, labels) * known, axis=1)


def _check_shape(predicted: np.ndarray, known: np.ndarray) -> None:
    if predicted.shape != known.shape:
        raise ValueError(f"predictions have shape {predicted.shape}, the targets {known.shape}")


def _scores(
    per_example: dict[str, tuple[np.ndarray, np.ndarray]],
    plain: dict[str, float],
    correct: np.ndarray,
    known: np.ndarray,
    targets: Targets,
    slices: dict[str, Labels] | None,
    train_plays: np.ndarray | None,
) -> Scores:
    first_row, numerators, denominators = _add_up(per_example, targets)
    n = len(first_row)
    counted = denominators["maa"] > 0
    average_accuracy = np.divide(numerators["maa"], denominators["maa"], out=np.full(n, np.nan), where=counted)
    groups = {} if train_plays is None else targets_by_plays(targets.tracks, known, train_plays)
    _, right, asked = _add_up({name: ((correct & mine).sum(1), mine.sum(1)) for name, mine in groups.items()}, targets)
    return Scores(
        n_sessions=n,
        average_accuracy=average_accuracy,
        numerators=numerators,
        denominators=denominators,
        plain=plain,
        by_position=metrics.accuracy_by_position(correct, known),
        histogram=metrics.number_correct_histogram(correct, known),
        slices={name: labels[first_row] for name, labels in (slices or {}).items()},
        by_plays={name: (right[name], asked[name]) for name in groups},
    )


def _add_up(
    per_example: dict[str, tuple[np.ndarray, np.ndarray]], targets: Targets
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The first example of each session, and the sums of numerators and denominators over its examples."""
    session_ids, first_row, session = np.unique(targets.session, return_index=True, return_inverse=True)

    def per_session(values: np.ndarray) -> np.ndarray:
        return np.bincount(session, weights=np.nan_to_num(values.astype(np.float64)), minlength=len(session_ids))

    numerators = {name: per_session(numerator) for name, (numerator, _) in per_example.items()}
    denominators = {name: per_session(denominator) for name, (_, denominator) in per_example.items()}
    return first_row, numerators, denominators


def save_predictions(
    path: Path, predictions: SkipPredictions | SeqPredictions | MaskedPredictions, scores: Scores, targets: Targets
) -> None:
    """Write predictions, and each session's part in each metric, as one .npz that needs no pickle.

    `session` (N,) names the session of each example. `sums_<metric>` (n_sessions, 2) holds numerator and denominator of
    each session, in ascending order of `session`: what paired comparisons are made of.
    """
    arrays = {name: value for name, value in predictions._asdict().items() if value is not None}
    for name, numerator in scores.numerators.items():
        arrays[f"sums_{name}"] = np.stack([numerator, scores.denominators[name]], axis=1).astype(np.float32)
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, session=targets.session, **arrays)
