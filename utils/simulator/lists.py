"""The lists that tracks are played from: discographies, playlists, collections, charts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from utils.data.schema import CONTEXT_TYPES

N_CLUSTERS = 20
MIN_LIST, MAX_LIST = 20, 64
ALBUM = 12
"""Tracks between two album starts of a discography."""
EDITORIAL, COLLECTION, RADIO, PERSONALIZED, CATALOG, CHARTS = (
    CONTEXT_TYPES.index(name)
    for name in ("editorial_playlist", "user_collection", "radio", "personalized_playlist", "catalog", "charts")
)


class Lists:
    """Lists of tracks, flat: list j is `tracks[offsets[j]:offsets[j + 1]]`, of context type `kinds[j]`."""

    def __init__(self, sizes: NDArray, tracks: NDArray, kinds: NDArray, weights: NDArray) -> None:
        self.sizes = sizes.astype(np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(self.sizes)])
        self.tracks = tracks.astype(np.int32)
        self.kinds = kinds.astype(np.int8)
        # Probability of a list within its context type.
        totals = np.bincount(kinds, weights=weights, minlength=len(CONTEXT_TYPES))
        self.probabilities = weights / totals[kinds]
        # Lists are sorted by kind, so the lists of a kind are a range and can be drawn by inversion.
        self.first = np.searchsorted(self.kinds, np.arange(len(CONTEXT_TYPES) + 1))
        self.cumulative = np.concatenate([[0.0], np.cumsum(self.probabilities)])

    def __len__(self) -> int:
        return len(self.sizes)

    def draw(self, kinds: NDArray, u: NDArray) -> NDArray[np.int64]:
        """A list of each of the context types `kinds`, by inversion of the uniform numbers `u`."""
        low, high = self.cumulative[self.first[kinds]], self.cumulative[self.first[kinds + 1]]
        drawn = np.searchsorted(self.cumulative, low + u * (high - low), side="right") - 1
        return np.clip(drawn, self.first[kinds], self.first[kinds + 1] - 1)


def static_lists(rng: np.random.Generator, wanted: NDArray, cluster_start: NDArray, listener_taste: NDArray) -> Lists:
    """All lists that do not change by day, sorted by context type."""
    n = len(wanted)
    near = np.exp(3.0 * listener_taste @ listener_taste.T)
    near /= near.sum(axis=1, keepdims=True)
    pure = np.eye(N_CLUSTERS)

    def playlists(n: int, mix: NDArray, power: float) -> tuple[NDArray, NDArray, NDArray]:
        return _playlists(rng, wanted, cluster_start, n=n, mix=mix, power=power)

    parts = {
        EDITORIAL: playlists(min(max(40, n // 100), 20_000), pure, 0.7),
        COLLECTION: playlists(min(max(100, n // 8), 60_000), 0.8 * pure + 0.2 * near, 0.5),
        PERSONALIZED: playlists(min(max(40, n // 100), 20_000), 0.6 * pure + 0.4 * near, 0.2),
        CATALOG: _discographies(rng, wanted, cluster_start),
    }
    kinds = sorted(parts)
    sizes, tracks, weights = zip(*(parts[kind] for kind in kinds), strict=True)
    lengths = [len(part) for part in sizes]
    return Lists(np.concatenate(sizes), np.concatenate(tracks), np.repeat(kinds, lengths), np.concatenate(weights))


def _playlists(
    rng: np.random.Generator, wanted: NDArray, cluster_start: NDArray, *, n: int, mix: NDArray, power: float
) -> tuple[NDArray, NDArray, NDArray]:
    """`n` playlists: (sizes, flat tracks, weights). Tracks are drawn by popularity, each from a cluster that is drawn
    from the row of `mix` of the playlist's main cluster; the r-th most popular playlist has weight r^-power."""
    cumulative = np.concatenate([[0.0], np.cumsum(wanted)])
    edges = cumulative[cluster_start]
    # The first twenty have one main cluster each, so that no cluster is without a playlist.
    main = np.concatenate([np.arange(N_CLUSTERS), rng.choice(N_CLUSTERS, size=n - N_CLUSTERS, p=np.diff(edges))])
    largest = min(MAX_LIST, int(np.diff(cluster_start).min()) // 2 * 2)
    sizes = 2 * rng.integers(MIN_LIST // 2, largest // 2 + 1, size=n)
    tracks = []
    for start in range(0, n, 4096):  # bounds the memory of the draws
        home, size = main[start : start + 4096], sizes[start : start + 4096]
        u = rng.random((len(home), 2 * MAX_LIST))
        from_cluster = np.zeros(u.shape, dtype=np.int64)
        for column in np.cumsum(mix, axis=1)[home, :-1].T:
            from_cluster += u > column[:, None]
        low, high = edges[from_cluster], edges[from_cluster + 1]
        drawn = np.searchsorted(cumulative, low + rng.random(u.shape) * (high - low), side="right") - 1
        # Consecutive tracks of the main cluster follow, so that no list runs short of distinct tracks.
        first, width = cluster_start[home], np.diff(cluster_start)[home]
        offset = rng.integers(0, width)
        spare = first[:, None] + (offset[:, None] + np.arange(largest)) % width[:, None]
        tracks.append(_first_distinct(np.hstack([drawn, spare]), size))
    return sizes, np.concatenate(tracks), rng.permutation(np.arange(1, n + 1) ** -power)


def _first_distinct(rows: NDArray, sizes: NDArray) -> NDArray:
    """The first `sizes[i]` distinct values of each row i, flat."""
    order = np.argsort(rows, axis=1, kind="stable")
    ordered = np.take_along_axis(rows, order, axis=1)
    new = np.ones(rows.shape, dtype=bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    distinct = np.empty(rows.shape, dtype=bool)
    np.put_along_axis(distinct, order, new, axis=1)
    return rows[distinct & (np.cumsum(distinct, axis=1) <= sizes[:, None])]


def _discographies(
    rng: np.random.Generator, wanted: NDArray, cluster_start: NDArray
) -> tuple[NDArray, NDArray, NDArray]:
    """Consecutive tracks of a cluster: (sizes, flat tracks, weights). The weight of a discography is the wanted share
    of its tracks. The last one of a cluster may share tracks with the one before it."""
    sizes, starts = [], []
    for first, last in pairwise(cluster_start):
        largest = min(MAX_LIST, int(last - first) // 2 * 2)
        cluster_sizes = 2 * rng.integers(MIN_LIST // 2, largest // 2 + 1, size=int(last - first) // MIN_LIST + 1)
        cluster_starts = first + np.concatenate([[0], np.cumsum(cluster_sizes)[:-1]])
        inside = cluster_starts < last
        sizes.append(cluster_sizes[inside])
        starts.append(np.minimum(cluster_starts[inside], last - cluster_sizes[inside]))
    size, start = np.concatenate(sizes), np.concatenate(starts)
    tracks = np.repeat(start - np.concatenate([[0], np.cumsum(size)[:-1]]), size) + np.arange(size.sum())
    return size, tracks, np.add.reduceat(wanted[tracks], np.concatenate([[0], np.cumsum(size)[:-1]]))
