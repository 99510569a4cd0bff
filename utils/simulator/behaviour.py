"""How listeners skip: calibrated constants, and the part of the skip logit that does not depend on the listener."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from utils.data.schema import (
    SKIP_1,
    SKIP_2,
    SKIP_3_ONLY,
    SKIP_NO_FLAG,
    SKIP_PLAYED,
)
from utils.simulator.figures import PREMIUM_SHARE
from utils.simulator.world import World

PROFILE_TURN, PROFILE_SLOPE = 0.3, 6.0
"""Where in the session listen-then-skip and skip-then-listen turn (as a share of it), and how fast."""
TASTE_ROWS = 5
"""Number of first plays that decide the prior of taste. Every history has as many."""


@dataclass(frozen=True)
class Behaviour:
    """How listeners skip. The defaults are calibrated: `utils/simulator/calibration.py` says how."""

    base: tuple[float, ...] = (
        -0.281, 0.830, 0.926, 1.037, 1.059, 0.809, 0.768, 0.719, 0.631, 0.502,
        0.541, 0.610, 0.623, 0.685, 0.712, 0.755, 0.759, 0.735, 0.755, 0.742,
    )  # fmt: skip
    """Base logit by position 1..20."""
    type_shares: tuple[float, float, float, float] = (0.29, 0.21, 0.21, 0.29)
    """listener, listen-then-skip, skip-then-listen, skipper."""
    type_effect: float = 1.1
    propensity_sd: float = 0.95
    n_propensities: int = 9
    own_effect: float = 0.75
    match_effect: float = 1.2
    prior_sharpness: float = 2.0
    situation_effect: float = 2.0
    coherence_effect: float = 0.3
    repeat_effect: float = -1.0
    premium_effect: float = 0.2
    persistence: float = 0.9
    skip_1_share: tuple[float, float, float, float] = (0.765, 0.815, 0.815, 0.845)
    """P(skip_1 | skip_2) by listener type."""
    skip_3_share: tuple[float, float, float, float] = (0.11, 0.15, 0.15, 0.20)
    """P(skip_3 | not skip_2, a next transition) by listener type."""
    no_flag_share: float = 0.0125
    """P(no flag | not skip_2, a next transition)."""
    broken_no_flag_share: float = 0.15
    """P(no flag | not skip_2, a back, restart, jump or switch); otherwise skip_3."""

    def propensities(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(values, probabilities) of the propensity grid: a normal distribution cut in slices of equal width."""
        edges = np.linspace(-2.25, 2.25, self.n_propensities)
        probability = np.exp(-(edges**2) / 2)
        probability /= probability.sum()
        return self.propensity_sd * edges / np.sqrt(probability @ edges**2), probability

    def profile(self, position: NDArray, length: NDArray) -> NDArray[np.float64]:
        """(..., 4) effect of the listener type at `position` (from 0) of a session of `length`."""
        rise = np.tanh(PROFILE_SLOPE * ((position + 0.5) / length - PROFILE_TURN))
        return self.type_effect * np.stack([-np.ones_like(rise), rise, -rise, np.ones_like(rise)], axis=-1)


class Situation(NamedTuple):
    """What the first play of each of S sessions tells, (S,) each."""

    premium: NDArray
    hour: NDArray
    context: NDArray

    def taste(self, world: World) -> NDArray[np.float32]:
        """(S, N_TASTE) what suits the situation."""
        vectors = world.hour_taste[self.hour] + world.premium_taste[self.premium.astype(np.int64)]
        return (vectors + world.context_taste[self.context]) / np.sqrt(3.0)


def taste_prior(world: World, behaviour: Behaviour, tracks: NDArray) -> NDArray[np.float64]:
    """(S, N_CLUSTERS) P(taste | tracks (S, at least TASTE_ROWS))."""
    mean = world.taste[tracks[:, :TASTE_ROWS]].mean(axis=1)
    score = behaviour.prior_sharpness * (mean @ world.listener_taste.T).astype(np.float64)
    score = np.exp(score - score.max(axis=1, keepdims=True))
    return score / score.sum(axis=1, keepdims=True)


def observed_logit(world: World, behaviour: Behaviour, tracks: NDArray, situation: Situation) -> NDArray[np.float64]:
    """(S, L) the part of the logit that follows from tracks (S, L), positions and situation: base, own effect,
    coherence with the first five tracks, match with the situation, repeats, premium."""
    taste = world.taste[tracks]  # (S, 20, N_TASTE)
    # What a track's taste has beyond its cluster's, times the same of the first five: 0 on average for every track.
    inner = taste - world.cluster_taste[world.cluster[tracks]]
    begun = inner[:, :TASTE_ROWS].sum(axis=1)
    resemblance = np.einsum("std,sd->st", inner, begun)
    resemblance[:, :TASTE_ROWS] -= (inner[:, :TASTE_ROWS] ** 2).sum(axis=2)  # a track does not resemble itself
    repeat = np.zeros(tracks.shape)
    for position in range(1, tracks.shape[1]):
        repeat[:, position] = (tracks[:, :position] == tracks[:, position, None]).any(axis=1)
    return (
        np.asarray(behaviour.base)[: tracks.shape[1]]
        + behaviour.own_effect * world.own[tracks]
        - behaviour.coherence_effect * resemblance / 3.0
        + behaviour.repeat_effect * repeat
        - behaviour.situation_effect * np.einsum("std,sd->st", taste, situation.taste(world))
        + behaviour.premium_effect * (situation.premium[:, None] - PREMIUM_SHARE)
    )


def level_probabilities(behaviour: Behaviour) -> NDArray[np.float64]:
    """(4 types, 2 skipped, 2 broken, 5 levels) P(level | listener type, skip_2, next play is not a plain *next*)."""
    p = np.zeros((4, 2, 2, 5))
    skip_1, skip_3 = np.array(behaviour.skip_1_share), np.array(behaviour.skip_3_share)
    p[:, 1, :, SKIP_1] = skip_1[:, None]
    p[:, 1, :, SKIP_2] = 1 - skip_1[:, None]
    p[:, 0, 0, SKIP_3_ONLY] = skip_3
    p[:, 0, 0, SKIP_NO_FLAG] = behaviour.no_flag_share
    p[:, 0, 0, SKIP_PLAYED] = 1 - skip_3 - behaviour.no_flag_share
    p[:, 0, 1, SKIP_NO_FLAG] = behaviour.broken_no_flag_share
    p[:, 0, 1, SKIP_3_ONLY] = 1 - behaviour.broken_no_flag_share
    return p
