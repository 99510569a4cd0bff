"""The optimum of the skip task: exact beside enumeration, and never beaten."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from utils.data.schema import SKIP_2
from utils.evaluation.metrics import average_accuracy
from utils.simulator.behaviour import Behaviour, level_probabilities, observed_logit, taste_prior
from utils.simulator.mssd_figures import oracle_view
from utils.simulator.sessions import draw_sessions
from utils.simulator.skip_oracle import SkipPosterior, best_decisions, expected_accuracy, skip_posterior
from utils.simulator.world import build_world


@pytest.fixture(scope="module")
def world():
    return build_world(seed=0, n_tracks=5000)


@pytest.fixture(scope="module")
def sessions(world):
    return draw_sessions(world, world.lists(4), Behaviour(), np.random.default_rng(11), 6000)


def of_length(sessions, length):
    return np.flatnonzero(sessions.length == length)[:1200]


@pytest.fixture(scope="module")
def scored(world, sessions):
    """(posterior, truth, repeat-last) of the sessions of 20 plays."""
    rows = of_length(sessions, 20)
    skipped = sessions.level[rows] >= SKIP_2
    posterior = skip_posterior(world, Behaviour(), **oracle_view(sessions, rows, 20))
    return posterior, skipped[:, 10:], skipped[:, 9]


def maa(decisions, truth):
    right = decisions == truth
    return average_accuracy(right, np.ones_like(right))


# ----- skip: exactness -----


def brute_force(world, behaviour, view):
    """P(each label sequence of the second half | first half) of the only session in `view`, by enumeration."""
    length, cut = view["length"], view["length"] // 2
    observed = observed_logit(world, behaviour, view["tracks"], view["situation"])[0]
    levels = level_probabilities(behaviour)
    values, chances = behaviour.propensities()
    prior = taste_prior(world, behaviour, view["tracks"])[0]
    likes = world.taste[view["tracks"][0]].astype(float) @ world.listener_taste.T
    profile = behaviour.profile(np.arange(length), np.array(length))
    sequences = np.array(list(itertools.product([0, 1], repeat=length - cut)))
    total = np.zeros(len(sequences))
    for kind, q, taste in itertools.product(range(4), range(len(values)), range(len(prior))):
        weight = behaviour.type_shares[kind] * chances[q] * prior[taste]
        logit = observed + profile[:, kind] + values[q] - behaviour.match_effect * likes[:, taste]
        previous = 0
        for t in range(cut):
            y = int(view["level"][0, t] >= SKIP_2)
            p = 1 / (1 + np.exp(-(logit[t] + behaviour.persistence * previous)))
            weight *= (p if y else 1 - p) * levels[kind, y, int(view["broken"][0, t]), view["level"][0, t]]
            previous = 2 * y - 1
        chance = np.full(len(sequences), weight)
        last = np.full(len(sequences), previous)
        for i in range(length - cut):
            p = 1 / (1 + np.exp(-(logit[cut + i] + behaviour.persistence * last)))
            chance *= np.where(sequences[:, i] == 1, p, 1 - p)
            last = 2 * sequences[:, i] - 1
        total += chance
    return sequences, total / total.sum()


@pytest.fixture(scope="module", params=[10, 11])
def enumerated(request, world, sessions):
    behaviour = replace(Behaviour(), n_propensities=3)
    view = oracle_view(sessions, of_length(sessions, request.param)[:1], request.param)
    return skip_posterior(world, behaviour, **view), *brute_force(world, behaviour, view)


def test_probabilities_and_pairs_equal_enumeration(enumerated):
    posterior, sequences, chance = enumerated
    assert posterior.probability[0] == pytest.approx(chance @ sequences, abs=1e-12)
    assert posterior.pairwise[0] == pytest.approx((sequences.T * chance) @ sequences, abs=1e-12)


def test_expected_accuracy_equals_enumeration(enumerated):
    posterior, sequences, chance = enumerated
    decisions = sequences.astype(bool)
    expected = [chance @ maa(np.broadcast_to(decision, sequences.shape), decisions) for decision in decisions]
    assert expected_accuracy(posterior, decisions)[0] == pytest.approx(expected, abs=1e-12)
    assert (best_decisions(posterior)[0] == decisions[np.argmax(expected)]).all()


def test_expected_accuracy_by_hand():
    # Two targets: the first is a skip with 0.6, the second always does the same. Saying skip, skip: all right with 0.6.
    posterior = SkipPosterior(np.array([[0.6, 0.6]]), np.array([[[0.6, 0.6], [0.6, 0.6]]]))
    decisions = np.array([[True, True], [True, False], [False, True], [False, False]])
    # Of (right, wrong) AA is 1/2, of (wrong, right) 1/4.
    assert expected_accuracy(posterior, decisions)[0] == pytest.approx([0.6, 0.4, 0.35, 0.4], abs=0.11)
    exact = [0.6 * 1, 0.6 * 0.5 + 0.4 * 0.25, 0.4 * 0.5 + 0.6 * 0.25, 0.4 * 1]
    assert expected_accuracy(posterior, decisions)[0] == pytest.approx(exact)


def test_decisions_may_differ_from_thresholds():
    # Alone, the second target is more likely played; but when the first guess is right, it is rather skipped.
    posterior = SkipPosterior(np.array([[0.55, 0.49]]), np.array([[[0.55, 0.45], [0.45, 0.49]]]))
    assert best_decisions(posterior).tolist() == [[True, True]]


# ----- skip: optimality -----


def test_no_flip_and_no_random_decision_is_expected_to_score_higher(scored):
    posterior = SkipPosterior(*(part[:200] for part in scored[0]))
    best = best_decisions(posterior)
    everything = np.array(list(itertools.product([False, True], repeat=10)))
    number = (best * 2 ** np.arange(9, -1, -1)).sum(axis=1)
    value = expected_accuracy(posterior, everything)
    mine = value[np.arange(200), number]
    for bit in range(10):
        assert (value[np.arange(200), number ^ (1 << bit)] <= mine + 1e-12).all()
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert (value[np.arange(200), rng.integers(0, 1024, 200)] <= mine + 1e-12).all()


def test_expected_score_is_the_realised_score(scored):
    posterior, truth, _ = scored
    best = best_decisions(posterior)
    everything = np.array(list(itertools.product([False, True], repeat=10)))
    expected = expected_accuracy(posterior, everything).max(axis=1)
    gap = maa(best, truth) - expected
    assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(len(gap))


def test_no_perturbation_of_the_decisions_scores_higher(world, sessions, scored):
    """Realised scores: each perturbation changes decisions that were optimal, so it may win only within noise."""
    posterior, truth, last = scored
    best = best_decisions(posterior)
    mine = maa(best, truth)
    rng = np.random.default_rng(0)
    margin = np.abs(posterior.probability - 0.5)
    rows = of_length(sessions, 20)
    unsure = best.copy()
    unsure[np.arange(len(best)), margin.argmin(axis=1)] ^= True
    unfiltered = oracle_view(sessions, rows, 20)
    shuffled = dict(unfiltered, level=unfiltered["level"][rng.permutation(len(rows))])
    other_tracks = dict(unfiltered, tracks=unfiltered["tracks"].copy())
    other_tracks["tracks"][:, 10:] = unfiltered["tracks"][rng.permutation(len(rows)), 10:]
    blind = skip_posterior(world, replace(Behaviour(), propensity_sd=0.01, type_effect=0.0), **unfiltered)
    candidates = {
        "least certain flipped": unsure,
        "random flips": best ^ (rng.random(best.shape) < 0.1),
        "threshold at one half": posterior.probability >= 0.5,
        "another session's history": best_decisions(skip_posterior(world, Behaviour(), **shuffled)),
        "another session's targets": best_decisions(skip_posterior(world, Behaviour(), **other_tracks)),
        "no listener": best_decisions(blind),
        "repeat last": np.repeat(last[:, None], 10, axis=1),
        "all skipped": np.ones_like(best),
    }
    for name, decisions in candidates.items():
        difference = maa(decisions, truth) - mine
        assert difference.mean() < 2.5 * difference.std() / np.sqrt(len(rows)), name
    for name in ("another session's history", "another session's targets", "no listener", "repeat last"):
        assert maa(candidates[name], truth).mean() < mine.mean() - 0.02, name


def test_probabilities_are_calibrated(scored):
    posterior, truth, _ = scored
    p, y = posterior.probability.ravel(), truth.ravel()
    bins = np.digitize(p, np.linspace(0.1, 0.9, 9))
    for b in range(10):
        inside = bins == b
        assert inside.sum() > 300
        # Targets of a session are dependent: three times the independent error, and more, is allowed.
        assert abs(y[inside].mean() - p[inside].mean()) < 4.5 * np.sqrt(0.25 / inside.sum()) + 0.005


def test_levels_tell_the_type_of_listener(world, sessions):
    """The skip level matters beyond skip_2: it is part of what the filter sees."""
    rows = of_length(sessions, 20)[:50]
    view = oracle_view(sessions, rows, 20)
    swapped = dict(view, level=np.where(view["level"] == 4, 3, view["level"]))
    one, other = (skip_posterior(world, Behaviour(), **v).probability for v in (view, swapped))
    assert np.abs(one - other).max() > 0.005
