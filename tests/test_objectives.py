"""Losses by hand, and beside torch's."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from conftest import N_IDS, random_batch
from torch.nn.functional import cross_entropy

from model import SeqTransformer, TrackHead
from utils import metrics
from utils.objectives import TrackSoftmax, maa_weights, seq_loss, skip_loss
from utils.vocab import N_SPECIAL, PAD, UNK

V, D = 11, 4


def test_maa_weights_are_what_a_mistake_costs():
    costs = [0.2929, 0.2429, 0.2096, 0.1846, 0.1646, 0.1479, 0.1336, 0.1211, 0.1100, 0.1000]
    weights = maa_weights(torch.ones(1, 10, dtype=torch.bool))[0]
    np.testing.assert_allclose(weights, np.array(costs) / np.mean(costs), rtol=5e-4)


def test_maa_weights_of_any_mask_follow_the_metric():
    known = torch.rand(40, 9, generator=torch.Generator().manual_seed(0)) < 0.6
    known[0] = False
    weights = maa_weights(known)
    assert (weights[~known] == 0).all()
    torch.testing.assert_close(weights.sum(1), known.sum(1).float())
    for row in range(1, 40):
        places = torch.nonzero(known[row])[:, 0]
        correct = known[row].expand(len(places), -1).clone()
        correct[torch.arange(len(places)), places] = False  # one mistake at each place
        cost = 1 - metrics.average_accuracy(correct.numpy(), known[row].expand(len(places), -1).numpy())
        np.testing.assert_allclose(weights[row, places], cost / cost.mean(), rtol=1e-5)


def skip_batch(labels):
    batch = random_batch(n=len(labels), t=len(labels[0]))
    return batch._replace(target_skips=torch.tensor(labels))


def test_skip_loss_by_hand():
    batch = skip_batch([[1, 0, -1], [-1, -1, -1], [0, 1, 1]])
    logits = torch.tensor([[0.0, math.log(3), 9.0], [9.0, 9.0, 9.0], [math.log(3), math.log(3), -math.log(3)]])
    loss, count = skip_loss(lambda history, tracks: logits, batch)
    # The probabilities are 1/2, 3/4 | 3/4, 3/4, 1/4.
    by_hand = [math.log(2), math.log(4), math.log(4), math.log(4 / 3), math.log(4)]
    assert count == 5
    assert loss.item() == pytest.approx(sum(by_hand), rel=1e-6)
    weighted, count = skip_loss(lambda history, tracks: logits, batch, weighting="maa")
    # T = 2: costs 3/2 : 1; T = 3: costs 11/6 : 4/3 : 1; each with mean 1.
    weights = [2 * 1.5 / 2.5, 2 * 1 / 2.5, *(3 * cost / (11 / 6 + 4 / 3 + 1) for cost in (11 / 6, 4 / 3, 1))]
    assert count == 5
    assert weighted.item() == pytest.approx(sum(w * x for w, x in zip(weights, by_hand, strict=True)), rel=1e-6)


def test_skip_loss_gives_the_model_no_labels():
    batch = random_batch()
    seen = []
    skip_loss(lambda *arguments: seen.append(arguments) or torch.zeros(6, 10), batch)
    assert len(seen) == 1
    assert seen[0][0] is batch.history
    assert seen[0][1] is batch.target_tracks
    assert len(seen[0]) == 2


@pytest.fixture
def scored():
    """States, a head and targets over V ids."""
    torch.manual_seed(0)
    head = TrackHead(V, D)
    torch.nn.init.normal_(head.bias)
    return torch.randn(200, D, requires_grad=True), head, torch.randint(N_SPECIAL, V, (200,))


def plays():
    return torch.tensor([0] * N_SPECIAL + [64, 32, 16, 0, 4, 1])


def gradients(loss, states, head):
    return torch.autograd.grad(loss, [states, head.weight, head.bias])


def test_full_softmax_is_cross_entropy_over_tracks(scored):
    states, head, targets = scored
    ours = TrackSoftmax(plays(), n_negatives=0)(states, head, targets)
    reference = cross_entropy(head(states), targets, reduction="sum")
    torch.testing.assert_close(ours, reference)
    for ours_grad, reference_grad in zip(
        gradients(ours, states, head), gradients(reference, states, head), strict=True
    ):
        torch.testing.assert_close(ours_grad, reference_grad)
    assert (ours_grad[:N_SPECIAL] == 0).all(), "special ids get no gradient"


@pytest.mark.parametrize("k", [1, 2])
def test_sampled_partition_function_is_unbiased(scored, k, monkeypatch):
    """The exact expectation over all draws: each k-tuple of negatives, weighted by its probability."""
    states, head, targets = (x[:3] if isinstance(x, torch.Tensor) else x for x in scored)
    softmax = TrackSoftmax(plays(), n_negatives=k, power=0.75)
    q = plays().double().clamp(min=1) ** 0.75
    q[:N_SPECIAL] = 0
    q = (q / q.sum()).tolist()
    for state, target in zip(states, targets, strict=True):
        expected = 0.0
        for negatives in product(range(N_SPECIAL, V), repeat=k):
            monkeypatch.setattr(softmax, "draw", lambda negatives=negatives: torch.tensor(negatives))
            loss = softmax(state[None], head, target[None]).item()
            expected += math.prod(q[j] for j in negatives) * math.exp(loss)
        full = TrackSoftmax(plays(), n_negatives=0)(state[None], head, target[None]).item()
        assert expected == pytest.approx(math.exp(full), rel=1e-4)


def test_a_negative_that_is_the_target_is_hidden(scored, monkeypatch):
    states, head, targets = scored
    softmax = TrackSoftmax(plays(), n_negatives=3)
    monkeypatch.setattr(softmax, "draw", lambda: targets[:1].repeat(3))
    assert softmax(states[:1], head, targets[:1]).item() == pytest.approx(0, abs=1e-6)


def test_sampled_softmax_sums_over_targets(scored):
    states, head, targets = scored
    softmax = TrackSoftmax(plays(), n_negatives=50)
    torch.manual_seed(4)
    whole = softmax(states, head, targets)
    parts = []
    for part in (slice(0, 77), slice(77, None)):
        torch.manual_seed(4)
        parts.append(softmax(states[part], head, targets[part]))
    torch.testing.assert_close(whole, sum(parts))
    assert all(torch.isfinite(grad).all() for grad in gradients(whole, states, head))


@pytest.mark.parametrize(
    ("power", "weights"), [(1.0, [64, 32, 16, 1, 4, 1]), (0.5, [8, 32**0.5, 4, 1, 2, 1]), (0, [1] * 6)]
)
def test_negatives_follow_flattened_popularity(power, weights):
    torch.manual_seed(1)
    drawn = TrackSoftmax(plays(), n_negatives=60_000, power=power).draw()
    share = torch.bincount(drawn, minlength=V) / 60_000
    assert (share[:N_SPECIAL] == 0).all()
    np.testing.assert_allclose(share[N_SPECIAL:], np.array(weights) / sum(weights), atol=0.007)


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2**-53])
def test_extreme_draws_are_tracks(monkeypatch, uniform):
    softmax = TrackSoftmax(plays(), n_negatives=2)
    monkeypatch.setattr(torch, "rand", lambda n, dtype: torch.full((n,), uniform, dtype=dtype))
    assert softmax.draw().tolist() == [N_SPECIAL if uniform == 0 else V - 1] * 2


def test_seq_loss_counts_known_tracks_only():
    batch = random_batch()
    batch.target_tracks[0, 3] = UNK
    features = torch.zeros(N_IDS, 0)
    model = SeqTransformer(N_IDS, features, d_model=8, n_heads=2, n_layers=1, d_ff=8, dropout=0.0).eval()
    loss, count = seq_loss(model, batch, TrackSoftmax(torch.ones(N_IDS).long(), n_negatives=0))
    targets = batch.target_tracks
    logits = model.logits(model(batch.history, model.previous_tracks(batch.history, targets)))
    labels = targets.masked_fill((targets == UNK) | (targets == PAD), -100)
    assert count == (labels >= 0).sum() < targets.numel()
    torch.testing.assert_close(loss, cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"))


@pytest.mark.parametrize("n_negatives", [0, 7])
def test_a_batch_without_any_target_costs_nothing(n_negatives):
    batch = random_batch()
    batch = batch._replace(
        target_tracks=torch.full_like(batch.target_tracks, UNK), target_skips=torch.full_like(batch.target_skips, -1)
    )
    model = SeqTransformer(N_IDS, torch.zeros(N_IDS, 0), d_model=8, n_heads=2, n_layers=1, d_ff=8)
    loss, count = seq_loss(model, batch, TrackSoftmax(torch.ones(N_IDS).long(), n_negatives=n_negatives))
    assert (loss.item(), count) == (0, 0)
    loss.backward()
    loss, count = skip_loss(lambda history, tracks: torch.zeros(6, 10), batch, weighting="maa")
    assert (loss.item(), count) == (0, 0)
