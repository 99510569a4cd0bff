"""The baselines on sessions small enough to be worked out by hand, and against dense references."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import log, sqrt
from pathlib import Path

import numpy as np
import pytest
from conftest import N_IDS as DATASET_IDS
from conftest import make_dataset

import train_baselines
from model import baselines_seq as seq
from model import baselines_skip as skip
from model import next_track
from utils.core.errors import UserError
from utils.data import schema
from utils.data.dataloaders import SessionLoader
from utils.data.dataset import Dataset
from utils.data.options import DataConfig
from utils.data.vocab import N_SPECIAL, PAD, UNK
from utils.training.options import RunConfig

A, B, C, D, E = range(N_SPECIAL, N_SPECIAL + 5)
N_IDS = E + 1


def flat(sessions: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Tracks and offsets of sessions."""
    offsets = np.cumsum([0, *map(len, sessions)])
    return np.array([track for session in sessions for track in session], np.int32), offsets


def histories(*rows: list[int], size: int = 4) -> np.ndarray:
    """Histories padded on the left."""
    return np.array([[PAD] * (size - len(row)) + row for row in rows])


def popularity(sessions: list[list[int]]) -> seq.Popularity:
    return seq.Popularity.fit(flat(sessions)[0], n_ids=N_IDS)


def ngram(sessions: list[list[int]], **options: object) -> seq.Ngram:
    options = {"order": 4, "discount": 0.5, "fallback": popularity(sessions)} | options
    return seq.Ngram.fit(*flat(sessions), **options)


def dense(model: next_track.NextTrack, history: np.ndarray) -> np.ndarray:
    """The probabilities (N, V) that the sparse scores stand for."""
    scores = next_track.score(model, history)
    return scores.found.toarray() + scores.rest[:, None] * model.popularity


def random_sessions(n: int = 60, *, n_ids: int = N_IDS, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    tracks = np.array([UNK, *range(N_SPECIAL, n_ids)])
    return [rng.choice(tracks, rng.integers(1, 8)).tolist() for _ in range(n)]


def all_models(sessions: list[list[int]], n_ids: int = N_IDS) -> dict[str, next_track.NextTrack]:
    tracks, offsets = flat(sessions)
    most_played = seq.Popularity.fit(tracks, n_ids=n_ids)
    knn = seq.ItemKNN.fit(tracks, offsets, n_ids=n_ids, n_neighbours=3, shrinkage=1.0)
    return {
        "popularity": most_played,
        "markov": seq.Ngram.fit(tracks, offsets, order=1, fallback=most_played, discount=0.5),
        "knn": knn,
        "ngram": seq.Ngram.fit(tracks, offsets, order=4, fallback=knn, discount=0.9),
        "pruned": seq.Ngram.fit(tracks, offsets, order=3, fallback=knn, discount=1.0, max_successors=2),
    }


# Popularity


def test_popularity_counts_one_more_than_the_plays_and_leaves_special_ids_out() -> None:
    model = popularity([[A, A, B], [UNK, A, C]])
    np.testing.assert_allclose(model.popularity, [0, 0, 0, 0, 0, 4 / 10, 2 / 10, 2 / 10, 1 / 10, 1 / 10])


def test_popularity_ranks_count_ties_half_and_never_find_unknown_tracks() -> None:
    model = popularity([[A, A, B], [UNK, A, C]])
    ranks = next_track.next_ranks(model, histories(*[[A]] * 7), np.array([A, B, C, D, E, UNK, PAD]))
    np.testing.assert_array_equal(ranks, [0, 1.5, 1.5, 3.5, 3.5, np.inf, np.inf])


# Markov and n-gram

MARKOV_SESSIONS = [[A, B, C], [A, B, D], [A, C], [B]]


def test_markov_probabilities_are_discounted_counts_and_popularity() -> None:
    model = ngram(MARKOV_SESSIONS, order=1)
    # Plays A 3, B 3, C 2, D 1, E 0; after A: B twice, C once; half a count is taken from each of the two.
    left = 2 * 0.5 / 3
    share = np.array([4, 4, 3, 2, 1]) / 14
    expected = np.array([0, 1.5 / 3, 0.5 / 3, 0, 0]) + left * share
    np.testing.assert_allclose(dense(model, histories([A]))[0, N_SPECIAL:], expected)


def test_markov_knows_nothing_across_sessions() -> None:
    model = ngram([[A, B], [C, D]], order=1)
    assert model.counts[0][B].sum() == 0  # B ends its session: C, the next play in the array, does not follow it
    np.testing.assert_allclose(dense(model, histories([B]))[0], model.popularity)


def test_the_longest_known_suffix_speaks_first() -> None:
    model = ngram([[A, B, C], [D, B, E], [D, B, E], [D, B, E]])
    found = next_track.best(next_track.score(model, histories([A, B], [D, B], [B], [C, B])), model.popularity)
    np.testing.assert_array_equal(found, [C, E, E, E])


def test_an_unseen_context_backs_off_to_the_shorter_one() -> None:
    model = ngram([[A, B, C], [D, B, E], [D, B, E]])
    np.testing.assert_array_equal(model.contexts(histories([A, B], [E, B], [E]))[:, 0], [B, B, E])
    np.testing.assert_array_equal(model.contexts(histories([A, B], [E, B], [E]))[:, 1] >= 0, [True, False, False])
    np.testing.assert_allclose(dense(model, histories([E, B]))[0], dense(model, histories([B]))[0])
    # E is never followed by anything: nothing is left but popularity.
    np.testing.assert_allclose(dense(model, histories([E]))[0], model.popularity)


def test_a_long_context_needs_all_of_its_tracks() -> None:
    model = ngram([[A, B, C, D], [E, B, C, A], [E, B, C, A]])
    assert next_track.best(next_track.score(model, histories([A, B, C])), model.popularity) == D
    assert next_track.best(next_track.score(model, histories([B, C])), model.popularity) == A
    # A, then C: known as single plays, but never in this order.
    assert (model.contexts(histories([A, C]))[0] >= 0).tolist() == [True, False, False, False]


def reference_ngram(sessions: list[list[int]], history: list[int], order: int, discount: float, base: np.ndarray):
    """The recursion of the docstring, written down as it stands there."""
    if order == 0:
        return base
    context = tuple(history[-order:]) if len(history) >= order else None
    follows = Counter(
        session[i]
        for session in sessions
        for i in range(order, len(session))
        if context == tuple(session[i - order : i]) and session[i] >= N_SPECIAL
    )
    shorter = reference_ngram(sessions, history, order - 1, discount, base)
    total = sum(follows.values())
    if total == 0:
        return shorter
    seen = np.zeros(len(base))
    for track, count in follows.items():
        seen[track] = max(count - discount**order, 0) / total
    return seen + (1 - seen.sum()) * shorter


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ngram_equals_the_recursion(order: int) -> None:
    sessions, queries = random_sessions(), random_sessions(40, seed=1)
    model = ngram(sessions, order=order, discount=0.7)
    history = histories(*queries, size=8)
    expected = [reference_ngram(sessions, query, order, 0.7, model.popularity) for query in queries]
    np.testing.assert_allclose(dense(model, history), expected, atol=1e-12)


def test_pruned_successors_leave_their_mass_to_shorter_contexts() -> None:
    model = ngram([[A, B], [A, B], [A, C], [A, D]], order=1, max_successors=1)
    expected = np.zeros(N_IDS)
    expected[B] = 1.5 / 4
    np.testing.assert_allclose(dense(model, histories([A]))[0], expected + 2.5 / 4 * model.popularity)


def test_with_discount_equals_a_new_fit() -> None:
    sessions = random_sessions()
    history = histories(*random_sessions(20, seed=1), size=8)
    again = ngram(sessions, discount=0.5).with_discount(0.9)
    np.testing.assert_allclose(dense(again, history), dense(ngram(sessions, discount=0.9), history))


@pytest.mark.parametrize("discount", [0.0, -0.1, 1.5])
def test_discounts_that_leave_nothing_or_too_much_are_refused(discount: float) -> None:
    with pytest.raises(ValueError, match="discount"):
        ngram(MARKOV_SESSIONS, discount=discount)


# Item-kNN


def knn(sessions: list[list[int]], **options: float) -> seq.ItemKNN:
    return seq.ItemKNN.fit(*flat(sessions), n_ids=N_IDS, **{"shrinkage": 0.0} | options)


KNN_SESSIONS = [[A, B, A], [A, C], [B, A], [D], [UNK, C]]


def test_knn_rows_are_cosines_of_sessions_brought_to_one() -> None:
    model = knn(KNN_SESSIONS)
    # Sessions with A 3 (played twice in the first, which counts once), B 2, C 2; A and B 2, A and C 1.
    to_b, to_c = 2 / sqrt(3 * 2), 1 / sqrt(3 * 2)
    row = model.table[[A]].toarray()[0]
    np.testing.assert_allclose(row[[B, C]], [to_b / (to_b + to_c), to_c / (to_b + to_c)])
    assert row.sum() == pytest.approx(1)
    assert model.table[[D]].nnz == 0  # alone in its session
    assert model.table[[UNK]].nnz == model.table[:N_IDS, [UNK]].nnz == 0


def test_knn_shrinkage_weakens_rare_neighbours() -> None:
    row = knn(KNN_SESSIONS, shrinkage=2.0).table[[A]].toarray()[0]
    rare = knn([[A, B]] * 4 + [[A, C]], shrinkage=0.0).table[[A]].toarray()[0]
    shrunk = knn([[A, B]] * 4 + [[A, C]], shrinkage=2.0).table[[A]].toarray()[0]
    np.testing.assert_allclose(row[B] / row[C], 2 / 1 * sqrt((2 + 2) / (2 + 2)))
    np.testing.assert_allclose(rare[B] / rare[C], (4 / sqrt(4)) / (1 / sqrt(1)))
    np.testing.assert_allclose(shrunk[B] / shrunk[C], (4 / sqrt(6)) / (1 / sqrt(3)))


def test_knn_keeps_the_nearest() -> None:
    row = knn(KNN_SESSIONS, n_neighbours=1).table[[A]].toarray()[0]
    np.testing.assert_allclose(row[[A, B, C]], [0, 1, 0])


def test_knn_weights_decay_with_age_and_pass_over_tracks_without_neighbours() -> None:
    model = replace(knn([[A, B], [C, D]]), decay=0.8, repeat=0.25, popularity_share=0.1)
    scores = dense(model, histories([A, C], [C, E, A])) - 0.1 * model.popularity
    old, new = np.array([0.8, 1]) / 1.8
    np.testing.assert_allclose(scores[0, N_SPECIAL:], 0.9 * np.array([old / 4, old * 3 / 4, new / 4, new * 3 / 4, 0]))
    old, new = np.array([0.64, 1]) / 1.64
    np.testing.assert_allclose(scores[1, N_SPECIAL:], 0.9 * np.array([new / 4, new * 3 / 4, old / 4, old * 3 / 4, 0]))


def test_knn_without_known_history_is_popularity() -> None:
    model = knn([[A, B], [C, D]])
    np.testing.assert_allclose(dense(model, histories([E], [UNK], [])), np.tile(model.popularity, (3, 1)))


def test_knn_in_small_chunks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = random_sessions()
    whole = knn(sessions).table.toarray()
    monkeypatch.setattr(seq, "_PRODUCTS_AT_ONCE", 7)
    np.testing.assert_allclose(knn(sessions).table.toarray(), whole)


# What all of them share


@pytest.mark.parametrize("name", ["popularity", "markov", "knn", "ngram", "pruned"])
def test_scores_are_probabilities_over_tracks_and_ranks_equal_dense_ones(name: str) -> None:
    n_ids = 40
    model = all_models(random_sessions(n_ids=n_ids), n_ids)[name]
    history = histories(*random_sessions(200, n_ids=n_ids, seed=1), size=8)
    target = np.random.default_rng(2).integers(N_SPECIAL, n_ids, len(history))
    scores = dense(model, history)
    rows, weights, _ = model.mix(history)
    assert (rows[weights > 0] >= 0).all()  # what is unknown has no weight: row -1 must not be read
    np.testing.assert_allclose(scores.sum(axis=1), 1)
    assert (scores[:, :N_SPECIAL] == 0).all()
    assert (scores[:, N_SPECIAL:] > 0).all()
    own = scores[np.arange(len(target)), target][:, None]
    tracks = scores[:, N_SPECIAL:]
    expected = (tracks > own).sum(1) + ((tracks == own).sum(1) - 1) / 2
    np.testing.assert_array_equal(next_track.next_ranks(model, history, target), expected)
    np.testing.assert_array_equal(next_track.best(next_track.score(model, history), model.popularity), scores.argmax(1))
    np.testing.assert_allclose(
        next_track.probability(next_track.score(model, history), model.popularity, target), own[:, 0]
    )


def test_ties_among_the_found_count_half_and_the_smaller_id_wins() -> None:
    model = ngram([[A, B], [A, C], [D, D, D, D, E]], order=1)
    scores = next_track.score(model, histories([A], [A], [A]))
    np.testing.assert_array_equal(next_track.rank(scores, model.popularity, np.array([B, C, D])), [0.5, 0.5, 2])
    assert next_track.best(scores, model.popularity)[0] == B


def test_unknown_tracks_are_never_predicted_even_where_they_dominate() -> None:
    sessions = [[A, UNK, UNK, UNK, B]] * 9 + [[UNK, UNK]] * 9
    tracks, offsets = flat(sessions)
    for model in (ngram(sessions), seq.ItemKNN.fit(tracks, offsets, n_ids=N_IDS)):
        predicted = next_track.continue_greedily(model, histories([A], [A, UNK], [UNK, UNK], [UNK], []), 6)
        assert (predicted >= N_SPECIAL).all()


def test_greedy_continuation_feeds_on_its_own_predictions() -> None:
    model = ngram([[A, B, C, D, E], [A, B, C, D, E]])
    np.testing.assert_array_equal(next_track.continue_greedily(model, histories([A], [C]), 3), [[B, C, D], [D, E, A]])
    again = next_track.continue_greedily(model, histories([A], [C]), 1)
    np.testing.assert_array_equal(again, [[B], [D]])


def test_teacher_forcing_reads_the_true_targets_before_each() -> None:
    model = ngram(MARKOV_SESSIONS, order=1)
    logs, ranks = next_track.score_targets(model, histories([A]), np.array([[B, D, UNK, PAD]]))
    chance = dense(model, histories([A], [B]))
    np.testing.assert_allclose(logs[0], [log(chance[0, B]), log(chance[1, D]), 0, 0], rtol=1e-6)
    assert ranks == 0


def test_examples_are_independent_of_their_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    model = all_models(random_sessions())["ngram"]
    history = histories(*random_sessions(50, seed=1), size=8)
    targets = np.random.default_rng(2).integers(N_SPECIAL, N_IDS, (50, 3))

    def everything() -> list[np.ndarray]:
        return [next_track.continue_greedily(model, history, 3), *next_track.score_targets(model, history, targets)]

    whole = everything()
    monkeypatch.setattr(next_track, "_EXAMPLES_AT_ONCE", 7)
    for one, other in zip(whole, everything(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_keep_largest() -> None:
    matrix = seq.csr_array(np.array([[3.0, 0, 1, 2], [0, 0, 0, 0], [0, 5, 0, 0]]))
    np.testing.assert_array_equal(seq.keep_largest(matrix, 2).toarray(), [[3, 0, 0, 2], [0] * 4, [0, 5, 0, 0]])


# Skip

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


# The script


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What the script reports of all baselines, label -> result, on a dataset with a rule in its tracks and skips."""
    folder = make_dataset(tmp_path_factory.mktemp("data") / "rule", n_sessions=400)
    config = train_baselines.Config(DataConfig(str(folder)), RunConfig(folder=str(tmp_path_factory.mktemp("runs"))))
    return {result["label"]: result for result in train_baselines.main(config)}


def mean(result: dict, metric: str, split: str = "test") -> float:
    return result["scores"][split]["metrics"][metric]["mean"]


def test_script_scores_every_baseline(results: dict[str, dict]) -> None:
    assert [(label, result["task"], result["kind"]) for label, result in results.items()] == [
        ("Position majority", "skip", "baseline"),
        ("Skip rate of the track", "skip", "baseline"),
        ("Repeat last action", "skip", "baseline"),
        ("Logistic on the history", "skip", "baseline"),
        ("Popularity", "seq", "baseline"),
        ("Markov", "seq", "baseline"),
        ("Item-kNN", "seq", "baseline"),
        ("n-gram with kNN", "seq", "baseline"),
    ]
    for result in results.values():
        assert set(result["scores"]) == {"train", "valid", "test"}


def test_baselines_find_the_rule(results: dict[str, dict]) -> None:
    """Nine in ten odd tracks are skipped and no even one, and each track is followed by the next id."""
    assert mean(results["Skip rate of the track"], "accuracy") == pytest.approx(0.9, abs=0.03)
    assert mean(results["Logistic on the history"], "accuracy") == pytest.approx(0.9, abs=0.03)
    assert mean(results["Position majority"], "accuracy") < 0.65
    assert mean(results["Repeat last action"], "accuracy") < 0.65
    for label in ("Markov", "n-gram with kNN"):
        assert mean(results[label], "maa") == mean(results[label], "hr@1") == 1
        assert mean(results[label], "perplexity") < 1.5
    assert mean(results["Popularity"], "maa") < 0.2
    assert mean(results["Item-kNN"], "hr@10") > 0.5


def test_the_best_setting_on_validation_is_reported(results: dict[str, dict]) -> None:
    trials = results["Item-kNN"]["trials"]
    assert len(trials) == 9
    assert max(trials.values()) == pytest.approx(mean(results["Item-kNN"], "mrr@20", "valid"))
    assert min(trials.values()) < max(trials.values())
    assert list(results["n-gram with kNN"]["trials"]) == [f"discount {d}" for d in (0.5, 0.8, 0.9, 0.95)]


def test_no_target_has_a_way_into_the_predictions(tmp_path: Path) -> None:
    """Other labels, levels and logs in the second halves change no skip prediction, other tracks no continuation."""
    arrays = Dataset.open(make_dataset(tmp_path / "data")).test
    second = np.arange(len(arrays.tracks)) >= np.repeat(arrays.offsets[:-1] + arrays.lengths // 2, arrays.lengths)
    other_skips = np.where(second, schema.SKIP_1 - arrays.skips, arrays.skips).astype(np.uint8)
    other_labels = replace(arrays, skips=other_skips, log=np.where(second[:, None], 0, arrays.log))
    other_tracks = replace(arrays, tracks=np.where(second, A, arrays.tracks))
    original, changed_labels, changed_tracks = (
        SessionLoader(part, batch_size=5) for part in (arrays, other_labels, other_tracks)
    )
    assert (original.targets().skips != changed_labels.targets().skips).any()
    given, labels = skip.SkipInputs.of(original), original.targets().skips
    rate = skip.TrackRate.fit(arrays.tracks, arrays.skips, n_ids=DATASET_IDS)
    for model in (
        skip.PositionMajority.fit(given, labels),
        skip.RepeatLast.fit(given, labels),
        rate,
        skip.HistoryLogistic.fit(given, labels, track_rate=rate),
    ):
        for before, after in zip(
            model.predict(skip.SkipInputs.of(original)), model.predict(skip.SkipInputs.of(changed_labels)), strict=True
        ):
            np.testing.assert_array_equal(before, after)
    for model in all_models([arrays.tracks.tolist()], DATASET_IDS).values():
        np.testing.assert_array_equal(
            next_track.predict(model, *next_track.examples(original))[0],
            next_track.predict(model, *next_track.examples(changed_tracks))[0],
        )


def test_a_dataset_without_skips_gets_the_seq_baselines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_dataset(tmp_path / "plays", has_skips=False, min_length=2)
    data = DataConfig(str(folder), min_length=4, every_prefix=True)
    config = train_baselines.Config(data, RunConfig(folder=str(tmp_path / "runs")))
    results = train_baselines.main(config)
    assert {result["task"] for result in results} == {"seq"}
    assert "has no skips: only the seq baselines run" in capsys.readouterr().out
    assert results[1]["scores"]["test_prefixes"]["metrics"]["hr@1"]["mean"] > 0.5
    with pytest.raises(UserError, match="skips"):
        train_baselines.main(replace(config, task="skip"))


def test_max_sessions_takes_the_last_sessions(tmp_path: Path) -> None:
    dataset = Dataset.open(make_dataset(tmp_path / "data"))
    config = train_baselines.Config(DataConfig(str(dataset.folder)), max_sessions=3)
    fits = {each.id: each.fit for each in train_baselines.seq_baselines(config, dataset)}
    model, _ = fits["popularity"]()
    last = dataset.train.tracks[dataset.train.offsets[-4] :]
    expected = np.bincount(last, minlength=dataset.n_ids)[N_SPECIAL:] + 1
    np.testing.assert_allclose(model.popularity[N_SPECIAL:], expected / expected.sum())
    markov, _ = fits["markov"]()
    assert markov.counts.sum() == len(last) - 3  # each play but the last of a session is followed by another
