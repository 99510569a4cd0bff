"""The optima beside rejection sampling: simulate many sessions, keep those whose first half is the observed one.

The only reference is what the generator draws: no probability of its own, and no formula of the oracles.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from utils.data.schema import SKIP_2
from utils.simulator import sessions as generator
from utils.simulator.behaviour import Behaviour, Situation
from utils.simulator.lists import CATALOG, CHARTS, COLLECTION, EDITORIAL, PERSONALIZED, RADIO, Lists
from utils.simulator.sessions import BACK, JUMP, NEXT, RESTART, SWITCH, UNIFORM_SHUFFLE_SHARE, draw_plays, draw_sessions
from utils.simulator.skip_oracle import best_decisions, expected_accuracy, skip_posterior
from utils.simulator.track_oracle import N_STEPS, ContinuationOracle, FirstHalf
from utils.simulator.world import World, build_world

SIGMAS = 4.5
"""Standard errors that a frequency may be away; there are some hundred comparisons, with fixed seeds."""


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(seed=3, n_tracks=1000)


# Skips


class Posterior(NamedTuple):
    """Sessions of the same plays that had the same skip levels in their first half."""

    levels: NDArray  # (h,)
    skips: NDArray[np.bool_]  # (n, T) of their second halves


class Observed(NamedTuple):
    """Simulated sessions that all have the same tracks, transitions and situation; listeners and skips differ."""

    view: dict  # what `skip_posterior` may see, but for the levels
    everybody: NDArray[np.bool_]  # (n, T) second halves of all
    groups: list[Posterior]


@pytest.fixture(scope="module", params=[(10, 1.0, 8), (13, 0.0, 23)], ids=["10 plays", "13 plays"])
def observed(request: pytest.FixtureRequest, world: World) -> Observed:
    """200,000 sessions, and the most frequent skip levels of their first halves."""
    length, premium, hour = request.param
    cut, rng, lists = length // 2, np.random.default_rng(length), world.lists(0)
    plays = draw_plays(world, lists, rng, np.zeros(500, bool))
    # One whose first half has a back, a jump or the like, and whose second half plays a track again.
    moved = (plays["transition"][:, 1 : cut + 1] != NEXT).any(axis=1)
    again = [len(set(row[:length].tolist())) < length for row in plays["tracks"]]
    fixed = {name: values[np.flatnonzero(moved & again)[0]] for name, values in plays.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            generator, "draw_plays", lambda *inputs: {k: np.repeat(v[None], 50_000, axis=0) for k, v in fixed.items()}
        )
        patch.setattr(generator, "LENGTH_SESSIONS", np.eye(11)[length - 10])
        patch.setattr(generator, "HOUR_WEIGHTS", np.eye(24)[hour])
        patch.setattr(generator, "PREMIUM_SHARE", premium)
        drawn = [draw_sessions(world, lists, Behaviour(), rng, 50_000) for _ in range(4)]
    level = np.concatenate([part.level for part in drawn])[:, :length]
    assert all((part.length == length).all() and (part.premium == bool(premium)).all() for part in drawn)
    view = {
        "length": length,
        "tracks": fixed["tracks"][None, :length],
        "situation": Situation(np.array([bool(premium)]), np.array([hour]), fixed["context"][None, 0]),
        "broken": fixed["transition"][None, 1 : cut + 1] != NEXT,
    }
    patterns, member, counts = np.unique(level[:, :cut], axis=0, return_inverse=True, return_counts=True)
    skips = level[:, cut:] >= SKIP_2
    frequent = np.argsort(-counts)[:8]
    return Observed(view, skips, [Posterior(patterns[i], skips[member == i]) for i in frequent])


def close(found: NDArray, expected: NDArray, n: int) -> bool:
    """Whether frequencies among n are the expected probabilities, within binomial error."""
    return bool((np.abs(found - expected) < SIGMAS * np.sqrt(expected * (1 - expected) / n)).all())


def test_skip_probabilities_are_the_frequencies_of_the_accepted_sessions(world: World, observed: Observed) -> None:
    everybody, distances = observed.everybody.mean(axis=0), []
    for levels, skips in observed.groups:
        n = len(skips)
        assert n > 800
        posterior = skip_posterior(world, Behaviour(), **observed.view, level=levels[None])
        assert close(skips.mean(axis=0), posterior.probability[0], n)
        both = skips.astype(float).T @ skips / n
        assert close(both, posterior.pairwise[0], n)
        distances.append(np.abs(posterior.probability[0] - everybody).max())
    assert max(distances) > 0.2, "what is observed must matter"


def test_expected_accuracy_of_decisions_is_the_mean_of_the_accepted_sessions(world: World, observed: Observed) -> None:
    """And no decision does better than the best one, but by chance."""
    n_targets = observed.everybody.shape[1]
    decisions = np.array(list(product([False, True], repeat=n_targets)))
    for levels, skips in observed.groups[:4]:
        posterior = skip_posterior(world, Behaviour(), **observed.view, level=levels[None])
        expected, best = expected_accuracy(posterior, decisions)[0], best_decisions(posterior)[0]
        truth, counts = np.unique(skips, axis=0, return_counts=True)
        right = decisions[:, None] == truth  # (K, sequences, T)
        accuracy = right.cumsum(axis=2) / np.arange(1, n_targets + 1)
        value = (accuracy * right).mean(axis=2)  # AA of each decision for each truth
        mean, square = (power @ counts / len(skips) for power in (value, value**2))
        assert (np.abs(mean - expected) < SIGMAS * np.sqrt((square - mean**2) / len(skips))).all()
        gain = value - value[(decisions == best).all(axis=1)]
        error = np.sqrt(gain**2 @ counts) / len(skips)
        assert (gain @ counts / len(skips) <= 3 * error).all()


# Next tracks


class Plays(NamedTuple):
    """Simulated plays, with what the log tells of them."""

    tracks: NDArray
    steps: NDArray
    context: NDArray
    shuffle: NDArray
    after: NDArray

    def first(self, row: int, h: int) -> FirstHalf:
        """What an oracle may see of the first h plays."""
        return FirstHalf(*(part[row, :h] for part in self[:4]), int(self.after[row, h - 1]))


def make_lists(*numbers: int) -> Lists:
    """Some of eight lists of 20 to 36 tracks among 60: many share tracks, so that it is open which one plays."""
    kinds = [EDITORIAL, EDITORIAL, COLLECTION, COLLECTION, PERSONALIZED, CATALOG, CATALOG, CHARTS]
    rng = np.random.default_rng(1)
    tracks = [rng.permutation(60)[:size] for size in (20, 24, 20, 20, 22, 24, 36, 20)]
    tracks[3] = np.roll(tracks[2], 4)  # the same tracks from another start
    tracks[3][:2] = tracks[3][1::-1]
    parts = [(len(tracks[i]), kinds[i], (2.0, 1, 3, 2, 1, 1, 2, 1)[i]) for i in numbers]
    sizes, kinds_of, weights = map(np.array, zip(*parts, strict=True))
    return Lists(sizes, np.concatenate([tracks[i] for i in numbers]), kinds_of, weights)


def simulate(world: World, lists: Lists) -> Plays:
    """400,000 sessions of 20 plays."""
    parts = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        parts.append(draw_plays(world, lists, rng, rng.random(50_000) < UNIFORM_SHUFFLE_SHARE))
    tracks, steps, context, shuffle = (
        np.concatenate([part[name] for part in parts]) for name in ("tracks", "transition", "context", "shuffle")
    )
    steps = np.where(steps == RESTART, BACK, steps)  # the log does not tell them apart
    after = np.where(steps == SWITCH, JUMP, steps)
    return Plays(tracks, steps, context, shuffle, np.roll(after, -1, axis=1))


@pytest.fixture(scope="module")
def plays(world: World) -> Plays:
    return simulate(world, make_lists(*range(8)))


def frequent(plays: Plays, rows: NDArray, h: int, n: int) -> Iterator[NDArray]:
    """The n largest groups of `rows` that look the same in their first h plays."""
    seen = np.concatenate([part[rows, :h] for part in plays[:4]] + [plays.after[rows, h - 1 : h]], axis=1)
    number = seen.astype(np.int64) @ np.random.default_rng(0).integers(1, 2**40, seen.shape[1])  # a hash
    _, member, counts = np.unique(number, return_inverse=True, return_counts=True)
    for group in np.argsort(-counts)[:n]:
        same = rows[member == group]
        assert (seen[member == group] == seen[member == group][0]).all()
        yield same


def dense(oracle: ContinuationOracle, first: FirstHalf) -> NDArray[np.float64]:
    """(K, N) the probability of every track at every step."""
    tracks, probability, shared = oracle.distribution(first)
    everywhere = oracle._shared(shared.ordered, shared.shuffled, shared.radio, slice(None))
    everywhere[:, tracks] = probability
    return everywhere


def check_frequencies(counts: NDArray, expected: NDArray) -> None:
    """Chi-squared of counts and expected counts; cells with fewer than 5 expected are one."""
    assert counts[expected < 1e-9].sum() == 0
    large = expected >= 5
    observed, wanted = (np.append(part[large], part[~large].sum()) for part in (counts, expected))
    if wanted[-1] < 5:
        observed, wanted = (np.append(part[:-2], part[-2:].sum()) for part in (observed, wanted))
    degrees = max(len(wanted) - 1, 1)
    distance = ((observed - wanted) ** 2 / wanted).sum() - degrees
    assert distance < SIGMAS * np.sqrt(2 * degrees) + 5


CASES = {
    "in order": (5, lambda p: ~p.shuffle[:, 0] & (p.steps[:, 1:5] == NEXT).all(1) & (p.after[:, 4] == NEXT), 6),
    "two plays in order": (2, lambda p: ~p.shuffle[:, 0] & (p.context[:, 0] == COLLECTION), 6),
    "back": (4, lambda p: ~p.shuffle[:, 0] & (p.steps[:, 1:4] == BACK).any(1) & (p.context[:, 3] != RADIO), 20),
    "jump": (4, lambda p: ~p.shuffle[:, 0] & (p.steps[:, 2] == JUMP) & (p.context[:, 3] != RADIO), 40),
    "switch": (3, lambda p: (p.steps[:, 1] == SWITCH) & (p.context[:, 2] != RADIO), 40),
    "then back": (3, lambda p: ~p.shuffle[:, 0] & (p.after[:, 2] == BACK), 20),
    "then jump": (3, lambda p: ~p.shuffle[:, 0] & (p.after[:, 2] == JUMP), 20),
    "shuffled": (1, lambda p: p.shuffle[:, 0] & (p.context[:, 0] != RADIO), 12),
    "shuffled, then back": (1, lambda p: p.shuffle[:, 0] & (p.context[:, 0] != RADIO) & (p.after[:, 0] == BACK), 30),
    "radio": (1, lambda p: p.context[:, 0] == RADIO, 120),
    "radio, then back": (1, lambda p: (p.context[:, 0] == RADIO) & (p.after[:, 0] == BACK), 150),
}


@pytest.mark.parametrize("name", CASES)
def test_next_tracks_are_the_frequencies_of_the_accepted_sessions(world: World, plays: Plays, name: str) -> None:
    """The whole distribution at each of ten steps; and no track comes more often than the best one.

    Each observed first half by itself if there are enough sessions that have it, and all of them together.
    """
    h, chosen, n_groups = CASES[name]
    oracle = ContinuationOracle(world, make_lists(*range(8)))
    counts, expected = np.zeros((2, N_STEPS, world.n_tracks))
    relations = np.zeros((2, N_STEPS, 3))  # the last track again, another one of its cluster, or neither
    for rows in frequent(plays, np.flatnonzero(chosen(plays)), h, n_groups):
        first, n = plays.first(rows[0], h), len(rows)
        relation = np.where(world.cluster == world.cluster[first.tracks[-1]], 1, 2)
        relation[first.tracks[-1]] = 0
        probability = dense(oracle, first)
        best = oracle.predict(first, int(plays.tracks[rows[0], h])).tracks
        for k in range(N_STEPS):
            both = np.bincount(plays.tracks[rows, h + k], minlength=world.n_tracks), n * probability[k]
            counts[k] += both[0]
            expected[k] += both[1]
            relations[:, k] += [np.bincount(relation, values, minlength=3) for values in both]
            if n >= 300:
                check_frequencies(*both)
                assert both[0][best[k]] >= both[0].max() - 3 * np.sqrt(2 * both[0].max())
    assert counts[0].sum() > 1000
    for k in range(N_STEPS):
        check_frequencies(counts[k], expected[k])
        check_frequencies(*relations[:, k])


def check_relations(oracle: ContinuationOracle, plays: Plays, rows: NDArray, h: int, half: NDArray) -> None:
    """What comes by its relation to what was heard: one of the plays heard, another track of either half, neither.

    Args:
        half: (N,) which half of the list that plays a track is in, -1 for none.
    """
    expected, counts = np.zeros((2, N_STEPS, h + 3))
    for row in rows:
        heard = plays.tracks[row, :h]
        relation = np.where(half >= 0, h + (half == half[heard[-1]]), h + 2)
        relation[heard] = np.arange(h)  # of a track that was heard twice, the last time
        probability = dense(oracle, plays.first(row, h))
        for k in range(N_STEPS):
            expected[k] += np.bincount(relation, probability[k], minlength=h + 3)
            counts[k, relation[plays.tracks[row, h + k]]] += 1
    for k in range(N_STEPS):
        check_frequencies(counts[k], expected[k])


def halves(world: World, tracks: NDArray) -> NDArray[np.int64]:
    """(N,) 0 or 1 for the tracks of a list, -1 for the others."""
    half = np.full(world.n_tracks, -1)
    half[tracks] = np.arange(len(tracks)) // (len(tracks) // 2)
    return half


@pytest.mark.parametrize("h", [2, 3, 5])
def test_shuffled_lists_by_what_was_heard(world: World, plays: Plays, h: int) -> None:
    """No two of these first halves look the same."""
    half = halves(world, make_lists(0).tracks)
    inside = (half[plays.tracks[:, :h]] >= 0).all(axis=1) & (plays.context[:, :h] == EDITORIAL).all(axis=1)
    rows = np.flatnonzero(inside & plays.shuffle[:, 0] & (plays.steps[:, 1:h] != SWITCH).all(axis=1))[:1600]
    assert len(rows) > 1500
    check_relations(ContinuationOracle(world, make_lists(*range(8))), plays, rows, h, half)


def test_an_earlier_context_tells_how_lists_are_shuffled(world: World) -> None:
    """Three plays of one list, then one of another; there is one of each kind, so that it is known which one.

    Whether the first three came from its halves in turn says much about where the fifth comes from.
    """
    lists = make_lists(0, 2, 4, 5, 7)
    plays = simulate(world, lists)
    half = np.full((6, world.n_tracks), -1)
    for number, kind in enumerate(lists.kinds):
        half[kind] = halves(world, lists.tracks[lists.offsets[number] : lists.offsets[number + 1]])
    first, last = plays.context[:, 0], plays.context[:, 3]
    chosen = (first != RADIO) & (last == COLLECTION) & plays.shuffle[:, 0] & plays.shuffle[:, 3]
    rows = np.flatnonzero(chosen & (plays.steps[:, 1:4] == (NEXT, NEXT, SWITCH)).all(axis=1))
    of_three = half[first[rows, None], plays.tracks[rows, :3]]
    in_turn = (np.diff(of_three) != 0).all(axis=1)
    for part in (rows[in_turn], rows[~in_turn]):
        assert len(part) > 80
        check_relations(ContinuationOracle(world, lists), plays, part, 4, half[COLLECTION])
