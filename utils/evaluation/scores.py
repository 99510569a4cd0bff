"""One judge for everything that predicts: models, baselines and the oracle are scored by the same functions.

Predictions are arrays in the order of a loader's examples. Scores are ratios of sums over sessions, so that every
interval is a bootstrap over sessions, even where a session gives several examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utils.core.files import atomic_file
from utils.data.dataloaders import Targets
from utils.data.vocab import N_SPECIAL, PAD
from utils.evaluation import metrics
from utils.evaluation.metrics import METRICS, MaskedCase, SeqCase, SkipCase, Task, measure
from utils.evaluation.predictions import MaskedPredictions, SeqPredictions, SkipPredictions
from utils.evaluation.slices import Labels, targets_by_plays


@dataclass
class Scores:
    """Per-session contributions to every metric of one split."""

    n_sessions: int
    average_accuracy: np.ndarray
    """float64 (n_sessions,): AA of each session, for slices."""
    numerators: dict[str, np.ndarray]
    """Metric -> float64 (n_sessions,)"""
    denominators: dict[str, np.ndarray]
    plain: dict[str, float]
    """Metrics of the whole split: they are not ratios of sums and have no interval."""
    by_position: np.ndarray
    """float64 (T,): accuracy at each target position."""
    histogram: np.ndarray
    """float64 (T + 1,): share of examples with 0..T right predictions."""
    slices: dict[str, Labels] = field(default_factory=dict)
    """Name -> label of each session."""
    by_plays: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    """Group of `targets_by_plays` -> right predictions and all predictions of each session, float64 (n_sessions,)."""

    def means(self) -> dict[str, float | None]:
        """Every metric without its interval: quick enough for each validation."""
        means = {name: float(_mean(self.numerators[name], self.denominators[name])) for name in self.numerators}
        return {name: _finish(name, value) for name, value in (means | self.plain).items()}

    def summary(self) -> dict[str, Any]:
        """The split's entry in `result.json` (docs/training.md): intervals, accuracy by position, histogram, slices."""
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
    """The reported value of a metric or share; None where it is no number, for JSON knows no NaN."""
    value = METRICS[name].final(value) if name in METRICS else value
    return float(value) if np.isfinite(value) else None


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
    case = SkipCase(predictions.probability, labels, predictions.decision == labels, known)
    return _scores(case, "skip", targets, slices, train_plays)


def evaluate_seq(
    predictions: SeqPredictions,
    targets: Targets,
    *,
    n_ids: int,
    slices: dict[str, Labels] | None = None,
    train_plays: np.ndarray | None = None,
) -> Scores:
    """Score continuations against the true tracks of a loader. A target outside the vocabulary is always missed.

    Args:
        predictions: of all N examples.
        targets: `loader.targets()` of the same loader.
        n_ids: V, for the coverage of the catalogue.
        slices: name -> label of each example (`session_slices`).
        train_plays: int (V,), for the accuracy by training plays of the target.
    """
    known = targets.tracks != PAD
    _check_shape(predictions.tracks, known)
    # A special id is never right, not even for a new track.
    predicted = np.where(predictions.tracks >= N_SPECIAL, predictions.tracks, PAD)
    in_vocabulary = targets.tracks >= N_SPECIAL
    if predictions.log_probability is not None:
        _check_shape(predictions.log_probability, known)
        if np.isnan(predictions.log_probability[in_vocabulary]).any():
            raise ValueError("log-probabilities of tracks must be numbers")
    case = SeqCase(
        predicted,
        targets.tracks,
        correct=predicted == targets.tracks,
        known=known,
        in_vocabulary=in_vocabulary,
        n_tracks=n_ids - N_SPECIAL,
        log_probability=predictions.log_probability,
        rank=None if predictions.rank is None else predictions.rank.astype(np.float64),
        tied=1.0 if predictions.tied is None else predictions.tied.astype(np.float64),
    )
    return _scores(case, "seq", targets, slices, train_plays)


def evaluate_masked(predictions: MaskedPredictions, targets: Targets) -> Scores:
    """Score predictions of hidden tracks, each of which counts the same; intervals are over sessions.

    There are no slices, no accuracy by position and no histogram: chance decides which tracks are hidden.

    Args:
        predictions: of all N examples.
        targets: `loader.targets()` of the same loader; only tells which session each example is of.
    """
    hidden = predictions.tracks != PAD
    _check_shape(predictions.log_probability, hidden)
    _check_shape(predictions.rank, hidden)
    if np.isnan(predictions.log_probability[hidden]).any():
        raise ValueError("log-probabilities of tracks must be numbers")
    rank = np.where(hidden, predictions.rank, np.inf).astype(np.float64)
    tied = 1.0 if predictions.tied is None else predictions.tied.astype(np.float64)
    ratios, _ = measure(MaskedCase(hidden, predictions.log_probability, rank, tied), "pretrain")
    first_row, numerators, denominators = _add_up(ratios, targets)
    n = len(first_row)
    return Scores(n, np.full(n, np.nan), numerators, denominators, {}, np.empty(0), np.empty(0))


def _check_shape(predicted: np.ndarray, known: np.ndarray) -> None:
    if predicted.shape != known.shape:
        raise ValueError(f"predictions have shape {predicted.shape}, the targets {known.shape}")


def _scores(
    case: SkipCase | SeqCase,
    task: Task,
    targets: Targets,
    slices: dict[str, Labels] | None,
    train_plays: np.ndarray | None,
) -> Scores:
    ratios, plain = measure(case, task)
    correct, known = case.correct, case.known
    first_row, numerators, denominators = _add_up(ratios, targets)
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
    ratios: Mapping[str, tuple[np.ndarray, np.ndarray]], targets: Targets
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The first example of each session, and the sums of numerators and denominators over its examples."""
    session_ids, first_row, session = np.unique(targets.session, return_index=True, return_inverse=True)

    def per_session(values: np.ndarray) -> np.ndarray:
        return np.bincount(session, weights=np.nan_to_num(values.astype(np.float64)), minlength=len(session_ids))

    numerators = {name: per_session(numerator) for name, (numerator, _) in ratios.items()}
    denominators = {name: per_session(denominator) for name, (_, denominator) in ratios.items()}
    return first_row, numerators, denominators


def save_predictions(
    path: Path, predictions: SkipPredictions | SeqPredictions | MaskedPredictions, scores: Scores, targets: Targets
) -> None:
    """Write predictions, and each session's part in each metric, as one .npz that needs no pickle.

    `session` (N,) names the session of each example. `sums_<metric>` (n_sessions, 2) holds numerator and denominator of
    each session, in ascending order of `session`; paired comparisons need them.
    """
    arrays = {name: value for name, value in predictions._asdict().items() if value is not None}
    for name, numerator in scores.numerators.items():
        arrays[f"sums_{name}"] = np.stack([numerator, scores.denominators[name]], axis=1).astype(np.float32)
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, session=targets.session, **arrays)
