"""The simulator's static world: tracks with taste and sound, and the lists that they are played from.

A world is a function of (seed, n_tracks) alone, so the oracle rebuilds it from two numbers.

Tracks. N tracks fall into 20 clusters (genres). Track i of cluster c has a taste vector of D = 5 dimensions,

    v_i = (between x_c + within x_i) standardised over plays,   x ~ Normal(0, I),

an own skip effect o_i (a linear function of v_i, popularity and a little noise that no feature tells), and audio
features. Each is a Gaussian copula score (loading on one taste dimension, the rest noise) whose ranks are mapped
through the real marginal distribution of that feature; the eight acoustic vectors are mixtures of the taste dimensions
with noise. So the sound of a track tells its taste vector.

Popularity. A world of N tracks is the head of the real catalogue: rank r is wanted as often as the real rank r
(`PLAYS_BY_RANK`, log-log interpolated).

Lists. Every non-radio context plays a list with an even number of 20 to 64 distinct tracks: discographies ("catalog",
albums of 12 one after the other, which are consecutive tracks of the world), editorial playlists (one cluster), user
collections (a main cluster and others), personalised playlists, and the charts of the day, which drift from day to day.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from utils.core.errors import UserError
from utils.data.schema import CONTEXT_TYPES, FEATURE_COLUMNS
from utils.simulator.figures import CONTEXT_SHARES, HOUR_WEIGHTS, LOADINGS, PREMIUM_SHARE, feature_values, real_plays
from utils.simulator.lists import CHARTS, N_CLUSTERS, Lists, static_lists

N_TASTE = 5
"""Dimensions of a taste vector."""
N_CHARTS, CHART_SIZE = 4, 50
MIN_TRACKS = 1000


@dataclass(frozen=True)
class World:
    """Everything of the simulation that does not change from session to session. Build it with `build_world`."""

    seed: int
    n_tracks: int
    cluster: NDArray[np.int8]
    """(N,) cluster of each track; the tracks of a cluster are a range."""
    cluster_start: NDArray[np.int64]
    """(N_CLUSTERS + 1,) first track of each cluster."""
    wanted: NDArray[np.float64]
    """(N,) share of plays of each track on the radio, summing to 1."""
    taste: NDArray[np.float32]
    """(N, N_TASTE) taste vectors; mean 0 and variance 1 over plays."""
    own: NDArray[np.float32]
    """(N,) effect of the track on skips, whoever listens; mean 0 and variance 1 over plays."""
    cluster_taste: NDArray[np.float32]
    """(N_CLUSTERS, N_TASTE) mean taste vector of each cluster over plays."""
    listener_taste: NDArray[np.float32]
    """(N_CLUSTERS, N_TASTE) unit vectors: what a listener whose taste is that cluster likes."""
    hour_taste: NDArray[np.float32]
    """(24, N_TASTE) what suits an hour of the day: a circle in taste space."""
    premium_taste: NDArray[np.float32]
    """(2, N_TASTE) what suits free and premium listeners."""
    context_taste: NDArray[np.float32]
    """(6, N_TASTE) what suits a context type."""
    radio_walk: NDArray[np.float64]
    """(N_CLUSTERS, N_CLUSTERS) probability of the next cluster on the radio."""
    static_lists: Lists

    @cached_property
    def wanted_cumulative(self) -> NDArray[np.float64]:
        """(N + 1,) cumulative `wanted`."""
        return np.concatenate([[0.0], np.cumsum(self.wanted)])

    @cached_property
    def cluster_wanted(self) -> NDArray[np.float64]:
        """(N_CLUSTERS,) share of plays of each cluster on the radio."""
        return np.diff(self.wanted_cumulative[self.cluster_start])

    @cached_property
    def track_ids(self) -> NDArray[np.bytes_]:
        """(N,) MSSD-like ids `t_<uuid>`, in no order that would tell the cluster."""
        rng = np.random.default_rng([self.seed, 3])
        return np.char.add(b"t_", random_uuids(rng, self.n_tracks))

    def lists(self, day: int) -> Lists:
        """The lists of day `day` (0 is the first): the static ones and the charts of the day."""
        static = self.static_lists
        noise = self._chart_noise(day)
        candidates = np.argsort(-self.wanted, kind="stable")[: noise.shape[1]]
        charts = candidates[np.argsort(-(np.log(self.wanted[candidates]) + 0.5 * noise), axis=1)[:, :CHART_SIZE]]
        return Lists(
            np.concatenate([static.sizes, np.full(N_CHARTS, CHART_SIZE)]),
            np.concatenate([static.tracks, charts.ravel()]),
            np.concatenate([static.kinds, np.full(N_CHARTS, CHARTS)]),
            np.concatenate([static.probabilities, np.array([0.4, 0.3, 0.2, 0.1])]),
        )

    def audio_features(self) -> dict[str, NDArray]:
        """The columns of `schema.FEATURE_COLUMNS` without the id, (N,) each; `mode` is 1 for major."""
        rng = np.random.default_rng([self.seed, 5])
        spread = self.taste.std(axis=0)
        columns: dict[str, NDArray] = {}
        for name in FEATURE_COLUMNS[1:]:
            noise = rng.standard_normal(self.n_tracks)
            if name.startswith("acoustic_vector"):
                columns[name] = self._acoustic_vector(int(name[-1]), noise)
                continue
            if name == "us_popularity_estimate":
                popular = np.log(self.wanted)
                score = 0.9 * (popular - popular.mean()) / popular.std() + 0.44 * noise
            else:
                dimension, loading = LOADINGS.get(name, (0, 0.0))
                score = loading * self.taste[:, dimension] / spread[dimension] + np.sqrt(1 - loading**2) * noise
            u = (np.argsort(np.argsort(score)) + 0.5) / self.n_tracks  # ranks: the marginals hold at any size
            columns[name] = feature_values(name, u)
        return columns

    def _acoustic_vector(self, dimension: int, noise: NDArray) -> NDArray[np.float32]:
        """One of eight mixtures of the taste dimensions with a little noise (their real distribution is not known)."""
        mixing = np.random.default_rng(0).standard_normal((8, N_TASTE))[dimension]
        return (0.2 * (self.taste @ mixing / np.linalg.norm(mixing) + 0.4 * noise)).astype(np.float32)

    def _chart_noise(self, day: int) -> NDArray[np.float64]:
        """(N_CHARTS, 400) unit noise for the most wanted tracks; it turns slowly, once in 40 days."""
        rng = np.random.default_rng([self.seed, 4])
        angle = 2 * np.pi * day / 40
        shape = (N_CHARTS, 400)
        return np.cos(angle) * rng.standard_normal(shape) + np.sin(angle) * rng.standard_normal(shape)


def random_uuids(rng: np.random.Generator, n: int) -> NDArray[np.bytes_]:
    """`n` random version-4-shaped uuids as bytes of length 36."""
    raw = rng.integers(0, 256, size=(n, 16), dtype=np.uint8)
    raw[:, 6] = raw[:, 6] & 0x0F | 0x40
    raw[:, 8] = raw[:, 8] & 0x3F | 0x80
    digits = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
    hexadecimal = np.empty((n, 32), dtype=np.uint8)
    hexadecimal[:, 0::2], hexadecimal[:, 1::2] = digits[raw >> 4], digits[raw & 15]
    text = np.full((n, 36), ord("-"), dtype=np.uint8)
    for start, stop, target in ((0, 8, 0), (8, 12, 9), (12, 16, 14), (16, 20, 19), (20, 32, 24)):
        text[:, target : target + stop - start] = hexadecimal[:, start:stop]
    return text.reshape(-1).view("S36")


def build_world(*, seed: int, n_tracks: int) -> World:
    """Build the world of `n_tracks` tracks.

    Raises:
        UserError: fewer than 1,000 tracks, for every cluster must fill a list.
    """
    if n_tracks < MIN_TRACKS:
        raise UserError(f"--tracks {n_tracks} is too small for {N_CLUSTERS} taste clusters; use {MIN_TRACKS} or more")
    rng = np.random.default_rng([seed, 1])
    shares = rng.uniform(0.6, 1.4, N_CLUSTERS)
    cluster_start = np.concatenate([[0], np.round(np.cumsum(shares) / shares.sum() * n_tracks)]).astype(np.int64)
    cluster = np.repeat(np.arange(N_CLUSTERS, dtype=np.int8), np.diff(cluster_start))
    wanted = _popularity(rng, cluster, n_tracks)

    centres = rng.standard_normal((N_CLUSTERS, N_TASTE))
    taste = 0.5 * centres[cluster] + 0.87 * rng.standard_normal((n_tracks, N_TASTE))
    taste = _standardised(taste, wanted)
    centres = np.add.reduceat(taste * wanted[:, None], cluster_start[:-1], axis=0)
    centres /= np.add.reduceat(wanted, cluster_start[:-1])[:, None]
    listener_taste = centres / np.linalg.norm(centres, axis=1, keepdims=True)

    direction = np.array([0.5, -0.4, 0.3, -0.5, 0.5])
    popular = _standardised(np.log(wanted), wanted)
    own = _standardised((taste * direction).sum(axis=1) + 0.1 * popular + 0.3 * rng.standard_normal(n_tracks), wanted)

    return World(
        seed=seed,
        n_tracks=n_tracks,
        cluster=cluster,
        cluster_start=cluster_start,
        wanted=wanted,
        taste=taste.astype(np.float32),
        own=own.astype(np.float32),
        cluster_taste=centres.astype(np.float32),
        listener_taste=listener_taste.astype(np.float32),
        hour_taste=_hour_taste(rng),
        premium_taste=_centred(rng.standard_normal((2, N_TASTE)), (1 - PREMIUM_SHARE, PREMIUM_SHARE)).astype(
            np.float32
        ),
        context_taste=_centred(rng.standard_normal((len(CONTEXT_TYPES), N_TASTE)), CONTEXT_SHARES),
        radio_walk=_radio_walk(listener_taste),
        static_lists=static_lists(np.random.default_rng([seed, 2]), wanted, cluster_start, listener_taste),
    )


def _standardised(values: NDArray, shares: NDArray) -> NDArray[np.float64]:
    """Shift and scale (each column of) `values` to mean 0 and variance 1 over plays with these `shares`. Not by matrix
    products, whose last digits depend on the number of threads: a world must be the same everywhere."""
    values = values - np.average(values, axis=0, weights=shares)
    return values / np.sqrt(np.average(values**2, axis=0, weights=shares))


def _hour_taste(rng: np.random.Generator) -> NDArray[np.float32]:
    """(24, N_TASTE) vectors that turn once a day in a random plane, centred over sessions."""
    plane, _ = np.linalg.qr(rng.standard_normal((N_TASTE, 2)))
    angle = 2 * np.pi * np.arange(24) / 24
    return _centred(np.stack([np.cos(angle), np.sin(angle)], axis=1) @ plane.T, HOUR_WEIGHTS)


def _centred(vectors: NDArray, shares: Sequence[float]) -> NDArray[np.float32]:
    """Shift and scale `vectors` (n, N_TASTE) to mean 0 and mean squared length 1 over `shares`, so that a track's match
    with the situation is 0 on average over situations."""
    weights = np.asarray(shares, dtype=float) / np.sum(shares)
    vectors = vectors - weights @ vectors
    return (vectors / np.sqrt(weights @ (vectors**2).sum(axis=1))).astype(np.float32)


def _popularity(rng: np.random.Generator, cluster: NDArray, n_tracks: int) -> NDArray[np.float64]:
    """Wanted share of each track. Within a cluster, tracks are sorted by popularity with a lot of noise, so that the
    albums and discographies (consecutive tracks) differ in popularity, as artists do."""
    plays = real_plays(np.arange(1, n_tracks + 1))
    ranked = rng.permutation(n_tracks)  # ranked[i]: rank of track i, still in no order
    plays = plays[ranked]
    order = np.lexsort((-(np.log(plays) + 0.5 * rng.standard_normal(n_tracks)), cluster))
    return plays[order] / plays.sum()


def _radio_walk(listener_taste: NDArray) -> NDArray[np.float64]:
    """Stay in the cluster with probability 0.85, else go to a cluster that is near in taste."""
    near = np.exp(3.0 * listener_taste @ listener_taste.T)
    np.fill_diagonal(near, 0.0)
    return 0.85 * np.eye(N_CLUSTERS) + 0.15 * near / near.sum(axis=1, keepdims=True)
