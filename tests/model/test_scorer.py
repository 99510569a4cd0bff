"""The scorer of candidates: what it says is a distribution over all tracks, and it can learn."""

from __future__ import annotations

from math import exp, log

import numpy as np
import pytest
import torch
from model_checks import gradient_norms, shapes
from numpy.testing import assert_allclose, assert_array_equal
from small_sessions import FIVE, N_IDS, A, B, C, D, E, flat, histories, random_sessions

from model import next_track
from model.candidates import FEATURES, OF_HISTORY, CandidateFinder, Candidates
from model.memory import Memory
from model.scorer import (
    CLIP,
    CandidateScorer,
    MemoryModel,
    candidate_loss,
    joined,
    next_scores,
    places_of,
    popularity,
    take,
)
from utils.data.vocab import N_SPECIAL, PAD, UNK

F, G = len(FEATURES), len(OF_HISTORY)
IDS = N_SPECIAL + 30


def make(n_features: int = F, *, n_members: int = 2, d_hidden: int = 8, dropout: float = 0.1) -> CandidateScorer:
    torch.manual_seed(3)
    return CandidateScorer(n_features=n_features, n_members=n_members, d_hidden=d_hidden, dropout=dropout)


@pytest.fixture(scope="module")
def memory() -> Memory:
    return Memory.build(*flat(random_sessions(80, n_ids=IDS, seed=2)), n_ids=IDS)


@pytest.fixture(scope="module")
def cases(memory: Memory) -> Candidates:
    """Candidates of random histories; of the last three, nothing is known of two."""
    asked = [*random_sessions(60, n_ids=IDS, seed=3), [], [UNK], [N_SPECIAL]]
    return CandidateFinder(memory)(histories(*asked, size=8))


@pytest.fixture
def scorer(cases: Candidates) -> CandidateScorer:
    made = make()
    made.standardise(cases)
    return made.eval()


def linear(weights: list[float], elsewhere: float) -> CandidateScorer:
    """Scores w . z, and the same for "elsewhere" everywhere."""
    made = make(len(weights), n_members=1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
        made.members[0].linear.weight.copy_(torch.tensor([weights]))
        made.members[0].elsewhere[2].bias.fill_(elsewhere)
    return made.eval()


def by_hand(ids: list[list[int]], features: list[list[float]]) -> Candidates:
    """Candidates with one feature each."""
    starts = np.cumsum([0, *map(len, ids)])
    values = np.array([value for row in features for value in row], np.float16)[:, None]
    return Candidates(
        np.array([track for row in ids for track in row], np.int32), starts, values, np.zeros((len(ids), G), np.float32)
    )


HAND = by_hand([[A, C], [], [B, C, D]], [[1, 2], [], [0, 3, -1]])


def dense(scores: next_track.NextScores, share: np.ndarray) -> np.ndarray:
    return scores.found.toarray() + scores.rest[:, None] * share


# Probabilities


def test_probabilities_by_hand() -> None:
    log_p = linear([2.0], 0.5)(HAND)
    assert log_p.shape == (1, 3, 4)
    first = exp(0.5) + exp(2) + exp(4)
    third = exp(0.5) + exp(0) + exp(6) + exp(-2)
    assert_allclose(
        log_p[0].exp().detach(),
        [
            [exp(0.5) / first, exp(2) / first, exp(4) / first, 0],
            [1, 0, 0, 0],
            [exp(0.5) / third, 1 / third, exp(6) / third, exp(-2) / third],
        ],
        atol=1e-6,
    )


def test_probabilities_of_all_tracks_sum_to_one(scorer: CandidateScorer, cases: Candidates, memory: Memory) -> None:
    share = popularity(memory)
    scores = next_scores(scorer, cases, IDS)
    p = dense(scores, share)
    assert_allclose(p.sum(axis=1), 1, atol=1e-6)
    assert (p[:, :N_SPECIAL] == 0).all()
    assert (p[:, N_SPECIAL:] > 0).all()
    assert_allclose(p[60:62], [share, share], atol=1e-7)  # nothing is known of these


def test_popularity_counts_one_more_than_the_plays() -> None:
    share = popularity(Memory.build(*flat(FIVE), n_ids=N_IDS))
    assert_allclose(share, [0] * N_SPECIAL + [5 / 18, 5 / 18, 4 / 18, 3 / 18, 1 / 18])


def test_ranks_and_best_are_those_of_the_whole_catalogue(scorer, cases, memory) -> None:
    share = popularity(memory)
    scores = next_scores(scorer, cases, IDS)
    p = dense(scores, share)
    targets = np.random.default_rng(0).integers(N_SPECIAL, IDS, len(p))
    own = p[np.arange(len(p)), targets]
    assert_allclose(next_track.probability(scores, share, targets), own, rtol=1e-6)
    ranks = next_track.rank(scores, share, targets)
    higher, equal = (p > own[:, None]).sum(axis=1), (p[:, N_SPECIAL:] == own[:, None]).sum(axis=1)
    assert_allclose(ranks.rank, higher + (equal - 1) / 2)
    chosen = next_track.best(scores, share)
    assert_allclose(p[np.arange(len(p)), chosen], p.max(axis=1), rtol=1e-7)
    assert len(set(chosen.tolist())) > 5


def test_elsewhere_is_never_impossible() -> None:
    """The rest stays above 0, so that tracks which were not found have a rank."""
    share = np.array([0.0] * N_SPECIAL + [0.4, 0.1, 0.2, 0.2, 0.1])
    scores = next_scores(linear([2.0], -300.0), HAND, N_IDS)
    assert (scores.rest > 0).all()
    ranks = next_track.rank(scores, share, np.array([E, E, A]))
    assert ranks.rank.tolist() == [3.5, 3.5, 3]  # E and B are tied, and three tracks are higher


def test_members_are_averaged(scorer: CandidateScorer, cases: Candidates) -> None:
    both = scorer(cases).exp()
    assert not torch.allclose(both[0], both[1])
    p = next_scores(scorer, cases, IDS)
    assert_allclose(p.rest, both[:, :, 0].mean(0).detach(), rtol=1e-6)
    first = cases.starts[3] - cases.starts[0]
    assert_allclose(p.found.data[first], both[:, 3, 1].mean(0).detach(), rtol=1e-6)


def test_the_model_scores_histories(scorer: CandidateScorer, memory: Memory) -> None:
    finder = CandidateFinder(memory)
    model = MemoryModel.of(finder, scorer.train())
    assert not scorer.training
    history = histories(*random_sessions(10, n_ids=IDS, seed=5), size=8)
    expected = next_scores(scorer, finder(history), IDS)
    found = model.score(history)
    assert_array_equal(found.found.toarray(), expected.found.toarray())
    assert_array_equal(found.rest, expected.rest)
    continued = next_track.continue_greedily(model, history, 3)
    assert continued.min() >= N_SPECIAL
    assert_array_equal(continued[:, 0], next_track.best(found, model.popularity))


# The loss


def test_loss_by_hand() -> None:
    first = exp(0.5) + exp(2) + exp(4)
    third = exp(0.5) + exp(0) + exp(6) + exp(-2)
    loss, count = candidate_loss(linear([2.0], 0.5), HAND, np.array([C, E, A]))
    assert count == 3
    assert loss.item() == pytest.approx(log(first / exp(4)) + 0 + log(third / exp(0.5)), rel=1e-5)


def test_loss_is_the_mean_of_the_members(scorer: CandidateScorer, cases: Candidates) -> None:
    targets = np.random.default_rng(1).integers(N_SPECIAL, IDS, len(cases.starts) - 1)
    log_p, places = scorer(cases), torch.from_numpy(places_of(cases, targets))
    expected = -torch.stack([each[torch.arange(len(places)), places].sum() for each in log_p]).mean()
    assert (places > 0).any()
    assert (places == 0).any()
    torch.testing.assert_close(candidate_loss(scorer, cases, targets)[0], expected)


def test_a_target_outside_the_vocabulary_costs_nothing(scorer: CandidateScorer, cases: Candidates) -> None:
    targets = np.full(len(cases.starts) - 1, A)
    whole, n = candidate_loss(scorer, cases, targets)
    rows = np.arange(5, len(targets))
    rest, fewer = candidate_loss(scorer, take(cases, rows), targets[rows])
    targets[:4], targets[4] = UNK, PAD
    loss, count = candidate_loss(scorer, cases, targets)
    assert (n, count, fewer) == (63, 58, 58)
    torch.testing.assert_close(loss, rest)
    assert loss < whole


def test_places_are_counted_from_one() -> None:
    assert places_of(HAND, np.array([C, A, D])).tolist() == [2, 0, 3]
    assert places_of(HAND, np.array([B, A, UNK])).tolist() == [0, 0, 0]


# Sizes, gradients, batches


def test_every_size_changes_a_shape() -> None:
    base = shapes(make())
    for options in ({"n_members": 3}, {"d_hidden": 12}):
        assert shapes(make(**options)) != base
    assert shapes(make(F + 3)) != base
    assert make(dropout=0.3).members[0].rest[1].p == 0.3


def test_every_parameter_gets_a_gradient(scorer: CandidateScorer, cases: Candidates) -> None:
    targets = np.random.default_rng(1).integers(N_SPECIAL, IDS, len(cases.starts) - 1)
    norms = gradient_norms(scorer.train(), candidate_loss(scorer, cases, targets)[0])
    assert len(norms) == 2 * 11
    assert [name for name, norm in norms.items() if norm == 0] == []


def test_the_same_output_twice_and_for_any_batch(scorer: CandidateScorer, cases: Candidates) -> None:
    whole = next_scores(scorer, cases, IDS)
    again = next_scores(scorer, cases, IDS)
    assert_array_equal(whole.found.toarray(), again.found.toarray())
    for size in (1, 7):
        parts = [next_scores(scorer, take(cases, np.arange(i, min(i + size, 63))), IDS) for i in range(0, 63, size)]
        assert_allclose(np.concatenate([p.found.toarray() for p in parts]), whole.found.toarray(), atol=1e-6)
        assert_allclose(np.concatenate([p.rest for p in parts]), whole.rest, atol=1e-6)
    scorer.train()
    assert not torch.equal(scorer(cases), scorer(cases)), "dropout"


def test_every_feature_and_number_of_the_history_enters(scorer: CandidateScorer, cases: Candidates) -> None:
    before = scorer(cases)
    for column in range(F):
        features = cases.features.copy()
        features[:, column] = np.roll(features[:, column], 1)
        if (features != cases.features).any() and scorer.scale[column] > 0:
            assert not torch.equal(scorer(cases._replace(features=features)), before), FEATURES[column]
    for column in range(G):
        about = cases.histories.copy()
        about[:, column] = np.roll(about[:, column], 1)
        assert not torch.equal(scorer(cases._replace(histories=about)), before), OF_HISTORY[column]


def test_standardise_by_hand() -> None:
    scorer = make(1)
    scorer.standardise(HAND)
    values = np.array([1, 2, 0, 3, -1.0])
    assert scorer.mean[0].item() == pytest.approx(1)
    assert scorer.scale[0].item() == pytest.approx(1 / values.std())
    assert_array_equal(scorer.scale[1:], 0)  # constant ones become 0
    # A value far away counts as one at the edge.
    far, edge = (by_hand([[A, C]], [[value, 0]]) for value in (1000.0, 1 + CLIP * values.std()))
    torch.testing.assert_close(scorer.eval()(far), scorer(edge), rtol=1e-3, atol=1e-3)


def test_take_and_joined(cases: Candidates) -> None:
    rows = np.array([7, 3, 3, 61, 0])
    some = take(cases, rows)
    assert_array_equal(np.diff(some.starts), np.diff(cases.starts)[rows])
    assert_array_equal(some.ids[: some.starts[1]], cases.ids[cases.starts[7] : cases.starts[8]])
    assert_array_equal(some.features[some.starts[1] : some.starts[2]], some.features[some.starts[2] : some.starts[3]])
    assert_array_equal(some.histories, cases.histories[rows])
    parts = joined([take(cases, np.arange(9)), take(cases, np.arange(9, 63))])
    for part, whole in zip(parts, cases, strict=True):
        assert_array_equal(part, whole)


def test_it_learns_64_cases_by_heart() -> None:
    """Random features, random answers, an eighth of them elsewhere."""
    rng = np.random.default_rng(0)
    n = 64
    ids = np.concatenate([np.sort(rng.choice(np.arange(N_SPECIAL, IDS), 8, replace=False)) for _ in range(n)])
    cases = Candidates(
        ids.astype(np.int32),
        np.arange(0, 8 * n + 1, 8),
        rng.standard_normal((8 * n, F)).astype(np.float16),
        rng.standard_normal((n, G)).astype(np.float32),
    )
    targets = ids.reshape(n, 8)[np.arange(n), rng.integers(0, 8, n)]
    targets[::8] = IDS  # none of the candidates
    scorer = make(d_hidden=64, dropout=0.0)
    scorer.standardise(cases)
    optimizer = torch.optim.Adam(scorer.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss, count = candidate_loss(scorer, cases, targets)
        (loss / count).backward()
        optimizer.step()
    assert loss.item() / count < 0.05
    p = scorer.eval()(cases).exp().mean(0)
    assert (p.argmax(1).numpy() == places_of(cases, targets)).all()
