"""Predictions and scores for people: tables, files and printed lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils.core.errors import UserError
from utils.core.files import atomic_file
from utils.data.dataloaders import SessionLoader
from utils.data.dataset import Dataset
from utils.data.vocab import PAD
from utils.evaluation.predictions import MaskedPredictions, Predictions, SkipPredictions
from utils.evaluation.slices import OUTSIDE


def predictions_table(predictions: Predictions, loader: SessionLoader, dataset: Dataset) -> pd.DataFrame:
    """Predictions for people, one row a target: session, position, track, and what was predicted of the target.

    Skip: `skip_probability`, `skip_predicted` and `skipped` (the truth, empty if unknown). Seq: `predicted_track_id`.
    Hidden tracks: `probability` and `rank` (1 for the most probable track).
    """
    targets = loader.targets()
    if isinstance(predictions, MaskedPredictions):  # anywhere in a session, not only behind its cut
        tracks, first = predictions.tracks, -loader.history_size
    else:
        tracks, first = targets.tracks, 0
    example, step = np.nonzero(tracks != PAD)
    session = targets.session[example]
    table = pd.DataFrame(
        {
            "session_id": loader.arrays.sessions["session_id"].to_numpy()[session],
            "position": loader.cuts[example] + first + step + 1,
            "track_id": dataset.track_names[tracks[example, step]],
        }
    )
    if isinstance(predictions, SkipPredictions):
        truth = targets.skips[example, step]
        table["skip_probability"] = predictions.probability[example, step]
        table["skip_predicted"] = predictions.decision[example, step]
        table["skipped"] = pd.array(truth == 1, dtype="boolean")
        table.loc[truth < 0, "skipped"] = pd.NA
    elif isinstance(predictions, MaskedPredictions):
        table["probability"] = np.exp(predictions.log_probability[example, step])
        table["rank"] = predictions.rank[example, step] + 1
    else:
        table["predicted_track_id"] = dataset.track_names[predictions.tracks[example, step]]
    return table


def print_scores(title: str, summary: dict[str, Any]) -> None:
    """Print one line for each metric of `Scores.summary()`, with its interval."""
    print(title)
    for name, value in summary["metrics"].items():
        if value["mean"] is not None:
            interval = "" if value["low"] is None else f"  [{value['low']:.4f}, {value['high']:.4f}]"
            print(f"  {name:15} {value['mean']:9.4f}{interval}")
    for name, value in summary["by_plays"].items():
        which = "of new tracks" if name == OUTSIDE else f"with {name} training plays"
        print(f"  accuracy of {value['n']:,} targets {which}: {value['mean']:.4f}")


def check_table_path(path: Path) -> None:
    """
    Raises:
        UserError: a table cannot be written there: the path ends neither in .csv nor in .parquet, or is a folder.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise UserError(f"{path} must end in .csv or .parquet")
    if path.is_dir():
        raise UserError(f"{path} cannot be written: it is a folder; name a file")


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as .csv or .parquet, atomically.

    Raises:
        UserError: nothing can be written there, see `check_table_path`.
    """
    check_table_path(path)
    try:
        with atomic_file(path) as temporary:
            table.to_csv(temporary, index=False) if path.suffix == ".csv" else table.to_parquet(temporary, index=False)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}") from None
