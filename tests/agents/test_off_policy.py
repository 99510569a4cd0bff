"""Off-policy estimators on bandits of known value, and the choices of simulated shuffles."""

from itertools import product

import numpy as np
import pytest

from utils.agents import off_policy
from utils.agents.off_policy import Choices, doubly_robust, evaluate_policy, greedy_policy, snips
from utils.simulator.behaviour import Behaviour
from utils.simulator.sessions import BACK, JUMP, NEXT, RESTART, START, SWITCH, draw_sessions
from utils.simulator.world import build_world


def bandit(n, seed=0):
    """Two kinds of contexts, three actions; logged with unequal propensities.

    Rewards by kind: 0.9 0.2 0.4 and 0.1 0.6 0.5. The best policy is worth (0.9 + 0.6) / 2 = 0.75, the behaviour policy,
    0.5 0.25 0.25, (0.6 + 0.325) / 2 = 0.4625.
    """
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 2, n)
    chance = np.array([[0.9, 0.2, 0.4], [0.1, 0.6, 0.5]])[kind]
    behaviour = np.array([0.5, 0.25, 0.25])
    logged = rng.choice(3, n, p=behaviour)
    reward = (rng.random(n) < chance[np.arange(n), logged]).astype(float)
    return kind, chance, logged, behaviour[logged], reward


def test_snips_by_hand():
    """Weights 0.5 / 0.25 = 2, 0, 1 / 0.5 = 2, 1: (2 + 0 + 0 + 1) / 5."""
    reward, propensity = np.array([1.0, 1, 0, 1]), np.array([0.25, 0.5, 0.5, 1])
    estimate = snips(reward, propensity, np.array([0.5, 0, 1, 1]))
    assert estimate.value == pytest.approx(3 / 5)
    assert estimate.effective == pytest.approx(25 / 9)


def test_doubly_robust_by_hand():
    """First: 0.5 * 0.4 + 0.5 * 0.8 + (0.5 / 0.25) (1 - 0.4) = 1.8; second: 0.2 + 0 * anything = 0.2."""
    policy, model = np.array([[0.5, 0.5], [0, 1]]), np.array([[0.4, 0.8], [0.6, 0.2]])
    estimate = doubly_robust(np.array([1.0, 1]), np.array([0.25, 0.5]), np.array([0, 0]), policy, model)
    assert estimate.value == pytest.approx(1.0)
    assert estimate.effective == pytest.approx(1.0)


def test_both_hit_the_known_value():
    kind, _, logged, propensity, reward = bandit(4000)
    policy = np.eye(3)[np.where(kind == 0, 0, 1)]
    wrong_model = np.full((4000, 3), 0.3)
    estimates = (
        snips(reward, propensity, policy[np.arange(4000), logged]),
        doubly_robust(reward, propensity, logged, policy, wrong_model),
    )
    for estimate in estimates:
        assert estimate.low < 0.75 < estimate.high
        assert estimate.high - estimate.low < 0.12


def test_estimates_are_right_on_average():
    """Over many small logs the mean estimate is the value, and 95 % intervals hold it nearly as often as they say."""
    snips_values, dr_values, inside = [], [], 0
    for seed in range(50):
        kind, _, logged, propensity, reward = bandit(150, seed)
        policy = np.eye(3)[np.where(kind == 0, 0, 1)]
        first = snips(reward, propensity, policy[np.arange(150), logged])
        second = doubly_robust(reward, propensity, logged, policy, np.full((150, 3), 0.3))
        snips_values.append(first.value)
        dr_values.append(second.value)
        inside += (first.low <= 0.75 <= first.high) + (second.low <= 0.75 <= second.high)
    assert np.mean(snips_values) == pytest.approx(0.75, abs=0.02)
    assert np.mean(dr_values) == pytest.approx(0.75, abs=0.02)
    assert 0.85 <= inside / 100 <= 1


def test_dr_is_exact_if_the_model_is():
    """Where rewards are certain and the model knows them, nothing is left to chance."""
    kind, _, logged, propensity, _ = bandit(200)
    certain = np.array([[1.0, 0, 0], [0, 1, 1]])[kind]
    policy = np.full((200, 3), 1 / 3)
    estimate = doubly_robust(certain[np.arange(200), logged], propensity, logged, policy, certain)
    assert estimate.value == pytest.approx((policy * certain).sum(1).mean())
    # And an exact model of the chances makes the interval narrower than none.
    kind, chance, logged, propensity, reward = bandit(2000)
    policy = np.eye(3)[np.where(kind == 0, 0, 1)]
    exact = doubly_robust(reward, propensity, logged, policy, chance)
    none = doubly_robust(reward, propensity, logged, policy, np.zeros_like(chance))
    assert exact.high - exact.low < 0.7 * (none.high - none.low)


def test_the_behaviour_policy_is_worth_the_mean_reward():
    _, _, logged, propensity, reward = bandit(500)
    assert snips(reward, propensity, propensity).value == pytest.approx(reward.mean())
    choices = Choices(np.arange(500), np.zeros((500, 3), np.int64), logged, reward, np.full((500, 3), 0.5))
    uniform = np.full((500, 3), 1 / 3)
    result = evaluate_policy(choices, uniform, np.zeros((500, 3)))
    assert result["snips"]["value"] == pytest.approx(reward.mean())
    assert result["dr"]["value"] == pytest.approx(reward.mean())
    assert result["truth"] == pytest.approx(0.5)


def test_greedy_policy():
    scores = np.array([[1.0, 3, 2], [5, 5, 1], [-np.inf, -2, -3]])
    assert greedy_policy(scores).tolist() == [[0, 1, 0], [0.5, 0.5, 0], [0, 1, 0]]


# ----- simulated shuffles --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simulated():
    world, behaviour = build_world(seed=1, n_tracks=1000), Behaviour()
    lists = world.lists(0)
    return world, behaviour, lists, draw_sessions(world, lists, behaviour, np.random.default_rng(0), 20_000)


def test_candidates_are_what_the_shuffle_could_play(simulated):
    """The logged track and others of the list that the shuffle had not shown; there are 1 / propensity of them."""
    world, _, lists, sessions = simulated
    drawn = off_policy.draw_candidates(
        sessions, lists, np.ones(world.n_tracks, bool), k=5, rng=np.random.default_rng(0)
    )
    assert len(drawn.session) > 500
    cut, heard_before = sessions.length // 2, 0
    for session, candidates, logged in zip(*drawn, strict=True):
        t = cut[session]
        assert sessions.uniform_shuffle[session]
        assert sessions.shuffle[session, t]
        assert candidates[logged] == sessions.tracks[session, t]
        assert len(set(candidates)) == 5
        listed = sessions.lists[session, t]
        pool = set(lists.tracks[lists.offsets[listed] : lists.offsets[listed + 1]])
        fresh = max(i for i in range(t + 1) if sessions.transition[session, i] not in (NEXT, BACK, RESTART))
        pool -= set(sessions.tracks[session, fresh:t])
        if sessions.transition[session, fresh] == JUMP:
            opened = max(i for i in range(fresh) if sessions.transition[session, i] in (START, SWITCH))
            again = set(sessions.tracks[session, opened:fresh]) & pool
            heard_before += len(again & set(np.delete(candidates, logged)))
        assert set(candidates) <= pool
        assert 1 / sessions.propensity[session, t] == pytest.approx(len(pool))
    assert heard_before, "a jump shuffles the list anew: all of it may come again"
    assert np.bincount(drawn.logged, minlength=5) / len(drawn.logged) == pytest.approx([0.2] * 5, abs=0.06)


def test_unknown_tracks_are_no_candidates(simulated):
    world, _, lists, sessions = simulated
    known = np.arange(world.n_tracks) % 2 == 0
    drawn = off_policy.draw_candidates(sessions, lists, known, k=5, rng=np.random.default_rng(0))
    assert len(drawn.session) > 100
    assert known[drawn.candidates].all()
    everything = off_policy.draw_candidates(sessions, lists, known | True, k=60, rng=np.random.default_rng(0))
    assert len(everything.session) < len(drawn.session), "few lists are so long"


def test_listening_probabilities_are_those_of_the_simulator(simulated):
    """The logged track was listened to as often as they say, whatever they say."""
    world, behaviour, _, sessions = simulated
    rows, cut = np.arange(len(sessions.length)), sessions.length // 2
    own = sessions.tracks[rows, cut][:, None]
    probability = off_policy.listen_probability(world, behaviour, sessions, own)[:, 0]
    listened = sessions.level[rows, cut] < 3
    after_skip = sessions.level[rows, cut - 1] >= 3
    for low, skipped in product((0, 0.2, 0.4, 0.6, 0.8), (False, True)):
        inside = (probability >= low) & (probability < low + 0.2) & (after_skip == skipped)
        assert inside.sum() > 100
        expected, spread = probability[inside].mean(), np.sqrt((probability * (1 - probability))[inside].sum())
        assert listened[inside].mean() == pytest.approx(expected, abs=4 * spread / inside.sum())
    # Another track would have had another chance, by its own effect and taste alone.
    other = (own + 17) % world.n_tracks
    changed = off_policy.listen_probability(world, behaviour, sessions, np.hstack([own, other]))
    assert np.allclose(changed[:, 0], probability)
    assert np.abs(changed[:, 1] - probability).mean() > 0.1
    with pytest.raises(ValueError, match="cannot be chosen"):
        off_policy.listen_probability(world, behaviour, sessions._replace(length=sessions.length * 0 + 8), own)


def test_estimates_agree_with_the_simulators_truth(simulated):
    """Of the uniform shuffle, of the best policy and of the worst."""
    world, behaviour, lists, sessions = simulated
    drawn = off_policy.draw_candidates(
        sessions, lists, np.ones(world.n_tracks, bool), k=3, rng=np.random.default_rng(0)
    )
    part = type(sessions)(*(values[drawn.session] for values in sessions))
    rows, cut = np.arange(len(drawn.session)), part.length // 2
    truth = off_policy.listen_probability(world, behaviour, part, drawn.candidates)
    choices = Choices(rows, drawn.candidates, drawn.logged, (part.level[rows, cut] < 3) * 1.0, truth)
    values = []
    for policy in (np.full(truth.shape, 1 / 3), greedy_policy(truth), greedy_policy(-truth)):
        result = evaluate_policy(choices, policy, np.full(truth.shape, 0.5))
        for name in ("snips", "dr"):
            half_width = (result[name]["high"] - result[name]["low"]) / 2
            assert result[name]["value"] == pytest.approx(result["truth"], abs=1.5 * half_width)
        values.append(result["truth"])
    assert values[2] + 0.1 < values[0] < values[1] - 0.1
