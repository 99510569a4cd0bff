"""The exact posterior of the skips of a second half, and the decisions that are best for mean average accuracy."""

from __future__ import annotations

from itertools import combinations, product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from utils.data.schema import MAX_LENGTH, half, is_skip
from utils.simulator.behaviour import Behaviour, Situation, level_probabilities, observed_logit, taste_prior
from utils.simulator.world import World

MAX_TARGETS = MAX_LENGTH - half(MAX_LENGTH)


class SkipPosterior(NamedTuple):
    """Beliefs about the second halves of S sessions of one length, T targets."""

    probability: NDArray[np.float64]  # (S, T) P(y_i | first half)
    pairwise: NDArray[np.float64]  # (S, T, T) P(y_i and y_j | first half)


def skip_posterior(
    world: World,
    behaviour: Behaviour,
    *,
    length: int,
    tracks: NDArray,
    situation: Situation,
    level: NDArray,
    broken: NDArray,
) -> SkipPosterior:
    """Filter the listener from the first half, then predict the skips of the second half.

    Args:
        length: of all S sessions.
        tracks: (S, length) all tracks.
        situation: of the first play.
        level: (S, length // 2) skip levels of the first half.
        broken: (S, length // 2) whether what followed each play was a back, a restart, a jump or a switch (its end
            reason is backbtn or endplay).
    """
    n_sessions, history = len(tracks), half(length)
    values, probabilities = behaviour.propensities()
    taste = taste_prior(world, behaviour, tracks)
    n_types, n_values, n_tastes = 4, len(values), taste.shape[1]
    n_states = n_types * n_values * n_tastes

    observed = observed_logit(world, behaviour, tracks, situation)
    match = -behaviour.match_effect * world.taste[tracks].astype(np.float64) @ world.listener_taste.T  # (S, L, tastes)
    profile = behaviour.profile(np.arange(length), np.array(length))  # (L, types)

    def logit(position: int) -> NDArray[np.float64]:
        """(S, states) without the effect of the previous skip."""
        listener = profile[position][:, None, None] + values[:, None]  # (types, values, 1)
        total = observed[:, position, None, None, None] + match[:, position, None, None, :] + listener
        return total.reshape(n_sessions, n_states)

    listener = np.asarray(behaviour.type_shares)[:, None] * probabilities
    log_weight = (np.log(listener)[:, :, None] + np.log(taste)[:, None, None, :]).reshape(n_sessions, n_states)
    log_level = np.log(level_probabilities(behaviour).clip(1e-300))
    previous: NDArray = np.zeros(n_sessions)
    for position in range(history):
        skipped = is_skip(level[:, position]).astype(np.int64)
        sign = 2.0 * skipped - 1
        score = logit(position) + behaviour.persistence * previous[:, None]
        log_weight -= np.logaddexp(0.0, -sign[:, None] * score)
        by_type = log_level[:, skipped, broken[:, position].astype(np.int64), level[:, position]].T  # (S, types)
        log_weight += np.repeat(by_type, n_values * n_tastes, axis=1)
        previous = sign
    weight: NDArray = np.exp(log_weight - log_weight.max(axis=1, keepdims=True))
    weight /= weight.sum(axis=1, keepdims=True)

    n_targets = length - history
    pairwise = np.zeros((n_sessions, n_targets, n_targets))
    marginal: NDArray | None = None
    given: list[NDArray] = []  # given[j]: P(y_i | y_j, state)
    joint: list[NDArray] = []  # joint[j]: weight x P(y_j | state)
    for i in range(n_targets):
        score = logit(history + i)
        if marginal is None:
            marginal = expit(score + behaviour.persistence * previous[:, None])
        else:
            after_skip = expit(score + behaviour.persistence)
            after_play = expit(score - behaviour.persistence)
            rise = after_skip - after_play
            marginal = after_play + rise * marginal
            given = [after_play + rise * chance for chance in given[:-1]] + [after_skip]
        for j, (weighted, chance) in enumerate(zip(joint, given, strict=True)):
            pairwise[:, i, j] = pairwise[:, j, i] = np.einsum("sz,sz->s", weighted, chance)
        joint.append(weight * marginal)
        pairwise[:, i, i] = joint[-1].sum(axis=1)
        given.append(np.ones_like(marginal))
    return SkipPosterior(np.einsum("sii->si", pairwise).copy(), pairwise)


def expected_accuracy(posterior: SkipPosterior, decisions: NDArray) -> NDArray[np.float64]:
    """(S, K) expected average accuracy (AA) of each of the `decisions` (K, T), booleans, for each session.

    With s_i = 1 or -1 the decision and z_i the truth, step i is right when L_i = (1 + s_i z_i) / 2 is 1, and
    AA = 1/T sum_i 1/i (L_i + sum_{j<i} L_i L_j) is linear in (s_i, s_i s_j): one matrix product for all decisions.
    """
    n_targets = posterior.probability.shape[1]
    mean = 2 * posterior.probability - 1  # E z_i
    product_mean = (
        4 * posterior.pairwise - 2 * posterior.probability[:, :, None] - 2 * posterior.probability[:, None] + 1
    )
    step = 1.0 / (np.arange(n_targets) + 1)  # 1 / i
    later = np.concatenate([np.cumsum(step[::-1])[::-1][1:], [0.0]])  # sum of 1 / n over n > i
    pairs = list(combinations(range(n_targets), 2))  # (j, i) with j < i
    first, second = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    constant = (step / 2 + step * np.arange(n_targets) / 4).sum()
    linear = mean * (step / 2 + step * np.arange(n_targets) / 4 + later / 4)
    quadratic = product_mean[:, first, second] * step[second] / 4
    signs = 2.0 * np.asarray(decisions) - 1
    features = np.concatenate([signs, signs[:, first] * signs[:, second]], axis=1)
    return (constant + np.concatenate([linear, quadratic], axis=1) @ features.T) / n_targets


def best_decisions(posterior: SkipPosterior) -> NDArray[np.bool_]:
    """(S, T) the decisions with the highest expected average accuracy, found among all 2^T."""
    n_targets = posterior.probability.shape[1]
    candidates = np.array(list(product([False, True], repeat=n_targets)))
    return candidates[expected_accuracy(posterior, candidates).argmax(axis=1)]
