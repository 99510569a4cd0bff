"""Metrics against worked examples, closed forms and other implementations."""

import math
from collections import Counter
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from sklearn.metrics import roc_auc_score
from torchmetrics.functional.retrieval import retrieval_normalized_dcg, retrieval_reciprocal_rank

from utils.evaluation import metrics


def aa(*correct):
    """AA of one session in which every target counts."""
    row = np.array([correct], bool)
    return metrics.average_accuracy(row, np.ones_like(row))[0]


ALL = np.ones((1, 5), bool)
TRUTH = np.array([[1, 0, 0, 1, 0]])
SESSION_A, SESSION_B = np.array([[1, 0, 1, 1, 0]]), np.array([[0, 0, 1, 1, 0]])


def test_worked_example():
    both = np.concatenate([SESSION_A == TRUTH, SESSION_B == TRUTH])
    known = np.ones_like(both)
    values = metrics.average_accuracy(both, known)
    # A: (1 + 1 + 0 + 3/4 + 4/5) / 5, B: (0 + 1/2 + 0 + 2/4 + 3/5) / 5
    np.testing.assert_allclose(values, [0.71, 0.32], rtol=1e-12)
    assert values.mean() == pytest.approx(0.515)
    np.testing.assert_array_equal(metrics.first_known(both, known), [1, 0])
    assert both.mean(1).tolist() == [0.8, 0.6]


@pytest.mark.parametrize(
    ("size", "cost"),
    [
        (5, [1 - 0.543, 1 - 0.643, 1 - 0.710, 1 - 0.760, 1 - 0.800]),
        (10, [0.2929, 0.2429, 0.2096, 0.1846, 0.1646, 0.1479, 0.1336, 0.1211, 0.1100, 0.1000]),
    ],
)
def test_cost_of_one_error(size, cost):
    correct = ~np.eye(size, dtype=bool)
    values = metrics.average_accuracy(correct, np.ones_like(correct))
    np.testing.assert_allclose(1 - values, cost, atol=5.1e-4 if size == 5 else 5.1e-5)
    exact = [float((1 + sum(Fraction(1, n) for n in range(i + 1, size + 1))) / size) for i in range(1, size + 1)]
    np.testing.assert_allclose(1 - values, exact, rtol=1e-12)


def test_perfect_and_all_wrong():
    assert aa(*[1] * 10) == 1
    assert aa(*[0] * 10) == 0


@pytest.mark.parametrize(("p", "expected"), [(0.5, 0.3232), (0.5524, 0.3776)])
def test_independent_correctness(p, expected):
    size, rng = 10, np.random.default_rng(0)
    correct = rng.random((100_000, size)) < p
    harmonic = sum(1 / i for i in range(1, size + 1))
    closed_form = p**2 + p * (1 - p) * harmonic / size
    assert closed_form == pytest.approx(expected, abs=5e-5)
    measured = metrics.average_accuracy(correct, np.ones_like(correct)).mean()
    assert measured == pytest.approx(closed_form, abs=0.003)


def test_uniform_guess_of_a_track():
    p, harmonic = 1 / 103_000, sum(1 / i for i in range(1, 11))
    assert p**2 + p * (1 - p) * harmonic / 10 == pytest.approx(2.84e-6, rel=2e-3)


def test_unknown_targets_do_not_count():
    correct = np.array([[1, 1, 0, 1, 0], [1, 0, 1, 1, 0], [1, 1, 1, 1, 1]], bool)
    known = np.array([[0, 1, 1, 0, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]], bool)
    # Row 0 is the session 1 0 0: (1 + 0 + 0) / 3. Row 1 is 1 0 1: (1 + 0 + 2/3) / 3. Row 2 has no target.
    np.testing.assert_allclose(metrics.average_accuracy(correct, known), [1 / 3, 5 / 9, np.nan])
    np.testing.assert_array_equal(metrics.first_known(correct, known), [1, 1, np.nan])
    np.testing.assert_array_equal(metrics.first_known(~correct, known), [0, 0, np.nan])
    by_position = metrics.accuracy_by_position(correct, known)
    np.testing.assert_allclose(by_position, [1, 1 / 2, 1 / 2, np.nan, 0])
    # Of the two sessions with targets one has 1 right, the other 2.
    np.testing.assert_array_equal(metrics.number_correct_histogram(correct, known), [0, 0.5, 0.5, 0, 0, 0])


def test_wrong_shapes_are_rejected():
    with pytest.raises(ValueError, match=r"\(1, 5\) and known \(1, 4\)"):
        metrics.average_accuracy(np.ones((1, 5), bool), np.ones((1, 4), bool))
    with pytest.raises(ValueError, match="same shape"):
        metrics.average_accuracy(np.ones(5, bool), np.ones(5, bool))


correctness = array_shapes(min_dims=2, max_dims=2, max_side=12).flatmap(
    lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape))
)


@given(correctness)
def test_average_accuracy_is_in_range(both):
    values = metrics.average_accuracy(*both)
    defined = both[1].any(1)
    assert np.isnan(values[~defined]).all()
    assert ((values[defined] >= 0) & (values[defined] <= 1)).all()


@given(correctness)
def test_average_accuracy_equals_its_definition(both):
    for correct, known, value in zip(*both, metrics.average_accuracy(*both), strict=True):
        right = [bool(c) for c, k in zip(correct, known, strict=True) if k]
        expected = sum(Fraction(sum(right[: i + 1]), i + 1) for i in range(len(right)) if right[i])
        if right:
            assert value == pytest.approx(float(expected / len(right)), abs=1e-12)


@given(st.lists(st.booleans(), min_size=1, max_size=12).flatmap(lambda x: st.tuples(st.just(x), st.integers(0, 99))))
def test_a_correction_always_pays(case):
    correct, place = case
    place %= len(correct)
    if not correct[place]:
        corrected = [*correct[:place], True, *correct[place + 1 :]]
        assert aa(*corrected) > aa(*correct)


@given(st.integers(2, 20).flatmap(lambda size: st.tuples(st.just(size), st.integers(1, size - 1))))
def test_an_earlier_error_costs_more(case):
    size, place = case
    later = [i != place for i in range(size)]
    earlier = [i != place - 1 for i in range(size)]
    assert aa(*earlier) < aa(*later)


def test_log_loss():
    probability, labels = np.array([[0.25, 0.25], [0.0, 1.0]], np.float32), np.array([[1, 0], [1, 1]])
    np.testing.assert_allclose(
        metrics.binary_log_loss(probability, labels),
        [[math.log(4), math.log(4 / 3)], [-math.log(1e-7), -math.log(1 - 1e-7)]],
        rtol=1e-6,
    )
    # facts: the entropy of the seed's skip rate, which its paper halves
    p = 0.5524
    always = metrics.binary_log_loss(np.full(2, p), np.array([1, 0]))
    assert p * always[0] + (1 - p) * always[1] == pytest.approx(0.6876, abs=5e-5)


@pytest.mark.parametrize("at_once", [3, 2**20])
def test_auc_is_scikit_learns(at_once, monkeypatch):
    monkeypatch.setattr(metrics, "SORTED_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    labels = rng.random(200) < 0.3
    for levels in (3, 20, 10**6):  # mostly ties, some, none
        p = (rng.integers(0, levels, 200) / levels + 0.2 * labels).astype(np.float32)
        assert metrics.auc(p, labels) == pytest.approx(roc_auc_score(labels, p), abs=1e-12)
        assert metrics.auc(p, ~labels) == pytest.approx(1 - metrics.auc(p, labels), abs=1e-12)
    assert math.isnan(metrics.auc(p[labels], labels[labels]))


def test_ranking_metrics_by_hand():
    """The last but one shares the first two places with another track; the others have no ties."""
    rank, tied = np.array([0.0, 1.0, 9.0, 10.0, 0.5, np.inf]), np.array([1.0, 1.0, 1.0, 1.0, 2.0, 1.0])
    np.testing.assert_array_equal(metrics.hit_rate(rank, 10, tied), [1, 1, 1, 0, 1, 0])
    np.testing.assert_array_equal(metrics.hit_rate(rank, 1, tied), [1, 0, 0, 0, 1 / 2, 0])
    np.testing.assert_allclose(
        metrics.ndcg(rank, 10, tied), [1, 1 / math.log2(3), 1 / math.log2(11), 0, (1 + 1 / math.log2(3)) / 2, 0]
    )
    np.testing.assert_allclose(metrics.reciprocal_rank(rank, 10, tied), [1, 1 / 2, 1 / 10, 0, 3 / 4, 0])


GAINS = {
    metrics.hit_rate: lambda place: 1.0,
    metrics.ndcg: lambda place: 1 / math.log2(place + 2),
    metrics.reciprocal_rank: lambda place: 1 / (place + 1),
}
"""Of places from 0, inside the first k."""


def test_ties_by_hand():
    np.testing.assert_array_equal(metrics.hit_rate(np.array([0.5]), 1, np.array([2.0])), [1 / 2])
    np.testing.assert_allclose(metrics.reciprocal_rank(np.array([0.5]), 20, np.array([2.0])), [3 / 4])
    # Places 8 to 11: two of four are among the first ten, one among the first nine, none among the first eight.
    rank, tied = np.array([9.5]), np.array([4.0])
    assert [metrics.hit_rate(rank, k, tied)[0] for k in (8, 9, 10, 11, 12, 20)] == [0, 1 / 4, 1 / 2, 3 / 4, 1, 1]
    np.testing.assert_allclose(metrics.reciprocal_rank(rank, 10, tied), [(1 / 9 + 1 / 10) / 4])
    np.testing.assert_allclose(metrics.ndcg(rank, 10, tied), [(1 / math.log2(10) + 1 / math.log2(11)) / 4])


@pytest.mark.parametrize("n_tracks", [1, 2, 7, 20, 1001, 3_700_000])
def test_a_model_that_likes_all_tracks_alike_is_as_good_as_chance(n_tracks):
    rank, tied = np.full((2, 3), (n_tracks - 1) / 2, np.float32), np.full((2, 3), n_tracks, np.float32)
    for k in (1, 10, 20):
        places = range(min(k, n_tracks))
        for metric, gain in GAINS.items():
            expected = math.fsum(map(gain, places)) / n_tracks
            np.testing.assert_allclose(metric(rank, k, tied), np.full((2, 3), expected), rtol=1e-9)


@pytest.mark.parametrize("n_tied", [1, 2, 3, 5])
def test_ties_are_the_mean_over_all_orders(n_tied):
    """The true track is number 0 of the tied ones; better tracks stand before them."""
    orders = list(permutations(range(n_tied)))
    for n_better in range(6):
        places = [n_better + order.index(0) for order in orders]
        rank, tied = np.array([n_better + (n_tied - 1) / 2]), np.array([float(n_tied)])
        for metric, gain in GAINS.items():
            for k in (1, 2, 4, 7, 20):
                expected = math.fsum(gain(place) for place in places if place < k) / len(orders)
                assert metric(rank, k, tied)[0] == pytest.approx(expected, abs=1e-12)
                if metric is metrics.hit_rate:
                    assert expected == pytest.approx(min(max((k - n_better) / n_tied, 0), 1))


@pytest.mark.parametrize("metric", GAINS)
def test_without_ties_the_gain_is_that_of_the_rank(metric):
    rank = np.append(np.arange(40.0), np.inf).reshape(1, -1)
    for k in (1, 10, 20):
        expected = [[GAINS[metric](place) if place < k else 0 for place in rank[0]]]
        for tied in ((), (1.0,), (np.ones_like(rank),)):
            np.testing.assert_allclose(metric(rank, k, *tied), expected, atol=1e-12)
        assert 0 <= metric(np.array([k - 0.5]), k)[0] <= 1  # a half rank, even if its ties are left out


@pytest.mark.parametrize("k", [1, 5, 20])
def test_ranking_metrics_beside_torchmetrics(k):
    scores = torch.rand(50, 30, generator=torch.Generator().manual_seed(1))  # torchmetrics wants positive scores
    target = torch.arange(50) % 30
    rank = (scores > scores.gather(1, target[:, None])).sum(1).numpy()
    relevant = torch.nn.functional.one_hot(target, 30).bool()
    ndcg = [float(retrieval_normalized_dcg(s, r, top_k=k)) for s, r in zip(scores, relevant, strict=True)]
    mrr = [float(retrieval_reciprocal_rank(s, r, top_k=k)) for s, r in zip(scores, relevant, strict=True)]
    np.testing.assert_allclose(metrics.ndcg(rank, k), ndcg, rtol=1e-5)
    np.testing.assert_allclose(metrics.reciprocal_rank(rank, k), mrr, rtol=1e-5)


def test_overlap_counts_multisets():
    predicted = np.array([[7, 7, 8, 9], [7, 7, 7, 7], [8, 7, 5, 6], [5, 6, 7, 8], [5, 5, 5, 5]])
    tracks = np.array([[7, 8, 7, 5], [7, 8, 9, 5], [7, 8, 0, 0], [8, 7, 6, 5], [0, 0, 0, 0]])
    known = tracks > 0
    # 7, 7 and 8 of four; one 7 of four; both of two (what is predicted after the end does not count); all; no target.
    np.testing.assert_array_equal(metrics.set_overlap(predicted, tracks, known), [3 / 4, 1 / 4, 1, 1, np.nan])


@given(st.lists(st.tuples(st.integers(5, 8), st.integers(5, 8)), min_size=1, max_size=8))
def test_overlap_equals_counter_intersection(pairs):
    predicted, tracks = (np.array([side]) for side in zip(*pairs, strict=True))
    shared = (Counter(predicted[0].tolist()) & Counter(tracks[0].tolist())).total()
    assert metrics.set_overlap(predicted, tracks, np.ones_like(tracks, bool))[0] == pytest.approx(shared / len(pairs))


def test_repetition_and_coverage():
    predicted = np.array([[5, 6, 5, 5], [5, 6, 6, 6], [9, 9, 9, 9]])
    known = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
    np.testing.assert_array_equal(metrics.repetition(predicted, known), [2 / 4, 0, np.nan])
    assert metrics.coverage(predicted, known, 10) == 2 / 10


def test_bootstrap_interval_of_a_mean_is_the_normal_one():
    rng = np.random.default_rng(3)
    values = rng.random((2000, 1))
    mean, low, high = metrics.bootstrap_intervals(values, np.ones_like(values), n_resamples=4000)
    half_width = 1.96 * values.std() / math.sqrt(2000)
    assert mean[0] == pytest.approx(values.mean())
    assert (mean - low)[0] == pytest.approx(half_width, rel=0.06)
    assert (high - mean)[0] == pytest.approx(half_width, rel=0.06)


def test_bootstrap_of_ratios_weights_sessions_by_their_size():
    numerators, denominators = np.array([[2.0, 0.0], [0.0, 0.0]]), np.array([[2.0, 0.0], [6.0, 0.0]])
    mean, low, high = metrics.bootstrap_intervals(numerators, denominators)
    assert mean[0] == 2 / 8
    assert (low[0], high[0]) == (0, 1)  # a quarter of the resamples hold only the one or only the other session
    assert np.isnan([mean[1], low[1], high[1]]).all()


def test_resamples_without_a_weight_do_not_count():
    """Of 300 sessions one has a weight: a third of the resamples miss it, all others find its value."""
    numerators, denominators = np.zeros((2, 300, 2))
    numerators[7, 0], denominators[7, 0] = 3.0, 4.0
    assert [value.tolist() for value in metrics.bootstrap_intervals(numerators[:, :1], denominators[:, :1])] == [
        *([0.75], [0.75], [0.75])
    ]
    both = metrics.bootstrap_intervals(numerators, denominators)  # and beside a metric that has none at all
    np.testing.assert_array_equal(both, [[0.75, np.nan]] * 3)
    nothing = metrics.bootstrap_intervals(numerators[:, 1:], denominators[:, 1:])
    np.testing.assert_array_equal(nothing, [[np.nan]] * 3)


def test_a_metric_without_a_weight_in_any_resample_has_no_interval():
    """Two resamples of 300 sessions, drawn as the function draws them; the session with a weight is in neither."""
    rng = np.random.default_rng(0)
    missed = np.setdiff1d(np.arange(300), np.concatenate([rng.integers(0, 300, 300) for _ in range(2)]))
    numerators, denominators = np.zeros((300, 1)), np.zeros((300, 1))
    numerators[missed[0]], denominators[missed[0]] = 1.0, 2.0
    mean, low, high = metrics.bootstrap_intervals(numerators, denominators, n_resamples=2)
    assert mean[0] == 0.5
    assert np.isnan([low[0], high[0]]).all()


def test_bootstrap_of_groups_is_that_of_sessions(monkeypatch: pytest.MonkeyPatch):
    """Sessions in order, the good ones first: groups of neighbours would give a far wider interval."""
    monkeypatch.setattr(metrics, "BOOTSTRAP_GROUPS", 1500)
    rng = np.random.default_rng(3)
    denominators = rng.integers(1, 10, (20_001, 1)).astype(np.float64)  # the last group has one session more
    numerators = np.sort(rng.random((20_001, 1)), axis=0) * denominators
    mean, low, high = metrics.bootstrap_intervals(numerators, denominators, n_resamples=4000)
    ratio = numerators.sum() / denominators.sum()
    half_width = 1.96 * (numerators - ratio * denominators).std() / denominators.mean() / math.sqrt(20_001)
    assert mean[0] == pytest.approx(ratio)
    assert (mean - low)[0] == pytest.approx(half_width, rel=0.08)
    assert (high - mean)[0] == pytest.approx(half_width, rel=0.08)


def test_bootstrap_is_reproducible_and_narrows():
    values = np.random.default_rng(0).random((400, 1))
    ones = np.ones_like(values)
    first, again = (metrics.bootstrap_intervals(values, ones, seed=5) for _ in range(2))
    assert [x[0] for x in first] == [x[0] for x in again]
    _, low, high = metrics.bootstrap_intervals(values, ones, level=0.5, seed=5)
    assert first[1] < low < high < first[2]
