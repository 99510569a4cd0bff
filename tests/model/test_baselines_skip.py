"""The skip baselines by hand."""

from __future__ import annotations

import numpy as np
from small_sessions import N_IDS, A, B, C, D, E

from model import baselines_skip as skip
from utils.data import schema
from utils.data.vocab import N_SPECIAL, PAD

PLAYED, SKIPPED, BRIEF = 1 + schema.SKIP_PLAYED, 1 + schema.SKIP_2, 1 + schema.SKIP_1


def inputs(skips: list[list[int]], targets: list[list[int]], tracks: list[list[int]] | None = None) -> skip.SkipInputs:
    """Inputs of histories of A unless `tracks` says otherwise."""
    states = np.array(skips)
    history = np.where(states == 0, PAD, A) if tracks is None else np.array(tracks)
    return skip.SkipInputs(history, states, np.array(targets))


def test_signed_and_last_states() -> None:
    states = np.array([[0, PLAYED, SKIPPED], [BRIEF, 1 + schema.SKIP_3_ONLY, 0], [0, 0, 0], [BRIEF, 0, 0]])
    np.testing.assert_array_equal(skip.signed_skips(states), [[0, -1, 1], [1, -1, 0], [0, 0, 0], [1, 0, 0]])
    np.testing.assert_array_equal(skip.last_known(states), [1, -1, 0, 1])
    no_flag = np.array([[1 + schema.SKIP_NO_FLAG]])  # known, and not skipped
    assert skip.last_known(no_flag) == -1


def test_position_majority_by_number_of_targets() -> None:
    examples = inputs([[PLAYED]] * 4, [[A, B], [A, B], [C, PAD], [C, PAD]])
    labels = np.array([[1, 0], [1, -1], [0, -1], [0, -1]])
    model = skip.PositionMajority.fit(examples, labels)
    prior = skip.PRIOR * 2 / 5  # two of five labels are skips
    total = skip.PRIOR
    np.testing.assert_allclose(model.rates[2], [(2 + prior) / (2 + total), (0 + prior) / (1 + total)])
    np.testing.assert_allclose(model.rates[1, 0], (0 + prior) / (2 + total))
    many = skip.PositionMajority.fit(skip.SkipInputs(*(np.repeat(x, 50, 0) for x in examples)), labels.repeat(50, 0))
    _, decision = many.predict(inputs([[SKIPPED]] * 2, [[D, D], [D, PAD]]))
    np.testing.assert_array_equal(decision[0], [True, False])
    assert not decision[1, 0]


def test_repeat_last_decides_the_last_state_whatever_the_rates_say() -> None:
    states = [[PLAYED, SKIPPED], [SKIPPED, PLAYED], [BRIEF, 0], [0, 0]]
    examples = inputs(states, [[A, A]] * 4)
    labels = np.array([[1, 0], [0, 1], [1, 0], [1, 0]])
    model = skip.RepeatLast.fit(examples, labels)
    half, total = skip.PRIOR / 2, skip.PRIOR
    probability, decision = model.predict(examples)
    np.testing.assert_array_equal(decision, [[1, 1], [0, 0], [1, 1], [1, 0]])
    after_skip = [(2 + half) / (2 + total), half / (2 + total)]
    after_play = [half / (1 + total), (1 + half) / (1 + total)]
    after_nothing = [(1 + half) / (1 + total), half / (1 + total)]
    np.testing.assert_allclose(probability, [after_skip, after_play, after_skip, after_nothing])


def test_track_rate_is_shrunk_and_can_leave_its_own_play_out() -> None:
    tracks = np.array([A, A, A, B, C])
    skips = np.array([schema.SKIP_1, schema.SKIP_2, schema.SKIP_PLAYED, schema.SKIP_NO_FLAG, schema.SKIP_UNKNOWN])
    model = skip.TrackRate.fit(tracks, skips, n_ids=N_IDS)
    prior, total = skip.PRIOR * 2 / 4, skip.PRIOR
    expected = [(2 + prior) / (3 + total), prior / (1 + total), prior / total, prior / total]
    np.testing.assert_allclose(model.rates(np.array([A, B, C, D])), expected)
    own = model.rates(np.array([A, A, A]), np.array([1, -1, 0]))
    np.testing.assert_allclose(own, [(1 + prior) / (2 + total), (2 + prior) / (2 + total), (2 + prior) / (3 + total)])
    probability, decision = model.predict(inputs([[PLAYED]], [[A, B]]))
    np.testing.assert_allclose(probability[0], expected[:2])
    np.testing.assert_array_equal(decision[0], np.array(expected[:2]) >= 0.5)


def listeners(n: int, seed: int) -> tuple[skip.SkipInputs, np.ndarray, np.ndarray]:
    """Sessions in which a listener skips D always, and other tracks as in the last play of the history."""
    rng = np.random.default_rng(seed)
    skipper = rng.integers(0, 2, n)
    states = np.where(skipper[:, None] == 1, SKIPPED, PLAYED) * np.ones((n, 3), int)
    targets = rng.integers(A, E, (n, 2))
    labels = np.where(targets == D, 1, skipper[:, None])
    return skip.SkipInputs(rng.integers(A, D, (n, 3)), states, targets), labels, skipper


def fit_logistic(examples: skip.SkipInputs, labels: np.ndarray, **options: int) -> skip.HistoryLogistic:
    codes = np.where(labels.ravel() == 1, schema.SKIP_2, schema.SKIP_PLAYED)
    tracks = np.concatenate([examples.history_tracks.ravel(), examples.target_tracks.ravel()])
    rate = skip.TrackRate.fit(tracks, np.concatenate([examples.history_skips.ravel() - 1, codes]), n_ids=N_IDS)
    return skip.HistoryLogistic.fit(examples, labels, track_rate=rate, **options)


def test_logistic_learns_from_the_history_and_from_the_track() -> None:
    examples, labels, _ = listeners(2000, seed=0)
    model = fit_logistic(examples, labels)
    fresh, truth, _ = listeners(500, seed=1)
    probability, decision = model.predict(fresh)
    assert probability.shape == (500, 2)
    assert (decision == truth).mean() > 0.97
    capped = fit_logistic(examples, labels, max_sessions=300)
    assert (capped.predict(fresh)[1] == truth).mean() > 0.9
    assert not np.array_equal(capped.predict(fresh)[0], probability)


def test_logistic_does_not_take_a_rare_tracks_own_label_for_knowledge() -> None:
    """Every target track is played once: its rate in training is its own label, unless it is left out."""
    rng = np.random.default_rng(0)
    n = 3000
    tracks = N_SPECIAL + np.arange(2 * n)
    labels = rng.integers(0, 2, n)[:, None]
    states = np.where(rng.integers(0, 2, (n, 1)), SKIPPED, PLAYED)
    examples = skip.SkipInputs(tracks[:n, None], states, tracks[n:, None])
    codes = np.where(labels == 1, schema.SKIP_2, schema.SKIP_PLAYED)
    flat_codes = np.concatenate([examples.history_skips - 1, codes]).ravel()
    rate = skip.TrackRate.fit(tracks, flat_codes, n_ids=N_SPECIAL + 2 * n)
    model = skip.HistoryLogistic.fit(examples, labels, track_rate=rate)
    probability, _ = model.predict(examples)
    # With its label in the rate, a prediction would follow the label closely.
    assert abs(probability[labels == 1].mean() - probability[labels == 0].mean()) < 0.1


def test_features_leave_the_sessions_own_plays_out() -> None:
    """They equal those under counts in which the session's plays belong to a track that it does not have."""
    example = skip.SkipInputs(np.array([[A, B]]), np.array([[SKIPPED, PLAYED]]), np.array([[C, D]]))
    own = np.array([[1, -1]])
    skips, plays = np.array([0.0] * N_SPECIAL + [3, 2, 4, 1, 5]), np.array([0.0] * N_SPECIAL + [6, 5, 7, 4, 9])
    elsewhere_skips, elsewhere_plays = skips.copy(), plays.copy()
    elsewhere_skips[[A, C]] -= 1
    elsewhere_plays[[A, B, C, D]] -= 1
    elsewhere_skips[E] += 2
    elsewhere_plays[E] += 4
    expected = skip._features(example, skip.TrackRate(elsewhere_skips, elsewhere_plays))
    np.testing.assert_allclose(skip._features(example, skip.TrackRate(skips, plays), own), expected, rtol=1e-6)
    assert not np.allclose(skip._features(example, skip.TrackRate(skips, plays)), expected)


def test_logistic_knows_a_track_that_was_skipped_before() -> None:
    """Each track of the history fares the second time as it did the first, whatever the others did."""
    rng = np.random.default_rng(0)
    states = np.where(rng.integers(0, 2, (1000, 4)), SKIPPED, PLAYED)
    target = rng.integers(0, 4, (1000, 1))
    labels = np.take_along_axis(states, target, axis=1) == SKIPPED
    examples = skip.SkipInputs(np.tile([A, B, C, D], (1000, 1)), states, A + target)
    _, decision = fit_logistic(examples, labels.astype(int)).predict(examples)
    assert (decision == labels).mean() > 0.99
