"""Baselines for the skip task: repeat the last action, position majority, skip rate of the track, logistic regression.

Each predicts from the history's tracks and skips and from the target tracks; the logistic regression and the boosted
trees (`model/trees_skip.py`) also from the past of all these plays, if they are given it. Every rate is a
posterior mean under a fixed prior of `PRIOR` observations at the overall rate in training:
(skips + PRIOR * overall) / (n + PRIOR). Letters: N examples, S history positions, T target positions, V ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from utils.data import schema
from utils.data.batch import N_SKIP_STATES, SessionBatch, is_skipped
from utils.data.vocab import PAD

PRIOR = 20.0
"""Observations at the overall rate that are added to those of each rate."""
BATCHES_AT_ONCE = 40
"""Batches of a loader that are predicted together."""
EXAMPLES_AT_ONCE = 10_000
"""Examples whose features for the logistic regression are in memory together."""


class SkipInputs(NamedTuple):
    """All that a prediction may know; there is no field for the targets' labels."""

    history_tracks: np.ndarray
    """int (N, S), padded on the left"""
    history_skips: np.ndarray
    """int (N, S): 0 unknown or no play, else 1 + `schema.SKIP_*`"""
    target_tracks: np.ndarray
    """int (N, T), padded on the right"""
    log: np.ndarray | None = None
    """uint8 (N, S, L): codes of `schema.LOG_COLUMNS` of the history"""
    past: np.ndarray | None = None
    """float16 (N, S + T, P): statistics and relations of all plays, see `utils/data/batch.py`; None without them"""
    details: np.ndarray | None = None
    """float16 (N, S, K): details of the history's plays; None without them"""

    @classmethod
    def of(cls, batches: Iterable[SessionBatch]) -> SkipInputs:
        """Concatenate the batches of an ordered loader, tracks and skips as int32."""
        columns: dict[str, list[np.ndarray]] = {name: [] for name in cls._fields}
        for batch in tqdm(batches, desc="read", leave=False, delay=2, unit="batch"):
            history, past = batch.history, batch.past
            for name, tensor in zip(cls._fields, (history.tracks, history.skips, batch.target_tracks), strict=False):
                columns[name].append(tensor.numpy().astype(np.int32))
            columns["log"].append(history.log.numpy())
            if past is not None and past.plays.shape[2]:
                columns["past"].append(past.plays.numpy().astype(np.float16))
            if past is not None and past.details.shape[2]:
                columns["details"].append(past.details.numpy().astype(np.float16))
        return cls(**{name: np.concatenate(parts) for name, parts in columns.items() if parts})

    def part(self, rows: slice | np.ndarray) -> SkipInputs:
        """Some of the examples."""
        return SkipInputs(**{name: array[rows] for name, array in self._asdict().items() if array is not None})


class SkipBaseline(Protocol):
    """What every baseline does."""

    def predict(self, inputs: SkipInputs) -> tuple[np.ndarray, np.ndarray]:
        """Probability float32 (N, T) and decision bool (N, T)."""


def predict(model: SkipBaseline, batches: Iterable[SessionBatch]) -> tuple[np.ndarray, np.ndarray]:
    """Probability float32 (N, T) and decision bool (N, T) of all examples of an ordered loader.

    Few batches are in memory at a time: the past of many sessions is large.
    """
    rest, parts = iter(batches), []
    while some := list(islice(rest, BATCHES_AT_ONCE)):
        parts.append(model.predict(SkipInputs.of(some)))
    probability, decision = (np.concatenate(part) for part in zip(*parts, strict=True))
    return probability, decision


def signed_skips(history_skips: np.ndarray) -> np.ndarray:
    """Skip states of a history (any shape) as +1 skipped (skip_2), -1 not, 0 unknown or no play; int8."""
    return np.where(history_skips == 0, 0, np.where(is_skipped(history_skips), 1, -1)).astype(np.int8)


def last_known(history_skips: np.ndarray) -> np.ndarray:
    """The last known state of each history (N, S), as in `signed_skips`; int8 (N,)."""
    signed = signed_skips(history_skips)
    last = signed.shape[1] - 1 - np.argmax(signed[:, ::-1] != 0, axis=1)
    return np.take_along_axis(signed, last[:, None], axis=1)[:, 0]


@dataclass(frozen=True)
class PositionMajority:
    """What most sessions with the same number of targets do at the same position."""

    rates: np.ndarray
    """float64 (T + 1, T): skip rate by number of targets and target position"""

    @classmethod
    def fit(cls, inputs: SkipInputs, labels: np.ndarray) -> PositionMajority:
        """Estimate the rates from labels (N, T): 1 skipped, 0 not, -1 unknown."""
        size = labels.shape[1]
        return cls(_rates(_cell(inputs.target_tracks), labels, (size + 1) * size).reshape(size + 1, size))

    def predict(self, inputs: SkipInputs) -> tuple[np.ndarray, np.ndarray]:
        """Probability float32 (N, T) and decision bool (N, T)."""
        probability = self.rates.ravel()[_cell(inputs.target_tracks)].astype(np.float32)
        return probability, probability >= 0.5


@dataclass(frozen=True)
class RepeatLast:
    """Decides that the history's last known action goes on; the probability is the skip rate after it, by position."""

    rates: np.ndarray
    """float64 (3, T): skip rate by last known state, in the rows 0 (none), 1 (skipped) and -1 (not skipped)"""

    @classmethod
    def fit(cls, inputs: SkipInputs, labels: np.ndarray) -> RepeatLast:
        """Estimate the rates from labels (N, T): 1 skipped, 0 not, -1 unknown."""
        size = labels.shape[1]
        cell = (last_known(inputs.history_skips) % 3)[:, None] * size + np.arange(size)
        return cls(_rates(cell, labels, 3 * size).reshape(3, size))

    def predict(self, inputs: SkipInputs) -> tuple[np.ndarray, np.ndarray]:
        """Probability float32 (N, T) and decision bool (N, T): the last state, or the likelier one if none is known."""
        last = last_known(inputs.history_skips)
        probability = self.rates[last].astype(np.float32)
        return probability, np.where(last[:, None] == 0, probability >= 0.5, last[:, None] == 1)


@dataclass(frozen=True)
class TrackRate:
    """The skip rate of the target track, whoever listens."""

    skips: np.ndarray
    """float64 (V,): skipped plays of each id in training"""
    plays: np.ndarray
    """float64 (V,): plays of each id in training whose skip is known"""

    @classmethod
    def fit(cls, tracks: np.ndarray, skips: np.ndarray, *, n_ids: int) -> TrackRate:
        """Count over all plays of training: `tracks` (n_events,) and their `schema.SKIP_*` codes (n_events,)."""
        known = skips != schema.SKIP_UNKNOWN
        skipped = schema.is_skip(skips)
        counts = (np.bincount(tracks[mask], minlength=n_ids).astype(np.float64) for mask in (skipped, known))
        return cls(*counts)

    def rates(self, tracks: np.ndarray, own: np.ndarray | None = None) -> np.ndarray:
        """Shrunk skip rates of `tracks` (any shape).

        Args:
            own: of the same shape, +1 skipped, -1 not, 0 unknown: the plays' own outcomes, which are taken out of
                the counts ("leave one out"). Give it for plays that `fit` has counted: without it, the rate of a
                rare track gives its label away.
        """
        overall = self.skips.sum() / max(self.plays.sum(), 1)
        skips, plays = self.skips[tracks], self.plays[tracks]
        if own is not None:
            skips, plays = skips - (own > 0), plays - (own != 0)
        return (skips + PRIOR * overall) / (plays + PRIOR)

    def without(self, inputs: SkipInputs, labels: np.ndarray) -> TrackRate:
        """The counts without the plays of some examples and their labels (N, T), which `fit` has counted."""
        tracks = np.concatenate([inputs.history_tracks, inputs.target_tracks], axis=1)
        outcomes = np.concatenate([signed_skips(inputs.history_skips), np.where(labels < 0, 0, 2 * labels - 1)], axis=1)
        n_ids = len(self.plays)
        skips, plays = (np.bincount(tracks[mask], minlength=n_ids) for mask in (outcomes > 0, outcomes != 0))
        return TrackRate(self.skips - skips, self.plays - plays)

    def predict(self, inputs: SkipInputs) -> tuple[np.ndarray, np.ndarray]:
        """Probability float32 (N, T) and decision bool (N, T)."""
        probability = self.rates(inputs.target_tracks).astype(np.float32)
        return probability, probability >= 0.5


@dataclass(frozen=True)
class HistoryLogistic:
    """Logistic regression on the history, one model for all target positions; see `_features`."""

    regression: LogisticRegression
    track_rate: TrackRate | None

    @classmethod
    def fit(
        cls,
        inputs: SkipInputs,
        labels: np.ndarray,
        *,
        track_rate: TrackRate | None,
        max_sessions: int = 50_000,
        l2: float = 1.0,
        seed: int = 0,
    ) -> HistoryLogistic:
        """Fit by L-BFGS.

        Args:
            inputs, labels: N training examples, all of whose plays `track_rate` has counted; labels (N, T) are
                1 skipped, 0 not, -1 unknown.
            track_rate: fitted on the same training split; None for no knowledge of tracks but their past.
            max_sessions: if there are more examples, draw so many at random: some 80 weights do not need more.
            l2: weight of the squared norm against the summed log loss.
            seed: for that draw.
        """
        if len(labels) > max_sessions:
            drawn = np.random.default_rng(seed).choice(len(labels), max_sessions, replace=False)
            inputs, labels = inputs.part(drawn), labels[drawn]
        known = labels >= 0
        own = np.where(known, 2 * labels - 1, 0)
        chunks = in_chunks(len(labels), EXAMPLES_AT_ONCE)
        features = [_features(inputs.part(i), track_rate, own[i])[known[i]] for i in chunks]
        regression = LogisticRegression(C=1 / l2, max_iter=300)
        return cls(regression.fit(np.concatenate(features), labels[known]), track_rate)

    def predict(self, inputs: SkipInputs) -> tuple[np.ndarray, np.ndarray]:
        """Probability float32 (N, T) and decision bool (N, T)."""
        return classify(self.regression, lambda part: _features(part, self.track_rate), inputs, EXAMPLES_AT_ONCE)


def classify(
    classifier: Any, features: Callable[[SkipInputs], np.ndarray], inputs: SkipInputs, at_once: int
) -> tuple[np.ndarray, np.ndarray]:
    """Probability float32 (N, T) and decision bool (N, T) of one classifier for all targets.

    Args:
        classifier: with scikit-learn's `predict_proba`.
        features: of every target of some examples, (n, T, features).
        inputs: of N examples.
        at_once: examples whose features are in memory together.
    """
    probability = np.zeros(inputs.target_tracks.shape, np.float32)
    for i in in_chunks(len(probability), at_once):
        found = features(inputs.part(i))
        flat = classifier.predict_proba(found.reshape(-1, found.shape[-1]))[:, 1]
        probability[i] = flat.reshape(found.shape[:2])
    return probability, probability >= 0.5


def in_chunks(n: int, size: int) -> Iterator[slice]:
    """Ranges of `size` of n examples."""
    return (slice(start, start + size) for start in range(0, n, size))


def _cell(target_tracks: np.ndarray) -> np.ndarray:
    """Index int (N, T) of (number of targets, position) in a flat (T + 1, T) table."""
    size = target_tracks.shape[1]
    return (target_tracks != PAD).sum(axis=1)[:, None] * size + np.arange(size)


def _rates(cell: np.ndarray, labels: np.ndarray, n_cells: int) -> np.ndarray:
    """Shrunk skip rate of each cell, float64 (n_cells,), from cells (N, T) and labels (N, T; -1 unknown)."""
    known = labels >= 0
    plays = np.bincount(cell[known], minlength=n_cells)
    skips = np.bincount(cell[known], weights=labels[known], minlength=n_cells)
    overall = skips.sum() / max(plays.sum(), 1)
    return (skips + PRIOR * overall) / (plays + PRIOR)


def logit(probability: np.ndarray) -> np.ndarray:
    """Log odds, of any shape."""
    return np.log(probability) - np.log1p(-probability)


def _features(inputs: SkipInputs, track_rate: TrackRate | None, own: np.ndarray | None = None) -> np.ndarray:
    """Features of every target, float32 (N, T, K).

    Of the history: signed skip states by recency (S), the last state's degree, log odds of skipping, surprise (how
    much more is skipped than its tracks usually are), share of changes, length. Of the target: log odds of its track,
    the state of the same track in the history, position, number of targets. And position times the strongest of them.
    `own` (N, T; +1, -1, 0) are the targets' labels, for plays that `track_rate` has counted: see its `rates`. Without
    a `track_rate`, every track counts as skipped half of the time.
    If there is a past: that of the target, of the plays before and after it, and the history's mean; details of the
    last play, and their mean over the history.
    """
    n, n_targets = inputs.target_tracks.shape
    signed = signed_skips(inputs.history_skips).astype(np.float64)  # (N, S)
    known = signed != 0
    n_known = known.sum(axis=1)
    skipped = (signed > 0).sum(axis=1)
    log_odds = np.log((skipped + 1) / (n_known - skipped + 1))
    half = np.full(inputs.target_tracks.shape, 0.5)
    history_rates = (
        np.full(signed.shape, 0.5)
        if track_rate is None
        else track_rate.rates(inputs.history_tracks, None if own is None else signed)
    )
    surprise = (((signed > 0) - history_rates) * known).sum(axis=1) / (n_known + 1)
    changes = (signed[:, 1:] * signed[:, :-1] < 0).sum(axis=1) / (n_known + 1)
    degree = np.eye(N_SKIP_STATES)[inputs.history_skips[:, -1]]  # (N, 6)
    of_history = np.column_stack([signed, degree, log_odds, surprise, changes, n_known / signed.shape[1]])

    track = logit(half if track_rate is None else track_rate.rates(inputs.target_tracks, own))  # (N, T)
    same = inputs.target_tracks[:, :, None] == inputs.history_tracks[:, None, :]
    before = (same * signed[:, None, :]).sum(axis=2).clip(-1, 1)
    target_length = np.eye(n_targets + 1)[(inputs.target_tracks != PAD).sum(axis=1)]

    n_plays = np.maximum((inputs.history_tracks != PAD).sum(axis=1, keepdims=True), 1)
    shared = np.concatenate([of_history, target_length, *_means(inputs, n_plays)], axis=1)
    strongest = np.stack(
        [
            np.ones((n, n_targets)),
            np.broadcast_to(signed[:, -1:], (n, n_targets)),
            np.broadcast_to(log_odds[:, None], (n, n_targets)),
            np.broadcast_to(surprise[:, None], (n, n_targets)),
            track,
        ],
        axis=2,
    )  # (N, T, 5)
    by_position = np.eye(n_targets)[None, :, :, None] * strongest[:, :, None, :]  # (N, T, T, 5)
    return np.concatenate(
        [
            np.broadcast_to(shared[:, None, :], (n, n_targets, shared.shape[1])),
            track[:, :, None],
            before[:, :, None],
            by_position.reshape(n, n_targets, -1),
            *([] if inputs.past is None else with_neighbours(inputs.past, signed.shape[1], nothing=0)),
        ],
        axis=2,
        dtype=np.float32,
    )


def _means(inputs: SkipInputs, n_plays: np.ndarray) -> list[np.ndarray]:
    """Of the past: the history's means, and the last play's details, each (N, P or K); `n_plays` (N, 1)."""
    s, found = inputs.history_tracks.shape[1], []
    if inputs.past is not None:
        found.append(inputs.past[:, :s].sum(axis=1, dtype=np.float32) / n_plays)
    if inputs.details is not None:
        found += [inputs.details.sum(axis=1, dtype=np.float32) / n_plays, inputs.details[:, -1]]
    return found


def with_neighbours(plays: np.ndarray, n_history: int, *, nothing: float) -> list[np.ndarray]:
    """Of values of all plays (N, S + T, ...): those of the targets, of the plays before and of the plays after them.

    `nothing` stands after the last one.
    """
    after = np.full_like(plays[:, n_history:], nothing)
    after[:, :-1] = plays[:, n_history + 1 :]
    return [plays[:, n_history:], plays[:, n_history - 1 : -1], after]
