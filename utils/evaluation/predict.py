"""Predictions of a model for all examples of a loader, in order.

Shapes: see the legend in `utils/data/batch.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from model import next_track
from model.catalogue import Catalogue, rows_at_once
from model.decoding import HasHead, TargetModel
from model.next_track import NextTrack
from utils.core import distributed
from utils.data.batch import SessionBatch
from utils.data.dataloaders import SessionLoader
from utils.data.vocab import N_SPECIAL, PAD
from utils.evaluation.decoding import Decoding, step_by_step
from utils.evaluation.options import DecodingConfig
from utils.evaluation.predictions import Predict, SeqPredictions, SkipPredictions

LOGIT_ROWS = 256
"""Most rows of the (rows, V) score matrix that are held at once: 105 MB at 103,000 tracks."""
_ROWS_IN_CACHE = 16
"""Rows of the score matrix that are read at once, so that they stay in the processor's cache."""


def skip_predictor(model: nn.Module, device: torch.device) -> Predict:
    """`predict_skip` of this model."""
    return partial(predict_skip, model, device)


def seq_predictor(
    model: TargetModel, device: torch.device, decoding: Decoding | None = None, allowed: Tensor | None = None
) -> Predict:
    """`predict_seq` of this model."""
    return partial(predict_seq, model, device, decoding=decoding, allowed=allowed)


@torch.inference_mode()
def predict_skip(model: nn.Module, device: torch.device, loader: SessionLoader) -> SkipPredictions:
    """Skip probabilities of all examples of `loader`, in order."""
    model.eval()
    probability = np.zeros((loader.n_examples, loader.target_size), np.float32)
    done = []
    for batch in shares(loader):
        done.append(batch.rows.numpy())
        probability[done[-1]] = model(*batch.inputs(device)).float().sigmoid().cpu().numpy()
    distributed.put_together(probability, rows=done)
    return SkipPredictions.of(probability)


@torch.inference_mode()
def predict_seq(
    model: TargetModel,
    device: torch.device,
    loader: SessionLoader,
    *,
    decoding: Decoding | None = None,
    allowed: Tensor | None = None,
) -> SeqPredictions:
    """Continuations, log-probabilities of the true tracks and full-catalogue ranks, in order.

    A step-by-step model scores each true track given the true ones before it (teacher-forced). A BERT is given only the
    history and scores all targets in one pass, in whatever order its masks are filled: its perplexity is that of
    independent guesses, not of a sequence.

    Args:
        model, device, loader: what predicts what, where.
        decoding: how to continue sessions, in a way that the model can; greedily if not given.
        allowed: int64 (A,), the tracks that may continue a session; all of them if not given.
    """
    model.eval()
    decoding = decoding or step_by_step(DecodingConfig())
    continue_sessions = decoding(model, Catalogue(model.head, allowed))
    n, t = loader.n_examples, loader.target_size
    tracks = np.full((n, t), PAD, np.int32)
    log_probability = np.zeros((n, t), np.float32)
    rank, tied = np.full(n, np.inf, np.float32), np.ones(n, np.float32)
    done = []
    for batch in shares(loader):
        rows = batch.rows.numpy()
        done.append(rows)
        history, targets = batch.inputs(device)
        states = model(history, model.previous_tracks(history, targets))  # (B, T, D)
        log_p, ranks, ties = judge(model, states, targets)
        log_probability[rows] = log_p.cpu().numpy()
        rank[rows], tied[rows] = ranks[:, 0].cpu().numpy(), ties[:, 0].cpu().numpy()
        tracks[rows] = continue_sessions(history, t, batch.rows).cpu().numpy()
    distributed.put_together(tracks, log_probability, rank, tied, rows=done)
    return SeqPredictions(tracks, log_probability, rank, tied)


def predict_by_counting(model: NextTrack, loader: SessionLoader) -> SeqPredictions:
    """The same of a model that counts: a baseline, or a memory with its scorer."""
    return SeqPredictions(*next_track.predict(model, *next_track.examples(loader)))


def progress(loader: SessionLoader) -> tqdm:
    """The batches of a loader, with a progress bar after two seconds."""
    return tqdm(loader, desc=f"predict {loader.arrays.folder.name}", leave=False, delay=2, unit="batch")


def shares(loader: SessionLoader) -> Iterator[SessionBatch]:
    """The same as `progress`, but only the rows that this process predicts."""
    return (batch for batch in (each.take(distributed.mine()) for each in progress(loader)) if len(batch.rows))


def judge(model: HasHead, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How probable the true tracks are, given the states of a model.

    Args:
        states: (B, T, D).
        targets: int64 (B, T).

    Returns:
        log-probability (B, T), 0 where the target is padding or outside the vocabulary;
        rank (B, T) from 0 among all tracks, infinity for such targets: the middle one of tied tracks;
        tied (B, T), how many tracks share the score of the true one, itself included; 1 for such targets.
    """
    inside = targets >= N_SPECIAL
    flat, labels = states[inside].float(), targets[inside] - N_SPECIAL
    weight, bias = model.head.weight[N_SPECIAL:].float(), model.head.bias[N_SPECIAL:].float()
    n = len(bias)
    log_p, ranks, ties = torch.empty(3, len(labels), device=states.device)
    n_rows = rows_at_once(n, LOGIT_ROWS)
    scores = torch.empty(min(n_rows, len(labels)), n, device=states.device)  # one for all parts, and so is `lower`
    lower = torch.empty(min(_ROWS_IN_CACHE, len(scores)), n, device=states.device)
    for rows in torch.arange(len(labels), device=states.device).split(n_rows):
        torch.addmm(bias, flat[rows], weight.T, out=scores[: len(rows)])
        for few, of_few in zip(rows.split(_ROWS_IN_CACHE), scores[: len(rows)].split(_ROWS_IN_CACHE), strict=True):
            true = of_few.gather(1, labels[few, None])
            highest = of_few.amax(1, keepdim=True)
            # The sum of the signs is (tracks above) - (tracks below), and all but these are ties.
            signs = torch.sub(of_few, true, out=lower[: len(few)]).sign_()
            ranks[few] = (n - 1 + signs.sum(1)) / 2
            ties[few] = n - signs.count_nonzero(1).to(ties.dtype)
            log_p[few] = (true - highest)[:, 0] - of_few.sub_(highest).exp_().sum(1).log()
    nothing = torch.zeros(targets.shape, device=states.device)
    every_rank = (nothing + torch.inf).masked_scatter(inside, ranks)
    return nothing.masked_scatter(inside, log_p), every_rank, (nothing + 1).masked_scatter(inside, ties)
