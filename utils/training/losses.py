"""Losses of both tasks, and losses over the whole catalogue for models that predict tracks.

Shapes: see the legend in `utils/data/batch.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import LinearCrossEntropyOptions, functional

from model.catalogue import rows_at_once
from model.decoding import TargetModel
from model.embeddings import TrackHead
from model.filling import SlotModel
from model.gru import NextTrackGRU
from utils.core import distributed
from utils.data.batch import SessionBatch, device_of, to_device, true_sessions, true_targets, whole_sessions
from utils.data.vocab import MASK, N_SPECIAL, PAD
from utils.training.options import LossConfig, Weighting

LossFn = Callable[[Any, SessionBatch], tuple[Tensor, int]]
"""Model and batch (on the CPU) -> the sum of the losses and their number."""
CHUNK = 512
"""Most targets whose scores over all tracks the full softmax holds at once. With 103,000 tracks on 2 cores, 64 takes
1.3 times as long; 256 needs half the memory and takes 4 % longer."""
PIECE = 2048
"""Targets whose losses and gradients the full softmax adds up in bfloat16, before it adds these sums in float32: a sum
of ones in bfloat16 stands still after a few hundred."""
ROWS = 256
"""The targets of a batch are padded to a multiple of this. On the CPU each new size of a matrix product in bfloat16 is
compiled and kept; without padding, memory grew by 10 MB a step."""
_ROWS_IN_CACHE = 128
"""Targets whose scores of negatives are held at once on a CPU; a divisor of ROWS."""
_ROWS_ELSEWHERE = 16384
"""The same on other devices, where few large pieces are quicker."""
IGNORED = -100


def maa_weights(known: Tensor) -> Tensor:
    """What a mistake at each step costs in average accuracy when all else is right, scaled to mean 1 in each session.

    w_i is proportional to (1 + sum_{n>i} 1/n) / T (Adapa 2019, arXiv 1904.10273).

    Args:
        known: bool (B, T), targets that count; positions are counted among them, as the metric does.

    Returns:
        float32 (B, T); 0 where a target is not known.
    """
    inverse = known / known.cumsum(1).clamp(min=1)
    later = inverse.flip(1).cumsum(1).flip(1) - inverse
    cost = (1 + later) * known
    return cost * known.sum(1, keepdim=True) / cost.sum(1, keepdim=True).clamp(min=1)


def skip_loss(model: nn.Module, batch: SessionBatch, *, weighting: Weighting = "uniform") -> tuple[Tensor, int]:
    """Binary cross-entropy in nats of the known skip labels: (sum, number of labels)."""
    logits = model(*batch.inputs(device_of(model)))
    return loss_of_skips(logits, batch.target_skips, weighting=weighting)


def loss_of_skips(logits: Tensor, labels: Tensor, *, weighting: Weighting = "uniform") -> tuple[Tensor, int]:
    """The same as `skip_loss`, given logits and labels (B, T): 1 skipped, 0 not, -1 unknown."""
    count = int((labels >= 0).sum())
    labels = to_device(labels, logits.device)
    known = labels >= 0
    losses = functional.binary_cross_entropy_with_logits(logits, labels.clamp(min=0).to(logits.dtype), reduction="none")
    if weighting == "maa":
        losses = losses * maa_weights(known)
    return (losses * known).sum(), count


TrackLoss = Callable[[Tensor, TrackHead, Tensor], Tensor]
"""States (N, D), the head that scores tracks, targets (N,) on the CPU -> sum of the losses in nats; a special id costs
nothing."""


def track_loss(config: LossConfig, train_plays: Tensor) -> TrackLoss:
    """The loss of every model that predicts tracks.

    Args:
        config: which loss.
        train_plays: int64 (V,), plays of each id in training, 0 for the special ids.
    """
    if config.name == "full":
        return full_softmax
    negatives = Negatives(train_plays, n=config.n_negatives, power=config.power)
    if config.name == "gbce":
        return partial(gbce, negatives=negatives, calibration=config.calibration)
    return partial(sampled_softmax, negatives=negatives, in_batch=config.in_batch)


def full_softmax(states: Tensor, head: TrackHead, targets: Tensor) -> Tensor:
    """Cross-entropy over all tracks, without ever holding the scores of all targets at once.

    Under autocast scores are bfloat16, and so are sums over up to `PIECE` targets. The loss is right to 0.5 % then, and
    gradients to 0.5 % (norm of the error), as long as no track is the target of more than 256 of a piece (12 %), where
    the gradient of its bias stands still. In the datasets here, the most played track has 0.3 %.
    """
    targets = to_device(targets, states.device)
    pieces = zip(states.split(PIECE), targets.split(PIECE), strict=True)
    return torch.stack([_full_softmax(*piece, head) for piece in pieces]).sum()


def _full_softmax(states: Tensor, targets: Tensor, head: TrackHead) -> Tensor:
    dtype, accumulate = states.dtype, None
    if torch.is_autocast_enabled(states.device.type):  # autocast leaves the fused function out
        dtype = torch.get_autocast_dtype(states.device.type)
        # On the CPU torch would choose float32, which is twice as slow where the processor multiplies bfloat16.
        accumulate = dtype if states.device.type == "cpu" else None
    weight = head.weight[N_SPECIAL:]
    chunk = rows_at_once(len(weight), CHUNK)
    return functional.linear_cross_entropy(
        states.to(dtype),
        weight.to(dtype),
        (targets - N_SPECIAL).masked_fill(targets < N_SPECIAL, IGNORED),
        linear_bias=head.bias[N_SPECIAL:].to(dtype),
        reduction="sum",
        ignore_index=IGNORED,
        options=LinearCrossEntropyOptions(batch_chunk_size=chunk, acc_policy="compact", acc_dtype=accumulate),
    ).float()


class Negatives:
    """Draws the negatives that all targets of a batch share, with replacement, from torch's global generator.

    Several processes get the same ones.

    Args:
        train_plays: int64 (V,), plays of each id in training.
        n: k, negatives in a draw.
        power: a negative's probability q is proportional to its plays to this power; 0 draws uniformly.
    """

    def __init__(self, train_plays: Tensor, *, n: int, power: float) -> None:
        self.n = n
        self.n_tracks = len(train_plays) - N_SPECIAL
        plays = train_plays.double().clamp(min=1)
        plays[:N_SPECIAL] = 0
        self.popularity = (plays / plays.sum()).float()
        """float32 (V,): p, share of each id in the training plays."""
        weight = torch.where(plays > 0, (plays / plays.max()) ** power, 0.0)
        self._cumulative = (weight / weight.sum()).cumsum(0)
        self.expected = (n * weight / weight.sum()).float()
        """float32 (V,): k q, how often each id is expected in a draw."""

    def draw(self) -> Tensor:
        """int64 (k,)"""
        uniform = distributed.shared(torch.rand(self.n, dtype=torch.float64))
        return torch.searchsorted(self._cumulative, uniform, right=True).clamp(max=len(self._cumulative) - 1)


def sampled_softmax(
    states: Tensor, head: TrackHead, targets: Tensor, *, negatives: Negatives, in_batch: bool = False
) -> Tensor:
    """Cross-entropy whose partition function is estimated from shared negatives.

    With s the scores and y the target, the loss is log(exp(s_y) + sum_j exp(s_j) / m_j) - s_y over the negatives j
    other than y; m_j is how often j is expected among them. This estimates the partition function without bias
    (importance sampling, Bengio and Senecal 2008, eq. 8; "log-Q correction"). Its logarithm, the loss, comes out too
    low, and gradients are unbiased only if q is the softmax itself (Blanc and Rendle 2018, theorem 2.1); more negatives
    make both better.

    Args:
        states: (N, D).
        head: scores tracks.
        targets: int64 (N,).
        negatives: draws them.
        in_batch: the other N - 1 targets are negatives as well (Yi et al. 2019), and count as draws from popularity p,
            which they are not quite: targets of one session go together. m_j is then k q_j + (N - 1) p_j.
    """
    others, n_more = negatives.draw(), 0  # (k,)
    if in_batch:
        of_batch = distributed.gathered(targets)  # (N,), or those of all processes
        others = torch.cat([of_batch, others])  # (N + k,)
        n_more = int((of_batch >= N_SPECIAL).sum()) - 1
    expected = negatives.expected[others] + n_more * negatives.popularity[others]
    others, log_expected = to_device(others, states.device), to_device(expected.log(), states.device)
    targets = to_device(targets, states.device)
    vectors, bias = head.at(others)
    nothing = torch.finfo(torch.float32).min
    offset = (bias - log_expected).masked_fill(others < N_SPECIAL, nothing)
    own = _scores_of_targets(states, head, targets).float()  # (N,)
    if torch.is_autocast_enabled(states.device.type):  # autocast leaves the function's products out
        states = states.to(torch.get_autocast_dtype(states.device.type))
    return _SoftmaxAgainst.apply(states, vectors, offset, own, others, targets)


class _SoftmaxAgainst(torch.autograd.Function):
    """Sum of log(exp(own) + sum_j exp(states vectors_j + offset_j)) - own, over the j that are not the target.

    The forward pass computes the gradients, too. It makes and uses up the scores of a few rows at a time, in the
    processor's cache, and keeps only probabilities (N, k), for two products: through memory, scores took most of a
    step's time.
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, vectors: Tensor, offset: Tensor, own: Tensor, others: Tensor, targets: Tensor
    ) -> Tensor:
        """States (N, D), vectors (k, D), offset (k,), own (N,), others (k,), targets (N,) -> scalar.

        Products are computed in the type of the states, everything else in float32.
        """
        with torch.autocast(states.device.type, enabled=False):
            weight, losses, shares = vectors.to(states.dtype), [], []
            probability = states.new_empty(len(states), len(others))
            at_once = _ROWS_IN_CACHE if states.device.type == "cpu" else _ROWS_ELSEWHERE
            rows = (tensor.split(at_once) for tensor in (states, own[:, None], targets[:, None], probability))
            for x, score, target, out in zip(*rows, strict=True):
                scores = (x @ weight.T).float().add_(offset)  # (rows, k)
                scores.masked_fill_(others == target, torch.finfo(torch.float32).min)
                highest = scores.amax(1, keepdim=True)
                total = scores.sub_(highest).exp_().sum(1, keepdim=True)  # (rows, 1)
                against = total.log() + highest - score
                wanted = target >= N_SPECIAL
                share = against.sigmoid() * wanted  # of the others in the softmax
                out.copy_(scores.mul_(share / total))
                losses.append(functional.softplus(against) * wanted)
                shares.append(share)
            ctx.save_for_backward(
                probability @ weight,
                probability.T @ states,
                probability.sum(0, dtype=torch.float32),
                -torch.cat(shares)[:, 0],
            )
            return torch.cat(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of the sum -> gradient of each tensor that `forward` was given."""
        return *(gradient * saved for saved in ctx.saved_tensors), None, None


def gbce(states: Tensor, head: TrackHead, targets: Tensor, *, negatives: Negatives, calibration: float) -> Tensor:
    """Generalised binary cross-entropy of gSASRec (Petrov and Macdonald 2023), with shared negatives.

    -(beta log sigmoid(z_y) + sum_j log(1 - sigmoid(z_j))) / (k + 1), with beta = a (t (1 - 1/a) + 1/a), a = k / (number
    of tracks - 1) and t the calibration. The paper draws from the other tracks uniformly; here each negative has weight
    a / (k q_j), so that any q has the same expectation. With t = 1 sigmoid(z) becomes the probability of a track.

    z = s - log(number of tracks - 1), so that scores of zero mean the odds of a random track (the paper: even odds).
    Otherwise the first epochs only learn that nearly all tracks are wrong.
    """
    drawn = negatives.draw()  # (k,)
    others, expected = to_device(drawn, states.device), to_device(negatives.expected[drawn], states.device)
    targets = to_device(targets, states.device)
    n_others = max(negatives.n_tracks - 1, 1)
    a = negatives.n / n_others
    beta = a * (calibration * (1 - 1 / a) + 1 / a)
    weight = a / expected  # (k,)
    vectors, bias = head.at(others)
    scores = functional.linear(states, vectors) + bias - math.log(n_others)  # (N, k), in float32
    theirs = (functional.softplus(scores) * weight).masked_fill(others == targets[:, None], 0.0).sum(1)  # (N,)
    ours = beta * functional.softplus(math.log(n_others) - _scores_of_targets(states, head, targets))  # (N,)
    return ((ours + theirs) * (targets >= N_SPECIAL)).sum() / (negatives.n + 1)


def _scores_of_targets(states: Tensor, head: TrackHead, targets: Tensor) -> Tensor:
    vectors, bias = head.at(targets)
    return (states * vectors).sum(-1) + bias


def seq_loss(model: TargetModel, batch: SessionBatch, loss: TrackLoss) -> tuple[Tensor, int]:
    """Teacher-forced loss in nats of the targets inside the vocabulary: (sum, number of targets)."""
    history, targets = batch.inputs(device_of(model.head))
    states = model(history, model.previous_tracks(history, targets))  # (B, T, D)
    return loss_inside(states, true_targets(batch), model.head, loss)


def next_track_loss(model: NextTrackGRU, batch: SessionBatch, loss: TrackLoss) -> tuple[Tensor, int]:
    """Loss in nats of every play of a session but its first, given all plays before it: (sum, number of them).

    Where the session is cut does not matter. Plays outside the vocabulary are read, but cost nothing.
    """
    tracks = whole_sessions(batch)  # (B, S + T)
    states, _ = model.read(to_device(tracks[:, :-1], device_of(model.head)))  # (B, S + T - 1, D)
    targets = true_sessions(batch)[:, 1:].masked_fill(tracks[:, :-1] == PAD, PAD)  # nothing precedes the first play
    return loss_inside(states, targets, model.head, loss)


def hide_targets(targets: Tensor) -> Tensor:
    """Targets (B, T) -> slots (B, T), where MASK replaces one to all of a session's tracks, and all that is no track.

    torch's global generator draws how many, uniformly (Ghazvininejad et al. 2019, section 3.2), and then which ones.
    """
    known = targets >= N_SPECIAL
    n_shown = torch.rand(len(targets), 1) * known.sum(1, keepdim=True)  # (B, 1), below all of them
    place = torch.rand(targets.shape).masked_fill(~known, torch.inf).argsort(1).argsort(1)
    return targets.where(place < n_shown.floor(), MASK)


def hidden_targets_loss(model: SlotModel, batch: SessionBatch, loss: TrackLoss) -> tuple[Tensor, int]:
    """Loss in nats of the targets that are hidden, drawn anew for each batch: (sum, number of them)."""
    device, targets = device_of(model.head), true_targets(batch)
    slots = hide_targets(targets)
    slots = slots.where(slots == MASK, batch.target_tracks)
    states = model(batch.history.to(device), to_device(slots, device))  # (B, T, D)
    return loss_inside(states, targets.where(slots == MASK, PAD), model.head, loss)


def loss_inside(states: Tensor, targets: Tensor, head: TrackHead, loss: TrackLoss) -> tuple[Tensor, int]:
    """Loss in nats of the targets inside the vocabulary: (sum, number of them).

    Args:
        states: (B, T, D).
        targets: int64 (B, T), on the CPU.
        head: scores tracks.
        loss: of the targets inside the vocabulary.
    """
    places = (targets.flatten() >= N_SPECIAL).nonzero()[:, 0]  # (count,)
    targets = targets.flatten()[places]
    states = states.flatten(0, 1)[to_device(places, states.device)]  # (count, D)
    filler = -len(places) % ROWS
    states, targets = functional.pad(states, (0, 0, 0, filler)), functional.pad(targets, (0, filler), value=PAD)
    return loss(states, head, targets), len(places)
