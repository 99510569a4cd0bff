"""The probabilities of a model and of an n-gram, mixed: P = w P_model + (1 - w) P_ngram, over all tracks.

A network generalises, an n-gram remembers: each knows what the other does not (linear interpolation, Jelinek and Mercer
1980). Everything is exact: of some examples at a time both distributions are held over the whole catalogue, in float64,
as the n-gram's own ranks are. Shapes: see the legend in `utils/batch.py`; N examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from model.baselines_seq import NextTrack, score
from model.catalogue import rows_at_once
from model.decoding import SeqModel
from utils import metrics
from utils.batch import History, SessionBatch, whole_sessions
from utils.dataloaders import SessionLoader
from utils.evaluation import MRR_CUTOFF, SeqPredictions
from utils.scoring import progress
from utils.vocab import N_SPECIAL, PAD

_ROWS = 128
"""Examples whose distributions are held at once, at most: 105 MB each at 103,000 tracks."""


@dataclass(frozen=True)
class Blend:
    """A model and an n-gram that answer together."""

    model: SeqModel
    ngram: NextTrack
    """Or any other baseline of `model/baselines_seq.py`."""
    weight: float = 0.5
    """w, of the model; from 0 to 1."""

    def probability(self, states: Tensor, history: Tensor) -> Tensor:
        """States (N, D) and the plays behind them (N, S), on the CPU -> float64 (N, V), 0 for special ids."""
        return torch.lerp(self.of_ngram(history).to(states.device), self.of_model(states), self.weight)

    def of_model(self, states: Tensor) -> Tensor:
        """The model's part: states (N, D) -> float64 (N, V)."""
        return self.model.logits(states.float()).double().softmax(1)

    def of_ngram(self, history: Tensor) -> Tensor:
        """The n-gram's part: plays (N, S), padded on the left -> float64 (N, V), on the CPU."""
        found, rest = score(self.ngram, history.numpy())
        p = torch.outer(torch.from_numpy(rest), torch.from_numpy(self.ngram.popularity))
        rows = np.repeat(np.arange(len(rest)), np.diff(found.indptr))
        p[rows, found.indices] += torch.from_numpy(found.data)
        return p


def rank_of(p: Tensor, targets: Tensor) -> Tensor:
    """Rank, from 0 with ties counted half, of tracks (N,) under P (N, V): float64 (N,)."""
    own, tracks = p.gather(1, targets[:, None]), p[:, N_SPECIAL:]
    return ((tracks > own).sum(1, dtype=torch.float64) + (tracks >= own).sum(1) - 1) / 2


@torch.inference_mode()
def choose_weight(
    blend: Blend, weights: Sequence[float], device: torch.device, loader: SessionLoader
) -> tuple[Blend, dict[str, float]]:
    """Compare weights by the MRR@20 of the next track after the examples of a loader; there is no choice of one.

    Returns:
        the blend with the best weight (the first of equals), and the MRR@20 of each of several weights.
    """
    if len(weights) == 1:
        return replace(blend, weight=weights[0]), {}
    blend.model.eval()
    total = np.zeros(len(weights))
    for batch in _parts(blend, loader):
        known = batch.target_tracks[:, 0] >= N_SPECIAL  # an unknown track has no rank, whatever the weight
        history, targets = batch.to(device)[:2]
        states = blend.model(history, blend.model.start(history))[:, 0]  # (N, D)
        p_model, p_ngram = blend.of_model(states)[known], blend.of_ngram(batch.history.tracks)[known].to(device)
        for i, weight in enumerate(weights):
            ranks = rank_of(torch.lerp(p_ngram, p_model, weight), targets[:, 0][known])
            total[i] += metrics.reciprocal_rank(ranks.cpu().numpy(), MRR_CUTOFF).sum()
    means = total / loader.n_examples
    trials = {f"weight {weight}": float(mean) for weight, mean in zip(weights, means, strict=True)}
    return replace(blend, weight=weights[int(means.argmax())]), trials


@torch.inference_mode()
def predict_blend(blend: Blend, device: torch.device, loader: SessionLoader) -> SeqPredictions:
    """Greedy continuations, log-probabilities of the true tracks (teacher-forced) and full-catalogue ranks, in order.

    Args:
        blend: its model is on `device`.
        device: knows float64 (MPS does not).
        loader: of ordered examples.
    """
    blend.model.eval()
    n, t = loader.n_examples, loader.target_size
    tracks = np.full((n, t), PAD, np.int32)
    log_probability = np.zeros((n, t), np.float32)
    rank = np.full(n, np.inf, np.float32)
    for batch in _parts(blend, loader):
        rows = batch.rows.numpy()
        log_probability[rows], rank[rows] = _judge(blend, device, batch)
        tracks[rows] = _continue(blend, device, batch.history, t)
    return SeqPredictions(tracks, log_probability, rank)


def _parts(blend: Blend, loader: SessionLoader) -> Iterator[SessionBatch]:
    """The batches of a loader in parts of so many examples as are held at once."""
    size = rows_at_once(len(blend.ngram.popularity), _ROWS)
    for batch in progress(loader):
        history = zip(*(tensor.split(size) for tensor in batch.history), strict=True)
        others = zip(*(tensor.split(size) for tensor in batch[1:]), strict=True)
        for past, rest in zip(history, others, strict=True):
            yield SessionBatch(History(*past), *rest)


def _judge(blend: Blend, device: torch.device, batch: SessionBatch) -> tuple[Tensor, Tensor]:
    """Log-probabilities (B, T) of all targets, 0 for what is no track, and ranks (B,) of the first, infinity there."""
    history, targets = batch.to(device)[:2]
    states = blend.model(history, blend.model.previous_tracks(history, targets))  # (B, T, D)
    plays, s = whole_sessions(batch), batch.history.tracks.shape[1]
    log_p, ranks = torch.zeros(targets.shape), torch.full((len(targets),), torch.inf)
    for step in range(targets.shape[1]):
        known = batch.target_tracks[:, step] >= N_SPECIAL
        if not known.any():
            continue
        p = blend.probability(states[known, step], plays[known, step : step + s])
        true = targets[known, step]
        log_p[known, step] = p.gather(1, true[:, None])[:, 0].log().float().cpu()
        if step == 0:
            ranks[known] = rank_of(p, true).float().cpu()
    return log_p, ranks


def _continue(blend: Blend, device: torch.device, history: History, length: int) -> Tensor:
    """The most probable track, again and again, of equal ones the smaller id: int64 (B, length)."""
    plays, s = history.tracks, history.tracks.shape[1]
    history = History(*(tensor.to(device) for tensor in history))
    state, tracks = blend.model.begin(history), blend.model.start(history)[:, 0]
    for _ in range(length):
        states, state = blend.model.step(state, tracks)
        tracks = blend.probability(states, plays[:, -s:]).argmax(1)
        plays = torch.cat([plays, tracks.cpu()[:, None]], dim=1)
    return plays[:, s:]
