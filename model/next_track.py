"""Probabilities of the next track, in a sparse part and a rest shared out by popularity: rank, choose, continue.

Nothing of size N x V is ever built. Letters: N examples, S history positions, T target positions, V ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
from scipy.sparse import csr_array
from tqdm import tqdm

from utils.data.batch import SessionBatch
from utils.data.vocab import N_SPECIAL

_EXAMPLES_AT_ONCE = 1024
"""Examples that are scored together; bounds the memory of their sparse scores."""
N_TUNING = 20_000
"""At most so many validation examples are used to compare settings."""


class Mix(NamedTuple):
    """How a model reads N histories: K weighted rows of its table, and a rest for popularity."""

    rows: np.ndarray
    """int (N, K)"""
    weights: np.ndarray
    """float (N, K); 0 where there is no row"""
    rest: np.ndarray
    """float64 (N,), above 0"""


class NextTrack(Protocol):
    """What the functions of this module need of a model."""

    @property
    def popularity(self) -> np.ndarray:
        """float64 (V,): sums to 1, above 0 for all tracks and 0 for special ids."""

    def score(self, history: np.ndarray) -> NextScores:
        """Probabilities of the next track of integer histories (N, S), padded on the left."""


class TableModel(NextTrack, Protocol):
    """A model whose probabilities are rows of a table, mixed."""

    @property
    def table(self) -> csr_array:
        """float32 (R, V): a row for each thing that a history can hold, with its scores of the next track."""

    def mix(self, history: np.ndarray) -> Mix:
        """Read integer histories (N, S), padded on the left."""


class HasSettings(NextTrack, Protocol):
    """A fitted model with settings to choose from."""

    def settings(self) -> Iterator[tuple[str, NextTrack]]:
        """The settings to choose from: the name of each, and the model under it."""


class NextScores(NamedTuple):
    """P(next track = b) = found[:, b] + rest * popularity[b], for N examples; sums to 1 over the tracks."""

    found: csr_array
    """float32 (N, V)"""
    rest: np.ndarray
    """float64 (N,), above 0"""


def score(model: TableModel, history: np.ndarray) -> NextScores:
    """Score the next track of histories (N, S) by the rows of the model's table."""
    rows, weights, rest = model.mix(history)
    used = weights > 0
    starts = np.append(0, used.sum(axis=1).cumsum())
    mix = csr_array((weights[used].astype(np.float32), rows[used], starts), shape=(len(rest), model.table.shape[0]))
    return NextScores(mix @ model.table, rest)


def examples(batches: Iterable[SessionBatch]) -> tuple[np.ndarray, np.ndarray]:
    """Concatenate the batches of an ordered loader: histories int32 (N, S) and target tracks int32 (N, T)."""
    parts = [(batch.history.tracks, batch.target_tracks) for batch in batches]
    history, targets = (np.concatenate(arrays).astype(np.int32) for arrays in zip(*parts, strict=True))
    return history, targets


def predict(model: NextTrack, history: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, ...]:
    """Continuation int32 (N, T), log-probabilities float32 (N, T), rank and tied float32 (N,); see the functions below.

    The continuation follows the model's own predictions; the other two judge the true targets.
    """
    log_probability, ranks = score_targets(model, history, targets)
    return continue_greedily(model, history, targets.shape[1]), log_probability, *ranks


def best(scores: NextScores, popularity: np.ndarray) -> np.ndarray:
    """The most probable next track int32 (N,); ties go to the smaller id. Never a special id."""
    found, rest = scores
    rows, full = _full_scores(scores, popularity)
    # Among the tracks that were not found only the most popular one can win, and only if it beats all found ones.
    top = int(popularity.argmax())
    highest = rest * popularity[top]
    filled = np.diff(found.indptr) > 0
    starts = found.indptr[:-1][filled]
    if len(starts):
        highest[filled] = np.maximum(highest[filled], np.maximum.reduceat(full, starts))
    winner = np.where(rest * popularity[top] == highest, top, len(popularity))
    at_top = full == highest[rows]
    np.minimum.at(winner, rows[at_top], found.indices[at_top])
    return winner.astype(np.int32)


def probability(scores: NextScores, popularity: np.ndarray, target: np.ndarray) -> np.ndarray:
    """P(next track = target), float64 (N,); 0 for special ids."""
    return _found_at(scores.found, target) + scores.rest * popularity[target]


def log_probability_of(scores: NextScores, popularity: np.ndarray, target: np.ndarray) -> np.ndarray:
    """log P(next track = target), float64 (N,); 0 for special ids."""
    return np.log(np.where(target >= N_SPECIAL, probability(scores, popularity, target), 1.0))


def popularity_of(plays: np.ndarray) -> np.ndarray:
    """The share of each track in the plays (V,), with one more play for each: float64 (V,), 0 for special ids."""
    counted = plays + 1.0
    counted[:N_SPECIAL] = 0
    return counted / counted.sum()


class Ranks(NamedTuple):
    """Where N tracks stand among all tracks."""

    rank: np.ndarray
    """float32 (N,), from 0: the middle one of tied tracks; infinity for special ids (new tracks, padding)."""
    tied: np.ndarray
    """float32 (N,): how many tracks share the score, the track itself included."""


def rank(scores: NextScores, popularity: np.ndarray, target: np.ndarray) -> Ranks:
    """Where `target` (N,) stands among all V - N_SPECIAL tracks."""
    found, rest = scores
    n = len(target)
    rows, full = _full_scores(scores, popularity)
    own = _found_at(found, target)
    own_full = own + rest * popularity[target]
    higher = np.bincount(rows, full > own_full[rows], minlength=n)
    equal = np.bincount(rows, full == own_full[rows], minlength=n)
    # Tracks that were not found have a score of rest * popularity: count those above the limit in all of the
    # catalogue, then take out the found ones. (The limit is written so that it is exact for a target not found.)
    limit = popularity[target] + own / rest
    ascending = np.sort(popularity[N_SPECIAL:])
    above = len(ascending) - np.searchsorted(ascending, limit, side="right")
    level = np.searchsorted(ascending, limit, side="right") - np.searchsorted(ascending, limit, side="left")
    found_popularity = popularity[found.indices]
    higher = higher + above - np.bincount(rows, found_popularity > limit[rows], minlength=n)
    equal = equal + level - np.bincount(rows, found_popularity == limit[rows], minlength=n)
    # `equal` counts the target itself as well.
    inside = target >= N_SPECIAL
    middle = np.where(inside, higher + (equal - 1) / 2, np.inf)
    return Ranks(middle.astype(np.float32), np.where(inside, equal, 1).astype(np.float32))


def choose(
    batches: Iterable[SessionBatch], model: HasSettings, quality: Callable[[Ranks], np.ndarray]
) -> tuple[NextTrack, dict[str, float]]:
    """Compare the settings of a fitted model by the next track on validation `batches`.

    If there are more than `N_TUNING` examples, an evenly spaced sample is used.

    Args:
        batches: of an ordered loader.
        model: its `settings` are compared.
        quality: of the ranks of N next tracks, (N,), such as their reciprocal ranks.

    Returns:
        the model with the best setting (the first of equals), and the mean quality of every setting.
    """
    history, targets = examples(batches)
    some = np.unique(np.linspace(0, len(targets) - 1, min(len(targets), N_TUNING)).astype(np.int64))
    trials: dict[str, float] = {}
    chosen: NextTrack = model
    for name, candidate in tqdm(model.settings(), desc="choose", leave=False, delay=2):
        ranks = next_ranks(candidate, history[some], targets[some, 0])
        value = float(quality(ranks).mean())
        if value > max(trials.values(), default=-1.0):
            chosen = candidate
        trials[name] = value
    return chosen, trials


def next_ranks(model: NextTrack, history: np.ndarray, target: np.ndarray) -> Ranks:
    """Where the next track `target` (N,) stands after each history (N, S)."""
    return score_targets(model, history, target[:, None])[1]


def score_targets(model: NextTrack, history: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, Ranks]:
    """Judge true targets (N, T), padded on the right, each after the history (N, S) and the true targets before it.

    Returns:
        log P of each target, float32 (N, T), 0 at special ids (new tracks, padding); ranks of the first (N,).
    """
    plays = np.concatenate([history, targets], axis=1)
    size = history.shape[1]
    log_probability = np.zeros(targets.shape, np.float32)
    ranks = Ranks(*np.zeros((2, len(targets)), np.float32))
    for i in _chunks(len(history), "score targets"):
        for t in range(targets.shape[1]):
            scores = model.score(plays[i, t : t + size])
            log_probability[i, t] = log_probability_of(scores, model.popularity, targets[i, t])
            if t == 0:
                ranks.rank[i], ranks.tied[i] = rank(scores, model.popularity, targets[i, 0])
    return log_probability, ranks


def continue_greedily(model: NextTrack, history: np.ndarray, n_steps: int) -> np.ndarray:
    """The model's own continuation int32 (N, n_steps) of histories (N, S): step by step the most probable track."""
    size = history.shape[1]
    plays = np.concatenate([history.astype(np.int32), np.zeros((len(history), n_steps), np.int32)], axis=1)
    for i in _chunks(len(history), "continue"):
        for t in range(n_steps):
            plays[i, size + t] = best(model.score(plays[i, t : t + size]), model.popularity)
    return plays[:, size:]


def _chunks(n: int, description: str = "rank") -> Iterator[slice]:
    """Ranges of examples that are scored together."""
    starts = tqdm(range(0, n, _EXAMPLES_AT_ONCE), desc=description, leave=False, delay=2)
    return (slice(start, start + _EXAMPLES_AT_ONCE) for start in starts)


def _full_scores(scores: NextScores, popularity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and score of every found entry, the popularity part included."""
    found, rest = scores
    rows = np.repeat(np.arange(len(rest)), np.diff(found.indptr))
    return rows, found.data + rest[rows] * popularity[found.indices]


def _found_at(found: csr_array, target: np.ndarray) -> np.ndarray:
    """found[i, target[i]] for each row, float64 (N,)."""
    rows = np.repeat(np.arange(len(target)), np.diff(found.indptr))
    hit = found.indices == target[rows]
    own = np.zeros(len(target))
    own[rows[hit]] = found.data[hit]
    return own
