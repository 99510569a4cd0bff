"""Filling in masks: shares and order by hand, brute force on BERT, and the masks that it is trained on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import N_IDS, random_batch
from sized_models import BertForContinuation, BertTransformer
from torch import Tensor
from torch.testing import assert_close

from model.catalogue import Catalogue
from model.embeddings import TrackHead
from model.filling import fill, shares
from utils.data.batch import History
from utils.data.vocab import MASK, N_SPECIAL, PAD, UNK
from utils.training.losses import full_softmax, hidden_targets_loss, hide_targets, seq_loss

A, B, C, D = range(N_SPECIAL, N_SPECIAL + 4)


class Toy:
    """A model of four tracks A to D whose states are their scores; it writes down which slots it is shown."""

    def __init__(self, scores: Callable[[Tensor], Tensor], target_size: int = 4) -> None:
        self.target_size = target_size
        self.scores = scores
        self.shown: list[list[list[int]]] = []
        self.head = TrackHead(N_SPECIAL + 4, 4)
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.weight[N_SPECIAL:] = torch.eye(4)

    def __call__(self, history: History, slots: Tensor) -> Tensor:
        self.shown.append(slots.tolist())
        return self.scores(slots)


def one_score(best: list[int], score: list[float]) -> Tensor:
    """Scores (T, 4) with one positive number in each slot."""
    scores = torch.zeros(len(best), 4)
    scores[torch.arange(len(best)), torch.tensor(best) - N_SPECIAL] = torch.tensor(score)
    return scores


def two_sessions(slots: Tensor) -> Tensor:
    """Confidence is highest in slot 2, then 0, 3, 1 of the first session, and in 1, 3, 2, 0 of the second.

    In the first session slot 1 becomes D instead of B as soon as slot 2 is filled with C.
    """
    first = one_score([A, D if slots[0, 2] == C else B, C, D], [3.0, 1.0, 4.0, 2.0])
    return torch.stack([first, one_score([D, C, B, A], [1.0, 4.0, 2.0, 3.0])])


HISTORY = History(torch.full((2, 3), A), torch.ones(2, 3, dtype=torch.int64), torch.zeros(2, 3, 12, dtype=torch.uint8))


def test_shares_are_as_equal_as_can_be():
    assert shares(10, 10) == [1] * 10
    assert shares(10, 25) == [1] * 10
    assert shares(10, 1) == [10]
    assert shares(10, 3) == [3, 3, 4]
    assert shares(10, 4) == [2, 3, 2, 3]
    assert shares(1, 10) == [1]


def test_confident_first_by_hand():
    toy = Toy(two_sessions)
    filled = fill(toy, HISTORY, 4, order="confident", passes=4)
    assert toy.shown == [
        [[MASK, MASK, MASK, MASK], [MASK, MASK, MASK, MASK]],
        [[MASK, MASK, C, MASK], [MASK, C, MASK, MASK]],
        [[A, MASK, C, MASK], [MASK, C, MASK, A]],
        [[A, MASK, C, D], [MASK, C, B, A]],
    ]
    assert filled.tolist() == [[A, D, C, D], [D, C, B, A]]


def test_confident_first_in_two_passes_by_hand():
    toy = Toy(two_sessions)
    filled = fill(toy, HISTORY, 4, order="confident", passes=2)
    assert toy.shown[1:] == [[[A, MASK, C, MASK], [MASK, C, MASK, A]]]
    assert filled.tolist() == [[A, D, C, D], [D, C, B, A]]


def test_left_to_right_by_hand():
    toy = Toy(two_sessions)
    filled = fill(toy, HISTORY, 4, order="left_to_right", passes=3)
    assert toy.shown == [
        [[MASK, MASK, MASK, MASK], [MASK, MASK, MASK, MASK]],
        [[A, MASK, MASK, MASK], [D, MASK, MASK, MASK]],
        [[A, B, MASK, MASK], [D, C, MASK, MASK]],
    ]
    assert filled.tolist() == [[A, B, C, D], [D, C, B, A]]


def test_parallel_is_one_pass():
    toy = Toy(two_sessions)
    assert fill(toy, HISTORY, 4, passes=4).tolist() == [[A, B, C, D], [D, C, B, A]]
    assert len(toy.shown) == 1


def test_of_equal_confidence_the_left_is_first():
    toy = Toy(lambda slots: one_score([B] * 4, [2.0] * 4).expand(len(slots), -1, -1))
    fill(toy, HISTORY, 4, order="confident", passes=4)
    assert toy.shown[-1] == [[B, B, B, MASK]] * 2


def test_confidence_is_a_probability_not_a_score():
    """In slot 0 the best track has the higher score, but another one has it, too."""
    scores = torch.tensor([[9.0, 9.0, 0.0, 0.0], [0.0, 5.0, 0.0, 0.0]]).expand(2, -1, -1)
    toy = Toy(lambda slots: scores, target_size=2)
    fill(toy, HISTORY, 2, order="confident", passes=2)
    assert toy.shown[1] == [[MASK, B]] * 2
    toy = Toy(lambda slots: scores, target_size=2)
    fill(toy, HISTORY, 2, order="confident", passes=2, catalogue=Catalogue(toy.head, torch.tensor([A, D])))
    assert toy.shown[1] == [[A, MASK]] * 2, "among the allowed tracks it is certain"


def test_no_more_than_the_slots_can_be_asked_for():
    with pytest.raises(ValueError, match="5 tracks are asked for, but the model has 4 slots"):
        fill(Toy(two_sessions), HISTORY, 5)


def lively_bert(target_size: int = 10) -> BertForContinuation:
    """An untrained model whose predictions depend on all that it reads."""
    torch.manual_seed(3)
    bert = BertTransformer(N_IDS, torch.empty(N_IDS, 0), d_model=16, n_heads=2, n_layers=2, d_ff=24)
    model = BertForContinuation(bert, target_size=target_size, tie_weights=False).eval()
    with torch.no_grad():
        bert.tracks.table.weight.mul_(6)
        bert.positions.mul_(60)
        model.head.weight.mul_(3)
        model.head.bias[:N_SPECIAL] = 100
        for layer in bert.layers:
            layer.attention.output.weight.mul_(4)
    return model


@torch.no_grad()
def filled_by_loops(model: BertForContinuation, history: History, length: int, order: str, passes: int) -> Tensor:
    """What `fill` does, one session, one pass and one slot at a time, by the logits of all tracks."""
    result = []
    for row in range(len(history.tracks)):
        real = history.tracks[row] != PAD  # the session without its padding
        alone = History(*(tensor[row : row + 1, real] for tensor in history))
        slots = torch.full((1, length), MASK)
        for size in shares(length, passes):
            log_p = model.logits(model(alone, slots))[0].log_softmax(1)  # (length, V)
            best, tracks = log_p.max(1)
            still_open = (slots[0] == MASK).nonzero()[:, 0].tolist()
            if order == "confident":
                still_open.sort(key=lambda place, best=best: -best[place].item())
            for place in still_open[:size]:
                slots[0, place] = tracks[place]
        result.append(slots)
    return torch.cat(result)


@pytest.mark.parametrize("order", ["confident", "left_to_right"])
@pytest.mark.parametrize("passes", [1, 2, 3, 10])
def test_fill_is_the_loop(order, passes):
    model, batch = lively_bert(), random_batch(n=8)
    filled = fill(model, batch.history, 10, order=order, passes=passes)
    assert_close(filled, filled_by_loops(model, batch.history, 10, order, passes))
    assert filled.min() >= N_SPECIAL
    parallel = fill(model, batch.history, 10)
    assert torch.equal(filled, parallel) == (passes == 1)


def test_orders_differ():
    model, batch = lively_bert(), random_batch(n=8)
    one, other = (fill(model, batch.history, 10, order=order, passes=5) for order in ("confident", "left_to_right"))
    assert not torch.equal(one, other)


@torch.no_grad()
def test_left_to_right_one_by_one_is_the_arg_max_step_by_step():
    model, batch = lively_bert(), random_batch(n=8)
    tracks = torch.empty(8, 0, dtype=torch.int64)
    for step in range(10):
        slots = torch.cat([tracks, torch.full((8, 10 - step), MASK)], dim=1)
        tracks = torch.cat([tracks, model.logits(model(batch.history, slots))[:, step].argmax(1, keepdim=True)], dim=1)
    assert_close(fill(model, batch.history, 10, order="left_to_right", passes=10), tracks)


@pytest.mark.parametrize("order", ["parallel", "confident", "left_to_right"])
def test_fewer_tracks_are_asked_for_behind_as_many_masks(order):
    model, batch = lively_bert(), random_batch(n=8)
    passes = 1 if order == "parallel" else 2
    filled = fill(model, batch.history, 3, order=order, passes=2)
    assert_close(filled, filled_by_loops(model, batch.history, 3, order, passes))
    if order != "confident":
        assert_close(filled[:, 0], fill(model, batch.history, 10)[:, 0])


@pytest.mark.parametrize("order", ["parallel", "confident", "left_to_right"])
def test_only_allowed_tracks_are_filled_in(order):
    model, batch, allowed = lively_bert(), random_batch(n=8), torch.tensor([7, 9, 20, 33])
    filled = fill(model, batch.history, 10, order=order, passes=4, catalogue=Catalogue(model.head, allowed))
    assert set(filled.unique().tolist()) <= set(allowed.tolist())
    assert len(filled.unique()) > 1


# --- Masks in training


def test_hidden_targets_are_one_to_all_of_the_tracks():
    torch.manual_seed(0)
    targets = torch.tensor([[11, 12, 13, 14], [21, UNK, 22, PAD], [UNK, PAD, PAD, PAD]]).repeat(3000, 1)
    slots = hide_targets(targets)
    hidden = slots == MASK
    assert torch.equal(slots[~hidden], targets[~hidden])
    assert hidden[targets < N_SPECIAL].all(), "padding and unknown tracks are never shown"
    of_each = (hidden & (targets >= N_SPECIAL)).sum(1)
    for row, n in ((0, 4), (1, 2), (2, 0)):
        counts = torch.bincount(of_each[row::3], minlength=n + 1).tolist()
        if n:
            assert counts[0] == 0
            assert all(abs(count - 3000 / n) < 4 * (3000 / n) ** 0.5 for count in counts[1:])
        else:
            assert counts == [3000]
    # Each place of a full session is hidden with probability (1/4 + 2/4 + 3/4 + 4/4) / 4.
    assert_close(hidden[0::3].float().mean(0), torch.full((4,), 0.625), atol=0.04, rtol=0)
    torch.manual_seed(0)
    assert torch.equal(hide_targets(targets), slots)


def test_only_hidden_targets_cost_anything(monkeypatch):
    model, batch = lively_bert(), random_batch(n=8)
    shown = batch.target_tracks.clone()
    shown[:, 1::2] = MASK
    shown[batch.target_tracks == PAD] = MASK
    monkeypatch.setattr("utils.training.losses.hide_targets", lambda targets: shown)
    loss_sum, count = hidden_targets_loss(model, batch, full_softmax)
    log_p = model.logits(model(batch.history, shown)).log_softmax(2)
    of_each = -log_p.gather(2, batch.target_tracks[..., None])[..., 0]
    hidden = (shown == MASK) & (batch.target_tracks != PAD)
    assert count == int(hidden.sum()) < int((batch.target_tracks != PAD).sum())
    assert_close(loss_sum, of_each[hidden].sum())


def test_all_hidden_is_the_plain_loss(monkeypatch):
    model, batch = lively_bert(), random_batch(n=8)
    monkeypatch.setattr("utils.training.losses.hide_targets", lambda targets: torch.full_like(targets, MASK))
    assert hidden_targets_loss(model, batch, full_softmax) == seq_loss(model, batch, full_softmax)
