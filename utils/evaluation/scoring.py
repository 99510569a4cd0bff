"""From predictions to the scores of a run, with the same loaders and functions on train, valid and test."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from utils.core import distributed
from utils.core.memory import reuse_memory
from utils.data.dataloaders import SessionLoader, splits_to_score
from utils.data.dataset import Dataset
from utils.data.options import DataConfig
from utils.data.schema import PREFIXES
from utils.evaluation.predictions import MaskedPredictions, Predict, Predictions, SkipPredictions
from utils.evaluation.scores import Scores, evaluate_masked, evaluate_seq, evaluate_skip, save_predictions
from utils.evaluation.slices import Labels, session_slices


def scoring_loader(
    dataset: Dataset, data: DataConfig, split: str, *, prefixes: bool = False, max_sessions: int | None = None
) -> SessionLoader:
    """The ordered loader on which a split is scored: halves of sessions, or every prefix with its next track.

    Of the training sessions, it has an evenly spaced sample, as many as the test split has (as validation, if test is
    empty; a tenth, if both are).
    """
    if split == "train":
        max_sessions = dataset.test.n_sessions or dataset.valid.n_sessions or -(-dataset.train.n_sessions // 10)
    return SessionLoader(
        dataset.split(split),
        batch_size=256,
        cut="every" if prefixes else "half",
        history_size=data.history_size,
        target_size=1 if prefixes else data.target_size,
        min_length=2 if prefixes else data.min_length,
        max_sessions=max_sessions,
    )


def validation_loader(dataset: Dataset, data: DataConfig) -> SessionLoader | None:
    """The loader of every validation in training; None if the dataset has no validation sessions."""
    if dataset.valid.n_sessions == 0:
        return None
    return scoring_loader(dataset, data, "valid", prefixes=data.every_prefix, max_sessions=data.valid_sessions or None)


def scoring_loaders(dataset: Dataset, data: DataConfig) -> Iterator[tuple[str, SessionLoader]]:
    """The name and loader of each split of `data.scored`; with `data.every_prefix`, also of `<split>_prefixes`.

    Empty splits are left out, and one line says so.
    """
    splits = splits_to_score(dataset, data)
    if empty := [split for split in data.scored if split not in splits]:
        tqdm.write(f"{dataset.folder} has no {' and no '.join(empty)} sessions: scored on {', '.join(splits)} only")
    for prefixes in (False, True) if data.every_prefix else (False,):
        for split in splits:
            yield split + PREFIXES * prefixes, scoring_loader(dataset, data, split, prefixes=prefixes)


def score(
    predict: Predict,
    dataset: Dataset,
    loaders: Iterable[tuple[str, SessionLoader]],
    *,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Scores of a run, split -> `Scores.summary()`.

    Args:
        predict, dataset: what predicts, and on what.
        loaders: `scoring_loaders`, or a list of them that several models share.
        folder: the run's, where `predictions_test.npz` and `predictions_test_prefixes.npz` are written.
    """
    result = {}
    for name, loader in loaders:
        predictions, scores = score_loader(predict, dataset, loader, sliced=not name.endswith(PREFIXES))
        result[name] = scores.summary()
        if folder is not None and name.removesuffix(PREFIXES) == "test" and distributed.is_first():
            save_predictions(folder / f"predictions_{name}.npz", predictions, scores, loader.targets())
    return result


def score_loader(
    predict: Predict, dataset: Dataset, loader: SessionLoader, *, sliced: bool = True
) -> tuple[Predictions, Scores]:
    """Predict and score all examples of a loader; only a loader that cuts at half can be `sliced`."""
    reuse_memory()
    predictions = predict(loader)
    slices = session_slices(loader, dataset.train) if sliced else None
    return predictions, scores_of(predictions, loader, dataset, slices)


def validate(predict: Predict, dataset: Dataset, loader: SessionLoader | None) -> dict[str, float | None]:
    """Metrics of a `validation_loader`, without intervals: what training watches; none if there is no loader."""
    if loader is None:
        return {}
    return scores_of(predict(loader), loader, dataset).means()


def scores_of(
    predictions: Predictions, loader: SessionLoader, dataset: Dataset, slices: dict[str, Labels] | None = None
) -> Scores:
    """Scores of the predictions of a loader's examples; those of hidden tracks have no slices.

    With slices, they also have the accuracy by training plays.
    """
    if isinstance(predictions, MaskedPredictions):
        return evaluate_masked(predictions, loader.targets())
    plays = None if slices is None else dataset.train_plays.numpy()
    if isinstance(predictions, SkipPredictions):
        return evaluate_skip(predictions, loader.targets(), slices=slices, train_plays=plays)
    return evaluate_seq(predictions, loader.targets(), n_ids=dataset.n_ids, slices=slices, train_plays=plays)
