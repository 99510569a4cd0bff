"""Sessions small enough to be worked out by hand, and baselines that are fitted on them."""

from __future__ import annotations

import numpy as np

from model import baselines_seq as seq
from model import next_track
from utils.data.vocab import N_SPECIAL, PAD, UNK

A, B, C, D, E = range(N_SPECIAL, N_SPECIAL + 5)
N_IDS = E + 1
MARKOV_SESSIONS = [[A, B, C], [A, B, D], [A, C], [B]]
FIVE = [[A, B, C], [D, B, C], [A, B, D], [B, A, UNK, C], [A]]


def flat(sessions: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Tracks and offsets of sessions."""
    offsets = np.cumsum([0, *map(len, sessions)])
    return np.array([track for session in sessions for track in session], np.int32), offsets


def histories(*rows: list[int], size: int = 4) -> np.ndarray:
    """Histories padded on the left."""
    return np.array([[PAD] * (size - len(row)) + row for row in rows])


def popularity(sessions: list[list[int]]) -> seq.Popularity:
    return seq.Popularity.fit(flat(sessions)[0], n_ids=N_IDS)


def ngram(sessions: list[list[int]], **options: object) -> seq.Ngram:
    options = {"order": 4, "discount": 0.5, "fallback": popularity(sessions)} | options
    return seq.Ngram.fit(*flat(sessions), **options)


def dense(model: next_track.NextTrack, history: np.ndarray) -> np.ndarray:
    """The probabilities (N, V) that the sparse scores stand for."""
    scores = next_track.score(model, history)
    return scores.found.toarray() + scores.rest[:, None] * model.popularity


def random_sessions(n: int = 60, *, n_ids: int = N_IDS, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    tracks = np.array([UNK, *range(N_SPECIAL, n_ids)])
    return [rng.choice(tracks, rng.integers(1, 8)).tolist() for _ in range(n)]


def all_models(sessions: list[list[int]], n_ids: int = N_IDS) -> dict[str, next_track.NextTrack]:
    tracks, offsets = flat(sessions)
    most_played = seq.Popularity.fit(tracks, n_ids=n_ids)
    knn = seq.ItemKNN.fit(tracks, offsets, n_ids=n_ids, n_neighbours=3, shrinkage=1.0)
    return {
        "popularity": most_played,
        "markov": seq.Ngram.fit(tracks, offsets, order=1, fallback=most_played, discount=0.5),
        "knn": knn,
        "ngram": seq.Ngram.fit(tracks, offsets, order=4, fallback=knn, discount=0.9),
        "pruned": seq.Ngram.fit(tracks, offsets, order=3, fallback=knn, discount=1.0, max_successors=2),
    }


def knn(sessions: list[list[int]], **options: float) -> seq.ItemKNN:
    return seq.ItemKNN.fit(*flat(sessions), n_ids=N_IDS, **{"shrinkage": 0.0} | options)
