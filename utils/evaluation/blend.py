"""Mix the probabilities of a model and of an n-gram: P = w P_model + (1 - w) P_ngram, over all tracks.

A network generalises, an n-gram remembers: each knows what the other does not (linear interpolation, Jelinek and Mercer
1980). Everything is exact: for a few examples at a time, both distributions are computed over the whole catalogue, in
float64, as the n-gram's own ranks are. Shapes: see the legend in `utils/data/batch.py`; N examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from model.catalogue import rows_at_once
from model.decoding import SeqModel, State
from model.next_track import NextTrack
from utils.core.errors import UserError
from utils.data.batch import History, SessionBatch, whole_sessions
from utils.data.dataloaders import SessionLoader
from utils.data.vocab import N_SPECIAL, PAD
from utils.evaluation import metrics
from utils.evaluation.predict import progress
from utils.evaluation.predictions import SeqPredictions

_ROWS = 128
"""Most examples whose distributions are held at once; each of the two takes 105 MB at 103,000 tracks."""


@dataclass(frozen=True)
class Blend:
    """A model and an n-gram whose probabilities are mixed."""

    model: SeqModel
    ngram: NextTrack
    """Or any other baseline of `model/baselines_seq.py`."""
    weight: float = 0.5
    """w, the model's share, from 0 to 1."""

    def probability(self, states: Tensor, history: Tensor) -> Tensor:
        """States (N, D) and the plays behind them (N, S), on the CPU -> float64 (N, V), 0 for special ids."""
        return torch.lerp(self.of_ngram(history).to(states.device), self.of_model(states), self.weight)

    def of_model(self, states: Tensor) -> Tensor:
        """The model's part: states (N, D) -> float64 (N, V)."""
        return self.model.logits(states.float()).double().softmax(1)

    def of_ngram(self, history: Tensor) -> Tensor:
        """The n-gram's part: plays (N, S), padded on the left -> float64 (N, V), on the CPU."""
        found, rest = self.ngram.score(history.numpy())
        p = torch.outer(torch.from_numpy(rest), torch.from_numpy(self.ngram.popularity))
        rows = np.repeat(np.arange(len(rest)), np.diff(found.indptr))
        p[rows, found.indices] += torch.from_numpy(found.data)
        return p


def rank_of(p: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Rank, from 0 and the middle one of ties, and how many are tied, of tracks (N,) under P (N, V): float64 (N,)."""
    own, tracks = p.gather(1, targets[:, None]), p[:, N_SPECIAL:]
    above, up_to = ((tracks > own).sum(1, dtype=torch.float64), (tracks >= own).sum(1, dtype=torch.float64))
    return (above + up_to - 1) / 2, up_to - above


@torch.inference_mode()
def choose_weight(
    blend: Blend, weights: Sequence[float], device: torch.device, loader: SessionLoader | None
) -> tuple[Blend, dict[str, float]]:
    """Compare weights by the MRR@20 of the next track in a loader's examples; a single weight is used as given.

    Returns:
        The blend with the best weight (the first of equals), and the MRR@20 of each of several weights.

    Raises:
        UserError: there are several weights, and no loader.
    """
    if len(weights) == 1:
        return replace(blend, weight=weights[0]), {}
    if loader is None:
        raise UserError("weights: there are no validation sessions to choose by; give one weight, such as '[0.5]'")
    blend.model.eval()
    total = np.zeros(len(weights))
    for batch in _parts(blend, loader):
        known = batch.target_tracks[:, 0] >= N_SPECIAL  # a new track has no rank, whatever the weight
        history, targets = batch.inputs(device)
        states = blend.model(history, blend.model.start(history))[:, 0]  # (N, D)
        p_model, p_ngram = blend.of_model(states)[known], blend.of_ngram(batch.history.tracks)[known].to(device)
        for i, weight in enumerate(weights):
            ranks, ties = rank_of(torch.lerp(p_ngram, p_model, weight), targets[:, 0][known])
            total[i] += metrics.reciprocal_rank(ranks.cpu().numpy(), 20, ties.cpu().numpy()).sum()
    means = total / loader.n_examples
    trials = {f"weight {weight}": float(mean) for weight, mean in zip(weights, means, strict=True)}
    return replace(blend, weight=weights[int(means.argmax())]), trials


@torch.inference_mode()
def predict_blend(blend: Blend, device: torch.device, loader: SessionLoader) -> SeqPredictions:
    """Greedy continuations, log-probabilities of the true tracks (teacher-forced) and full-catalogue ranks, in order.

    Args:
        blend: its model is on `device`.
        device: one with float64 (MPS has none).
        loader: ordered.
    """
    model = blend.model
    model.eval()
    n, t = loader.n_examples, loader.target_size
    tracks = np.full((n, t), PAD, np.int32)
    log_probability = np.zeros((n, t), np.float32)
    rank, tied = np.full(n, np.inf, np.float32), np.ones(n, np.float32)
    for batch in _parts(blend, loader):
        rows, plays = batch.rows.numpy(), batch.history.tracks
        history, targets = batch.inputs(device)
        states, state = model.step(model.begin(history), model.start(history)[:, 0])
        p = blend.probability(states, plays)  # of the first step, which all three results need
        ranks, ties = rank_of(p, targets[:, 0])
        known, best = targets[:, 0] >= N_SPECIAL, p.argmax(1)
        rank[rows], tied[rows] = ranks.where(known, torch.inf).cpu(), ties.where(known, 1.0).cpu()
        log_probability[rows, 0] = _log_of(p, targets[:, 0])
        log_probability[rows, 1:] = _judge_later(blend, batch, history, targets)
        tracks[rows] = _continue(blend, state, best, plays, t)
    return SeqPredictions(tracks, log_probability, rank, tied)


def _log_of(p: Tensor, targets: Tensor) -> Tensor:
    """Logarithm of P (N, V) at targets (N,), 0 where the target is no track; on the CPU."""
    return p.gather(1, targets[:, None])[:, 0].where(targets >= N_SPECIAL, 1.0).log().cpu()


def _judge_later(blend: Blend, batch: SessionBatch, history: History, targets: Tensor) -> Tensor:
    """Log-probabilities (B, T - 1) of all targets but the first, each after the true ones before it."""
    states = blend.model(history, blend.model.previous_tracks(history, targets))  # (B, T, D)
    plays, s = whole_sessions(batch), batch.history.tracks.shape[1]
    log_p = torch.zeros(len(targets), targets.shape[1] - 1)
    for step in range(1, targets.shape[1]):
        p = blend.probability(states[:, step], plays[:, step : step + s])
        log_p[:, step - 1] = _log_of(p, targets[:, step])
    return log_p


def _continue(blend: Blend, state: State, tracks: Tensor, plays: Tensor, length: int) -> Tensor:
    """Continue sessions greedily, ties going to the smaller id: int64 (B, length), beginning with `tracks` (B,).

    Args:
        state: of the model, before it reads `tracks`.
        plays: histories (B, S), on the CPU.
    """
    s = plays.shape[1]
    plays = torch.cat([plays, tracks.cpu()[:, None]], dim=1)
    for _ in range(length - 1):
        states, state = blend.model.step(state, tracks)
        tracks = blend.probability(states, plays[:, -s:]).argmax(1)
        plays = torch.cat([plays, tracks.cpu()[:, None]], dim=1)
    return plays[:, s:]


def _parts(blend: Blend, loader: SessionLoader) -> Iterator[SessionBatch]:
    """The batches of a loader, in parts small enough for the distributions of all their examples to be held at once."""
    size = rows_at_once(len(blend.ngram.popularity), _ROWS)
    for batch in progress(loader):
        for start in range(0, len(batch.rows), size):
            yield batch.take(slice(start, start + size))
