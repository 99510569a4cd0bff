"""Losses of models, by hand and beside torch's."""

import math

import numpy as np
import pytest
import torch
from conftest import N_IDS, random_batch
from sized_models import SeqTransformer
from torch import nn
from torch.nn.functional import cross_entropy

from utils.core.errors import UserError
from utils.data.vocab import PAD, UNK
from utils.evaluation import metrics
from utils.training.losses import full_softmax, maa_weights, seq_loss, skip_loss, track_loss
from utils.training.options import LossConfig


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


class Says(nn.Module):
    """A model that answers what it was made with, and keeps what it was asked."""

    def __init__(self, answer):
        super().__init__()
        self.answer = nn.Parameter(answer)
        self.asked = []

    def forward(self, *inputs):
        self.asked.append(inputs)
        return self.answer


def skip_batch(labels):
    batch = random_batch(n=len(labels), t=len(labels[0]))
    return batch._replace(target_skips=torch.tensor(labels))


def test_skip_loss_by_hand():
    batch = skip_batch([[1, 0, -1], [-1, -1, -1], [0, 1, 1]])
    logits = torch.tensor([[0.0, math.log(3), 9.0], [9.0, 9.0, 9.0], [math.log(3), math.log(3), -math.log(3)]])
    loss, count = skip_loss(Says(logits), batch)
    # The probabilities are 1/2, 3/4 | 3/4, 3/4, 1/4.
    by_hand = [math.log(2), math.log(4), math.log(4), math.log(4 / 3), math.log(4)]
    assert count == 5
    assert loss.item() == pytest.approx(sum(by_hand), rel=1e-6)
    weighted, count = skip_loss(Says(logits), batch, weighting="maa")
    # T = 2: costs 3/2 : 1; T = 3: costs 11/6 : 4/3 : 1; each with mean 1.
    weights = [2 * 1.5 / 2.5, 2 * 1 / 2.5, *(3 * cost / (11 / 6 + 4 / 3 + 1) for cost in (11 / 6, 4 / 3, 1))]
    assert count == 5
    assert weighted.item() == pytest.approx(sum(w * x for w, x in zip(weights, by_hand, strict=True)), rel=1e-6)


def test_skip_loss_gives_the_model_no_labels():
    batch = random_batch()
    model = Says(torch.zeros(6, 10))
    skip_loss(model, batch)
    ((history, target_tracks),) = model.asked
    assert all(given is own for given, own in zip(history, batch.history, strict=True))
    assert target_tracks is batch.target_tracks


LOSSES = [
    LossConfig(name="full"),
    LossConfig(name="sampled", n_negatives=50),
    LossConfig(name="sampled", n_negatives=50, power=0),
    LossConfig(name="gbce", n_negatives=50),
]


@pytest.mark.parametrize("config", [*LOSSES, LossConfig(in_batch=True)], ids=lambda c: f"{c.name}-{c.in_batch}")
@pytest.mark.parametrize("tie", [False, True])
def test_sparse_gradients_are_the_dense_ones(config, tie):
    """Loss and gradients of a model do not depend on how its tables store their gradients."""
    batch = random_batch()
    loss = track_loss(config, torch.ones(N_IDS).long())
    results = []
    for sparse in (False, config.is_sparse):
        torch.manual_seed(0)
        model = SeqTransformer(
            N_IDS, torch.zeros(N_IDS, 0), d_model=8, n_heads=2, n_layers=1, d_ff=8, tie_weights=tie, sparse=sparse
        ).eval()
        total, _ = seq_loss(model, batch, loss)
        total.backward()
        assert model.head.weight.grad.is_sparse == sparse
        results.append({name: p.grad.to_dense() for name, p in model.named_parameters()})
    for name, grad in results[0].items():
        torch.testing.assert_close(results[1][name], grad, msg=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_negatives": 0}, "loss.n_negatives is 0"),
        ({"calibration": 1.5}, "loss.calibration is 1.5; it must be at most 1"),
        ({"name": "gbce", "in_batch": True}, "loss.in_batch has no meaning for loss.name gbce; use it with"),
        ({"name": "full", "n_negatives": 7}, "loss.n_negatives has no meaning for loss.name full"),
        ({"calibration": 0.5}, "loss.calibration has no meaning for loss.name sampled; use it with --loss.name gbce"),
        ({"n_negatives": 10**7}, "loss.n_negatives is 10000000; it must be at most 1000000"),
    ],
)
def test_losses_that_make_no_sense(options, message):
    with pytest.raises(UserError, match=message):
        LossConfig(**options)


def test_seq_loss_counts_known_tracks_only():
    batch = random_batch()
    batch.target_tracks[0, 3] = UNK
    features = torch.zeros(N_IDS, 0)
    model = SeqTransformer(N_IDS, features, d_model=8, n_heads=2, n_layers=1, d_ff=8, dropout=0.0).eval()
    loss, count = seq_loss(model, batch, full_softmax)
    targets = batch.target_tracks
    logits = model.logits(model(batch.history, model.previous_tracks(batch.history, targets)))
    labels = targets.masked_fill((targets == UNK) | (targets == PAD), -100)
    assert count == (labels >= 0).sum() < targets.numel()
    torch.testing.assert_close(loss, cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"))


@pytest.mark.parametrize("config", [*LOSSES, LossConfig(in_batch=True)], ids=lambda c: f"{c.name}-{c.in_batch}")
def test_a_batch_without_any_target_costs_nothing(config):
    batch = random_batch()
    batch = batch._replace(
        target_tracks=torch.full_like(batch.target_tracks, UNK), target_skips=torch.full_like(batch.target_skips, -1)
    )
    model = SeqTransformer(N_IDS, torch.zeros(N_IDS, 0), d_model=8, n_heads=2, n_layers=1, d_ff=8)
    loss, count = seq_loss(model, batch, track_loss(config, torch.ones(N_IDS).long()))
    assert (loss.item(), count) == (0, 0)
    loss.backward()
    loss, count = skip_loss(Says(torch.zeros(6, 10)), batch, weighting="maa")
    assert (loss.item(), count) == (0, 0)
