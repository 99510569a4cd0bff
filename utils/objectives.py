"""Losses of both tasks. Each returns (sum, count), so that averages over batches are exact.

Shapes: see the legend in `utils/batch.py`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import LinearCrossEntropyOptions, functional

from model.decoding import SeqModel
from model.embeddings import TrackHead
from utils.batch import SessionBatch
from utils.vocab import N_SPECIAL

Weighting = Literal["uniform", "maa"]
CHUNK = 64
"""Targets whose scores over all tracks are held at once by the full softmax."""


def maa_weights(known: Tensor) -> Tensor:
    """What a mistake at each step costs in average accuracy when all else is right, with mean 1 for each T.

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
    logits = model(batch.history, batch.target_tracks)  # (B, T)
    known = batch.target_skips >= 0
    labels = batch.target_skips.clamp(min=0).to(logits.dtype)
    losses = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    if weighting == "maa":
        losses = losses * maa_weights(known)
    return (losses * known).sum(), int(known.sum())


class TrackSoftmax:
    """Cross-entropy over tracks: the full softmax, or an estimate of it from shared negatives.

    Negatives are drawn once a batch, with replacement, from q proportional to training plays to the power `power`, and
    shared by all targets. With s the scores, y the target and k negatives j, the loss of a target is
    log(exp(s_y) + sum_{j != y} exp(s_j) / (k q_j)) - s_y: its partition function is an unbiased estimate of the full
    one (importance sampling, Bengio and Senecal 2008, eq. 8). Numbers come from torch's global generator.

    Args:
        train_plays: int64 (V,), plays of each id in training, 0 for the special ids.
        n_negatives: k; 0 for the full softmax.
        power: flattens popularity; 0 is uniform.
    """

    def __init__(self, train_plays: Tensor, *, n_negatives: int, power: float = 0.75) -> None:
        self.n_negatives = n_negatives
        weight = train_plays.double().clamp(min=1) ** power
        weight[:N_SPECIAL] = 0
        self.cumulative = (weight / weight.sum()).cumsum(0)
        self.log_kq = (n_negatives * weight / weight.sum()).log().float()

    def __call__(self, states: Tensor, head: TrackHead, targets: Tensor) -> Tensor:
        """States (N, D) and targets (N,), all real tracks -> sum of the losses, in nats."""
        if self.n_negatives == 0:
            return functional.linear_cross_entropy(
                states,
                head.weight[N_SPECIAL:],
                targets - N_SPECIAL,
                linear_bias=head.bias[N_SPECIAL:],
                reduction="sum",
                options=LinearCrossEntropyOptions(batch_chunk_size=CHUNK),
            )
        negatives = self.draw()  # (k,)
        log_kq = self.log_kq[negatives].to(states.device)
        negatives = negatives.to(states.device)
        # `embedding` and not indexing: forward and backward together are 1.6 times as fast on the CPU.
        ours = functional.embedding(targets, head.weight)  # (N, D)
        positive = (states * ours).sum(-1, keepdim=True) + head.bias[targets, None]  # (N, 1)
        theirs = functional.embedding(negatives, head.weight)  # (k, D)
        scores = functional.linear(states, theirs, head.bias[negatives]) - log_kq  # (N, k)
        scores = scores.masked_fill(negatives == targets[:, None], -torch.inf)
        return (torch.cat([positive, scores], dim=1).logsumexp(1, keepdim=True) - positive).sum()

    def draw(self) -> Tensor:
        """Shared negatives: int64 (k,)."""
        uniform = torch.rand(self.n_negatives, dtype=torch.float64)
        return torch.searchsorted(self.cumulative, uniform, right=True).clamp(max=len(self.cumulative) - 1)


def seq_loss(model: SeqModel, batch: SessionBatch, softmax: TrackSoftmax) -> tuple[Tensor, int]:
    """Teacher-forced cross-entropy in nats of the targets inside the vocabulary: (sum, number of targets)."""
    targets = batch.target_tracks
    states = model(batch.history, model.previous_tracks(batch.history, targets))  # (B, T, D)
    inside = targets >= N_SPECIAL
    return softmax(states[inside], model.head, targets[inside]), int(inside.sum())
