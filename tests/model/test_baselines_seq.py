"""The seq baselines by hand, and against dense references."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
from small_sessions import (
    MARKOV_SESSIONS,
    N_IDS,
    A,
    B,
    C,
    D,
    E,
    dense,
    histories,
    knn,
    ngram,
    popularity,
    random_sessions,
)

from model import baselines_seq as seq
from model import next_track
from utils.data.vocab import N_SPECIAL, PAD, UNK


# Popularity
def test_popularity_counts_one_more_than_the_plays_and_leaves_special_ids_out() -> None:
    model = popularity([[A, A, B], [UNK, A, C]])
    np.testing.assert_allclose(model.popularity, [0, 0, 0, 0, 0, 4 / 10, 2 / 10, 2 / 10, 1 / 10, 1 / 10])


def test_popularity_ranks_are_in_the_middle_of_ties_and_never_find_unknown_tracks() -> None:
    model = popularity([[A, A, B], [UNK, A, C]])
    ranks = next_track.next_ranks(model, histories(*[[A]] * 7), np.array([A, B, C, D, E, UNK, PAD]))
    np.testing.assert_array_equal(ranks.rank, [0, 1.5, 1.5, 3.5, 3.5, np.inf, np.inf])
    np.testing.assert_array_equal(ranks.tied, [1, 2, 2, 2, 2, 1, 1])


# Markov and n-gram
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


def test_keep_largest() -> None:
    matrix = seq.csr_array(np.array([[3.0, 0, 1, 2], [0, 0, 0, 0], [0, 5, 0, 0]]))
    np.testing.assert_array_equal(seq.keep_largest(matrix, 2).toarray(), [[3, 0, 0, 2], [0] * 4, [0, 5, 0, 0]])
