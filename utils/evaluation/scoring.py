"""From predictions to the scores of a run: the same loaders, the same functions on train, valid and test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.core import distributed
from utils.core.memory import reuse_memory
from utils.data.dataloaders import SessionLoader
from utils.data.dataset import Dataset
from utils.data.options import DataConfig
from utils.data.schema import PREFIXES
from utils.evaluation.predictions import MaskedPredictions, Predict, Predictions, SkipPredictions
from utils.evaluation.scores import Scores, evaluate_masked, evaluate_seq, evaluate_skip, save_predictions
from utils.evaluation.slices import Labels, session_slices


def score(predict: Predict, dataset: Dataset, data: DataConfig, *, folder: Path | None = None) -> dict[str, Any]:
    """Scores of a run, split -> `Scores.summary()`.

    The splits of `data.scored`, training sessions like the others, on a sample as large as the test split. With
    `data.every_prefix` there are entries `<split>_prefixes` too. `folder` (the run's) gets `predictions_test.npz` and
    `predictions_test_prefixes.npz`.
    """
    result = {}
    for prefixes in (False, True) if data.every_prefix else (False,):
        for split in data.scored:
            name = split + PREFIXES if prefixes else split
            loader, predictions, scores = score_split(predict, dataset, data, split, prefixes=prefixes)
            result[name] = scores.summary()
            if folder is not None and split == "test" and distributed.is_first():
                save_predictions(folder / f"predictions_{name}.npz", predictions, scores, loader.targets())
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
    reuse_memory()
    loader = scoring_loader(dataset, data, split, prefixes=prefixes)
    predictions = predict(loader)
    slices = None if prefixes else session_slices(loader, dataset.train)
    return loader, predictions, scores_of(predictions, loader, dataset, slices)


def scores_of(
    predictions: Predictions, loader: SessionLoader, dataset: Dataset, slices: dict[str, Labels] | None = None
) -> Scores:
    """Scores of the predictions of a loader's examples; those of hidden tracks have no slices.

    With slices there is the accuracy by training plays, too.
    """
    if isinstance(predictions, MaskedPredictions):
        return evaluate_masked(predictions, loader.targets())
    plays = None if slices is None else dataset.train_plays.numpy()
    if isinstance(predictions, SkipPredictions):
        return evaluate_skip(predictions, loader.targets(), slices=slices, train_plays=plays)
    return evaluate_seq(predictions, loader.targets(), n_ids=dataset.n_ids, slices=slices, train_plays=plays)


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
