"""The optimum of the continuation: exact by hand, calibrated, and never beaten."""

import itertools

import numpy as np
import pytest
from simulated_views import view_of

from utils.simulator.behaviour import Behaviour
from utils.simulator.lists import MAX_LIST, RADIO, Lists
from utils.simulator.sessions import (
    BACK,
    JUMP,
    NEXT,
    RESTART,
    SHUFFLE_OFF_TO_ON,
    SHUFFLE_ON_TO_OFF,
    START,
    SWITCH,
    TRANSITIONS,
    draw_sessions,
)
from utils.simulator.track_oracle import N_STEPS, ContinuationOracle, FirstHalf, cursor_moves, first_steps
from utils.simulator.world import build_world


@pytest.fixture(scope="module")
def world():
    return build_world(seed=0, n_tracks=5000)


@pytest.fixture(scope="module")
def sessions(world):
    return draw_sessions(world, world.lists(4), Behaviour(), np.random.default_rng(11), 6000)


@pytest.fixture(scope="module")
def continuation(world):
    return ContinuationOracle(world, world.lists(4))


def dense(continuation, first):
    """(K, N) the whole distribution."""
    tracks, probability, fallback = continuation.distribution(first)
    values = continuation._shared(fallback.ordered, fallback.shuffled, fallback.radio, slice(None))
    values[:, tracks] = probability
    return values


def test_first_step_follows_the_end_reason():
    assert first_steps(NEXT) == {NEXT: 1, BACK: 0, RESTART: 0, JUMP: 0, SWITCH: 0}
    assert first_steps(BACK)[BACK] == first_steps(BACK)[RESTART] == 0.5
    assert first_steps(JUMP)[JUMP] + first_steps(JUMP)[SWITCH] == pytest.approx(1)
    assert first_steps(JUMP)[JUMP] / first_steps(JUMP)[SWITCH] == pytest.approx(TRANSITIONS[JUMP] / TRANSITIONS[SWITCH])


def test_cursor_moves_by_hand():
    step = {NEXT: 0.5, BACK: 0.2, RESTART: 0.1, JUMP: 0.15, SWITCH: 0.05}
    moves = cursor_moves([step, step])
    assert moves.displacement[1].tolist() == pytest.approx([0, 0.2, 0.1, 0.5, 0])
    assert moves.displacement[2].tolist() == pytest.approx([0.04, 0.04, 0.21, 0.1, 0.25])
    assert moves.jumped.tolist() == pytest.approx([0, 0.15, 0.95 * 0.15 + 0.15 * 0.8])
    assert moves.displacement[2].sum() + moves.jumped[2] == pytest.approx(0.95**2)


def test_distributions_sum_to_one(continuation, sessions):
    for row in range(150):
        values = dense(continuation, view_of(sessions, row))
        assert values.min() >= 0
        assert values.sum(axis=1) == pytest.approx(np.ones(N_STEPS), abs=1e-9)


def test_predictions_and_ranks_equal_the_sorted_distribution(continuation, sessions):
    n_tied = []
    for row in range(60):
        first = view_of(sessions, row)
        true_next = int(sessions.tracks[row, sessions.length[row] // 2])
        guess, values = continuation.predict(first, true_next), dense(continuation, first)
        assert guess.probability == pytest.approx(values.max(axis=1))
        assert values[np.arange(N_STEPS), guess.tracks] == pytest.approx(values.max(axis=1))
        score = values[0, true_next]
        assert guess.tied == (values[0] == score).sum() >= 1
        assert guess.rank == (values[0] > score).sum() + (guess.tied - 1) / 2
        n_tied.append(guess.tied)
    assert min(n_tied) == 1 < max(n_tied)


def test_only_eligible_tracks_are_predicted_and_ranked(world, continuation, sessions):
    row = next(r for r in range(100) if sessions.context[r, 0] != RADIO and not sessions.shuffle[r, :10].any())
    first, true_next = view_of(sessions, row), int(sessions.tracks[row, sessions.length[row] // 2])
    free = continuation.predict(first, true_next)
    eligible = np.ones(world.n_tracks, dtype=bool)
    eligible[free.tracks] = False
    bound = ContinuationOracle(world, world.lists(4), eligible)
    guess = bound.predict(first, true_next)
    assert eligible[guess.tracks].all()
    values = np.where(eligible, dense(continuation, first), -1)
    assert guess.probability == pytest.approx(values.max(axis=1))
    nowhere = bound.predict(first, int(free.tracks[0]))
    assert (nowhere.rank, nowhere.tied) == (np.inf, 1)
    for track in np.flatnonzero(eligible)[::97]:
        guess, score = bound.predict(first, int(track)), values[0, track]
        assert guess.tied == (values[0] == score).sum()
        assert guess.rank == (values[0] > score).sum() + (guess.tied - 1) / 2


@pytest.fixture(scope="module")
def guesses(continuation, sessions):
    """(first halves, tracks (S, K), their probabilities, second best tracks, true tracks, known) of 1,500 sessions."""
    found, chance, second, truth = (np.zeros((1500, N_STEPS), dtype) for dtype in (int, float, int, int))
    known = np.arange(N_STEPS) < (sessions.length[:1500] - sessions.length[:1500] // 2)[:, None]
    views = []
    for row in range(1500):
        cut, length = sessions.length[row] // 2, sessions.length[row]
        views.append(view_of(sessions, row))
        guess = continuation.predict(views[-1], int(sessions.tracks[row, cut]))
        found[row], chance[row] = guess.tracks, guess.probability
        truth[row, : length - cut] = sessions.tracks[row, cut:length]
        if row < 400:
            second[row] = np.argsort(-dense(continuation, views[-1]), axis=1)[:, 1]
    return views, found, chance, second, truth, known


def test_track_probabilities_are_calibrated(guesses):
    """In every kind of session and at every step, the best track comes as often as its probability says."""
    views, found, chance, _, truth, known = guesses
    kind = [
        (view.context[-1] == RADIO, bool(view.shuffle[-1]) and view.context[-1] != RADIO, view.after) for view in views
    ]
    groups = {
        f"{name} {after}": [k[:2] == which and k[2] == after for k in kind]
        for name, which in {"ordered": (False, False), "shuffled": (False, True), "radio": (True, False)}.items()
        for after in (NEXT, BACK, JUMP)
    }
    groups |= {f"step {k}": np.arange(N_STEPS) == k for k in range(N_STEPS)}
    for name, group in groups.items():
        chosen = known & (np.array(group)[:, None] if len(group) == len(views) else group)
        p, right = chance[chosen], (found == truth)[chosen]
        # Steps of a session are dependent, which at most doubles the error of ten of them.
        assert abs(right.sum() - p.sum()) < 8 * np.sqrt((p * (1 - p)).sum()) + 1, name
    p, right = chance[known], (found == truth)[known]
    for low, high in itertools.pairwise((0, 0.03, 0.1, 0.25, 0.5, 0.8, 1.01)):
        inside = (p >= low) & (p < high)
        assert abs(right[inside].mean() - p[inside].mean()) < 6 * np.sqrt(0.25 / inside.sum()), (low, high)


def test_no_other_guess_scores_higher(guesses):
    _, found, _, second, truth, known = guesses
    mine = (found == truth)[known].mean()
    assert mine > 0.25
    assert (second == truth)[:400][known[:400]].mean() < (found == truth)[:400][known[:400]].mean() - 0.1
    shifted = np.roll(found, 1, axis=1)
    other = np.roll(found, 1, axis=0)
    assert (shifted == truth)[known].mean() < mine - 0.1
    assert (other == truth)[known].mean() < mine - 0.2


def test_the_only_list_that_fits_is_found(world, continuation):
    """A stretch of ten tracks of one playlist in order: the next one has all the mass of a plain next step."""
    lists = continuation.lists
    j = int(lists.first[1]) + 7
    tracks = lists.tracks[lists.offsets[j] : lists.offsets[j + 1]]
    steps = np.array([0] + [NEXT] * 9)
    first = FirstHalf(tracks[:10], steps, np.full(10, lists.kinds[j]), np.zeros(10, dtype=bool), NEXT)
    guess = continuation.predict(first, int(tracks[10]))
    assert guess.tracks.tolist() == tracks[10:20].tolist()
    assert guess.probability[0] == pytest.approx(1.0, abs=1e-6)
    assert (guess.rank, guess.tied) == (0, 1)
    again = continuation.predict(first._replace(after=BACK), int(tracks[8]))
    assert set(again.tracks[:1]) <= {tracks[8], tracks[9]}
    assert again.probability[0] == pytest.approx(0.5, abs=1e-6)


def test_order_tells_two_lists_of_the_same_tracks_apart(world):
    first_order, other_order = np.arange(20), np.array([0, 2, 1, *range(3, 20)])
    lists = Lists(
        np.array([20, 20]), np.concatenate([first_order, other_order]), np.array([1, 1]), np.array([1.0, 1.0])
    )
    oracle = ContinuationOracle(world, lists)
    contexts, ordered = np.array([1, 1]), np.array([False, False])
    guess = oracle.predict(FirstHalf(np.array([0, 1]), np.array([START, NEXT]), contexts, ordered, NEXT), 2)
    assert (guess.tracks[0], guess.probability[0]) == (2, pytest.approx(1.0))
    guess = oracle.predict(FirstHalf(np.array([1, 0]), np.array([START, BACK]), contexts, ordered, NEXT), 1)
    assert (guess.tracks[0], guess.probability[0]) == (1, pytest.approx(1.0))
    # A jump keeps the list but not the place: both lists are as likely as before.
    guess = oracle.predict(FirstHalf(np.array([0, 5]), np.array([START, JUMP]), contexts, ordered, NEXT), 6)
    assert (guess.tracks[0], guess.probability[0]) == (6, pytest.approx(1.0))
    distribution = dense(oracle, FirstHalf(np.array([5, 0]), np.array([START, JUMP]), contexts, ordered, NEXT))
    assert distribution[0, [1, 2]] == pytest.approx([0.5, 0.5])


def test_lists_whose_cursor_could_come_round_are_refused(world):
    """Of 18 tracks, a shuffled list could play again what the first half played: nine steps and ten more."""
    sizes, kinds, weights = np.array([20, 18]), np.array([1, 1]), np.ones(2)
    with pytest.raises(ValueError, match="a list has 18 tracks; all must have 20 or more"):
        ContinuationOracle(world, Lists(sizes, np.arange(38), kinds, weights))
    ContinuationOracle(world, Lists(sizes + np.array([0, 2]), np.arange(40), kinds, weights))


def test_shuffle_button_at_fresh_contexts_by_hand(continuation):
    p = TRANSITIONS[SWITCH]
    on = continuation.fallback(NEXT, True, -1)
    assert (on.ordered[0], on.shuffled[0]) == (pytest.approx(np.zeros(N_STEPS)), 0)  # a plain next comes first
    assert on.ordered[1, :2].tolist() == pytest.approx([p * SHUFFLE_ON_TO_OFF, 0])
    assert on.shuffled[1] == pytest.approx(p * (1 - SHUFFLE_ON_TO_OFF))
    off = continuation.fallback(NEXT, False, -1)
    assert off.ordered[1, :2].tolist() == pytest.approx([p * (1 - SHUFFLE_OFF_TO_ON), 0])
    assert off.shuffled[1] == pytest.approx(p * SHUFFLE_OFF_TO_ON)
    # One step later: no second switch, or a second one that flips the button again.
    stayed = (1 - p) * off.ordered[1, 0]
    is_off = (1 - p) + off.ordered[1, 0]  # before the step
    again = p * (is_off * (1 - SHUFFLE_OFF_TO_ON) + off.shuffled[1] * SHUFFLE_ON_TO_OFF)
    assert off.ordered[2, :3].tolist() == pytest.approx([again, stayed, 0])


def test_lists_fit_the_padding(world):
    assert world.lists(0).sizes.max() <= MAX_LIST
