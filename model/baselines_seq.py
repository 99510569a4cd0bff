"""Baselines for the seq task: popularity, Markov, item-kNN, and n-grams that fall back on item-kNN.

Each gives every track a probability of being the next one, in two parts: a sparse part for the tracks that the
history points to, and a rest that is shared out by popularity. So ranks over the full catalogue are exact, and nothing
of size N x V is ever built.

    popularity   P(b) = (plays of b + 1) / (all plays + tracks)
    Ngram        absolute discounting. c(h, b) counts the plays of b after the context h, the last k tracks;
                 d_k = discount^k:
                     P_k(b | h) = max(c(h, b) - d_k, 0) / c(h) + left_k(h) P_{k-1}(b | h without its oldest track)
                 where left_k(h) is the mass that the discount took; P_0 is the fallback (popularity or item-kNN).
                 Contexts that training never saw are skipped, so the longest context that it saw comes first.
                 Order 1 with popularity as fallback is the Markov baseline.
    ItemKNN      the mean of the similarities to the history's tracks, weighted by decay^age. A similarity is the
                 shrunk cosine of two tracks' sessions; only each track's nearest neighbours have one. A share stays
                 with the history's tracks themselves (repeats).

Sources: H. Ney, U. Essen, R. Kneser, "On structuring probabilistic dependences in stochastic language modelling"
(1994) for the discounting; M. Ludewig, D. Jannach, "Evaluation of session-based recommendation algorithms" (2018)
for item-kNN with recency weights. Letters: N examples; S, T and V as in `utils/data/batch.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise, product

import numpy as np
from scipy.sparse import csr_array, diags_array, eye_array, vstack
from tqdm import tqdm

from model.next_track import Mix, NextScores, NextTrack, TableModel, popularity_of, score
from utils.data.vocab import N_SPECIAL

_PRODUCTS_AT_ONCE = 20_000_000
"""Terms of the co-occurrence product that are computed at a time; bounds its memory."""


@dataclass(frozen=True)
class Popularity:
    """The most played tracks, whatever the history."""

    popularity: np.ndarray
    table: csr_array

    @classmethod
    def fit(cls, tracks: np.ndarray, *, n_ids: int) -> Popularity:
        """Count the plays in `tracks` (n_events,), and one more for each track among the `n_ids` ids."""
        plays = np.bincount(tracks, minlength=n_ids)
        return cls(popularity_of(plays), csr_array((0, n_ids), dtype=np.float32))

    def score(self, history: np.ndarray) -> NextScores:
        """Probabilities of the next track of histories (N, S)."""
        return score(self, history)

    def mix(self, history: np.ndarray) -> Mix:
        """Read nothing: all mass goes to popularity."""
        nothing = np.zeros((len(history), 0), np.int64)
        return Mix(nothing, nothing, np.ones(len(history)))


@dataclass(frozen=True)
class ItemKNN:
    """Tracks that share sessions with the history's tracks; the last plays count most."""

    popularity: np.ndarray
    table: csr_array
    """(2 V, V): each track's neighbours, which sum to 1 if there are any, above an identity matrix for repeats."""
    decay: float = 0.7
    """Weight of a play relative to the one after it."""
    repeat: float = 0.1
    """Share of its weight that a play keeps for its own track; the rest goes to the neighbours."""
    popularity_share: float = 0.05
    """Mass given to popularity, so that every track has some."""

    @classmethod
    def fit(
        cls,
        tracks: np.ndarray,
        offsets: np.ndarray,
        *,
        n_ids: int,
        n_neighbours: int = 100,
        shrinkage: float = 200.0,
    ) -> ItemKNN:
        """Find the nearest neighbours of every track.

        similarity(a, b) = sessions with both / sqrt((sessions with a + shrinkage) (sessions with b + shrinkage)).

        Args:
            tracks, offsets: sessions, flat (n_events,) and their starts (n_sessions + 1,).
            n_ids: V.
            n_neighbours: how many to keep for each track.
            shrinkage: sessions added to each count, so that low counts do not make neighbours by chance.
        """
        plays = _incidence(tracks, offsets, n_ids)
        sessions_of = plays.T.tocsr()
        scale = diags_array(1 / np.sqrt(np.maximum(np.diff(sessions_of.indptr), 1) + shrinkage))
        rows = []
        for start, stop in tqdm(_row_chunks(sessions_of, plays), desc="item-kNN", leave=False, delay=2):
            together = (sessions_of[start:stop] @ plays).tocoo()
            other = together.row + start != together.col
            keys = (together.row[other], together.col[other])
            together = csr_array((together.data[other], keys), shape=together.shape)
            # The scale of the row's own track is left out: rows are normalised to a sum of 1 below.
            rows.append(keep_largest(together @ scale, n_neighbours))
        similarity = vstack(rows, format="csr")
        sums = similarity.sum(axis=1)
        neighbours = diags_array(1 / np.where(sums > 0, sums, 1)) @ similarity
        table = vstack([neighbours, eye_array(n_ids)], format="csr", dtype=np.float32)
        return cls(Popularity.fit(tracks, n_ids=n_ids).popularity, table)

    def score(self, history: np.ndarray) -> NextScores:
        """Probabilities of the next track of histories (N, S)."""
        return score(self, history)

    def mix(self, history: np.ndarray) -> Mix:
        """Read the rows of all tracks that have neighbours; if none has, all mass goes to popularity."""
        n_ids = len(self.popularity)
        near = np.diff(self.table.indptr)[history] > 0  # (N, S)
        weights = self.decay ** np.arange(history.shape[1] - 1, -1, -1) * near
        total = weights.sum(axis=1)
        weights *= ((1 - self.popularity_share) / np.where(total > 0, total, 1))[:, None]
        return Mix(
            rows=np.concatenate([history, history + n_ids], axis=1),
            weights=np.concatenate([(1 - self.repeat) * weights, self.repeat * weights], axis=1),
            rest=np.where(total > 0, self.popularity_share, 1.0),
        )

    def settings(self) -> Iterator[tuple[str, NextTrack]]:
        """The settings to choose from: the name of each, and the model under it."""
        for decay, repeat in product((0.5, 0.7, 0.9), (0.0, 0.1, 0.2)):
            yield f"decay {decay}, repeat {repeat}", replace(self, decay=decay, repeat=repeat)


@dataclass(frozen=True)
class Ngram:
    """Backs off from the longest context that training has seen; `fallback` gets the mass that is left."""

    keys: list[np.ndarray]
    """For each order from 2 on, sorted int64 keys of its contexts: (place of the context without its oldest track) * V
    + oldest track."""
    counts: csr_array
    """float32 (contexts of all orders, V): plays of the next track; the contexts of order 1 are the ids."""
    totals: np.ndarray
    """float64 (contexts,): sums of all counts, including those too small for `counts`."""
    fallback: TableModel
    table: csr_array
    """Discounted probabilities of the next track, above the fallback's table."""
    left: np.ndarray
    """float64 (contexts,): the mass that each context leaves to the shorter one."""

    @classmethod
    def fit(
        cls,
        tracks: np.ndarray,
        offsets: np.ndarray,
        *,
        order: int,
        fallback: TableModel,
        discount: float = 0.9,
        max_successors: int = 1000,
    ) -> Ngram:
        """Count what follows each context of 1 to `order` tracks.

        Args:
            tracks, offsets: sessions, flat (n_events,) and their starts (n_sessions + 1,).
            order: length of the longest context.
            fallback: gets the mass that the contexts leave; fitted on the same sessions.
            discount: in (0, 1]; its k-th power is subtracted from each count of order k.
            max_successors: next tracks kept for each context, the most played; shorter contexts get the others' mass.
        """
        n_ids = len(fallback.popularity)
        following, position = _following(tracks, offsets)
        events = np.flatnonzero(following >= N_SPECIAL)
        context = tracks[events]
        n_contexts, keys, counts, totals = n_ids, [], [], []
        for k in range(1, order + 1):
            if k > 1:
                inside = position[events] >= k - 1
                events, context = events[inside], context[inside]
                key = context.astype(np.int64) * n_ids + tracks[events - k + 1]
                known, context = np.unique(key, return_inverse=True)
                keys.append(known)
                n_contexts = len(known)
                context = context.astype(np.int32)
            ones = np.ones(len(events), np.float32)
            count = csr_array((ones, (context, following[events])), shape=(n_contexts, n_ids))
            counts.append(keep_largest(count, max_successors))
            totals.append(np.bincount(context, minlength=n_contexts))
        counted = (vstack(counts, format="csr"), np.concatenate(totals).astype(np.float64))
        return cls(keys, *counted, fallback, *_discounted(keys, *counted, fallback, discount))

    def with_discount(self, discount: float) -> Ngram:
        """The same counts under another discount."""
        table, left = _discounted(self.keys, self.counts, self.totals, self.fallback, discount)
        return replace(self, table=table, left=left)

    def settings(self) -> Iterator[tuple[str, NextTrack]]:
        """The settings to choose from: the name of each, and the model under it."""
        for discount in (0.5, 0.8, 0.9, 0.95):
            yield f"discount {discount}", self.with_discount(discount)

    @property
    def popularity(self) -> np.ndarray:
        """float64 (V,): the fallback's."""
        return self.fallback.popularity

    def contexts(self, history: np.ndarray) -> np.ndarray:
        """The contexts at the end of histories (N, S), as rows of `counts` (N, order); -1 where training has none."""
        n, size = history.shape
        rows = np.full((n, 1 + len(self.keys)), -1)
        rows[:, 0] = context = history[:, -1].astype(np.int64)
        known = np.arange(n)  # histories whose context of the previous order is known
        first = n_ids = len(self.popularity)
        for k, keys in enumerate(self.keys[: size - 1], start=2):
            key = context * n_ids + history[known, -k]
            context = np.searchsorted(keys, key)
            seen = np.append(keys, -1)[context] == key
            known, context = known[seen], context[seen]
            rows[known, k - 1] = first + context
            first += len(keys)
        return rows

    def score(self, history: np.ndarray) -> NextScores:
        """Probabilities of the next track of histories (N, S)."""
        return score(self, history)

    def mix(self, history: np.ndarray) -> Mix:
        """Go from the longest known context of each history to the shortest, then to the fallback."""
        rows = self.contexts(history)
        known = rows >= 0
        # passed[:, k]: the mass that the known contexts of order k + 1 and longer leave to shorter ones.
        passed = np.where(known, self.left[rows], 1.0)[:, ::-1].cumprod(axis=1)[:, ::-1]
        weights = np.append(passed[:, 1:], np.ones((len(rows), 1)), axis=1) * known
        behind = self.fallback.mix(history)
        return Mix(
            rows=np.concatenate([rows, behind.rows + len(self.left)], axis=1),
            weights=np.concatenate([weights, behind.weights * passed[:, :1]], axis=1),
            rest=behind.rest * passed[:, 0],
        )


def keep_largest(matrix: csr_array, n: int) -> csr_array:
    """The n largest entries of each row of a CSR matrix with positive entries; ties are broken arbitrarily."""
    sizes = np.diff(matrix.indptr)
    if matrix.nnz == 0 or sizes.max() <= n:
        return matrix
    keep = np.ones(matrix.nnz, bool)
    for row in np.flatnonzero(sizes > n):
        part = slice(matrix.indptr[row], matrix.indptr[row + 1])
        keep[part][np.argpartition(matrix.data[part], sizes[row] - n)[: sizes[row] - n]] = False
    indptr = np.concatenate([[0], np.cumsum(np.minimum(sizes, n))])
    return csr_array((matrix.data[keep], matrix.indices[keep], indptr), shape=matrix.shape)


def _following(tracks: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each play: the track after it in its session (0 at the end), and its position in the session."""
    following = np.zeros(len(tracks), np.int32)
    following[:-1] = tracks[1:]
    lengths = np.diff(offsets)
    following[offsets[1:][lengths > 0] - 1] = 0
    return following, np.arange(len(tracks)) - np.repeat(offsets[:-1], lengths)


def _discounted(
    keys: list[np.ndarray], counts: csr_array, totals: np.ndarray, fallback: TableModel, discount: float
) -> tuple[csr_array, np.ndarray]:
    """The table of an `Ngram`, and the mass that each context leaves to a shorter one."""
    if not 0 < discount <= 1:
        raise ValueError(f"discount must be in (0, 1], not {discount}")
    n_contexts = [len(fallback.popularity), *map(len, keys)]
    taken = np.repeat(discount ** np.arange(1, len(n_contexts) + 1), n_contexts)  # (contexts,)
    sizes = np.diff(counts.indptr)
    data = counts.data - np.repeat(taken.astype(np.float32), sizes)
    data /= np.repeat(totals.astype(np.float32), sizes)
    kept = csr_array((data, counts.indices, counts.indptr), shape=counts.shape)
    left = (totals - counts.sum(axis=1, dtype=np.float64) + taken * sizes) / np.maximum(totals, 1)
    return vstack([kept, fallback.table], format="csr"), np.where(totals > 0, left, 1.0)


def _incidence(tracks: np.ndarray, offsets: np.ndarray, n_ids: int) -> csr_array:
    """Which session has which track: float32 (n_sessions, V) of ones, without the special ids."""
    sessions = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    real = tracks >= N_SPECIAL
    ones = np.ones(int(real.sum()), np.float32)
    plays = csr_array((ones, (sessions[real], tracks[real])), shape=(len(offsets) - 1, n_ids))
    plays.data[:] = 1
    return plays


def _row_chunks(sessions_of: csr_array, plays: csr_array) -> list[tuple[int, int]]:
    """Ranges of rows whose products with `plays` have at most about `_PRODUCTS_AT_ONCE` terms each."""
    terms = np.cumsum(sessions_of @ np.diff(plays.indptr).astype(np.float64))
    bounds = np.unique(np.searchsorted(terms, np.arange(_PRODUCTS_AT_ONCE, terms[-1], _PRODUCTS_AT_ONCE)))
    edges = np.unique([0, *bounds, len(terms)]).tolist()
    return list(pairwise(edges))
