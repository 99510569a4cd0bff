"""Straightforward versions of what is measured, as a competent person writes them first.

The network is our own, so that weights are shared and outputs can be compared; everything around it is plain: Python
collation, a softmax over all tracks at once, dense Adam, decoding by a loop over positions, top-k of a score matrix.
Shapes: see the legend in `utils/data/batch.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.workload import Sizes
from model.bert import BertForMaskedTracks
from model.dropout import Dropout
from model.gru import NextTrackGRU
from model.transformer import SeqTransformer, SkipTransformer
from utils.data import schema
from utils.data.batch import History, SessionBatch, whole_sessions
from utils.data.dataloaders import SessionLoader
from utils.data.dataset import SessionArrays
from utils.data.vocab import N_SPECIAL, PAD
from utils.training.losses import Negatives
from utils.training.masked_tracks import mask_tracks
from utils.training.options import MaskingConfig


def collate(
    arrays: SessionArrays, sessions: Sequence[int], cuts: Sequence[int], *, history_size: int, target_size: int
) -> SessionBatch:
    """A batch by a loop over its sessions: slice, pad, make tensors. Its `rows` are the sessions themselves."""
    nothing = [0] * len(schema.LOG_COLUMNS)
    columns: list[list] = [[] for _ in range(5)]
    for session, cut in zip(sessions, cuts, strict=True):
        start, end = int(arrays.offsets[session]), int(arrays.offsets[session + 1])
        past = slice(max(start, start + cut - history_size), start + cut)
        future = slice(start + cut, min(end, start + cut + target_size))
        n_before = history_size - (past.stop - past.start)
        n_after = target_size - (future.stop - future.start)
        states = [0 if code == schema.SKIP_UNKNOWN else code + 1 for code in arrays.skips[past].tolist()]
        values = (
            [PAD] * n_before + arrays.tracks[past].tolist(),
            [0] * n_before + states,
            [nothing] * n_before + arrays.log[past].tolist(),
            arrays.tracks[future].tolist() + [PAD] * n_after,
            [_label(code) for code in arrays.skips[future].tolist()] + [-1] * n_after,
        )
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    tracks, skips, log, target_tracks, target_skips = columns
    return SessionBatch(
        History(torch.tensor(tracks), torch.tensor(skips), torch.tensor(log, dtype=torch.uint8)),
        torch.tensor(target_tracks),
        torch.tensor(target_skips),
        torch.tensor(sessions),
    )


def _label(code: int) -> int:
    """The challenge's label of a skip code."""
    if code == schema.SKIP_UNKNOWN:
        return -1
    return int(schema.is_skip(code))


def makes_the_same(loader: SessionLoader, batch: SessionBatch) -> bool:
    """Whether `collate` makes the same of the sessions of a loader's batch (without random cuts)."""
    rows = batch.rows.numpy()
    expected = collate(
        loader.arrays,
        loader.session[rows].tolist(),
        loader.cuts[rows].tolist(),
        history_size=loader.history_size,
        target_size=loader.target_size,
    )
    pairs = zip((*batch.history, *batch[1:3]), (*expected.history, *expected[1:3]), strict=True)
    return all(ours.dtype == theirs.dtype and torch.equal(ours, theirs) for ours, theirs in pairs)


def batches(arrays: SessionArrays, sizes: Sizes) -> Iterator[SessionBatch]:
    """Shuffled batches for ever, each session cut in the middle."""
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(arrays.n_sessions)
        for first in range(0, len(order), sizes.batch_size):
            sessions = order[first : first + sizes.batch_size].tolist()
            cuts = [int(arrays.offsets[i + 1] - arrays.offsets[i]) // 2 for i in sessions]
            yield collate(arrays, sessions, cuts, history_size=sizes.history_size, target_size=sizes.target_size)


M = TypeVar("M", bound=nn.Module)


def without_fast_paths(model: M) -> M:
    """Put torch's own dropout in the place of ours, in `model` itself."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, Dropout):
                setattr(module, name, nn.Dropout(child.p))
    return model


Learn = Callable[[SessionBatch], float]
"""Updates a model once; returns the mean loss of the batch."""


DenseLoss = Callable[[Tensor, Tensor], Tensor]
"""Scores of all tracks (N, V), targets (N,) -> mean loss."""


def softmax(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy over all tracks at once, in nats."""
    return functional.cross_entropy(logits, targets, ignore_index=PAD)


def gbce(logits: Tensor, targets: Tensor, *, n_negatives: int, calibration: float) -> Tensor:
    """What gSASRec's binary cross-entropy is on average over all draws of negatives: each other track counts by their
    share of the catalogue, a. Scores enter as s - log(number of tracks - 1). Targets are tracks.
    """
    scores, places = logits[:, N_SPECIAL:], (targets - N_SPECIAL)[:, None]
    n_others = scores.shape[1] - 1
    a = n_negatives / n_others
    odds = scores - math.log(n_others)
    yes, no = -functional.logsigmoid(odds), -functional.logsigmoid(-odds)  # (N, tracks): the cost of each label
    others = no.sum(1) - no.gather(1, places)[:, 0]
    beta = a * (calibration * (1 - 1 / a) + 1 / a)
    return ((beta * yes.gather(1, places)[:, 0] + a * others) / (n_negatives + 1)).mean()


def seq_learner(model: SeqTransformer, *, lr: float, loss_fn: DenseLoss = softmax) -> Learn:
    """Scores of all tracks at once, dense gradients, Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)

    def learn(batch: SessionBatch) -> float:
        optimizer.zero_grad()
        targets = batch.target_tracks
        states = model(batch.history, model.previous_tracks(batch.history, targets))
        loss = loss_fn(model.logits(states).flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.step()
        return loss.item()

    return learn


def next_track_learner(model: NextTrackGRU, *, lr: float) -> Learn:
    """Scores of all tracks at once after every play of full sessions, dense gradients, Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)

    def learn(batch: SessionBatch) -> float:
        optimizer.zero_grad()
        tracks = whole_sessions(batch)
        states, _ = model.read(tracks[:, :-1])
        loss = softmax(model.logits(states).flatten(0, 1), tracks[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        return loss.item()

    return learn


def sampled_next_track_learner(model: NextTrackGRU, negatives: Negatives, *, lr: float) -> Learn:
    """Scores of shared negatives in one matrix (N, 1 + k), the target's first; dense gradients, Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)

    def learn(batch: SessionBatch) -> float:
        optimizer.zero_grad()
        tracks = whole_sessions(batch)
        states, _ = model.read(tracks[:, :-1])
        x, targets = states.flatten(0, 1), tracks[:, 1:].flatten()
        others = negatives.draw()
        (vectors, bias), (own, own_bias) = model.head.at(others), model.head.at(targets)
        scores = x @ vectors.T + bias - negatives.expected[others].log()
        scores = scores.masked_fill(others == targets[:, None], -torch.inf)
        logits = torch.cat([(x * own).sum(1, keepdim=True) + own_bias[:, None], scores], dim=1)
        loss = functional.cross_entropy(logits, torch.zeros_like(targets))
        loss.backward()
        optimizer.step()
        return loss.item()

    return learn


def masked_learner(model: BertForMaskedTracks, masking: MaskingConfig, *, lr: float) -> Learn:
    """Softmax over all tracks at once at the positions to be found, dense gradients, Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)

    def learn(batch: SessionBatch) -> float:
        optimizer.zero_grad()
        inputs, labels = mask_tracks(whole_sessions(batch), len(model.head.bias), masking)
        wanted = labels != PAD
        loss = functional.cross_entropy(model.head(model(inputs)[wanted]), labels[wanted])
        loss.backward()
        optimizer.step()
        return loss.item()

    return learn


def skip_learner(model: SkipTransformer, *, lr: float) -> Learn:
    """Binary cross-entropy, dense gradients, Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)

    def learn(batch: SessionBatch) -> float:
        optimizer.zero_grad()
        logits = model(batch.history, batch.target_tracks)
        known = batch.target_skips >= 0
        loss = functional.binary_cross_entropy_with_logits(logits[known], batch.target_skips[known].float())
        loss.backward()
        optimizer.step()
        return loss.item()

    return learn


@torch.no_grad()
def greedy(model: SeqTransformer, history: History, length: int) -> Tensor:
    """The most probable track, again and again: int64 (B, length).

    Each step runs the whole model on the whole prefix and scores all of its positions.
    """
    tracks = model.start(history)  # (B, 1)
    for _ in range(length):
        logits = model.logits(model(history, tracks))  # (B, t, V)
        tracks = torch.cat([tracks, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return tracks[:, 1:]


@torch.no_grad()
def top_next(model: SeqTransformer, history: History, k: int) -> Tensor:
    """The k most probable next tracks after each history, best first: int64 (B, k)."""
    return model.logits(model(history, model.start(history)))[:, -1].topk(k).indices
