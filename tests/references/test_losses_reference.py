"""Losses beside their definitions, computed densely in float64 from the scores of all tracks, gradients included."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from conftest import N_IDS, random_batch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, cross_entropy
from torch.testing import assert_close

from model.embeddings import TrackHead
from utils.data.batch import SessionBatch, whole_sessions
from utils.data.vocab import MASK, N_SPECIAL, PAD, UNK
from utils.training import losses, masked_tracks
from utils.training.losses import (
    Negatives,
    full_softmax,
    hidden_targets_loss,
    loss_of_skips,
    next_track_loss,
    seq_loss,
    track_loss,
)
from utils.training.masked_tracks import masked_loss
from utils.training.options import LossConfig, MaskingConfig

D, N = 6, 70
N_TRACKS = N_IDS - N_SPECIAL
PLAYS = torch.tensor([0] * N_SPECIAL + [(7 * i) % 23 for i in range(N_TRACKS)])
"""Some tracks have no plays."""


@dataclass
class Scored:
    """States, a head and targets, of which some are no tracks and some are the same."""

    states: Tensor
    head: TrackHead
    targets: Tensor

    def dense(self) -> Tensor:
        """float64 (N, tracks): the scores of all tracks, without the special ids."""
        weight, bias = (part.double()[N_SPECIAL:] for part in (self.head.weight, self.head.bias))
        return self.states.double() @ weight.T + bias

    def agree(self, ours: Tensor, theirs: Tensor) -> None:
        """The same sum, and the same gradients, by hand or by autograd."""
        leaves = [self.states, self.head.weight, self.head.bias]
        assert_close(ours.double(), theirs, rtol=2e-6, atol=1e-6)
        both = (torch.autograd.grad(2.5 * loss, leaves) for loss in (ours, theirs))
        for mine, other in zip(*both, strict=True):
            assert other.abs().max() > 1e-3
            assert_close(mine, other, rtol=1e-4, atol=2e-5)


@pytest.fixture
def scored() -> Scored:
    torch.manual_seed(0)
    head = TrackHead(N_IDS, D)
    nn.init.normal_(head.bias)
    targets = torch.randint(N_SPECIAL, N_SPECIAL + 25, (N,))
    targets[::9], targets[4::9] = PAD, UNK
    return Scored(torch.randn(N, D, requires_grad=True), head, targets)


def every_track_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws give each track exactly once, in some order."""
    monkeypatch.setattr(Negatives, "draw", lambda self: N_SPECIAL + torch.randperm(self.n_tracks))


def test_full_softmax_is_cross_entropy_without_special_ids(scored: Scored) -> None:
    labels = (scored.targets - N_SPECIAL).clamp(min=-1)
    expected = cross_entropy(scored.dense(), labels, ignore_index=-1, reduction="sum")
    scored.agree(full_softmax(scored.states, scored.head, scored.targets), expected)


def loss_of(scored: Scored, **options: object) -> Tensor:
    return track_loss(LossConfig(**options), PLAYS)(scored.states, scored.head, scored.targets)


def test_sampled_softmax_of_every_track_is_the_full_one(scored: Scored, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn uniformly as often as there are tracks, each is expected once: nothing is left to correct."""
    every_track_once(monkeypatch)
    options = {"name": "sampled", "n_negatives": N_TRACKS, "power": 0.0, "in_batch": False}
    labels = (scored.targets - N_SPECIAL).clamp(min=-1)
    expected = cross_entropy(scored.dense(), labels, ignore_index=-1, reduction="sum")
    scored.agree(loss_of(scored, **options), expected)


@pytest.mark.parametrize("in_batch", [False, True])
@pytest.mark.parametrize("power", [0.5, 1.0])
def test_sampled_softmax_is_its_formula(
    scored: Scored, monkeypatch: pytest.MonkeyPatch, power: float, in_batch: bool
) -> None:
    """log(exp(s_y) + sum_j exp(s_j) / m_j) - s_y, target by target; m_j = k q_j, and (targets - 1) p_j in the batch."""
    every_track_once(monkeypatch)
    popularity = [max(int(n), 1) for n in PLAYS[N_SPECIAL:]]
    p = [n / sum(popularity) for n in popularity]
    q = [n**power / sum(m**power for m in popularity) for n in popularity]
    labels = [int(y) - N_SPECIAL for y in scored.targets if y >= N_SPECIAL]
    scores = scored.dense()[scored.targets >= N_SPECIAL]
    expected = torch.zeros((), dtype=torch.float64)
    n_more = len(labels) - 1 if in_batch else 0
    for i, y in enumerate(labels):
        others = list(range(N_TRACKS)) + (labels if in_batch else [])
        total = scores[i, y].exp()
        for j in others:
            if j != y:
                total = total + scores[i, j].exp() / (N_TRACKS * q[j] + n_more * p[j])
        expected = expected + total.log() - scores[i, y]
    ours = loss_of(scored, name="sampled", n_negatives=N_TRACKS, power=power, in_batch=in_batch)
    scored.agree(ours, expected)


@pytest.mark.parametrize("calibration", [0.0, 0.75, 1.0])
@pytest.mark.parametrize("power", [0.0, 0.75])
def test_gbce_is_its_formula(scored: Scored, monkeypatch: pytest.MonkeyPatch, calibration: float, power: float) -> None:
    """Petrov and Macdonald 2023, with a = k / (tracks - 1), weights a / (k q_j), and scores from the odds of one."""
    every_track_once(monkeypatch)
    popularity = PLAYS[N_SPECIAL:].double().clamp(min=1) ** power
    q, k, a = popularity / popularity.sum(), N_TRACKS, N_TRACKS / (N_TRACKS - 1)
    beta = a * (calibration * (1 - 1 / a) + 1 / a)
    chance = (scored.dense() - math.log(N_TRACKS - 1)).sigmoid()
    expected = torch.zeros((), dtype=torch.float64)
    for i, y in enumerate((scored.targets - N_SPECIAL).tolist()):
        if y >= 0:
            others = [j for j in range(N_TRACKS) if j != y]
            negative = (a / (k * q[others]) * (1 - chance[i, others]).log()).sum()
            expected = expected - (beta * chance[i, y].log() + negative) / (k + 1)
    scored.agree(loss_of(scored, name="gbce", n_negatives=k, power=power, calibration=calibration), expected)


# Which targets count


class Toy(nn.Module):
    """States that depend on the place and on what is read there; it keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.head, self.vectors, self.places = TrackHead(N_IDS, D), nn.Embedding(N_IDS, D), torch.randn(20, D)
        self.asked: list[Tensor] = []

    def forward(self, *inputs: Tensor) -> Tensor:
        self.asked.append(inputs[-1])
        return self.vectors(inputs[-1]) + self.places[: inputs[-1].shape[1]]

    def read(self, tracks: Tensor) -> tuple[Tensor, None]:
        return self(tracks), None

    def previous_tracks(self, history: object, targets: Tensor) -> Tensor:
        return torch.cat([torch.full_like(targets[:, :1], 7), targets[:, :-1]], dim=1)


def batch_with_unknown() -> SessionBatch:
    batch = random_batch(n=8)
    batch.target_tracks[1, 0] = batch.target_tracks[0, 3] = batch.history.tracks[0, 5] = UNK
    return batch


def dense_sum(model: Toy, read: Tensor, wanted: list[tuple[int, int, int]]) -> float:
    """Minus the log-softmax over the tracks, summed over (row, place, target)."""
    states = (model.vectors(read) + model.places[: read.shape[1]]).double()
    scores = states @ model.head.weight.double().T + model.head.bias.double()
    log_p = scores[..., N_SPECIAL:].log_softmax(-1).detach()
    return -sum(float(log_p[row, place, target - N_SPECIAL]) for row, place, target in wanted)


Case = tuple[Toy, Callable[[], tuple[Tensor, int]], list[tuple[int, int, int]]]


def case_seq() -> Case:
    """Every target that is a track counts."""
    model, batch = Toy(), batch_with_unknown()
    wanted = [(*place, int(y)) for place, y in entries(batch.target_tracks) if y >= N_SPECIAL]
    return model, lambda: seq_loss(model, batch, full_softmax), wanted


def case_next() -> Case:
    """Every play behind another one counts, if it is a track; read are all plays but the last."""
    model, batch = Toy(), batch_with_unknown()
    plays = whole_sessions(batch)
    wanted = [
        (row, place - 1, int(y))
        for (row, place), y in entries(plays)
        if place > 0 and y >= N_SPECIAL and plays[row, place - 1] != PAD
    ]
    return model, lambda: next_track_loss(model, batch, full_softmax), wanted


def entries(tracks: Tensor) -> list[tuple[tuple[int, int], int]]:
    return [((row, place), int(tracks[row, place])) for row in range(len(tracks)) for place in range(tracks.shape[1])]


@pytest.mark.parametrize("case", [case_seq, case_next])
def test_every_target_counts(case: Callable[[], Case]) -> None:
    model, run, wanted = case()
    loss, count = run()
    (read,) = model.asked
    assert count == len(wanted)
    assert loss.item() == pytest.approx(dense_sum(model, read, wanted), rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_hidden_targets_are_those_that_the_model_reads_as_masks(seed: int) -> None:
    """What counts is a track that the model cannot see; what is shown is as it was."""
    model, batch = Toy(), batch_with_unknown()
    torch.manual_seed(seed)
    loss, count = hidden_targets_loss(model, batch, full_softmax)
    (slots,), targets = model.asked, batch.target_tracks
    wanted = [(*place, y) for place, y in entries(targets) if y >= N_SPECIAL and slots[place] == MASK]
    assert all(slots[place] in (y, MASK) if y >= N_SPECIAL else slots[place] == MASK for place, y in entries(targets))
    assert {row for row, _, _ in wanted} == {row for (row, _), y in entries(targets) if y >= N_SPECIAL}
    assert count == len(wanted) < (targets >= N_SPECIAL).sum()
    assert loss.item() == pytest.approx(dense_sum(model, slots, wanted), rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_masked_tracks_cost_what_their_labels_say(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels are the session's own tracks at the selected places, and all changed places are selected."""
    model, batch, drawn = Toy(), batch_with_unknown(), []
    original = masked_tracks.mask_tracks
    monkeypatch.setattr(masked_tracks, "mask_tracks", lambda *inputs: drawn.append(original(*inputs)) or drawn[-1])
    torch.manual_seed(seed)
    loss, count = masked_loss(model, batch, loss=full_softmax, masking=MaskingConfig())
    ((inputs, labels),), plays = drawn, whole_sessions(batch)
    assert torch.equal(model.asked[0], inputs)
    wanted = [(*place, y) for place, y in entries(labels) if y != PAD]
    assert all(y == plays[row, place] >= N_SPECIAL for row, place, y in wanted)
    assert (labels != PAD)[inputs != plays].all()
    assert count == len(wanted) >= len(plays)
    assert loss.item() == pytest.approx(dense_sum(model, inputs, wanted), rel=1e-5)


@pytest.mark.parametrize("weighting", ["uniform", "maa"])
def test_skip_loss_is_torchs_binary_cross_entropy(weighting: str) -> None:
    """A mistake at place i of n costs 1 + 1/(i+1) + ... + 1/n, scaled to a mean of 1 (Adapa 2019)."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(-1, 2, (50, 9), generator=generator)
    labels[0] = -1
    logits = 3 * torch.randn(50, 9, generator=generator)
    expected, n_known = 0.0, 0
    for row, answers in zip(logits, labels, strict=True):
        places = [i for i, y in enumerate(answers) if y >= 0]
        costs = [1 + sum(1 / m for m in range(i + 1, len(places) + 1)) for i in range(1, len(places) + 1)]
        for i, cost in zip(places, costs, strict=True):
            weight = cost * len(places) / sum(costs) if weighting == "maa" else 1.0
            chance = row[i].double().sigmoid()
            expected += weight * float(binary_cross_entropy(chance, answers[i].double()))
        n_known += len(places)
    loss, count = loss_of_skips(logits, labels, weighting=weighting)
    assert count == n_known
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["full", "sampled", "gbce"])
def test_rows_that_fill_a_batch_up_cost_nothing(name: str) -> None:
    """The number of targets is filled up to a multiple; neither sum nor count may show it."""
    model, batch, seen = Toy(), batch_with_unknown(), []
    loss = track_loss(LossConfig(name=name), PLAYS)
    inside = batch.target_tracks >= N_SPECIAL

    def noted(states: Tensor, head: TrackHead, targets: Tensor) -> Tensor:
        seen.append(len(targets))
        torch.manual_seed(0)  # of the negatives
        return loss(states, head, targets)

    found, count = seq_loss(model, batch, noted)
    assert count == int(inside.sum()) < seen[0] == losses.ROWS
    states = model(model.previous_tracks(batch.history, batch.target_tracks))[inside]
    assert found.item() == pytest.approx(noted(states, model.head, batch.target_tracks[inside]).item(), rel=1e-5)
