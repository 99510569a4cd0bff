"""A learned choice among the candidates of a memory: the second of two stages.

    s(b | h) = w . z_b + MLP(z_b, z_h)          for each candidate b of a history h
    s(elsewhere | h) = MLP(z_h)                 the next track is none of the candidates
    P = softmax over the candidates and "elsewhere", whose share goes to all tracks by popularity

z_b and z_h are standardised features (`model/candidates.py`). So every track has a probability, ranks are over the full
catalogue, and sessions are continued as by any baseline (`model/next_track.py`). Letters: N histories, M candidates of
all of them, C candidates of the history that has most, V ids, S positions of a history.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn

from model.candidates import OF_HISTORY, CandidateFinder, Candidates
from model.dropout import Dropout
from model.memory import Memory
from model.next_track import NextScores, popularity_of
from utils.data.vocab import N_SPECIAL

CLIP = 6.0
"""Largest standardised feature."""
LEAST = 1e-30
"""Smallest probability of "elsewhere": ranks need one above 0, which float32 may round to."""
NOTHING = torch.finfo(torch.float32).min


class CandidateScorer(nn.Module):
    """Scores candidates; several members are trained side by side, and their probabilities are averaged.

    Args:
        n_features: F, of a candidate.
        n_members: networks with weights and dropout of their own.
        d_hidden: width of the first hidden layer; the second has half of it.
        dropout: rate after the first hidden layer.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, *, n_features: int, n_members: int, d_hidden: int, dropout: float) -> None:
        super().__init__()
        self.n_features = n_features
        self.register_buffer("mean", torch.zeros(n_features + len(OF_HISTORY)))
        self.register_buffer("scale", torch.ones(n_features + len(OF_HISTORY)))
        self.members = nn.ModuleList(_Member(n_features, d_hidden, dropout) for _ in range(n_members))

    def standardise(self, cases: Candidates) -> None:
        """Take mean and scale of the features from these candidates; a constant feature becomes 0."""
        features = [cases.features.astype(np.float32), cases.histories]
        mean = np.concatenate([part.mean(axis=0, dtype=np.float64) for part in features])
        spread = np.concatenate([part.std(axis=0, dtype=np.float64) for part in features])
        self.mean.copy_(torch.from_numpy(mean))
        self.scale.copy_(torch.from_numpy(1 / np.where(spread > 1e-6, spread, np.inf)))

    def forward(self, cases: Candidates) -> Tensor:
        """Log-probabilities (members, N, C + 1): "elsewhere", then a history's candidates; nearly -inf after them."""
        counts, device = np.diff(cases.starts), self.mean.device
        rows = np.repeat(np.arange(len(counts)), counts)
        columns = np.arange(len(rows)) - np.repeat(cases.starts[:-1], counts) + 1
        n, arrays = self.n_features, (cases.features, cases.histories, rows, columns)
        of_each, of_history, row, column = (torch.from_numpy(array).to(device) for array in arrays)
        z = ((of_each.float() - self.mean[:n]) * self.scale[:n]).clamp(-CLIP, CLIP)  # (M, F)
        h = ((of_history - self.mean[n:]) * self.scale[n:]).clamp(-CLIP, CLIP)  # (N, G)
        empty = z.new_full((len(counts), int(counts.max(initial=0)) + 1), NOTHING)  # (N, C + 1)
        scores = []
        for member in self.members:
            of_candidates, elsewhere = member(z, h, row)
            table = empty.index_put((row, column), of_candidates)
            scores.append(torch.cat([elsewhere[:, None], table[:, 1:]], dim=1))
        return torch.stack(scores).log_softmax(-1)


class _Member(nn.Module):
    def __init__(self, n_features: int, d_hidden: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(n_features, 1, bias=False)
        self.of_candidate = nn.Linear(n_features, d_hidden, bias=False)
        self.of_history = nn.Linear(len(OF_HISTORY), d_hidden)
        self.rest = nn.Sequential(
            *(nn.ReLU(), Dropout(dropout)),
            *(nn.Linear(d_hidden, d_hidden // 2), nn.ReLU(), nn.Linear(d_hidden // 2, 1, bias=False)),
        )
        self.elsewhere = nn.Sequential(nn.Linear(len(OF_HISTORY), d_hidden), nn.ReLU(), nn.Linear(d_hidden, 1))

    def forward(self, z: Tensor, h: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """Features of candidates (M, F) and histories (N, G), and whose each is (M,) -> scores (M,), elsewhere (N,)."""
        hidden = self.of_candidate(z) + self.of_history(h)[row]
        return (self.linear(z) + self.rest(hidden))[:, 0], self.elsewhere(h)[:, 0]


def take(cases: Candidates, rows: np.ndarray) -> Candidates:
    """The candidates of some histories, int (n,)."""
    counts = np.diff(cases.starts)[rows]
    starts = np.append(0, counts.cumsum())
    places = np.arange(starts[-1]) + np.repeat(cases.starts[rows] - starts[:-1], counts)
    return Candidates(cases.ids[places], starts, cases.features[places], cases.histories[rows])


def joined(parts: list[Candidates]) -> Candidates:
    """The candidates of several lists of histories, one list after the other."""
    ids, features, histories = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "features", "histories")
    )
    counts = np.concatenate([np.diff(part.starts) for part in parts])
    return Candidates(ids, np.append(0, counts.cumsum()), features, histories)


def popularity(memory: Memory) -> np.ndarray:
    """`popularity_of` the plays in a memory."""
    return popularity_of(np.diff(memory.track_starts))


def places_of(cases: Candidates, targets: np.ndarray) -> np.ndarray:
    """Where the next tracks (N,) stand among a history's candidates, counted from 1; 0 for "elsewhere": int64 (N,)."""
    rows = np.repeat(np.arange(len(targets)), np.diff(cases.starts))
    hit = np.flatnonzero(cases.ids == targets[rows])
    places = np.zeros(len(targets), np.int64)
    places[rows[hit]] = hit - cases.starts[rows[hit]] + 1
    return places


def candidate_loss(scorer: CandidateScorer, cases: Candidates, targets: np.ndarray) -> tuple[Tensor, int]:
    """Cross-entropy in nats of the next tracks (N,) among candidates and "elsewhere", mean of the members: (sum, N).

    A target outside the vocabulary costs nothing.
    """
    inside = targets >= N_SPECIAL
    log_p = scorer(cases)  # (members, N, C + 1)
    places = torch.from_numpy(places_of(cases, targets)).to(log_p.device)
    own = log_p.gather(2, places.expand(len(log_p), -1)[..., None])[..., 0].mean(0)  # (N,)
    return -own[torch.from_numpy(inside).to(own.device)].sum(), int(inside.sum())


@torch.inference_mode()
def next_scores(scorer: CandidateScorer, cases: Candidates, n_ids: int) -> NextScores:
    """Probabilities of the next track of N histories: those of the candidates, and a rest for popularity."""
    p = scorer(cases).exp().mean(0).cpu().numpy()  # (N, C + 1)
    there = np.arange(p.shape[1] - 1) < np.diff(cases.starts)[:, None]
    found = csr_array((p[:, 1:][there], cases.ids, cases.starts), shape=(len(p), n_ids))
    return NextScores(found, p[:, 0].astype(np.float64).clip(min=LEAST))


@dataclass(frozen=True)
class MemoryModel:
    """A memory and the scorer of its candidates: what predicts next tracks."""

    finder: CandidateFinder
    scorer: CandidateScorer
    popularity: np.ndarray

    @classmethod
    def of(cls, finder: CandidateFinder, scorer: CandidateScorer) -> MemoryModel:
        """This scorer over the candidates of `finder`."""
        scorer.eval()
        return cls(finder, scorer, popularity(finder.memory))

    def score(self, history: np.ndarray) -> NextScores:
        """Probabilities of the next track of histories int (N, S), padded on the left."""
        return next_scores(self.scorer, self.finder(history), len(self.popularity))
