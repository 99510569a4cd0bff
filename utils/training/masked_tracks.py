"""Hide tracks to pre-train BERT, and score it on them (Devlin et al. 2019, section 3.1; Sun et al. 2019, "BERT4Rec").

BERT reads a session whole: history and targets of a loader that cuts at half, side by side, with padding on both sides.
Shapes: see the legend in `utils/data/batch.py`; M plays of a session, history and targets together.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from model.bert import BertForMaskedTracks
from utils.core import distributed
from utils.core.errors import UserError
from utils.data.batch import SessionBatch, device_of, to_device, true_sessions, whole_sessions
from utils.data.dataloaders import SessionLoader
from utils.data.dataset import Dataset
from utils.data.options import DataConfig
from utils.data.schema import SPLITS
from utils.data.vocab import MASK, N_SPECIAL, PAD
from utils.evaluation.predict import judge, progress
from utils.evaluation.predictions import MaskedPredictions, Predict
from utils.training.losses import TrackLoss, loss_inside
from utils.training.options import MaskingConfig

SHARE_MASKED = 0.8
"""Share of the selected plays that become MASK."""
SHARE_RANDOM = 0.1
"""Share of the selected plays that become any track; the rest stay as they are."""
EVALUATION_SEED = 0


class Masked(NamedTuple):
    """Sessions some of whose tracks have to be found."""

    inputs: Tensor
    """int64 (B, M): what the model reads."""
    labels: Tensor
    """int64 (B, M): the tracks to be found, PAD elsewhere."""


def mask_tracks(
    tracks: Tensor, n_ids: int, config: MaskingConfig, *, generator: torch.Generator | None = None
) -> Masked:
    """Select plays and hide most of them.

    Padding and new tracks are never selected. Every session with a known track has at least one selected play: where
    chance selects none, the one that came closest. So BERT learns from short sessions as often as from long ones.

    Args:
        tracks: int64 (B, M), padded on any side; on the CPU.
        n_ids: V.
        config: how many plays to select.
        generator: torch's global one if not given. Each session takes equally many numbers from it, in order, so that
            the same sessions get the same masks in batches of any size.
    """
    draws = torch.rand(tracks.shape[0], tracks.shape[1] + 1, 3, dtype=torch.float64, generator=generator)
    other = N_SPECIAL + (draws[:, :-1, 2] * (n_ids - N_SPECIAL)).long()  # (B, M), any track
    draws = draws.float()
    only_last = draws[:, -1:, 0] < config.last_item  # (B, 1)
    known = tracks >= N_SPECIAL
    chance = draws[:, :-1, 0].masked_fill(~known, torch.inf)
    selected = known & (chance <= chance.amin(1, keepdim=True).clamp(min=config.rate))
    selected = torch.where(only_last, last(known), selected)
    action = draws[:, :-1, 1].masked_fill(only_last, 0.0)
    masked, random = action < SHARE_MASKED, action >= 1 - SHARE_RANDOM
    inputs = tracks.where(~(selected & masked), MASK).where(~(selected & random), other)
    return Masked(inputs, tracks.where(selected, PAD))


def last(known: Tensor) -> Tensor:
    """The last true position of each row, bool (B, M) -> bool (B, M)."""
    return known & (known.flip(1).cumsum(1).flip(1) == 1)


def masked_loss(
    model: BertForMaskedTracks, batch: SessionBatch, *, loss: TrackLoss, masking: MaskingConfig
) -> tuple[Tensor, int]:
    """Loss in nats of the tracks to be found, drawn anew for each batch: (sum, number of them)."""
    tracks = true_sessions(batch)
    inputs, labels = mask_tracks(tracks, len(model.head.bias), masking)
    inputs = inputs.where(inputs != tracks, whole_sessions(batch))
    return loss_inside(model(to_device(inputs, device_of(model))), labels, model.head, loss)


def masked_predictor(model: BertForMaskedTracks, device: torch.device, masking: MaskingConfig) -> Predict:
    """`predict_masked` of this model."""
    return partial(predict_masked, model, device, masking=masking)


@torch.inference_mode()
def predict_masked(
    model: BertForMaskedTracks, device: torch.device, loader: SessionLoader, *, masking: MaskingConfig
) -> MaskedPredictions:
    """Log-probabilities and full-catalogue ranks of hidden tracks, in order; the same tracks are hidden each time.

    All selected plays become MASK here: the model could copy a track that stays, as some do in training.
    """
    model.eval()
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    shape = (loader.n_examples, loader.history_size + loader.target_size)
    tracks = np.full(shape, PAD, np.int32)
    log_probability = np.zeros(shape, np.float32)
    rank, tied = np.full(shape, np.inf, np.float32), np.ones(shape, np.float32)
    done, mine = [], distributed.mine()
    for batch in progress(loader):
        sessions = whole_sessions(batch)
        labels = mask_tracks(sessions, len(model.head.bias), masking, generator=generator).labels
        rows, sessions, labels = batch.rows[mine].numpy(), sessions[mine], labels[mine]
        if len(rows) == 0:
            continue
        done.append(rows)
        hidden = to_device(sessions.where(labels == PAD, MASK), device)
        log_p, ranks, ties = judge(model, model(hidden), to_device(labels, device))
        tracks[rows], log_probability[rows] = labels.numpy(), log_p.cpu().numpy()
        rank[rows], tied[rows] = ranks.cpu().numpy(), ties.cpu().numpy()
    distributed.put_together(tracks, log_probability, rank, tied, rows=done)
    return MaskedPredictions(tracks, log_probability, rank, tied)


def check_whole(dataset: Dataset, data: DataConfig) -> None:
    """Print how many sessions do not fit in history and targets when they are cut at half.

    Raises:
        UserError: `data` does not cut sessions at half.
    """
    if data.train_cut != "half" or data.every_prefix:
        raise UserError("pre-training reads whole sessions; leave out data.train_cut and data.every_prefix")
    for split in SPLITS:
        lengths = dataset.split(split).lengths
        halves = lengths // 2
        n_short = int(((halves > data.history_size) | (lengths - halves > data.target_size)).sum())
        if n_short:
            tqdm.write(
                f"{split}: only the middle of {n_short:,} of {len(lengths):,} sessions is read; the longest has "
                f"{lengths.max()} plays, so read all with --data.history_size {lengths.max() // 2} "
                f"--data.target_size {-(-lengths.max() // 2)}"
            )
