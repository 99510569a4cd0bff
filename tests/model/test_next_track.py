"""Ranks, choices and continuations of sparse scores, against dense references."""

from __future__ import annotations

from math import log
from types import SimpleNamespace

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
    all_models,
    dense,
    flat,
    histories,
    ngram,
    popularity,
    random_sessions,
)

from model import baselines_seq as seq
from model import next_track
from utils.data.vocab import N_SPECIAL, PAD, UNK
from utils.evaluation.metrics import reciprocal_rank


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
    tied = (tracks == own).sum(1)
    ranks = next_track.next_ranks(model, history, target)
    np.testing.assert_array_equal(ranks.rank, (tracks > own).sum(1) + (tied - 1) / 2)
    np.testing.assert_array_equal(ranks.tied, tied)
    np.testing.assert_array_equal(next_track.best(next_track.score(model, history), model.popularity), scores.argmax(1))
    np.testing.assert_allclose(
        next_track.probability(next_track.score(model, history), model.popularity, target), own[:, 0]
    )


def test_ties_among_the_found_share_their_places_and_the_smaller_id_wins() -> None:
    model = ngram([[A, B], [A, C], [D, D, D, D, E]], order=1)
    scores = next_track.score(model, histories([A], [A], [A]))
    ranks = next_track.rank(scores, model.popularity, np.array([B, C, D]))
    np.testing.assert_array_equal(ranks.rank, [0.5, 0.5, 2])
    np.testing.assert_array_equal(ranks.tied, [2, 2, 1])
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
    assert ranks == ([0], [1])


def test_predictions_are_four_arrays_of_which_ties_are_the_last() -> None:
    model, history = popularity([[A, A, B], [UNK, A, C]]), histories([A], [A], [A])
    tracks, logs, rank, tied = next_track.predict(model, history, np.array([[A, B], [C, UNK], [UNK, D]]))
    np.testing.assert_array_equal(tracks, [[A, A]] * 3)
    np.testing.assert_allclose(np.exp(logs), [[0.4, 0.2], [0.2, 1], [1, 0.1]], rtol=1e-6)
    np.testing.assert_array_equal(rank, [0, 1.5, np.inf])
    np.testing.assert_array_equal(tied, [1, 2, 1])
    assert rank.dtype == tied.dtype == np.float32


def test_the_setting_with_the_best_quality_is_chosen() -> None:
    """By hand: one setting ties all five tracks, the other knows that B follows A."""
    uniform = popularity([])

    class Choice:
        def settings(self):
            markov = ngram([[A, B]] * 3, order=1, fallback=uniform)
            return [("uniform", uniform), ("markov", markov), ("again", uniform)]

    batch = SimpleNamespace(history=SimpleNamespace(tracks=histories([A], [A])), target_tracks=np.array([[B], [B]]))
    seen = []

    def quality(ranks: next_track.Ranks) -> np.ndarray:
        seen.append((ranks.rank.tolist(), ranks.tied.tolist()))
        return reciprocal_rank(ranks.rank, 20, ranks.tied)

    chosen, trials = next_track.choose([batch], Choice(), quality)
    assert seen == [([2, 2], [5, 5]), ([0, 0], [1, 1]), ([2, 2], [5, 5])]
    by_chance = (1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 5
    assert trials == pytest.approx({"uniform": by_chance, "markov": 1.0, "again": by_chance})
    assert isinstance(chosen, seq.Ngram)


def test_examples_are_independent_of_their_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    model = all_models(random_sessions())["ngram"]
    history = histories(*random_sessions(50, seed=1), size=8)
    targets = np.random.default_rng(2).integers(N_SPECIAL, N_IDS, (50, 3))

    def everything() -> list[np.ndarray]:
        logs, ranks = next_track.score_targets(model, history, targets)
        return [next_track.continue_greedily(model, history, 3), logs, *ranks]

    whole = everything()
    monkeypatch.setattr(next_track, "_EXAMPLES_AT_ONCE", 7)
    for one, other in zip(whole, everything(), strict=True):
        np.testing.assert_array_equal(one, other)
