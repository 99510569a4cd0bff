"""The simulator's static world: tracks with taste and sound, the lists they are played from, and calibrated constants.

A world is a function of (seed, n_tracks) alone, so the oracle rebuilds it from two numbers.

Tracks. N tracks fall into 20 clusters (genres). Track i of cluster c has a taste vector of D = 5 dimensions,

    v_i = (between x_c + within x_i) standardised over plays,   x ~ Normal(0, I),

an own skip effect o_i (a linear function of v_i, popularity and a little noise that no feature tells), and 28 audio
features: each is a Gaussian copula score (loading on one taste dimension, the rest noise) whose ranks are mapped
through the real marginal distribution of that feature. So the sound of a track tells its taste vector.

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
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from utils.cli import UserError
from utils.schema import CONTEXT_TYPES, FEATURE_COLUMNS

N_CLUSTERS = 20
N_TASTE = 5
"""Dimensions of a taste vector."""
MIN_LIST, MAX_LIST = 20, 64
ALBUM = 12
"""Tracks between two album starts of a discography."""
N_CHARTS, CHART_SIZE = 4, 50
MIN_TRACKS = 1000

EDITORIAL, COLLECTION, RADIO, PERSONALIZED, CATALOG, CHARTS = (
    CONTEXT_TYPES.index(name)
    for name in ("editorial_playlist", "user_collection", "radio", "personalized_playlist", "catalog", "charts")
)

CONTEXT_SHARES = (35663, 67430, 21107, 2976, 38263, 2441)
"""Plays by context type in the mini set, in the order of `CONTEXT_TYPES`."""
PREMIUM_SHARE = 0.816
HOUR_WEIGHTS = (
    1.6, 0.9, 0.6, 0.5, 0.5, 0.8, 1.6, 2.8, 3.6, 3.9, 4.2, 4.6,
    5.0, 5.3, 5.7, 6.2, 6.6, 6.7, 6.3, 5.8, 5.2, 4.4, 3.4, 2.4,
)  # fmt: skip
"""Sessions by hour of the day (invented)."""

PLAYS_BY_RANK = {
    1: 7857731,
    2: 5360353,
    3: 4705353,
    5: 4621529,
    10: 3747048,
    20: 2765803,
    50: 1709332,
    100: 1308678,
    165: 923504,
    272: 648082,
    448: 442500,
    738: 307647,
    1216: 202308,
    2004: 130015,
    3303: 83624,
    5444: 51829,
    8973: 31639,
    14788: 18042,
    24373: 10062,
    40171: 5464,
    66207: 2936,
    109117: 1539,
    179840: 795,
    296400: 383,
    488506: 169,
    805123: 67,
    1326951: 24,
    2186992: 7,
    3604454: 1,
}
"""Plays of the track of a given rank over all training sessions of MSSD (AzGhort/skip_prediction, stats/)."""


@dataclass(frozen=True)
class Marginal:
    """Real distribution of an audio feature over 3.6 M tracks (AzGhort/skip_prediction, stats/)."""

    mean: float
    std: float
    q25: float
    median: float
    q75: float
    low: float
    high: float

    @cached_property
    def _powers(self) -> tuple[float, float, float]:
        """Powers (lower tail, upper tail, between median and q75) that give the mean and the standard deviation.

        Each piece is at + rise * x^p for x uniform in 0..1: its moments are made of 1 / (p + 1) and 1 / (2 p + 1).
        """

        def error(log_powers: NDArray[np.float64]) -> list[float]:
            lower, upper, middle = np.exp(log_powers)
            pieces = (
                (self.q25, self.low - self.q25, lower),
                (self.q25, self.median - self.q25, 1.0),
                (self.median, self.q75 - self.median, middle),
                (self.q75, self.high - self.q75, upper),
            )
            mean = sum(at + rise / (p + 1) for at, rise, p in pieces) / 4
            square = sum(at**2 + 2 * at * rise / (p + 1) + rise**2 / (2 * p + 1) for at, rise, p in pieces) / 4
            std = np.sqrt(max(square - mean**2, 1e-12))
            return [(mean - self.mean) / self.std, std / self.std - 1, *(0.003 * log_powers)]  # as straight as can be

        fit = least_squares(error, x0=[0.5, 0.5, 0.0], bounds=([-3, -3, -0.5], [4.5, 4.5, 2]))
        lower, upper, middle = np.exp(fit.x)
        return float(lower), float(upper), float(middle)

    def quantile(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values at the cumulative probabilities `u`: power laws between minimum, quartiles and maximum."""
        lower, upper, middle = self._powers
        quarters = [
            self.q25 - (self.q25 - self.low) * np.clip((0.25 - u) / 0.25, 0, 1) ** lower,
            self.q25 + (self.median - self.q25) * np.clip((u - 0.25) / 0.25, 0, 1),
            self.median + (self.q75 - self.median) * np.clip((u - 0.5) / 0.25, 0, 1) ** middle,
            self.q75 + (self.high - self.q75) * np.clip((u - 0.75) / 0.25, 0, 1) ** upper,
        ]
        return np.select([u < 0.25, u < 0.5, u < 0.75], quarters[:3], quarters[3])


MARGINALS = {
    "duration": Marginal(233.19, 108.40, 176.75, 217.91, 267.17, 30.001, 1799.999),
    "us_popularity_estimate": Marginal(95.574, 2.7356, 93.382, 95.754, 97.921, 90.0, 100.0),
    "acousticness": Marginal(0.34697, 0.34264, 0.026677, 0.22051, 0.65284, 0.0, 0.995796),
    "beat_strength": Marginal(0.46175, 0.17176, 0.33165, 0.45932, 0.58516, 0.0, 0.999953),
    "bounciness": Marginal(0.47911, 0.19903, 0.32070, 0.47960, 0.63390, 0.0, 0.986276),
    "danceability": Marginal(0.55655, 0.18584, 0.43270, 0.57274, 0.69759, 0.0, 0.997807),
    "dyn_range_mean": Marginal(7.84826, 2.68030, 5.82196, 7.51992, 9.47690, 0.0, 52.6131),
    "energy": Marginal(0.59185, 0.26028, 0.40983, 0.62611, 0.80731, 0.0, 0.999984),
    "flatness": Marginal(0.993453, 0.055217, 0.969141, 1.002422, 1.029172, 0.0, 1.167801),
    "instrumentalness": Marginal(0.207005, 0.344790, 2.4654e-7, 2.16187e-4, 0.313286, 0.0, 0.999996),
    "liveness": Marginal(0.21265, 0.19245, 0.096803, 0.129419, 0.270036, 0.0, 1.0),
    "loudness": Marginal(-9.60498, 5.73265, -11.71, -8.084, -5.791, -60.0, 6.275),
    "mechanism": Marginal(0.49962, 0.25618, 0.269231, 0.485437, 0.717314, 0.0, 1.0),
    "organism": Marginal(0.46189, 0.25092, 0.253235, 0.454924, 0.648006, 0.0, 0.979113),
    "speechiness": Marginal(0.104531, 0.138598, 0.036272, 0.050127, 0.101516, 0.0, 0.970580),
    "tempo": Marginal(120.0684, 30.4276, 96.0340, 119.9479, 139.8600, 0.0, 249.987),
    "valence": Marginal(0.481476, 0.272514, 0.251954, 0.473602, 0.705004, 0.0, 0.99999),
}

RELEASE_YEAR_TRACKS: dict[int, float] = {
    1950: 749, 1951: 861, 1952: 516, 1953: 450, 1954: 1202, 1955: 1606, 1956: 2261, 1957: 2468, 1958: 2553,
    1959: 2887, 1960: 3805, 1961: 2792, 1962: 3484, 1963: 3451, 1964: 3784, 1965: 4349, 1966: 4653, 1967: 5882,
    1968: 5680, 1969: 6399, 1970: 7041, 1971: 6357, 1972: 7634, 1973: 7567, 1974: 6375, 1975: 6943, 1976: 7108,
    1977: 7222, 1978: 7395, 1979: 7003, 1980: 8301, 1981: 7839, 1982: 8425, 1983: 8527, 1984: 8666, 1985: 9401,
    1986: 10009, 1987: 11277, 1988: 13129, 1989: 14145, 1990: 17367, 1991: 19472, 1992: 20868, 1993: 24393,
    1994: 26695, 1995: 31276, 1996: 30621, 1997: 33776, 1998: 37463, 1999: 42583, 2000: 46177, 2001: 48461,
    2002: 52235, 2003: 58701, 2004: 62399, 2005: 77688, 2006: 87334, 2007: 89921, 2008: 100505, 2009: 113618,
    2010: 128756, 2011: 148800, 2012: 168772, 2013: 191884, 2014: 228470, 2015: 275057, 2016: 343800, 2017: 473127,
    2018: 495971,
}  # fmt: skip
"""Tracks by release year (AzGhort/skip_prediction, stats/)."""
MAJOR_SHARE = 0.6515
KEY_SHARES = (0.113, 0.099, 0.104, 0.037, 0.076, 0.083, 0.069, 0.113, 0.074, 0.094, 0.060, 0.078)
"""Shares of the pitch classes: mean 5.27 and standard deviation 3.56 as measured; the shape is invented."""
TIME_SIGNATURE_SHARES = {0: 0.003, 1: 0.012, 3: 0.088, 4: 0.8815, 5: 0.0155}
"""Mean 3.87 and standard deviation 0.48 as measured; the shape is invented."""

# Which taste dimension (and sign) a feature sounds like, and how strongly: the rest of the score is noise.
LOADINGS: dict[str, tuple[int, float]] = {
    "energy": (0, 0.93),
    "loudness": (0, 0.85),
    "acousticness": (0, -0.85),
    "danceability": (1, 0.92),
    "beat_strength": (1, 0.88),
    "bounciness": (1, 0.88),
    "valence": (2, 0.93),
    "tempo": (2, 0.45),
    "mode": (2, 0.3),
    "organism": (3, 0.92),
    "mechanism": (3, -0.85),
    "flatness": (3, -0.7),
    "instrumentalness": (4, 0.88),
    "speechiness": (4, -0.7),
    "duration": (4, 0.35),
    "dyn_range_mean": (1, 0.6),
    "liveness": (0, 0.25),
    "release_year": (3, -0.35),
}


def _feature_values(name: str, u: NDArray[np.float64]) -> NDArray:
    """Values of the feature `name` at the cumulative probabilities `u`."""
    if name in MARGINALS:
        return MARGINALS[name].quantile(u).astype(np.float32)
    tables: dict[str, dict[int, float]] = {
        "release_year": RELEASE_YEAR_TRACKS,
        "key": dict(enumerate(KEY_SHARES)),
        "mode": {0: 1 - MAJOR_SHARE, 1: MAJOR_SHARE},
        "time_signature": TIME_SIGNATURE_SHARES,
    }
    values, shares = list(tables[name]), np.array(list(tables[name].values()))
    cumulative = np.cumsum(shares) / np.sum(shares)
    return np.array(values, dtype=np.int16)[np.searchsorted(cumulative[:-1], u)]


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
    """(N,) effect of the track on skips whoever listens; mean 0 and variance 1 over plays."""
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
            columns[name] = _feature_values(name, u)
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
        UserError: fewer than 1,000 tracks (every cluster must fill a list).
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
        static_lists=_static_lists(np.random.default_rng([seed, 2]), wanted, cluster_start, listener_taste),
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
    """Shift and scale `vectors` (n, N_TASTE) to mean 0 and mean squared length 1 over `shares`: what suits a situation
    is then no effect of a track on the average over situations."""
    weights = np.asarray(shares, dtype=float) / np.sum(shares)
    vectors = vectors - weights @ vectors
    return (vectors / np.sqrt(weights @ (vectors**2).sum(axis=1))).astype(np.float32)


def real_plays(ranks: NDArray) -> NDArray[np.float64]:
    """Plays of the real tracks of the given ranks (from 1), by log-log interpolation of `PLAYS_BY_RANK`."""
    anchors = np.array(list(PLAYS_BY_RANK.items()), dtype=float)
    return np.exp(np.interp(np.log(ranks), np.log(anchors[:, 0]), np.log(anchors[:, 1])))


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


def _static_lists(rng: np.random.Generator, wanted: NDArray, cluster_start: NDArray, listener_taste: NDArray) -> Lists:
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
    from row `main` of `mix`; the weight of the r-th most popular playlist is r^-power."""
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
        # Consecutive tracks of the main cluster stand behind, so that no list runs short of distinct tracks.
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
