"""From a model to the scores of its run: the same prediction and decoding on train, valid and test.

Shapes: see the legend in `utils/batch.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from model.catalogue import Catalogue
from model.decoding import SeqModel, greedy
from utils.cli import UserError
from utils.dataloaders import DataConfig, Dataset, SessionLoader
from utils.evaluation import (
    Scores,
    SeqPredictions,
    SkipPredictions,
    evaluate_seq,
    evaluate_skip,
    save_predictions,
    session_slices,
)
from utils.files import atomic_file
from utils.schema import SPLITS
from utils.vocab import N_SPECIAL, PAD

LOGIT_ROWS = 64
"""Rows of the (rows, V) score matrix that are held at once: 26 MB at 103,000 tracks, about a processor's cache."""

Predictions = SkipPredictions | SeqPredictions
Predict = Callable[[SessionLoader], Predictions]
"""Predicts all examples of a loader, in order; the kind of what it returns says which task it is."""


def score(
    predict: Predict, dataset: Dataset, data: DataConfig, *, splits: Sequence[str] = SPLITS, folder: Path | None = None
) -> dict[str, Any]:
    """Scores of a run, split -> `Scores.summary()`.

    Training sessions are scored like the others, on a sample as large as the test split. With `data.every_prefix`
    there are entries `<split>_prefixes` too. `folder` (the run's) gets `predictions_test.npz`.
    """
    result = {}
    for split in splits:
        loader, predictions, scores = score_split(predict, dataset, data, split)
        result[split] = scores.summary()
        if folder is not None and split == "test":
            save_predictions(folder / "predictions_test.npz", predictions, scores, loader.targets())
    if data.every_prefix:
        for split in splits:
            result[f"{split}_prefixes"] = score_split(predict, dataset, data, split, prefixes=True)[2].summary()
    return result


def score_split(
    predict: Predict,
    dataset: Dataset,
    data: DataConfig,
    split: str,
    *,
    prefixes: bool = False,
) -> tuple[SessionLoader, Predictions, Scores]:
    """Predict and score one split, at the half of each session or after every prefix."""
    loader = scoring_loader(dataset, data, split, prefixes=prefixes)
    predictions = predict(loader)
    slices = None if prefixes else session_slices(loader, dataset.train)
    return loader, predictions, scores_of(predictions, loader, dataset, slices)


def scores_of(
    predictions: Predictions, loader: SessionLoader, dataset: Dataset, slices: dict[str, np.ndarray] | None = None
) -> Scores:
    """Scores of the predictions of a loader's examples."""
    if isinstance(predictions, SkipPredictions):
        return evaluate_skip(predictions, loader.targets(), slices=slices)
    return evaluate_seq(predictions, loader.targets(), n_ids=dataset.n_ids, slices=slices)


def validate(predict: Predict, dataset: Dataset, data: DataConfig) -> dict[str, float | None]:
    """Metrics of the validation split, without intervals: what training watches."""
    loader = scoring_loader(
        dataset, data, "valid", prefixes=data.every_prefix, max_sessions=data.valid_sessions or None
    )
    return scores_of(predict(loader), loader, dataset).means()


def scoring_loader(
    dataset: Dataset, data: DataConfig, split: str, *, prefixes: bool = False, max_sessions: int | None = None
) -> SessionLoader:
    """The ordered loader on which a split is scored: halves of sessions, or every prefix with its next track.

    Of the training sessions an evenly spaced sample is taken, as many as the test split has.
    """
    if split == "train":
        max_sessions = dataset.test.n_sessions
    return SessionLoader(
        dataset.split(split),
        batch_size=256,
        cut="every" if prefixes else "half",
        history_size=data.history_size,
        target_size=1 if prefixes else data.target_size,
        min_length=2 if prefixes else data.min_length,
        max_sessions=max_sessions,
    )


def skip_predictor(model: nn.Module, device: torch.device) -> Predict:
    """`predict_skip` of this model."""
    return partial(predict_skip, model, device)


def seq_predictor(model: SeqModel, device: torch.device) -> Predict:
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
    catalogue = Catalogue(model.head)
    n, t = loader.n_examples, loader.target_size
    tracks = np.full((n, t), PAD, np.int32)
    log_probability = np.zeros((n, t), np.float32)
    rank = np.full(n, np.inf, np.float32)
    for batch in _progress(loader):
        rows = batch.rows.numpy()
        history, targets = batch.to(device)[:2]
        states = model(history, model.previous_tracks(history, targets))  # (B, T, D)
        log_p, ranks = judge(model, states, targets)
        log_probability[rows], rank[rows] = log_p.cpu().numpy(), ranks[:, 0].cpu().numpy()
        tracks[rows] = greedy(model, history, t, catalogue=catalogue).cpu().numpy()
    return SeqPredictions(tracks, log_probability, rank)


def _progress(loader: SessionLoader) -> tqdm:
    return tqdm(loader, desc=f"predict {loader.arrays.folder.name}", leave=False, delay=2, unit="batch")


def judge(model: SeqModel, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """What states think of the true tracks.

    Args:
        states: (B, T, D).
        targets: int64 (B, T).

    Returns:
        log-probability (B, T), 0 where the target is padding or outside the vocabulary;
        rank (B, T) from 0 among all tracks: ties count half, infinity where there is no probability.
    """
    inside = targets >= N_SPECIAL
    flat, labels = states[inside], targets[inside]
    log_p, ranks = torch.empty(2, len(labels), device=states.device)
    for rows in torch.arange(len(labels), device=flat.device).split(LOGIT_ROWS):
        logits = model.logits(flat[rows]).float()  # (rows, V)
        score = logits.gather(1, labels[rows, None])
        log_p[rows] = score[:, 0] - logits.logsumexp(1)
        above, as_high = (logits > score).sum(1), (logits >= score).sum(1)
        ranks[rows] = (above + as_high - 1) / 2
    nothing = torch.zeros(targets.shape, device=states.device)
    return nothing.masked_scatter(inside, log_p), (nothing + torch.inf).masked_scatter(inside, ranks)


def predictions_table(predictions: Predictions, loader: SessionLoader, dataset: Dataset) -> pd.DataFrame:
    """Predictions for people, one row a target: session, position in it, track, and what was predicted of it.

    Skip: `skip_probability`, `skip_predicted` and `skipped` (the truth, empty if unknown). Seq: `predicted_track_id`.
    """
    targets = loader.targets()
    example, step = np.nonzero(targets.tracks != PAD)
    session = targets.session[example]
    table = pd.DataFrame(
        {
            "session_id": loader.arrays.sessions["session_id"].to_numpy()[session],
            "position": loader.cuts[example] + step + 1,
            "track_id": dataset.track_names[targets.tracks[example, step]],
        }
    )
    if isinstance(predictions, SkipPredictions):
        truth = targets.skips[example, step]
        table["skip_probability"] = predictions.probability[example, step]
        table["skip_predicted"] = predictions.decision[example, step]
        table["skipped"] = pd.array(truth == 1, dtype="boolean")
        table.loc[truth < 0, "skipped"] = pd.NA
    else:
        table["predicted_track_id"] = dataset.track_names[predictions.tracks[example, step]]
    return table


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as .csv or .parquet, atomically.

    Raises:
        UserError: another ending.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise UserError(f"{path} must end in .csv or .parquet")
    with atomic_file(path) as temporary:
        table.to_csv(temporary, index=False) if path.suffix == ".csv" else table.to_parquet(temporary, index=False)
