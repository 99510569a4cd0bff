"""Published figures of MSSD, from which the simulated world is made."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

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

        Each piece is at + rise * x^p for x uniform in 0..1, so that its moments consist of 1 / (p + 1), 1 / (2 p + 1).
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
# The taste dimension that a feature depends on, and how strongly (with sign); the rest of the score is noise.
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


def feature_values(name: str, u: NDArray[np.float64]) -> NDArray:
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


def real_plays(ranks: NDArray) -> NDArray[np.float64]:
    """Plays of the real tracks of the given ranks (from 1), by log-log interpolation of `PLAYS_BY_RANK`."""
    anchors = np.array(list(PLAYS_BY_RANK.items()), dtype=float)
    return np.exp(np.interp(np.log(ranks), np.log(anchors[:, 0]), np.log(anchors[:, 1])))


LENGTH_SESSIONS = (
    11025730, 9611839, 8407692, 7344162, 6460309, 5664259, 4994670, 4400713, 3917839, 3477536, 59645965,
)  # fmt: skip
"""Sessions of length 10..20 in MSSD's training set (its participants' count)."""
