"""From a model to the scores of its run: the same prediction and decoding on train, valid and test.

Shapes: see the legend in `utils/batch.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from model.decoding import SeqModel, greedy
from utils.dataloaders import SPLITS, DataConfig, Dataset, SessionLoader
from utils.evaluation import (
    Scores,
    SeqPredictions,
    SkipPredictions,
    evaluate_seq,
    evaluate_skip,
    save_predictions,
    session_slices,
)
from utils.vocab import N_SPECIAL, PAD

LOGIT_ROWS = 256
"""Rows of the (rows, V) score matrix that are held at once: 105 MB at 103,000 tracks."""

PredictSkip = Callable[[SessionLoader], SkipPredictions]
PredictSeq = Callable[[SessionLoader], SeqPredictions]


def score_skip(
    predict: PredictSkip,
    dataset: Dataset,
    data: DataConfig,
    *,
    splits: Sequence[str] = SPLITS,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Scores of the skip task, split -> `Scores.summary()`.

    Training sessions are scored like the others, on a sample as large as the test split. `folder` (a run's) gets
    `predictions_test.npz`.
    """
    result = {}
    for split in splits:
        loader = scoring_loader(dataset, data, split)
        predictions, targets = predict(loader), loader.targets()
        scores = evaluate_skip(predictions, targets, slices=session_slices(loader, dataset.train))
        result[split] = scores.summary()
        if folder is not None and split == "test":
            save_predictions(folder / "predictions_test.npz", predictions, scores, targets)
    return result


def score_seq(
    predict: PredictSeq,
    dataset: Dataset,
    data: DataConfig,
    *,
    splits: Sequence[str] = SPLITS,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Scores of the seq task, split -> `Scores.summary()`; see `score_skip`.

    With `data.every_prefix` there are entries `<split>_prefixes` too: next-track scores after every prefix.
    """
    result = {}
    for split in splits:
        loader = scoring_loader(dataset, data, split)
        predictions, targets = predict(loader), loader.targets()
        slices = session_slices(loader, dataset.train)
        scores = evaluate_seq(predictions, targets, n_ids=dataset.n_ids, slices=slices)
        result[split] = scores.summary()
        if folder is not None and split == "test":
            save_predictions(folder / "predictions_test.npz", predictions, scores, targets)
        if data.every_prefix:
            result[f"{split}_prefixes"] = score_prefixes(predict, dataset, data, split).summary()
    return result


def skip_validation(predict: PredictSkip, dataset: Dataset, data: DataConfig) -> dict[str, float | None]:
    """Metrics of the validation split, without intervals."""
    loader = scoring_loader(dataset, data, "valid")
    return evaluate_skip(predict(loader), loader.targets()).means()


def seq_validation(predict: PredictSeq, dataset: Dataset, data: DataConfig) -> dict[str, float | None]:
    """Metrics of the validation split, without intervals; of the next track only with `data.every_prefix`."""
    loader = scoring_loader(dataset, data, "valid", prefixes=data.every_prefix)
    return evaluate_seq(predict(loader), loader.targets(), n_ids=dataset.n_ids).means()


def score_prefixes(predict: PredictSeq, dataset: Dataset, data: DataConfig, split: str) -> Scores:
    """Next-track scores over the full catalogue after every prefix of every session of a split."""
    loader = scoring_loader(dataset, data, split, prefixes=True)
    predictions, targets = predict(loader), loader.targets()
    return evaluate_seq(predictions, targets, n_ids=dataset.n_ids)


def scoring_loader(
    dataset: Dataset, data: DataConfig, split: str, *, prefixes: bool = False, batch_size: int = 256
) -> SessionLoader:
    """The ordered loader on which a split is scored: halves of sessions, or every prefix with its next track.

    Of the training sessions an evenly spaced sample is taken, as many as the test split has.
    """
    return SessionLoader(
        dataset.split(split),
        batch_size=batch_size,
        cut="every" if prefixes else "half",
        history_size=data.history_size,
        target_size=1 if prefixes else data.target_size,
        min_length=2 if prefixes else data.min_length,
        max_sessions=dataset.test.n_sessions if split == "train" else None,
    )


def skip_predictor(model: nn.Module, device: torch.device) -> PredictSkip:
    """`predict_skip` of this model."""
    return partial(predict_skip, model, device)


def seq_predictor(model: SeqModel, device: torch.device) -> PredictSeq:
    """`predict_seq` of this model."""
    return partial(predict_seq, model, device)


@torch.inference_mode()
def predict_skip(model: nn.Module, device: torch.device, loader: SessionLoader) -> SkipPredictions:
    """Skip probabilities of all examples of `loader`, in order."""
    model.eval()
    probability = np.zeros((loader.n_examples, loader.target_size), np.float32)
    for batch in _progress(loader):
        on_device = batch.to(device)
        logits = model(on_device.history, on_device.target_tracks)
        probability[batch.rows.numpy()] = logits.float().sigmoid().cpu().numpy()
    return SkipPredictions.of(probability)


@torch.inference_mode()
def predict_seq(model: SeqModel, device: torch.device, loader: SessionLoader) -> SeqPredictions:
    """Greedy continuations, teacher-forced log-probabilities and full-catalogue ranks, in order."""
    model.eval()
    n, t = loader.n_examples, loader.target_size
    tracks = np.full((n, t), PAD, np.int32)
    log_probability = np.zeros((n, t), np.float32)
    rank = np.zeros(n, np.float32)
    for batch in _progress(loader):
        rows = batch.rows.numpy()
        on_device = batch.to(device)
        states = model(on_device.history, model.previous_tracks(on_device.history, on_device.target_tracks))
        log_probability[rows] = _log_probability(model, states, on_device.target_tracks).cpu().numpy()
        rank[rows] = rank_of(model.logits(states[:, 0]), on_device.target_tracks[:, 0]).cpu().numpy()
        tracks[rows] = greedy(model, on_device.history, t).cpu().numpy()
    return SeqPredictions(tracks, log_probability, rank)


def _progress(loader: SessionLoader) -> tqdm:
    return tqdm(loader, desc=f"predict {loader.arrays.folder.name}", leave=False, delay=2, unit="batch")


def _log_probability(model: SeqModel, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Log-probability (B, T) of each target track, 0 where the target is padding or outside the vocabulary."""
    flat, labels = states.flatten(0, 1), targets.flatten()
    result = torch.zeros(labels.shape, device=labels.device)
    for rows in torch.nonzero(labels >= N_SPECIAL)[:, 0].split(LOGIT_ROWS):
        log_softmax = model.logits(flat[rows]).float().log_softmax(-1)  # (rows, V)
        result[rows] = log_softmax.gather(1, labels[rows, None])[:, 0]
    return result.view(targets.shape)


def rank_of(logits: torch.Tensor, track: torch.Tensor) -> torch.Tensor:
    """Rank from 0 of `track` (B,) among `logits` (B, V): float (B,). Ties count half; unknown tracks: infinity."""
    score = logits.gather(1, track[:, None])
    rank = (logits > score).sum(1) + 0.5 * ((logits == score).sum(1) - 1)
    return torch.where(track >= N_SPECIAL, rank, torch.inf)
