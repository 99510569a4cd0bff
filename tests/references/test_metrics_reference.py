"""Metrics beside plain loops, plain sorts, scikit-learn and torchmetrics, on hundreds of ragged random cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import exp, log2
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.functional.retrieval import (
    retrieval_hit_rate,
    retrieval_normalized_dcg,
    retrieval_reciprocal_rank,
)

from utils.data.dataloaders import Targets
from utils.data.vocab import N_SPECIAL, PAD, UNK
from utils.evaluation import metrics
from utils.evaluation.predict import judge
from utils.evaluation.predictions import MaskedPredictions, SeqPredictions, SkipPredictions
from utils.evaluation.scores import evaluate_masked, evaluate_seq, evaluate_skip

N_TRACKS = 25
N_IDS = N_SPECIAL + N_TRACKS


def ragged(n: int, t: int, seed: int) -> tuple[np.random.Generator, np.ndarray]:
    """A generator, and the places (n, t) before the end of each example; some examples have no target."""
    rng = np.random.default_rng(seed)
    return rng, np.arange(t) < rng.integers(0, t + 1, n)[:, None]


def plain_average_accuracy(right: list[bool]) -> float:
    """The challenge's AA = 1/T sum_i A(i) L(i), where A(i) is the accuracy of the first i answers."""
    total = 0.0
    for i in range(1, len(right) + 1):
        accuracy = sum(right[:i]) / i
        total += accuracy * int(right[i - 1])
    return total / len(right)


def places_of(scores: list[float], own: float) -> list[int]:
    """All places of a score in the sorted list, from 0: those that a track with it takes in one order or another."""
    return [place for place, score in enumerate(sorted(scores, reverse=True)) if score == own]


def plain_rank(scores: list[float], own: float) -> float:
    """Place of a score in the sorted list, from 0; in the middle of all equal ones."""
    places = places_of(scores, own)
    return (places[0] + places[-1]) / 2


def mean_gain(gain: Callable[[int], float], k: int, places: list[int]) -> float:
    """The gain of a place among the first k, in the mean over all the places that a track may take."""
    return sum(gain(place) for place in places if place < k) / max(len(places), 1)


def expected_rankings(places: list[list[int]]) -> dict[str, float]:
    """The metrics of ranks: each true track with the places that it may take, none for a track that has no rank."""
    gains = {"hr": lambda place: 1.0, "ndcg": lambda place: 1 / log2(place + 2), "mrr": lambda place: 1 / (place + 1)}
    names = [("hr", 1), ("hr", 10), ("hr", 20), ("ndcg", 10), ("ndcg", 20), ("mrr", 20)]
    return {f"{name}@{k}": sum(mean_gain(gains[name], k, each) for each in places) / len(places) for name, k in names}


# Skips


@pytest.mark.parametrize("seed", range(4))
def test_skip_metrics(seed: int) -> None:
    """Unknown labels stand anywhere, and a session may give several examples: each has its weight."""
    rng, inside = ragged(150, 10, seed)
    labels = np.where(inside & (rng.random(inside.shape) < 0.8), rng.integers(0, 2, inside.shape), -1).astype(np.int8)
    probability = rng.choice([0.0, 0.1, 0.3, 0.5, 0.5, 0.8, 1.0], inside.shape).astype(np.float32)  # with many ties
    decision = rng.random(inside.shape) < 0.5
    targets = Targets(np.where(inside, N_SPECIAL, PAD).astype(np.int32), labels, rng.integers(0, 60, 150))
    found = evaluate_skip(SkipPredictions(probability, decision), targets)

    right = [
        [bool(d) == bool(y) for d, y in zip(decisions, row, strict=True) if y >= 0]
        for decisions, row in zip(decision, labels, strict=True)
    ]
    right = [answers for answers in right if answers]
    flat = [answer for answers in right for answer in answers]
    known = labels >= 0
    clipped = probability[known].astype(np.float64).clip(1e-7, 1 - 1e-7)
    by_torchmetrics = binary_auroc(torch.from_numpy(probability[known]), torch.from_numpy(labels[known].astype(int)))
    assert 0 < sum(not known_row.any() for known_row in known) < 40
    assert found.means() == pytest.approx(
        {
            "maa": sum(map(plain_average_accuracy, right)) / len(right),
            "first_accuracy": sum(answers[0] for answers in right) / len(right),
            "accuracy": sum(flat) / len(flat),
            "log_loss": log_loss(labels[known], clipped),
            "auc": roc_auc_score(labels[known], probability[known]),
        },
        rel=1e-9,
    )
    assert found.means()["auc"] == pytest.approx(float(by_torchmetrics), abs=1e-5)
    for place in range(10):
        column = [d == bool(y) for d, y in zip(decision[:, place], labels[:, place], strict=True) if y >= 0]
        assert found.by_position[place] == pytest.approx(sum(column) / len(column))
    counts = Counter(map(sum, right))
    assert found.histogram == pytest.approx([counts[n] / len(right) for n in range(11)])


@pytest.mark.parametrize("seed", range(3))
def test_average_accuracy_of_each_session(seed: int) -> None:
    rng, inside = ragged(200, 1 + 6 * seed, seed)
    correct, known = rng.random(inside.shape) < 0.6, inside & (rng.random(inside.shape) < 0.7)
    values = metrics.average_accuracy(correct, known)
    for value, row, counts in zip(values, correct, known, strict=True):
        right = [bool(answer) for answer, known_one in zip(row, counts, strict=True) if known_one]
        assert np.isnan(value) if not right else value == pytest.approx(plain_average_accuracy(right), abs=1e-12)


# Tracks


def random_continuations(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Targets, predicted tracks, sessions, scores (N, T, tracks) with ties, and which targets are tracks."""
    rng, inside = ragged(120, 8, seed)
    tracks = rng.integers(N_SPECIAL, N_IDS, inside.shape)
    tracks[rng.random(inside.shape) < 0.15] = UNK
    tracks[~inside] = PAD
    guess = np.where(rng.random(inside.shape) < 0.3, tracks, rng.integers(N_SPECIAL, N_SPECIAL + 6, inside.shape))
    scores = rng.integers(-3, 4, (*inside.shape, N_TRACKS)).astype(float)
    return tracks, guess, rng.integers(0, 50, len(tracks)), scores, tracks >= N_SPECIAL


@pytest.mark.parametrize("seed", range(4))
def test_seq_metrics(seed: int) -> None:
    tracks, guess, session, scores, inside = random_continuations(seed)
    n, t = tracks.shape
    log_probability, rank, tied = np.zeros((n, t)), np.full(n, np.inf), np.ones(n)
    places: list[list[int]] = [[] for _ in range(n)]
    for i in range(n):
        for k in range(t):
            if inside[i, k]:
                own = scores[i, k, tracks[i, k] - N_SPECIAL]
                log_probability[i, k] = own - np.log(sum(exp(score) for score in scores[i, k]))
                if k == 0:
                    rank[i], places[i] = plain_rank(list(scores[i, 0]), own), places_of(list(scores[i, 0]), own)
                    tied[i] = len(places[i])
    assert tied.max() > 3
    predictions = SeqPredictions(
        guess.astype(np.int32),
        log_probability.astype(np.float32),
        rank.astype(np.float32),
        tied.astype(np.float32),
    )
    targets = Targets(tracks.astype(np.int32), np.full((n, t), -1, np.int8), session)
    found = evaluate_seq(predictions, targets, n_ids=N_IDS).means()

    truth = [[int(x) for x in row if x != PAD] for row in tracks]
    said = [[int(x) for x in row[: len(true)]] for row, true in zip(guess, truth, strict=True)]
    both = [(g, y) for g, y in zip(said, truth, strict=True) if y]
    # A prediction of the unknown track is none: it is neither right nor in the catalogue.
    right = [[a == b and b >= N_SPECIAL for a, b in zip(g, y, strict=True)] for g, y in both]
    flat = [answer for answers in right for answer in answers]
    shared = [
        sum(min(count, y.count(track)) for track, count in Counter(g).items() if track >= N_SPECIAL) / len(y)
        for g, y in both
    ]
    expected = {
        "maa": sum(map(plain_average_accuracy, right)) / len(right),
        "first_accuracy": sum(answers[0] for answers in right) / len(right),
        "accuracy": sum(flat) / len(flat),
        "overlap": sum(shared) / len(shared),
        # All predictions that are no tracks are the same one here, so a second one counts as a repetition, too.
        "repetition": sum(sum(track in g[:i] for i, track in enumerate(g)) / len(g) for g, _ in both) / len(both),
        "coverage": len({track for g, _ in both for track in g if track >= N_SPECIAL}) / N_TRACKS,
        "perplexity": exp(-log_probability[inside].mean()),
        **expected_rankings([mine for mine, y in zip(places, truth, strict=True) if y]),
    }
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("k", [1, 5, 10, 20])
def test_ranking_metrics_are_torchmetrics(k: int) -> None:
    """One relevant track in each of 200 random lists, without ties."""
    generator = torch.Generator().manual_seed(k)
    for _ in range(200):
        scores = torch.rand(30, generator=generator)
        own = int(torch.randint(30, (), generator=generator))
        rank = np.array([plain_rank(scores.tolist(), float(scores[own]))])
        relevant = torch.arange(30) == own
        for ours, theirs in (
            (metrics.hit_rate(rank, k), retrieval_hit_rate(scores, relevant, top_k=k)),
            (metrics.ndcg(rank, k), retrieval_normalized_dcg(scores, relevant, top_k=k)),
            (metrics.reciprocal_rank(rank, k), retrieval_reciprocal_rank(scores, relevant, top_k=k)),
        ):
            assert ours[0] == pytest.approx(float(theirs), abs=1e-6)


def test_masked_metrics() -> None:
    rng, inside = ragged(100, 12, 7)
    hidden = inside & (rng.random(inside.shape) < 0.4)
    tracks = np.where(hidden, N_SPECIAL, PAD).astype(np.int32)
    better, tied = rng.choice([0, 3, 8, 9, 10, 18, 20, 300], inside.shape), rng.choice([1, 1, 2, 3, 25], inside.shape)
    rank = (better + (tied - 1) / 2).astype(np.float32)
    log_p = -rng.random(inside.shape).astype(np.float32)
    targets = Targets(tracks, np.full(tracks.shape, -1, np.int8), np.arange(100))
    found = evaluate_masked(MaskedPredictions(tracks, log_p, rank, tied.astype(np.float32)), targets).means()
    places = [list(range(better[i], better[i] + tied[i])) for i in np.ndindex(*hidden.shape) if hidden[i]]
    expected = {name: value for name, value in expected_rankings(places).items() if not name.startswith("ndcg")}
    expected["perplexity"] = exp(-float(log_p[hidden].astype(np.float64).mean()))
    assert found == pytest.approx(expected, rel=1e-6)


# Ranks and log-probabilities of states


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("n_tracks", [1, 7, 300])
def test_judge_is_a_dense_softmax_and_a_sort(whole: bool, n_tracks: int) -> None:
    """Whole numbers have many ties; the special ids have the largest scores of all, which must not count."""
    generator = torch.Generator().manual_seed(n_tracks)
    n_ids = N_SPECIAL + n_tracks
    draw = (lambda *shape: torch.randint(-2, 3, shape, generator=generator).float()) if whole else None
    draw = draw or (lambda *shape: torch.randn(*shape, generator=generator))
    head = SimpleNamespace(weight=draw(n_ids, 4), bias=draw(n_ids))
    head.bias[:N_SPECIAL] = 100
    states = draw(9, 6, 4)
    targets = torch.randint(N_SPECIAL, n_ids, (9, 6), generator=generator)
    targets[0, 2:], targets[3, 1], targets[4] = PAD, UNK, PAD
    log_p, rank, tied = judge(SimpleNamespace(head=head), states, targets)

    scores = (states.double() @ head.weight.double().T + head.bias.double())[..., N_SPECIAL:]
    dense = scores.log_softmax(-1)
    for place in np.ndindex(9, 6):
        target = int(targets[place])
        if target < N_SPECIAL:
            assert (log_p[place], rank[place], tied[place]) == (0, float("inf"), 1)
            continue
        assert float(log_p[place]) == pytest.approx(float(dense[place][target - N_SPECIAL]), abs=1e-5)
        of_place = scores[place].tolist()
        assert float(rank[place]) == plain_rank(of_place, of_place[target - N_SPECIAL])
        assert float(tied[place]) == len(places_of(of_place, of_place[target - N_SPECIAL]))
